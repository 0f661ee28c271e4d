"""Experiment `streaming`, onnxruntime: the default session, and the product's on a pack. Runs in a case's child."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rewarm.weights.format import open_pack
from rewarm.worker.sessions import open_session
from rewarm.worker.sessions_packing import pack_onnx
from rewarm.worker.weights import Weights

Order = Mapping[str, Any]


def open_case(order: Order) -> Session:
    """See `streaming_case.Case`."""
    return Session(order)


class Session:
    """`read-all` is the session that onnxruntime makes by default; the others are the product's on a pack, of which
    `on-demand` and `warm` do without the loader."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.input = np.load(order["input"])

    def load(self) -> None:
        path, mode = Path(self.order["onnx"]), self.order["mode"]
        folder = Path(self.order["pack"])
        if mode == "read-all":
            self.session = open_session(path, {})
        elif mode == "streamed":
            self.weights = Weights.packed(path, {"folder": folder, "tensors_dir": folder})
            self.session = self.weights.session()
        else:
            self.session = open_session(path, {}, pack=open_pack(folder, folder))

    def first_pass(self) -> None:
        (self.output,) = self.session.run(None, {self.session.get_inputs()[0].name: self.input})

    def answer(self) -> bytes:
        return bytes(np.ascontiguousarray(self.output, np.float32).data)

    def report(self) -> Mapping[str, Any]:
        return {}


def make(order: Order) -> dict[str, Any]:
    """The pack of the ONNX file, into a fresh folder."""
    folder = Path(order["to"])
    folder.mkdir()
    pack_onnx(Path(order["onnx"]), folder, key=order["model"], source_sha256="")
    return {"path": str(folder)}
