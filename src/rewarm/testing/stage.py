"""Where one sandbox driver is put to the test: a sink that listens closely, and short words for what is done."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from rewarm import wire
from rewarm.facts import messages as m
from rewarm.facts.function import LangKey, Revision
from rewarm.facts.request import Request
from rewarm.facts.sandbox import SandboxState
from rewarm.sandbox.guard import GuardedDriver
from rewarm.sandbox.port import Node, SandboxDriver

State = SandboxState
E = TypeVar("E", bound=m.Event)
TIMEOUT_S = 20.0
SILENCE_S = 0.05


class Recorder:
    """A sink that checks the order of what it hears and lets tests wait for it.

    What is wrong is kept in `wrong`, not raised: it is called from the midst of the driver.
    """

    def __init__(self, timeout_s: float = TIMEOUT_S) -> None:
        self.timeout_s = timeout_s
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

    def of(self, node: Node | str) -> list[m.Event]:
        """What was said about one sandbox or zygote, or about the snapshot of a revision, by its digest."""
        return [e for e in self.events if node in (getattr(e, name, None) for name in ("sandbox_id", "key", "digest"))]

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait until `condition` holds; it is asked after everything that is heard."""
        async with asyncio.timeout(self.timeout_s):
            try:
                while not condition():
                    assert not self.wrong, self.wrong
                    self._heard.clear()
                    await self._heard.wait()
            except asyncio.CancelledError:
                raise AssertionError(f"{what}: not within {self.timeout_s} s; heard {self.events[-5:]}") from None


class Stage:
    """One driver under test, and the shortest words for what is done with it.

    `damage` makes what is on disk of `revision` unusable, behind the driver's back.
    """

    def __init__(
        self, driver: SandboxDriver, revision: Revision, broken: Revision, *, timeout_s: float = TIMEOUT_S,
        damage: Callable[[SandboxDriver, Revision], None] | None = None,
    ) -> None:  # fmt: skip
        self.driver = GuardedDriver(driver)
        self.revision = revision
        self.broken = broken
        self.damage = partial(damage, driver) if damage is not None else None
        self.sink = Recorder(timeout_s)
        self.driver.attach(self.sink)
        self._last_id = 0

    async def heard(self, kind: type[E], node: Node | str, count: int = 1) -> E:
        def found() -> list[E]:
            return [event for event in self.sink.of(node) if isinstance(event, kind)]

        await self.sink.until(lambda: len(found()) >= count, f"{kind.__name__} of {node}")
        return found()[count - 1]

    async def zygote(self, key: LangKey | None = None, parent: LangKey | None = None) -> LangKey:
        key = key if key is not None else self.revision.spec.lang_key
        before = sum(isinstance(event, m.LangRaised) for event in self.sink.of(key))
        self.driver.carry_out(m.RaiseLang(key, parent))
        raised = await self.heard(m.LangRaised, key, before + 1)
        assert raised.seconds >= 0
        return key

    async def climb(self, to: SandboxState, revision: Revision | None = None) -> int:
        """A new sandbox, as far as `to`. Its zygote must be there unless that is BARE."""
        revision = revision if revision is not None else self.revision
        node = self.new_id()
        self.driver.carry_out(m.RaiseBare(node, revision.spec.vm_bytes > 0))
        await self.raised(node, [State.BARE])
        if to is not State.BARE:
            self.driver.carry_out(m.Fork(node, revision.spec.lang_key, revision.spec))
            await self.raised(node, [State.BARE, State.LANG])
        if to in (State.USER, State.READY):
            self.driver.carry_out(m.LoadUser(node, revision))
            await self.raised(node, [State.BARE, State.LANG, State.USER, State.READY])
        return node

    def new_id(self) -> int:
        self._last_id += 1
        return self._last_id

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


def held_by_process(folder: Path) -> set[str]:
    """What this process holds now: living descendants, open descriptors, and whatever lies in `folder`."""
    held = {f"process {pid}" for pid in _descendants(os.getpid())}
    for number in os.listdir("/proc/self/fd"):
        try:
            held.add(f"descriptor {number}: {os.readlink(f'/proc/self/fd/{number}')}")
        except OSError:
            continue  # the descriptor of the listing itself
    for parent, folders, files in os.walk(folder):  # which does not mind that what it walks is being removed
        held |= {f"path {os.path.relpath(parent, folder)}/{name}" for name in (*folders, *files)}
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
