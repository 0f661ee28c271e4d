"""One HTTP invocation, from its headers to its answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rewarm.facts.request import Request
from rewarm.wire import AnyItem

if TYPE_CHECKING:
    from rewarm.serve.lane import Lane


class Call(Request):
    """A Request with the lane of the connection that waits for it. `lane` is None once the caller is gone."""

    lambda_id = ""  # AWS request id; empty for callers that do not speak Lambda
    version = ""
    wall_s = 0.0

    def __init__(
        self, function: str, arrived_s: float, deadline_s: float, payload: AnyItem, lane: Lane, close: bool
    ) -> None:
        self.function = function
        self.arrived_s = arrived_s
        self.deadline_s = deadline_s
        self.payload: Any = payload
        self.lane: Lane | None = lane
        self.close = close  # the connection ends with this answer
        self.plain = not close  # nothing but its status, body and timing makes its answer

    @property
    def size_bytes(self) -> int:
        """Of the body, as it came; the core asks only while the call is queued, and then it has one."""
        return len(self.payload[2])
