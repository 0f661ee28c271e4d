"""The second argument of a Lambda-style handler, with the attributes that AWS Lambda documents."""

from __future__ import annotations

import time
import uuid
from typing import Any


class Context:
    """What a handler may know of its call."""

    __slots__ = ("_deadline_s", "aws_request_id", "client_context", "function_name", "function_version", "identity",
                 "invoked_function_arn", "log_group_name", "log_stream_name", "memory_limit_in_mb")  # fmt: skip

    def __init__(self, name: str, version: int, memory_bytes: int, limit_s: float, meta: dict[str, Any]) -> None:
        self.function_name = name
        self.function_version = str(version)
        self.invoked_function_arn = f"arn:aws:lambda:local:000000000000:function:{name}"
        self.memory_limit_in_mb = str(memory_bytes >> 20)
        self.aws_request_id = str(meta.get("request_id") or uuid.uuid4())
        self.log_group_name = f"/aws/lambda/{name}"
        self.log_stream_name = name
        self.identity = None
        self.client_context = meta.get("client_context")
        self._deadline_s = time.monotonic() + limit_s

    def get_remaining_time_in_millis(self) -> int:
        """Milliseconds until the call is stopped; never below 0."""
        return max(0, int((self._deadline_s - time.monotonic()) * 1000))
