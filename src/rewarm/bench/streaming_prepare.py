"""Experiment `streaming`: writes each model in the forms that its cases read."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rewarm.bench.streaming_files import ModelFiles
from rewarm.bench.streaming_rows import ON_ONNX
from rewarm.bench.streaming_runtime import CaseFailed, Runtime
from rewarm.weights.format import Pack, open_pack


def prepare(
    model: str, folder: Path, scratch: Path, seed: int, runtimes: Mapping[str, Runtime], loaders: Sequence[str],
    left_out: dict[str, str],
) -> ModelFiles:  # fmt: skip
    """The model's own file in `folder`, everything made from it in `scratch`. Raises CaseFailed.

    A loader whose format cannot be written, and onnxruntime if the model cannot be exported, are put down in
    `left_out`, with the reason.
    """
    maker = _Maker(model, seed, runtimes)
    maker.order["weights"] = maker.make("torch", "weights", folder)
    found = ModelFiles(Path(maker.order["weights"]), Path(maker.make("torch", "pt", scratch / "model.pt")),
                       _opened(maker.make("torch", "pack", scratch / "pack")))  # fmt: skip
    if "tensorizer" in loaders:
        try:
            found.tensors = Path(maker.make("torch", "tensors", scratch / "model.tensors"))
        except CaseFailed as error:
            left_out["tensorizer"] = str(error)
    if "onnxruntime" in runtimes and model in ON_ONNX:
        try:
            maker.order["onnx"] = maker.make("torch", "onnx", scratch / "model.onnx")
            found.onnx_pack = _opened(maker.make("onnxruntime", "pack", scratch / "onnx-pack"))
            found.onnx = Path(maker.order["onnx"])
            found.input = Path(maker.make("torch", "input", scratch / "input.npy"))
        except CaseFailed as error:
            left_out[f"{model} on onnxruntime"] = str(error)
    for path in (folder, scratch):
        _sync(path)
    return found


class _Maker:
    """Has one of the runtimes write a file, or a folder of files, for one model."""

    def __init__(self, model: str, seed: int, runtimes: Mapping[str, Runtime]) -> None:
        self.order: dict[str, Any] = {"model": model, "seed": seed}
        self._runtimes = runtimes

    def make(self, engine: str, what: str, to: Path) -> str:
        """The path of what was made. Raises CaseFailed."""
        return str(self._runtimes[engine].order({**self.order, "make": what, "to": str(to)})["path"])


def _opened(folder: str) -> Pack:
    return open_pack(Path(folder), Path(folder))  # nothing was placed: its data file is beside the index


def _sync(folder: Path) -> None:
    """What is not on the disk yet cannot be dropped from the page cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            file = os.open(path, os.O_RDONLY)
            try:
                os.fsync(file)
            finally:
                os.close(file)
