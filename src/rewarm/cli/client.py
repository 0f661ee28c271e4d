"""The server behind `--url`, for the length of a command."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rewarm.bench.api import Api


def connect(url: str, *, timeout_s: float = 120.0) -> Api:
    """Imported here and not above: http.client is a good part of the start-up time of `--help`."""
    from rewarm.bench.api import Api

    return Api(url, timeout_s=timeout_s)
