"""What every sandbox driver must do, as one call.

    await check_sandbox_driver(make_driver, revision, broken)

`revision` is a handler that does what its event says, as `PROBE` does: a driver that runs files is given a folder with
PROBE in it, the fake driver gets `behave`. `broken` is a revision whose code does not come up. Every driver is wrapped
in a GuardedDriver, as the server does. AssertionError says what was expected.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import orjson

from rewarm import wire
from rewarm.errors import FunctionError, RewarmError
from rewarm.facts import messages as m
from rewarm.facts.function import LangKey, Revision
from rewarm.facts.request import Request
from rewarm.facts.sandbox import SandboxState
from rewarm.sandbox.guard import GuardedDriver
from rewarm.sandbox.port import Node, SandboxDriver
from rewarm.testing.fake_driver import Outcome

State = SandboxState
E = TypeVar("E", bound=m.Event)
TIMEOUT_S = 20.0
SILENCE_S = 0.05

#: The handler of `revision`: gives every event back, unless it says what else to do.
PROBE = """
import ctypes, os


def main(event, context):
    what = event.get("do", "ok")
    if what == "error":
        raise ValueError("asked for")
    if what == "exits":
        os._exit(0)
    if what == "dies":
        ctypes.string_at(0)
    while what == "hangs":
        pass
    return event
"""


def behave(request: Request) -> Outcome:
    """PROBE for the fake driver."""
    return Outcome(orjson.loads(request.payload[2]).get("do", "ok"))


def call(**event: object) -> Request:
    """A request for PROBE."""
    return Request("probe", 0.0, 0.0, wire.Item(wire.KIND_JSON, b"", orjson.dumps(event)))


class Recorder:
    """A sink that checks the order of what it hears and lets tests wait for it.

    What is wrong is kept in `wrong`, not raised: it is called from the midst of the driver.
    """

    def __init__(self) -> None:
        self.events: list[m.Event] = []
        self.answers: dict[Request, wire.AnyAnswer] = {}
        self.logged = b""
        self.running: dict[int, list[Request]] = {}
        self.wrong: list[str] = []
        self._owed: list[Request] | None = None  # RunDone was heard: its answers come next
        self._heard = asyncio.Event()

    def post(self, event: m.Event) -> None:
        self._expect(self._owed is None, f"{event} between RunDone and its answers")
        if isinstance(event, m.RunDone):
            self._expect(event.sandbox_id in self.running, f"{event} without a Run")
            self._expect(event.run_s >= 0, f"{event}")
            self._owed = self.running.pop(event.sandbox_id, [])
        elif isinstance(event, m.Exited):
            self.running.pop(event.sandbox_id, None)
        self.events.append(event)
        self._heard.set()

    def answer(self, requests: list[Request], answers: list[wire.AnyAnswer], run_us: int) -> None:
        owed, self._owed = self._owed, None
        self._expect(owed is not None, "answers before RunDone")
        self._expect([*map(id, requests)] == [*map(id, owed or ())], "answers of another batch, or in another order")
        self._expect(len(answers) == len(requests), f"{len(answers)} answers to {len(requests)} requests")
        self.answers.update(zip(requests, answers, strict=False))
        self._heard.set()

    def _expect(self, holds: bool, what: str) -> None:
        if not holds:
            self.wrong.append(what)

    def log(self, function: str, sandbox_id: int, chunk: bytes) -> None:
        self.logged += chunk
        self._heard.set()

    def of(self, node: Node) -> list[m.Event]:
        """What was said about one sandbox or zygote."""
        return [e for e in self.events if getattr(e, "sandbox_id", getattr(e, "key", None)) == node]

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait until `condition` holds; it is asked after everything that is heard."""
        async with asyncio.timeout(TIMEOUT_S):
            try:
                while not condition():
                    assert not self.wrong, self.wrong
                    self._heard.clear()
                    await self._heard.wait()
            except asyncio.CancelledError:
                raise AssertionError(f"{what}: not within {TIMEOUT_S} s; heard {self.events[-5:]}") from None


class Stage:
    """One driver under test, and the shortest words for what is done with it."""

    def __init__(self, driver: SandboxDriver, revision: Revision, broken: Revision) -> None:
        self.driver = GuardedDriver(driver)
        self.revision = revision
        self.broken = broken
        self.sink = Recorder()
        self.driver.attach(self.sink)
        self._last_id = 0

    async def heard(self, kind: type[E], node: Node, count: int = 1) -> E:
        def found() -> list[E]:
            return [event for event in self.sink.of(node) if isinstance(event, kind)]

        await self.sink.until(lambda: len(found()) >= count, f"{kind.__name__} of {node}")
        return found()[count - 1]

    async def zygote(self, key: LangKey | None = None, parent: LangKey | None = None) -> LangKey:
        key = key if key is not None else self.revision.spec.lang_key
        self.driver.carry_out(m.RaiseLang(key, parent))
        raised = await self.heard(m.LangRaised, key)
        assert raised.seconds >= 0
        return key

    async def climb(self, to: SandboxState, revision: Revision | None = None) -> int:
        """A new sandbox, as far as `to`. Its zygote must be there unless that is BARE."""
        revision = revision if revision is not None else self.revision
        self._last_id += 1
        node = self._last_id
        self.driver.carry_out(m.RaiseBare(node, revision.spec))
        await self.raised(node, [State.BARE])
        if to is not State.BARE:
            self.driver.carry_out(m.Fork(node, revision.spec.lang_key))
            await self.raised(node, [State.BARE, State.LANG])
        if to in (State.USER, State.READY):
            self.driver.carry_out(m.LoadUser(node, revision))
            await self.raised(node, [State.BARE, State.LANG, State.USER, State.READY])
        return node

    async def raised(self, node: int, states: list[SandboxState]) -> None:
        await self.sink.until(lambda: len(self.sink.of(node)) >= len(states), f"sandbox {node} as {states[-1]}")
        said = [event.state if isinstance(event, m.Raised) else event for event in self.sink.of(node)]
        assert said == states, f"expected {states}, heard {said}"

    def run(self, node: int, *requests: Request) -> None:
        self.sink.running[node] = list(requests)
        self.driver.carry_out(m.Run(node, list(requests)))

    async def answered(self, *requests: Request) -> None:
        await self.sink.until(lambda: all(r in self.sink.answers for r in requests), "answers")

    async def gone(self, node: int) -> m.Exited:
        """It ends, once, and then is silent."""
        end = await self.heard(m.Exited, node)
        await asyncio.sleep(SILENCE_S)
        assert self.sink.of(node)[-1] is end, f"heard after the end: {self.sink.of(node)}"
        assert sum(isinstance(event, m.Exited) for event in self.sink.of(node)) == 1
        assert node not in self.driver.pids()
        return end


Check = Callable[[Stage], Awaitable[None]]


async def layers_come_in_order(s: Stage) -> None:
    key = await s.zygote()
    node = await s.climb(State.READY)
    assert set(s.driver.pids()) <= {key, node}


async def runs_are_answered_in_order(s: Stage) -> None:
    await s.zygote()
    node = await s.climb(State.READY)
    for size in (1, 5, 1):
        requests = [call(n=n) for n in range(size)]
        s.run(node, *requests)
        await s.answered(*requests)
        for request in requests:
            assert s.sink.answers[request][0] == 200
            assert orjson.loads(s.sink.answers[request][4]) == orjson.loads(request.payload[2])
    assert sum(isinstance(event, m.RunDone) for event in s.sink.of(node)) == 3


async def an_exception_is_an_answer(s: Stage) -> None:
    await s.zygote()
    node = await s.climb(State.READY)
    good, bad = call(n=1), call(do="error")
    s.run(node, good, bad)
    await s.answered(good, bad)
    assert [s.sink.answers[request][0] for request in (good, bad)] == [200, FunctionError.status]
    again = call(n=2)
    s.run(node, again)
    await s.answered(again)


async def destroy_ends_every_stage(s: Stage) -> None:
    await s.zygote()
    for stage in (State.BARE, State.LANG, State.READY):
        node = await s.climb(stage)
        s.driver.carry_out(m.Destroy(node, "test"))
        s.driver.carry_out(m.Destroy(node, "test"))
        assert (await s.gone(node)).error is None, f"Destroy in {stage.value}"


async def destroy_ends_every_step(s: Stage) -> None:
    """Between an effect and its report."""
    key = await s.zygote()
    steps: list[tuple[SandboxState, Callable[[int], m.Effect]]] = [
        (State.BARE, lambda node: m.Fork(node, key)),
        (State.LANG, lambda node: m.LoadUser(node, s.revision)),
        (State.LANG, lambda node: m.LoadUser(node, s.broken)),
        (State.READY, lambda node: m.Run(node, [call(n=1)])),
        (State.READY, lambda node: m.Run(node, [call(do="hangs")])),
    ]
    for stage, step in steps:
        node = await s.climb(stage)
        before = len(s.sink.of(node))
        s.driver.carry_out(step(node))
        s.driver.carry_out(m.Destroy(node, "test"))
        assert (await s.gone(node)).error is None, f"Destroy right after {step(node)}"
        assert len(s.sink.of(node)) == before + 1, "nothing but the end after Destroy"
    assert not s.sink.answers, "nothing is answered after Destroy"


async def a_death_has_a_reason(s: Stage) -> None:
    await s.zygote()
    for how in ("dies", "exits"):
        node = await s.climb(State.READY)
        first = call(n=1)
        s.run(node, first)
        await s.answered(first)
        lost = [call(n=2), call(do=how)]
        s.run(node, *lost)
        end = await s.gone(node)
        assert isinstance(end.error, FunctionError), f"user code {how}: {end}"
        assert not any(request in s.sink.answers for request in lost)
    node = await s.climb(State.READY)
    after = call(n=3)
    s.run(node, after)
    await s.answered(after)


async def a_failed_start_has_a_reason(s: Stage) -> None:
    await s.zygote()
    node = await s.climb(State.LANG)
    s.driver.carry_out(m.LoadUser(node, s.broken))
    end = await s.gone(node)
    assert end.error is not None and end.error.code in ("start_failed", "bad_definition"), end
    assert end.error.message


async def zygotes_end_when_told(s: Stage) -> None:
    key = await s.zygote()
    s.driver.carry_out(m.DropLang(key, "test"))
    assert (await s.heard(m.LangExited, key)).error is None
    assert key not in s.driver.pids()
    s.driver.carry_out(m.RaiseLang(key, None))
    await s.heard(m.LangRaised, key, 2)
    s.driver.carry_out(m.DropLang(key, "test"))
    s.driver.carry_out(m.DropLang(key, "test"))
    await s.heard(m.LangExited, key, 2)
    s.driver.carry_out(m.RaiseLang(key, None))
    s.driver.carry_out(m.DropLang(key, "test"))  # while it rises
    await s.heard(m.LangExited, key, 3)
    await asyncio.sleep(SILENCE_S)
    assert isinstance(s.sink.of(key)[-1], m.LangExited)


async def zygotes_are_forked_from_zygotes(s: Stage) -> None:
    parent = await s.zygote()
    child = await s.zygote(LangKey((*parent.packages, "decimal")), parent)
    s.driver.carry_out(m.DropLang(parent, "test"))
    await s.heard(m.LangExited, parent)
    await asyncio.sleep(SILENCE_S)
    assert not any(isinstance(event, m.LangExited) for event in s.sink.of(child)), "it outlives its parent"
    s.driver.carry_out(m.DropLang(child, "test"))
    assert (await s.heard(m.LangExited, child)).error is None


async def instances_outlive_their_zygote(s: Stage) -> None:
    key = await s.zygote()
    node = await s.climb(State.READY)
    s.driver.carry_out(m.DropLang(key, "test"))
    await s.heard(m.LangExited, key)
    request = call(n=1)
    s.run(node, request)
    await s.answered(request)
    s.driver.carry_out(m.Destroy(node, "test"))
    assert (await s.gone(node)).error is None


async def a_fork_without_its_zygote_fails(s: Stage) -> None:
    key = await s.zygote()
    node = await s.climb(State.BARE)
    s.driver.carry_out(m.DropLang(key, "test"))
    s.driver.carry_out(m.Fork(node, key))
    assert isinstance((await s.gone(node)).error, RewarmError)


async def the_unknown_is_ignored(s: Stage) -> None:
    nobody = LangKey(("decimal", "fractions"))
    for effect in (
        m.Fork(99, nobody), m.LoadUser(99, s.revision), m.Run(99, [call(n=1)]), m.Destroy(99, "test"),
        m.DropLang(nobody, "test"),
    ):  # fmt: skip
        s.driver.carry_out(effect)
    node = await s.climb(State.BARE)
    s.driver.carry_out(m.Destroy(node, "test"))
    await s.gone(node)
    before = len(s.sink.events)
    s.driver.carry_out(m.LoadUser(node, s.revision))
    s.driver.carry_out(m.Destroy(node, "test"))
    s.driver.drain_log(node)
    await asyncio.sleep(SILENCE_S)
    assert len(s.sink.events) == before, "effects for what is unknown or gone are ignored"


async def several_at_once(s: Stage) -> None:
    await s.zygote()
    nodes = [await s.climb(State.READY) for _ in range(3)]
    requests = [call(n=node) for node in nodes]
    for node, request in zip(nodes, requests, strict=True):
        s.run(node, request)
    await s.answered(*requests)
    s.run(nodes[0], call(do="dies"))
    await s.gone(nodes[0])
    again = call(n=1)
    s.run(nodes[1], again)
    await s.answered(again)


async def closing_ends_everything(s: Stage) -> None:
    """At every stage at once; what is checked after every driver's `close` does the rest."""
    await s.zygote()
    for stage in (State.BARE, State.LANG, State.READY, State.READY):
        node = await s.climb(stage)
    s.run(node, call(do="hangs"))
    node = await s.climb(State.LANG)
    s.driver.carry_out(m.LoadUser(node, s.revision))
    s.driver.carry_out(m.RaiseLang(LangKey(("decimal",)), None))


#: Every check by its name, for a parametrized test.
SANDBOX_CHECKS: dict[str, Check] = {
    check.__name__: check
    for check in (
        layers_come_in_order, runs_are_answered_in_order, an_exception_is_an_answer, destroy_ends_every_stage,
        destroy_ends_every_step, a_death_has_a_reason, a_failed_start_has_a_reason, zygotes_end_when_told,
        zygotes_are_forked_from_zygotes, instances_outlive_their_zygote, a_fork_without_its_zygote_fails,
        the_unknown_is_ignored, several_at_once, closing_ends_everything,
    )
}  # fmt: skip


async def check_sandbox_driver(
    make_driver: Callable[[], SandboxDriver],
    revision: Revision,
    broken: Revision,
    *,
    only: str | None = None,
    held: Callable[[], set[str]] = set,
) -> None:
    """Takes a fresh driver through each check, or through the one named `only`.

    `held` says what this process holds (see `held_by_process`); after `close()` that is what it was before.
    """
    for name, check in SANDBOX_CHECKS.items():
        if only not in (None, name):
            continue
        before = held()
        stage = Stage(make_driver(), revision, broken)
        try:
            await check(stage)
        finally:
            await stage.driver.close()
        assert not stage.sink.wrong, f"{name}: {stage.sink.wrong}"
        ends = [event for event in stage.sink.events if isinstance(event, m.Exited)]
        assert len({event.sandbox_id for event in ends}) == len(ends), f"{name}: an end was reported twice"
        assert not stage.driver.pids(), f"{name}: left after close(): {stage.driver.pids()}"
        left = held() - before
        assert not left, f"{name}: left after close(): {sorted(left)}"


def held_by_process(folder: Path) -> set[str]:
    """What this process holds now: living descendants, open descriptors, and whatever lies in `folder`."""
    held = {f"process {pid}" for pid in _descendants(os.getpid())}
    for number in os.listdir("/proc/self/fd"):
        try:
            held.add(f"descriptor {number}: {os.readlink(f'/proc/self/fd/{number}')}")
        except OSError:
            continue  # the descriptor of the listing itself
    if folder.is_dir():
        held |= {f"path {path.relative_to(folder)}" for path in folder.rglob("*")}
    return held


def _descendants(pid: int) -> set[int]:
    found: set[int] = set()
    try:
        tasks = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return found
    for task in tasks:
        try:
            children = [int(child) for child in Path(f"/proc/{pid}/task/{task}/children").read_text().split()]
        except OSError:
            continue
        for child in children:
            found |= {child} | _descendants(child)
    return found
