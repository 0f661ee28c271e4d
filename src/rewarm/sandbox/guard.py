"""Wraps any driver once, so that drivers stay dumb and the core can trust the order of what it hears.

Per sandbox and zygote: nothing after its end, the end exactly once, nothing but the end after Destroy, and an
exception inside the driver becomes the end of that sandbox instead of the end of the server.
"""

from __future__ import annotations

import logging

from rewarm.errors import SandboxFailed
from rewarm.facts import messages as m
from rewarm.facts.function import LangKey
from rewarm.facts.request import Request
from rewarm.sandbox.port import Node, SandboxDriver, Sink
from rewarm.wire import AnyAnswer

log = logging.getLogger("rewarm.sandbox")


class GuardedDriver:
    """A SandboxDriver that is also the inner driver's sink."""

    def __init__(self, inner: SandboxDriver) -> None:
        self.name = inner.name
        self._inner = inner
        self._sink: Sink | None = None
        self._alive: dict[int, bool] = {}  # sandbox → may still report progress (False once Destroy was asked)
        self._langs: dict[LangKey, bool] = {}  # the same for zygotes (False once DropLang was asked)
        self._failures: dict[int, SandboxFailed] = {}  # abandoned, and their end not reported yet
        self._muted = False

    # ------------------------------------------------------------ towards the driver

    def attach(self, sink: Sink) -> None:
        self._sink = sink
        self._inner.attach(self)

    def carry_out(self, effect: m.Effect) -> None:
        if isinstance(effect, m.RaiseLang | m.DropLang):
            self._carry_out_lang(effect)
            return
        if isinstance(effect, m.Sleep | m.Forget):
            self._carry_out_asleep(effect)
            return
        if isinstance(effect, m.Reject | m.Pin | m.Prefetch):
            raise TypeError(f"{type(effect).__name__} is not for drivers")
        sandbox_id = effect.sandbox_id
        consumed = effect.key if isinstance(effect, m.Fork) and not effect.key.forks else None
        if consumed is not None and self._langs.get(consumed, False):
            del self._langs[consumed]  # used up, whatever becomes of the sandbox
        if isinstance(effect, m.RaiseBare | m.Restore):
            self._alive[sandbox_id] = True
        elif sandbox_id not in self._alive:
            if consumed is not None:
                self._end_unused(consumed)
            return
        if isinstance(effect, m.Destroy):
            self._alive[sandbox_id] = False
        try:
            self._inner.carry_out(effect)
        except Exception as error:
            log.exception("driver %s failed on %s", self.name, type(effect).__name__)
            if consumed is not None:
                self._end_unused(consumed)
            self._abandon(effect, error)

    def _end_unused(self, key: LangKey) -> None:
        """The core counts on it being used up; what the driver still has of it goes, and nobody hears of that."""
        try:
            self._inner.carry_out(m.DropLang(key, "driver failure"))
        except Exception:
            log.exception("driver %s failed to end runtime %s", self.name, key)

    def _carry_out_asleep(self, effect: m.Sleep | m.Forget) -> None:
        try:
            self._inner.carry_out(effect)
        except Exception as error:
            log.exception("driver %s failed on %s", self.name, type(effect).__name__)
            if isinstance(effect, m.Sleep):
                self.post(m.SleepLost(effect.revision.digest, SandboxFailed(f"no snapshot could be made: {error}")))

    def _abandon(
        self, effect: m.RaiseBare | m.Restore | m.Fork | m.LoadUser | m.Run | m.Destroy, error: Exception
    ) -> None:  # fmt: skip
        """The driver does not know what it did: have it release the sandbox, or else report the end ourselves."""
        sandbox_id = effect.sandbox_id
        failure = SandboxFailed(f"the sandbox could not be driven: {error}")
        self._alive[sandbox_id] = False
        self._failures[sandbox_id] = failure
        try:
            self._inner.carry_out(m.Destroy(sandbox_id, "driver failure"))
            owed = not isinstance(effect, m.RaiseBare | m.Restore)  # else it may never have heard of the sandbox
        except Exception:
            log.exception("driver %s failed to destroy sandbox %d", self.name, sandbox_id)
            owed = False
        if not owed:
            self.post(m.Exited(sandbox_id, failure))

    def _carry_out_lang(self, effect: m.RaiseLang | m.DropLang) -> None:
        if isinstance(effect, m.RaiseLang):
            self._langs[effect.key] = True
        elif effect.key not in self._langs:
            return
        else:
            self._langs[effect.key] = False
        try:
            self._inner.carry_out(effect)
        except Exception as error:
            log.exception("driver %s failed on %s", self.name, type(effect).__name__)
            self._abandon_lang(effect, error)

    def _abandon_lang(self, effect: m.RaiseLang | m.DropLang, error: Exception) -> None:
        try:
            self._inner.carry_out(m.DropLang(effect.key, "driver failure"))
            owed = isinstance(effect, m.DropLang)
        except Exception:
            log.exception("driver %s failed to end runtime %s", self.name, effect.key)
            owed = False
        if not owed:
            self.post(m.LangExited(effect.key, SandboxFailed(f"the runtime could not be driven: {error}")))

    def pids(self) -> dict[Node, int]:
        return self._inner.pids()

    def drain_log(self, sandbox_id: int) -> None:
        if sandbox_id in self._alive:
            self._inner.drain_log(sandbox_id)

    async def close(self) -> None:
        await self._inner.close()

    # ------------------------------------------------------------ from the driver

    def post(self, event: m.Event) -> None:
        assert self._sink is not None
        if isinstance(event, m.Exited):
            if self._alive.pop(event.sandbox_id, None) is None:
                return
            failure = self._failures.pop(event.sandbox_id, None)
            if failure is not None:
                event = m.Exited(event.sandbox_id, event.error or failure)
        elif isinstance(event, m.Raised | m.RunDone):
            if not self._alive.get(event.sandbox_id, False):
                self._muted = isinstance(event, m.RunDone)  # its answers follow, and their callers were answered
                return
        elif isinstance(event, m.LangExited):
            if self._langs.pop(event.key, None) is None:
                return
        elif isinstance(event, m.LangFound):
            self._langs.setdefault(event.key, True)
        elif isinstance(event, m.LangRaised) and not self._langs.get(event.key, False):
            return
        self._sink.post(event)

    def answer(self, requests: list[Request], answers: list[AnyAnswer], run_us: int) -> None:
        assert self._sink is not None
        if self._muted:
            self._muted = False
            return
        self._sink.answer(requests, answers, run_us)

    def log(self, function: str, sandbox_id: int, chunk: bytes) -> None:
        assert self._sink is not None
        self._sink.log(function, sandbox_id, chunk)
