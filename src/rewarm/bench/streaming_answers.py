"""Experiment `streaming`: whether all ways of loading a model give the same answer."""

from __future__ import annotations

from pathlib import Path

from rewarm.errors import SystemFault

#: onnxruntime's kernels for weights that are packed and those that are not add up in another order: of the largest.
TOLERANCE = 1e-4


class Answers:
    """The first answer of each engine is what the others have to be: torch's bit for bit, onnxruntime's nearly."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._first: dict[str, tuple[str, str, bytes]] = {}

    def check(self, engine: str, mode: str, sha256: str, answer: Path) -> None:
        """`answer`: the file with the whole tensor, float32. Raises SystemFault if it is another one than before."""
        first_mode, first_sha256, first = self._first.setdefault(engine, (mode, sha256, answer.read_bytes()))
        if sha256 == first_sha256 or (engine != "torch" and _near(first, answer.read_bytes())):
            return
        raise SystemFault(f"{self._model} on {engine}: {mode} answers otherwise than {first_mode}; there is no report")


def _near(first: bytes, second: bytes) -> bool:
    import numpy as np

    wanted, found = np.frombuffer(first, np.float32), np.frombuffer(second, np.float32)
    return wanted.shape == found.shape and bool(np.abs(found - wanted).max() <= TOLERANCE * np.abs(wanted).max())
