"""One trace, twice: live, with processes that sleep, and in the simulator: the same decisions in the same order."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
from pathlib import Path

import pytest

from rewarm import wire
from rewarm.clock import system_clock
from rewarm.control.executor import Executor
from rewarm.core.node import Node
from rewarm.errors import RewarmError
from rewarm.facts import messages as m
from rewarm.facts.function import Revision
from rewarm.facts.request import Request
from rewarm.obs.logs import LogStore
from rewarm.policy import registry
from rewarm.sandbox.guard import GuardedDriver
from rewarm.sandbox.process import ProcessDriver
from rewarm.sim.costs import MB, Costs, Draw, LangCosts, UserCosts
from rewarm.sim.machine import Machine
from rewarm.sim.traces.base import Options
from rewarm.sim.traces.catalogue import open_trace
from rewarm.testing import Listening

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.alone]

BUDGET_BYTES = 1 << 40
SEED = 1
SLEEPER = "import time\n\n\ndef main(event, context):\n    time.sleep(event)\n"
#: Whatever is decided is at least 0.4 s from what is decided for another reason, so that a slow machine does the same.
CALLS = [(0.0, "a"), (1.5, "c"), (2.0, "a"), (2.5, "c"), (5.1, "b"), (6.6, "b"), (9.2, "a"), (10.4, "a")]


class Pace:
    """The trace, its policy and about what layers cost on a common machine, all `slower` times as long.

    Two keys, each of a module that every Python has.
    """

    def __init__(self, slower: float) -> None:
        lang = LangCosts(0.25 * slower, 20 * MB, 0.5 * slower, 0.005 * slower)
        user = UserCosts(Draw(0.02 * slower), Draw(20 * MB))
        self.costs = Costs(0.001 * slower, MB, {"json": lang, "decimal": lang}, {"": user})
        self.policy = registry.parse(f"fixed:user_s={2 * slower},lang_s={3 * slower},bare_s={2 * slower}")
        self.calls = [(at_s * slower, name) for at_s, name in CALLS]
        self.run_s = 0.1 * slower

    def runtime(self, name: str) -> str:
        """Of a function of this name: a and c share one, b has the other."""
        return self.costs.of(name, None, SEED).runtime


class Decisions:
    """Effects as words that say which function they are about."""

    def __init__(self) -> None:
        self.words: list[str] = []
        self._owners: dict[int, str] = {}

    def note(self, effect: m.Effect, now: float = 0.0) -> None:
        kind = type(effect).__name__
        if isinstance(effect, m.RaiseLang | m.DropLang):
            self.words.append(f"{kind} {effect.key}")
        elif isinstance(effect, m.Reject):
            self.words.append(f"{kind} {effect.request.function} {effect.error.code}")
        else:
            if isinstance(effect, m.Fork):
                self._owners[effect.sandbox_id] = effect.spec.name
            why = f" {effect.reason}" if isinstance(effect, m.Destroy) else ""
            self.words.append(f"{kind} {effect.sandbox_id} {self._owners.get(effect.sandbox_id, 'nobody')}{why}")


class Callers:
    """Counts answers; nobody is refused."""

    def __init__(self, expected: int) -> None:
        self.left = expected
        self.done = asyncio.Event()

    def answer(self, requests: list[Request], answers: list[wire.AnyAnswer], run_us: int) -> None:
        assert all(answer[0] == 200 for answer in answers), answers
        self.left -= len(requests)
        if not self.left:
            self.done.set()

    def reject(self, request: Request, error: RewarmError) -> None:
        raise AssertionError(error)


async def live(folder: Path, pace: Pace) -> list[str]:
    """What the core decided until the last call was answered."""
    (folder / "code").mkdir(parents=True)
    (folder / "code" / "sleeper.py").write_text(SLEEPER)
    decisions, callers = Decisions(), Callers(len(CALLS))
    node = Node(BUDGET_BYTES, registry.keepalive(pace.policy))
    driver = Listening(GuardedDriver(ProcessDriver(folder / "run")), decisions.note)
    executor = Executor(node, driver, LogStore(1 << 16, time.time))
    executor.start(callers)
    for name in sorted({name for _, name in CALLS}):
        spec = dataclasses.replace(pace.costs.spec(name, pace.runtime(name), 1), entry="sleeper:main", timeout_s=60.0)
        executor.post(m.Deployed(Revision(spec, name, 1, str(folder / "code"))))
    began_s = system_clock()
    for at_s, name in pace.calls:
        await asyncio.sleep(began_s + at_s - system_clock())
        item = (wire.KIND_JSON, b"", json.dumps(pace.run_s).encode())
        now = system_clock()
        executor.submit(Request(name, now, now + 60.0, item))
    await asyncio.wait_for(callers.done.wait(), 60.0)
    words = list(decisions.words)
    await executor.close()
    return words


def simulated(folder: Path, pace: Pace) -> list[str]:
    path = folder / "trace.csv"
    path.write_text("t_s,function,duration_s\n" + "".join(f"{at_s},{name},{pace.run_s}\n" for at_s, name in pace.calls))
    decisions = Decisions()
    machine = Machine(
        registry.keepalive(pace.policy), open_trace(str(path), Options()), pace.costs,
        budget_bytes=BUDGET_BYTES, max_instances=1, seed=SEED, observe=decisions.note,
    )  # fmt: skip
    machine.run(lambda calls: None)
    return decisions.words


async def test_the_same_decisions_in_the_same_order(tmp_path: Path) -> None:
    """A machine that is too busy for the trace gets it three times as slow: then its decisions must be the same."""
    expected = simulated(tmp_path, Pace(1.0))
    kinds = {words.split()[0] for words in expected}
    assert kinds == {"Run", "RaiseBare", "RaiseLang", "Fork", "LoadUser", "Destroy", "DropLang"}
    for slower in (1.0, 3.0):
        pace = Pace(slower)
        assert pace.runtime("a") == pace.runtime("c") != pace.runtime("b")
        assert simulated(tmp_path, pace) == expected
        found = await live(tmp_path / f"x{slower:g}", pace)
        if found == expected:
            return
    assert found == expected
