"""rewarm: serverless inference that scales to zero and comes back before the caller notices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rewarm.define import Aimd, Dynamic, NoBatching, Slo, Static, function
from rewarm.errors import RewarmError
from rewarm.facts.function import Tensor
from rewarm.hooks import after_restore, before_snapshot

if TYPE_CHECKING:
    from rewarm.worker.weights import Weights

__version__ = "0.1.0"
__all__ = [
    "Aimd", "Dynamic", "NoBatching", "RewarmError", "Slo", "Static", "Tensor", "Weights", "after_restore",
    "before_snapshot", "function",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    # Weights belongs to the worker's room; the server never needs it, so it is imported on first use.
    if name == "Weights":
        from rewarm.worker.weights import Weights

        return Weights
    raise AttributeError(f"module 'rewarm' has no attribute {name!r}")
