"""Several drivers as one: which of them carries an effect out is told by whom it is for."""

from __future__ import annotations

import asyncio

from rewarm.facts import messages as m
from rewarm.facts.request import Request
from rewarm.sandbox.port import Node, SandboxDriver, Sink
from rewarm.wire import AnyAnswer


class Fleet:
    """Processes and micro-VMs. A sandbox belongs to the driver that made it, a Lang key says it by its `vm_bytes`."""

    name = "process+microvm"

    def __init__(self, process: SandboxDriver, microvm: SandboxDriver) -> None:
        self._process = process
        self._microvm = microvm
        self._vms: set[int] = set()  # sandboxes of the micro-VM driver that have not ended

    def attach(self, sink: Sink) -> None:
        self._process.attach(sink)
        self._microvm.attach(_Leaving(sink, self._vms))

    def carry_out(self, effect: m.Effect) -> None:
        if type(effect) is m.Run:  # first: by far the most frequent
            driver = self._microvm if effect.sandbox_id in self._vms else self._process
        elif isinstance(effect, m.RaiseLang | m.DropLang):
            driver = self._microvm if effect.key.vm_bytes else self._process
        elif isinstance(effect, m.Sleep | m.Forget):
            driver = self._microvm
        elif isinstance(effect, m.RaiseBare | m.Restore):
            driver = self._process
            if isinstance(effect, m.Restore) or effect.vm:
                self._vms.add(effect.sandbox_id)
                driver = self._microvm
        else:
            assert isinstance(effect, m.Fork | m.LoadUser | m.Destroy), "the executor keeps the others to itself"
            driver = self._microvm if effect.sandbox_id in self._vms else self._process
        driver.carry_out(effect)

    def pids(self) -> dict[Node, int]:
        return {**self._process.pids(), **self._microvm.pids()}

    def drain_log(self, sandbox_id: int) -> None:
        (self._microvm if sandbox_id in self._vms else self._process).drain_log(sandbox_id)

    async def close(self) -> None:
        await asyncio.gather(self._process.close(), self._microvm.close())


class _Leaving:
    """A sink that sees which sandboxes are gone."""

    def __init__(self, sink: Sink, alive: set[int]) -> None:
        self._sink = sink
        self._alive = alive

    def post(self, event: m.Event) -> None:
        if isinstance(event, m.Exited):
            self._alive.discard(event.sandbox_id)
        self._sink.post(event)

    def answer(self, requests: list[Request], answers: list[AnyAnswer], run_us: int) -> None:
        self._sink.answer(requests, answers, run_us)

    def log(self, function: str, sandbox_id: int, chunk: bytes) -> None:
        self._sink.log(function, sandbox_id, chunk)
