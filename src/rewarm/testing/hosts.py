"""The two ways to drive the core behind one interface: in virtual time, and live with processes that sleep.

    host = SimulatedHost(Setting())            # rewarm.sim.machine
    host = LiveHost(Setting(), folder)         # rewarm.control.executor, real processes
    host.deploy("f")
    host.submit("f", run_s=0.1)
    await host.until(lambda: len(host.record.served) == 1, "a served request")
    await host.close()

Whatever happens is in `host.record`. A new way to drive the core implements `Host` and calls `check_driver`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rewarm import wire
from rewarm.clock import system_clock
from rewarm.control.executor import Executor
from rewarm.core.node import Node
from rewarm.errors import RewarmError
from rewarm.facts import messages as m
from rewarm.facts.function import FunctionSpec, LangKey, PolicySpec, Revision
from rewarm.facts.request import Request
from rewarm.obs.logs import LogStore
from rewarm.policy import registry
from rewarm.sandbox.guard import GuardedDriver
from rewarm.sandbox.port import Node as LayerName
from rewarm.sandbox.port import SandboxDriver, Sink
from rewarm.sandbox.process import ProcessDriver
from rewarm.sim.costs import Costs, Draw, LangCosts, UserCosts
from rewarm.sim.machine import Machine
from rewarm.sim.traces.base import Chunk, TracedFunction
from rewarm.testing.record import Record
from rewarm.testing.stage import held_by_process
from rewarm.units import MB

TIMEOUT_S = 20.0
_BUDGET_BYTES = 1 << 40
_SEED = 1
_INSTANCES = 1  # of each function
_PYTHON = "import time\n\ntime.sleep({load_s})\n\n\ndef main(event, context):\n    time.sleep(event)\n"
_NODE = "export const main = (event) => new Promise((done) => setTimeout(done, 1000 * event));\n"


@dataclass(frozen=True, slots=True)
class Setting:
    """What a host is set up with: how long each idle layer is kept, in seconds, and what its functions are."""

    user_s: float = 0.15
    lang_s: float = 0.15
    bare_s: float = 0.0
    forks: bool = True  # False: their runtime is used up by one instance
    load_s: float = 0.01  # what their code takes to load; of Python only

    @property
    def policy(self) -> PolicySpec:
        return PolicySpec("fixed", {"user_s": self.user_s, "lang_s": self.lang_s, "bare_s": self.bare_s})

    @property
    def runtime(self) -> str:
        return "json" if self.forks else "nodejs"  # a package that every Python has

    @property
    def costs(self) -> Costs:
        """About what layers cost on a common machine."""
        lang = LangCosts(0.1, 20 * MB, 1.0, 0.005, self.forks)
        return Costs(0.001, MB, {self.runtime: lang}, {"": UserCosts(Draw(self.load_s), Draw(20 * MB))})

    def spec(self, name: str) -> FunctionSpec:
        return self.costs.spec(name, self.runtime, _INSTANCES)

    @property
    def key(self) -> LangKey:
        """Of every function."""
        return self.spec("any").lang_key


class Host(Protocol):
    """One node, driven. Moments are in seconds on the clock that the core is given."""

    setting: Setting
    node: Node
    record: Record
    late_s: float  # how much later than asked for the core may be woken

    @property
    def now_s(self) -> float: ...

    def deploy(self, name: str) -> None:
        """A function that sleeps as long as it is told. A name may be deployed again once it was removed."""

    def submit(self, name: str, run_s: float = 0.0, *, within_s: float = 60.0) -> None:
        """A request comes now. May be called while an effect is carried out."""

    def tell(self, event: m.Event) -> None:
        """Anything else happens."""

    def carry_out(self, effect: m.Effect) -> None:
        """Have an effect carried out that the core did not ask for."""

    def when(self, kind: type, act: Callable[[], None]) -> None:
        """Call `act` once, from the midst of the next effect of this kind."""

    def living(self) -> set[LayerName]:
        """Layers that the driver has, as far as it can tell."""

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        """Let time pass until `condition` holds. Raises AssertionError if it never does."""

    async def wait(self, for_s: float) -> None:
        """Let time pass."""

    async def close(self) -> None:
        """The end of the node. Raises AssertionError if something is left."""


class _Acts:
    """What is to be done in the midst of an effect."""

    def __init__(self) -> None:
        self._acts: dict[type, Callable[[], None]] = {}

    def on(self, kind: type, act: Callable[[], None]) -> None:
        self._acts[kind] = act

    def happen(self, effect: m.Effect) -> None:
        act = self._acts.pop(type(effect), None)
        if act is not None:
            act()


# ---------------------------------------------------------------- virtual time


class _Script:
    """A trace that is made up as it goes."""

    total = None
    end_s = 0.0

    def __init__(self) -> None:
        self.functions: list[TracedFunction] = []

    def chunks(self) -> Iterator[Chunk]:
        return iter(())


class SimulatedHost:
    """The simulator's machine, step by step."""

    late_s = 0.0

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self._script = _Script()
        self._machine = Machine(
            registry.keepalive(setting.policy), self._script, setting.costs, budget_bytes=_BUDGET_BYTES,
            max_instances=_INSTANCES, seed=_SEED, observe=self._observe,
        )  # fmt: skip
        self.node = self._machine.node
        self.record = Record(self.node)
        self._now_s = 0.0
        self._acts = _Acts()
        self._carrying = False
        self._pending: deque[Callable[[], None]] = deque()

    @property
    def now_s(self) -> float:
        return self._now_s

    def _observe(self, effect: m.Effect, now: float) -> None:
        self.record.decided(effect, now)
        self._acts.happen(effect)

    def _do(self, act: Callable[[], None]) -> None:
        """What comes in the midst of an effect comes after it, at the same moment."""
        self._pending.append(act)
        if self._carrying:
            return
        self._carrying = True
        try:
            while self._pending:
                self._pending.popleft()()
        finally:
            self._carrying = False

    def deploy(self, name: str) -> None:
        self._script.functions.append(TracedFunction(name))
        self._do(lambda: self._machine.deploy(self._now_s))

    def submit(self, name: str, run_s: float = 0.0, *, within_s: float = 60.0) -> None:
        """Through the loop that every trace goes through; a trace gives no deadline, so one is told to the core."""
        self.record.came(name, self._now_s)
        if within_s < 60.0:
            self.tell(m.Arrived(Request(name, self._now_s, self._now_s + within_s, run_s)))
            return
        index = max(n for n, function in enumerate(self._script.functions) if function.name == name)
        self._do(lambda: self._machine.feed(Chunk([self._now_s], [index], [run_s])))

    def tell(self, event: m.Event) -> None:
        self._do(lambda: self._machine.tell(event, self._now_s))

    def carry_out(self, effect: m.Effect) -> None:
        self._do(lambda: self._machine.carry([effect], self._now_s))

    def when(self, kind: type, act: Callable[[], None]) -> None:
        self._acts.on(kind, act)

    def living(self) -> set[LayerName]:
        return self._machine.living

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        while not condition():
            assert not self.record.wrong, self.record.wrong
            next_s = self._machine.next_s()
            assert next_s < self._now_s + 1000 * TIMEOUT_S, f"{what}: nothing happens any more; {self.record.entries}"
            self._now_s = max(self._now_s, next_s)
            self._do(lambda: self._machine.advance(math.nextafter(self._now_s, math.inf)))

    async def wait(self, for_s: float) -> None:
        self._now_s += for_s
        self._do(lambda: self._machine.advance(self._now_s))

    async def close(self) -> None:
        """The simulator has no power to kill: what runs ends, then every window."""
        self.tell(m.Draining(final=True))
        await self.until(lambda: not self.living(), "the end of every layer")
        self.record.check_end()


# ---------------------------------------------------------------- live


class Listening:
    """A driver that has its effects told before they are carried out."""

    def __init__(self, driver: SandboxDriver, told: Callable[[m.Effect], None]) -> None:
        self.name = driver.name
        self._driver = driver
        self._told = told

    def attach(self, sink: Sink) -> None:
        self._driver.attach(sink)

    def carry_out(self, effect: m.Effect) -> None:
        self._told(effect)
        self._driver.carry_out(effect)

    def pids(self) -> dict[LayerName, int]:
        return self._driver.pids()

    def drain_log(self, sandbox_id: int) -> None:
        self._driver.drain_log(sandbox_id)

    async def close(self) -> None:
        await self._driver.close()


class LiveHost:
    """The server's executor with real processes, on the running event loop. `folder` is empty, and its own."""

    late_s = 2.0  # what a busy machine may be late by

    def __init__(self, setting: Setting, folder: Path) -> None:
        self.setting = setting
        self._code_dir, self._run_dir = folder / "code", folder / "run"
        self._code_dir.mkdir()
        self._run_dir.mkdir()
        (self._code_dir / "sleeper.py").write_text(_PYTHON.format(load_s=setting.load_s))
        (self._code_dir / "sleeper.mjs").write_text(_NODE)
        self._held = held_by_process(self._run_dir)
        self.node = Node(_BUDGET_BYTES, registry.keepalive(setting.policy))
        self.record = Record(self.node)
        self._acts = _Acts()
        self._versions = 0
        self._delivered: list[Request] = []
        self._driver = Listening(GuardedDriver(ProcessDriver(self._run_dir)), self._decided)
        self._executor = Executor(self.node, self._driver, LogStore(1 << 16, time.time))
        self._executor.start(self)

    @property
    def now_s(self) -> float:
        return system_clock()

    def _decided(self, effect: m.Effect) -> None:
        self.record.decided(effect)
        self._acts.happen(effect)

    # the executor's callers

    def answer(self, requests: list[Request], answers: list[wire.AnyAnswer], run_us: int) -> None:
        if any(answer[0] != 200 for answer in answers):
            self.record.wrong.append(f"answered with {answers}")
        self._delivered += requests
        self.record.changed.set()

    def reject(self, request: Request, error: RewarmError) -> None:
        self._decided(m.Reject(request, error))

    # what happens to it

    def deploy(self, name: str) -> None:
        self._versions += 1
        spec = dataclasses.replace(self.setting.spec(name), entry="sleeper:main", timeout_s=60.0)
        if not self.setting.forks:
            spec = dataclasses.replace(spec, entry="sleeper.mjs:main")
        self.tell(m.Deployed(Revision(spec, f"{self._versions:064}", self._versions, str(self._code_dir))))

    def submit(self, name: str, run_s: float = 0.0, *, within_s: float = 60.0) -> None:
        now = self.now_s
        self.record.came(name, now)
        item = (wire.KIND_JSON, b"", json.dumps(run_s).encode())
        self._executor.submit(Request(name, now, now + within_s, item))

    def tell(self, event: m.Event) -> None:
        self._executor.post(event)

    def carry_out(self, effect: m.Effect) -> None:
        self._driver.carry_out(effect)

    def when(self, kind: type, act: Callable[[], None]) -> None:
        self._acts.on(kind, act)

    def living(self) -> set[LayerName]:
        """Those that have a process; a Bare has none."""
        return set(self._driver.pids())

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        try:
            async with asyncio.timeout(TIMEOUT_S):
                while not condition():
                    assert not self.record.wrong, self.record.wrong
                    self.record.changed.clear()
                    await self.record.changed.wait()
        except TimeoutError:
            raise AssertionError(f"{what}: not within {TIMEOUT_S} s; {self.record.entries}") from None

    async def wait(self, for_s: float) -> None:
        await asyncio.sleep(for_s)

    async def close(self) -> None:
        self.record.closing()
        await self._executor.close()
        self.record.check_end()
        assert self._delivered == self.record.served, f"{self._delivered} were answered, {self.record.served} were run"
        assert not self.living(), f"processes are left: {self.living()}"
        left = held_by_process(self._run_dir) - self._held
        assert not left, f"left: {sorted(left)}"
