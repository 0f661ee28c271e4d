"""One HTTP invocation, from its headers to its answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rewarm.facts.request import Request
from rewarm.wire import Item

if TYPE_CHECKING:
    from rewarm.serve.protocol import FrontDoor


class Call(Request):
    """A Request with the connection that waits for it. `connection` is None once the caller is gone."""

    __slots__ = ("close", "connection", "lambda_id", "log_tail", "version", "wall_s")

    payload: Item

    def __init__(
        self, function: str, arrived_s: float, deadline_s: float, payload: Item, connection: FrontDoor, close: bool
    ) -> None:
        super().__init__(function, arrived_s, deadline_s, payload)
        self.connection: FrontDoor | None = connection
        self.close = close  # the connection ends with this answer
        self.lambda_id = ""  # AWS request id; empty for callers that do not speak Lambda
        self.log_tail = False
        self.version = ""
        self.wall_s = 0.0
