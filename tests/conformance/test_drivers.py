"""The simulator and the live executor carry out effects and keep timers alike: one suite for both."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path

import pytest

from rewarm.core.node import Node
from rewarm.errors import NotFound, SandboxFailed
from rewarm.facts import messages as m
from rewarm.facts.function import LangKey
from rewarm.facts.request import Request
from rewarm.facts.sandbox import SandboxState
from rewarm.policy.keepalive.fixed import FixedKeepalive
from rewarm.sim.machine import Machine
from rewarm.sim.traces.base import Chunk, TracedFunction
from rewarm.testing import LiveHost, Record, Setting, SimulatedHost, check_driver
from rewarm.testing.drivers import DRIVER_CHECKS


@pytest.mark.parametrize("name", DRIVER_CHECKS)
async def test_simulated(name: str) -> None:
    await check_driver(SimulatedHost, only=name)


@pytest.mark.parametrize("name", DRIVER_CHECKS)
async def test_live(name: str, tmp_path: Path) -> None:
    _, setting = DRIVER_CHECKS[name]
    if not setting.forks and shutil.which("node") is None:
        pytest.skip("node is not installed")
    await check_driver(lambda setting: LiveHost(setting, tmp_path), only=name)


async def test_all_at_once() -> None:
    """`check_driver` without a name takes a host through everything."""
    await check_driver(SimulatedHost)


class Growing:
    """A trace that comes to know a function on its way."""

    total = None
    end_s = 30.0

    def __init__(self) -> None:
        self.functions = [TracedFunction("f")]

    def chunks(self) -> Iterator[Chunk]:
        yield Chunk([0.0, 10.0], [0, 0], [0.1, 0.1])
        self.functions.append(TracedFunction("late"))
        yield Chunk([20.0, 20.0], [0, 1], [0.1, 0.1])


def test_a_whole_trace_in_the_simulator() -> None:
    """What `run` does, beside its single steps: windows end between calls, and a function is deployed when it comes."""
    setting = Setting(user_s=1.0)
    machine = Machine(
        FixedKeepalive(user_s=1.0, lang_s=1.0, bare_s=0.0), Growing(), setting.costs, budget_bytes=1 << 40,
        max_instances=1, seed=1, observe=lambda effect, now: record.decided(effect, now),
    )  # fmt: skip
    record = Record(machine.node)
    machine.run(lambda calls: None)
    assert not record.wrong
    assert [at_s for at_s, _ in record.all(m.Deployed)] == [0.0, 20.0]
    assert [at_s for at_s, _ in record.all(m.RaiseBare)] == [0.0, 10.0, 20.0, 20.0]
    assert len(record.served) == 4


# ---------------------------------------------------------------- the suite is not blind


def recorded(*events: m.Event, effects: Sequence[m.Effect] = (), at_s: Sequence[float] = ()) -> Record:
    """A core that is told `events` by a driver that carried out `effects` before them."""
    node = Node(1 << 40, FixedKeepalive())
    record = Record(node)
    for effect in effects:
        record.decided(effect)
    for event, now in zip_longest(events, at_s, fillvalue=0.0):
        node.handle(event, now)
    return record


KEY = LangKey()
UP = m.Raised(1, SandboxState.BARE, 0.0)


@pytest.mark.parametrize(
    ("effects", "events", "said"),
    [
        ([m.RaiseBare(1)], [UP, UP], "expected [] of 1"),
        ([m.RaiseBare(1)], [m.Raised(1, SandboxState.LANG, 0.0)], "expected [<SandboxState.BARE: 'bare'>] of 1"),
        ([], [m.RunDone(1, 0.0)], "expected nothing of 1"),
        ([m.RaiseBare(1)], [m.Exited(1)], "what nobody told to end"),
        ([m.RaiseBare(1), m.Destroy(1, "")], [UP], "expected [] of 1"),
        ([m.RaiseBare(1), m.Destroy(1, "")], [m.Exited(1), m.Exited(1)], "of what has ended"),
        ([m.RaiseBare(1), m.Destroy(1, "")], [m.Exited(1, SandboxFailed("late"))], "is no error"),
        ([m.RaiseLang(KEY, None), m.DropLang(KEY, "")], [m.LangRaised(KEY, 0.0)], "expected [] of python"),
        ([], [m.Tick()], "a Tick at 0.0 that nobody asked for"),
    ],
)
def test_what_no_effect_asked_for(effects: list[m.Effect], events: list[m.Event], said: str) -> None:
    (wrong,) = recorded(*events, effects=effects).wrong
    assert said in wrong


def test_a_clock_that_is_turned_back() -> None:
    (wrong,) = recorded(m.Flush("f"), m.Flush("f"), at_s=[1.0, 0.5]).wrong
    assert "time went back from 1.0 to 0.5" in wrong


def test_what_is_left_at_the_end() -> None:
    with pytest.raises(AssertionError, match=r"left at the end: \{1\}"):
        recorded(UP, effects=[m.RaiseBare(1)]).check_end()
    record = recorded()
    record.came("f", 0.0)
    with pytest.raises(AssertionError, match=r"submitted Counter\({'f': 1}\), answered Counter\(\)"):
        record.check_end()
    request = Request("f", 0.0, 0.0)
    record.came("f", 0.0)
    record.decided(m.Reject(request, NotFound("f")))
    record.decided(m.Reject(request, NotFound("f")))
    with pytest.raises(AssertionError, match="answered more than once"):
        record.check_end()
