"""One call on its way through the server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from rewarm.facts.sandbox import StartKind

_WARM: Final = StartKind.WARM  # looked up once, not for each request


class Loading(NamedTuple):
    """How an instance's weights were loaded: `figures` as `Weights.report` names them, `compute_s` layer by layer, and
    `rows_s` of those layers whose rows were waited for."""

    figures: Mapping[str, float]
    compute_s: tuple[float, ...]
    rows_s: tuple[tuple[int, float], ...] = ()


class Request:
    """A queued call. The core reads the times and never looks into `payload`.

    Mutable on purpose: tens of thousands are made every second. `arrived_s` and `deadline_s` are on the monotonic
    clock; after `deadline_s` the work is not started any more. The core writes three fields when it decides which
    instance will serve the request: `started_s` is when that was, `start` and `init_s` say what it had to wait for.
    Their values for a warm start are class attributes, so that the usual request does not pay for setting them.
    """

    start: StartKind = _WARM
    init_s = 0.0
    started_s = 0.0
    log_tail = False  # the caller wants what its run wrote: the log is brought up to date before RunDone
    loaded: Loading | None = None  # how the weights came, if it ran in the first batch of its instance
    sandbox_id = 0  # of the instance that runs the batch; on the batch's first request only

    def __init__(self, function: str, arrived_s: float, deadline_s: float, payload: Any = None) -> None:
        self.function = function
        self.arrived_s = arrived_s
        self.deadline_s = deadline_s
        self.payload = payload

    @property
    def size_bytes(self) -> int:
        """How large the body is, for policies that sort by it. Here nobody knows; the front door's requests do."""
        return 0

    def __repr__(self) -> str:
        return f"<Request {self.function} arrived {self.arrived_s:.6f}>"
