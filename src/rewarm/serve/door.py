"""What all connections share: routes, limits, the way into the core, and the way back out."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol, cast

from rewarm import wire
from rewarm.clock import Clock, system_clock
from rewarm.config import HttpLimits
from rewarm.errors import RewarmError
from rewarm.facts.function import Revision
from rewarm.facts.request import Request
from rewarm.facts.sandbox import StartKind
from rewarm.obs.logs import LogStore
from rewarm.obs.stats import FunctionStats
from rewarm.pump import Pump
from rewarm.serve import answers
from rewarm.serve.answers import length_end, ms_text
from rewarm.serve.call import Call
from rewarm.serve.lane import Lane
from rewarm.serve.plan import Plan
from rewarm.serve.router import Router

_SWEEP_S = 0.5
_WARM = StartKind.WARM
_PLANS_MAX = 1024
_PLAN_HEAD_BYTES_MAX = 2048


class Backend(Protocol):
    """The way into the core."""

    revisions: dict[str, Revision]  # what is deployed, by name
    stats: dict[str, FunctionStats]
    logs: LogStore

    def submit(self, request: Request) -> None:
        """Queue a request; its answer comes to `Door.answer` or `Door.reject`, perhaps before this returns."""

    def cancel(self, request: Request) -> None:
        """Its caller is gone."""


class Door:
    """One per server."""

    def __init__(self, limits: HttpLimits, clock: Clock = system_clock) -> None:
        self.limits = limits
        self.router = Router()
        self.plans: dict[bytes, Plan] = {}
        self.clock = clock
        self.coarse_s = clock()  # good to half a second, costs nothing to read; for connection deadlines
        self.idle_until_s = self.coarse_s + limits.keepalive_timeout_s  # deadline of a connection that idles from now
        self.lanes: set[Lane] = set()
        self.draining = False
        self.date_line = b""
        self._nowhere = FunctionStats(0, None)  # counts for functions that were removed meanwhile
        self.backend: Backend = None  # type: ignore[assignment]  # set by `start`, before any connection
        self.pump: Pump = None  # type: ignore[assignment]  # likewise

    def start(self, backend: Backend, pump: Pump) -> None:
        self.backend = backend
        self.submit = backend.submit
        self.revisions = backend.revisions
        self._loop = asyncio.get_running_loop()
        self.pump = pump
        self._sweep()

    def _sweep(self) -> None:
        """Twice a second: the Date line, and connections that take too long for what they are doing."""
        self.coarse_s = now = self.clock()
        self.idle_until_s = now + self.limits.keepalive_timeout_s
        self.date_line = time.strftime("date: %a, %d %b %Y %H:%M:%S GMT\r\n", time.gmtime()).encode()
        for lane in list(self.lanes):
            if lane.deadline_s < now:
                lane.protocol.too_slow()
        self._loop.call_later(_SWEEP_S, self._sweep)

    def remember(self, head: bytes, plan: Plan) -> None:
        """Heads repeat: a client on a kept-alive connection sends the same bytes before each body (ADR 3)."""
        if len(head) <= _PLAN_HEAD_BYTES_MAX:
            if len(self.plans) >= _PLANS_MAX:
                self.plans.clear()  # bounded against a caller whose heads never repeat
            self.plans[head] = plan

    # ------------------------------------------------------------ answers

    def answer(self, requests: list[Request], replies: list[wire.AnyAnswer], run_us: int) -> None:
        """Answer one batch. One caller's broken connection must not cost another its answer."""
        now = self.clock()
        size = len(requests)
        if self.draining:
            self._announce_close(requests)
        stats = self.backend.stats.get(requests[0].function) or self._nowhere
        stats.batch(size, run_us)
        common = self.date_line
        forms = answers.warm_forms(run_us, size, common)
        taken: list[float] = []
        waited: list[float] = []
        usual = met = 0
        ready: list[tuple[Lane, Call, bytes]] = []  # written in one go: a caller that reads wakes once, not each time
        slo_s = stats.slo_s or 0.0
        for call, reply in zip(cast("list[Call]", requests), replies, strict=True):
            arrived_s = call.arrived_s
            taken_s = now - arrived_s
            waited_s = call.started_s - arrived_s
            taken.append(taken_s)
            waited.append(waited_s)
            status, form = reply[0], reply[1]
            if taken_s <= slo_s and status < 400:
                met += 1
            lane = call.lane
            if status == 200 and form <= wire.FORM_RAW and call.start is _WARM:
                usual += 1
                if lane is not None and call.plain:
                    body = reply[4]
                    ready.append((lane, call, b"".join([forms[form], ms_text(waited_s), length_end(len(body)), body])))
                    continue
            else:
                stats.codes[status] += 1
                stats.starts[call.start.value] += 1
                if status >= 400:
                    stats.errors += 1
            if lane is not None:
                extra = common if not call.log_tail else common + self._tail(call, requests, run_us)
                if call.loaded is not None:
                    extra += answers.loaded_line(call.loaded)
                ready.append((lane, call, answers.render(call, reply, run_us, size, extra)))
        for lane, call, answer in ready:
            lane.finish(call, answer)
        stats.took(taken, waited)
        stats.requests += size
        stats.codes[200] += usual
        stats.starts["warm"] += usual
        stats.slo_met += met

    def _announce_close(self, requests: list[Request]) -> None:
        """While draining, the answer with nothing pipelined behind it is its connection's last, and says so."""
        for call in cast("list[Call]", requests):
            lane = call.lane
            if lane is not None and lane.protocol.nothing_behind:
                call.close, call.plain = True, False

    def reject(self, request: Request, error: RewarmError) -> None:
        if self.draining:
            self._announce_close([request])
        call = cast("Call", request)
        if call.lane is not None:
            call.lane.finish(call, answers.render_error(call, error, self.date_line))

    def _tail(self, call: Call, batch: list[Request], run_us: int) -> bytes:
        """The caller's own lines: of this instance since the run began; none where a batch mixes several callers'."""
        lines: list[str] = []
        if len(batch) == 1:
            began_s = call.wall_s + call.started_s - call.arrived_s
            log = self.backend.logs.of(call.function)
            lines = [line.text for line in log.tail(200, batch[0].sandbox_id, began_s)]
        revision = self.backend.revisions.get(call.function)
        memory_mb = revision.spec.memory_bytes >> 20 if revision is not None else 0
        return answers.lambda_log(call, lines, run_us * 1e-3, memory_mb)
