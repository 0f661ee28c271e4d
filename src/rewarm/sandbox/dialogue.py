"""What the frames of a sandbox mean, the same for every driver: LOAD and its outcome, batches and their replies."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import orjson

from rewarm import wire
from rewarm.errors import from_code
from rewarm.facts import messages as m
from rewarm.facts.request import Loading, Request
from rewarm.facts.sandbox import SandboxState
from rewarm.sandbox.box import Box
from rewarm.sandbox.port import Sink

_INTRUDED: Final = "its code wrote to the socket that belongs to the server"


class Dialogue:
    """One per driver. `greet` takes the frames of how a sandbox comes up, and says whether one was of that kind."""

    def __init__(self, sink: Sink, greet: Callable[[Box, int, int], bool]) -> None:
        self._sink = sink
        self._greet = greet

    def load(self, box: Box, order: dict[str, Any]) -> None:
        """→ Raised(USER), Raised(READY), or the reason in `box.failure`."""
        box.loading = True
        box.send(wire.encode_plain(wire.LOAD, orjson.dumps(order)))

    def run(self, box: Box, requests: list[Request]) -> None:
        """→ RunDone and the answers."""
        box.batch = requests
        box.sequence = (box.sequence + 1) & 0xFFFFFFFF
        items = [request.payload for request in requests]
        box.expect(wire.reply_bytes_max(len(items)))
        box.send(wire.encode_run(items, box.sequence, int(box.spec.timeout_s * 1e3)))

    def frames(self, box: Box, frames: list[bytes]) -> None:
        for frame in frames:
            _, frame_type, flag, count, number, sequence = wire.HEAD.unpack_from(frame)
            if frame_type == wire.REPLY:
                self._reply(box, frame, (flag, count), number, sequence)
            elif frame_type == wire.NOTED and box.batch is not None:
                self._noted(box, frame[wire.HEAD_BYTES :])
            elif self._greet(box, frame_type, number):
                continue
            elif box.loading:
                self._loaded(box, frame_type, frame[wire.HEAD_BYTES :])
            else:
                box.stop(_INTRUDED)

    def _loaded(self, box: Box, frame_type: int, body: bytes) -> None:
        """The answer to LOAD. User code has run by now: what comes is checked, and comes once."""
        box.loading = False
        try:
            report = orjson.loads(body)
            if frame_type == wire.FAILED:
                box.failure = from_code(str(report["code"]), str(report["error"]), str(report["error_type"]))
                return
            user_s, ready_s = float(report["user_s"]), float(report["ready_s"])
        except (KeyError, TypeError, ValueError):
            box.stop(_INTRUDED)
            return
        if not box.destroyed:
            self._sink.post(m.Raised(box.id, SandboxState.USER, box.lead_s + user_s))
            self._sink.post(m.Raised(box.id, SandboxState.READY, ready_s))

    def _reply(self, box: Box, frame: bytes, shape: tuple[int, int], run_us: int, sequence: int) -> None:
        flag, count = shape
        requests = box.batch
        if requests is None or sequence != box.sequence or count != len(requests):
            box.stop(_INTRUDED)
            return
        try:
            answers = wire.decode_reply(frame, count, flag)
        except wire.WireError:
            box.stop(_INTRUDED)
            return
        box.batch = None
        box.expect(wire.CONTROL_BYTES_MAX)
        if not box.destroyed:  # else the core has answered them already
            if requests[0].log_tail:
                box.drain_log()  # now: the lines of the next run, which RunDone begins, are another caller's
            self._sink.post(m.RunDone(box.id, run_us * 1e-6))  # first: the instance works while we answer
            self._sink.answer(requests, answers, run_us)

    def _noted(self, box: Box, body: bytes) -> None:
        """How the weights of its first batch were loaded: for the callers, and for whoever counts."""
        try:
            said = orjson.loads(body)
            compute_s = tuple(float(seconds) for seconds in said.pop("compute_s", ()))
            rows_s = tuple((int(no), float(seconds)) for no, seconds in said.pop("rows_s", ()))
            loaded = Loading({str(name): float(value) for name, value in said.items()}, compute_s, rows_s)
            if not all(map(math.isfinite, loaded.figures.values())):
                raise ValueError
        except (AttributeError, TypeError, ValueError):
            box.stop(_INTRUDED)
            return
        for request in box.batch or ():
            request.loaded = loaded

    def log(self, box: Box, chunk: bytes) -> None:
        self._sink.log(box.spec.name, box.id, chunk)
