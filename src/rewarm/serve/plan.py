"""What a request head means, once it has been parsed: the same bytes always mean the same (ADR 6)."""

from __future__ import annotations


class Plan:
    """`kind` and `meta` are the wire's; `timeout_s` is the caller's own limit, inf without one."""

    __slots__ = ("body_bytes", "function", "kind", "meta", "timeout_s", "version")

    def __init__(self, function: str, kind: int, meta: bytes, version: str, body_bytes: int, timeout_s: float) -> None:
        self.function = function
        self.kind = kind
        self.meta = meta
        self.version = version
        self.body_bytes = body_bytes
        self.timeout_s = timeout_s
