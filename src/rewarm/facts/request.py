"""One call on its way through the server."""

from __future__ import annotations

from typing import Any

from rewarm.facts.sandbox import StartKind


class Request:
    """A queued call. The core reads the times and never looks into `payload`.

    Mutable and slotted on purpose: tens of thousands are made every second. `arrived_s` and `deadline_s` are on the
    monotonic clock; after `deadline_s` the work is not started any more. `start` and `init_s` are written once by the
    core when it decides which instance will serve the request: what it had to wait for; `started_s` is when that was.
    """

    __slots__ = ("arrived_s", "deadline_s", "function", "init_s", "payload", "start", "started_s")

    def __init__(self, function: str, arrived_s: float, deadline_s: float, payload: Any = None) -> None:
        self.function = function
        self.arrived_s = arrived_s
        self.deadline_s = deadline_s
        self.payload = payload
        self.start = StartKind.WARM
        self.init_s = 0.0
        self.started_s = arrived_s

    def __repr__(self) -> str:
        return f"<Request {self.function} arrived {self.arrived_s:.6f}>"
