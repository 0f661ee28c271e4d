"""Two drivers as one: each effect goes to the one that it is for, and the guard watches over what sleeps, too."""

from __future__ import annotations

import asyncio
import dataclasses

from rewarm.errors import SandboxFailed
from rewarm.facts import messages as m
from rewarm.facts.function import FunctionSpec, LangKey, Revision
from rewarm.sandbox.fleet import Fleet
from rewarm.sandbox.guard import GuardedDriver
from rewarm.sandbox.port import Sink
from rewarm.testing import FakeDriver, Seconds
from rewarm.testing.sandboxes import behave, call
from rewarm.testing.stage import Recorder

SPEC = FunctionSpec("probe", "handler", "probe:main")
IN_PROCESS = Revision(SPEC, "1", 1, "code")
IN_VM = Revision(dataclasses.replace(SPEC, isolation="microvm"), "2", 1, "code")
QUICK = Seconds(
    bare=0.0, zygote=0.001, zygote_fork=0.0, fork=0.001, user=0.001, ready=0.0, run=0.001, row=0.0, exit=0.001,
    restore=0.001, sleep=0.001,
)  # fmt: skip


class Heard(FakeDriver):
    """Knows the kinds of effects that reached it."""

    def attach(self, sink: Sink) -> None:
        self.heard: list[type] = []
        super().attach(sink)

    def carry_out(self, effect: m.Effect) -> None:
        self.heard.append(type(effect))
        super().carry_out(effect)


class Both:
    """A guarded fleet of two fakes."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.process, self.microvm = (Heard(loop.call_later, QUICK, behave) for _ in range(2))
        self.fleet = GuardedDriver(Fleet(self.process, self.microvm))
        self.sink = Recorder()
        self.fleet.attach(self.sink)

    async def do(self, effect: m.Effect, until: type[m.Event]) -> None:
        """Carry it out and wait for what comes of it."""
        before = len(self.sink.events)
        self.fleet.carry_out(effect)
        await self.sink.until(lambda: any(isinstance(e, until) for e in self.sink.events[before:]), until.__name__)

    def went(self) -> tuple[list[type], list[type]]:
        """The effects that reached the driver of processes, and those that reached that of micro-VMs."""
        found = self.process.heard, self.microvm.heard
        self.process.heard, self.microvm.heard = [], []
        return found


async def test_by_the_sandbox_and_by_the_key() -> None:
    both = Both()
    for number, revision in ((1, IN_PROCESS), (2, IN_VM)):
        key = revision.spec.lang_key
        await both.do(m.RaiseBare(number, revision is IN_VM), m.Raised)
        await both.do(m.RaiseLang(key, None), m.LangRaised)
        await both.do(m.Fork(number, key, revision.spec), m.Raised)
        await both.do(m.LoadUser(number, revision), m.Raised)
        await both.sink.until(lambda number=number: len(both.sink.of(number)) == 4, "READY")
        request = call(n=number)
        both.sink.running[number] = [request]
        await both.do(m.Run(number, [request]), m.RunDone)
        await both.do(m.Destroy(number, "test"), m.Exited)
        await both.do(m.DropLang(key, "test"), m.LangExited)
    way = [m.RaiseBare, m.RaiseLang, m.Fork, m.LoadUser, m.Run, m.Destroy, m.DropLang]
    assert both.went() == (way, way)
    assert not both.sink.wrong
    await both.fleet.close()


async def test_what_sleeps_is_a_micro_vm() -> None:
    both = Both()
    await both.do(m.Sleep(IN_VM), m.Slept)
    await both.do(m.Restore(7, IN_VM), m.Raised)
    both.fleet.drain_log(7)
    await both.do(m.Destroy(7, "test"), m.Exited)
    both.fleet.carry_out(m.Forget(IN_VM))
    assert both.went() == ([], [m.Sleep, m.Restore, m.Destroy, m.Forget])
    await both.do(m.RaiseBare(7), m.Raised)
    assert both.went() == ([m.RaiseBare], []), "an id is forgotten with its sandbox"
    await both.fleet.close()


async def test_a_runtime_that_was_found_can_end() -> None:
    both = Both()
    key = IN_VM.spec.lang_key
    both.fleet.post(m.LangFound(key, 1))
    both.fleet.post(m.LangFound(key, 2))
    both.fleet.post(m.LangExited(key))
    both.fleet.post(m.LangExited(key))
    assert both.sink.events == [m.LangFound(key, 1), m.LangFound(key, 2), m.LangExited(key)]
    await both.fleet.close()


async def test_a_driver_that_fails_to_sleep_or_to_restore() -> None:
    """An exception in a driver is the end of what it was about, and of nothing else."""

    class Failing(FakeDriver):
        def carry_out(self, effect: m.Effect) -> None:
            if isinstance(effect, m.Sleep | m.Restore | m.Forget):
                raise RuntimeError("out of order")
            super().carry_out(effect)

    loop = asyncio.get_running_loop()
    driver = GuardedDriver(Fleet(FakeDriver(loop.call_later, QUICK, behave), Failing(loop.call_later, QUICK, behave)))
    sink = Recorder()
    driver.attach(sink)
    driver.carry_out(m.Sleep(IN_VM))
    driver.carry_out(m.Restore(1, IN_VM))
    driver.carry_out(m.Forget(IN_VM))
    lost, end = sink.events
    assert isinstance(lost, m.SleepLost) and lost.digest == "2" and isinstance(lost.error, SandboxFailed)
    assert isinstance(end, m.Exited) and isinstance(end.error, SandboxFailed)
    await driver.close()


async def test_pids_are_of_both() -> None:
    both = Both()
    await both.do(m.RaiseLang(LangKey(), None), m.LangRaised)
    await both.do(m.RaiseLang(LangKey(vm_bytes=256 << 20), None), m.LangRaised)
    assert set(both.fleet.pids()) == {*both.process.pids(), *both.microvm.pids()}
    await both.fleet.close()
