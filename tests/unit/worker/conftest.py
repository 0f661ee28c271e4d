"""Checkpoints and packs of small torch modules."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rewarm.weights.writer import LayerIn, write_pack
from rewarm.worker.packing import tensors_in
from rewarm.worker.weights import Weights

MakePack = Callable[..., Weights]


@pytest.fixture
def make_pack(tmp_path: Path) -> MakePack:
    """Weights with a pack of the checkpoint at `path`, laid out by one `predict` with a module that has its tensors."""

    def make(path: Path, module: Any, predict: Callable[[], Any] | None = None, **order: Any) -> Weights:
        from rewarm.weights.format import tensor_bytes
        from rewarm.worker import tracing

        tensors = tensors_in(path)
        sizes = {name: tensor_bytes(tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
        plan = tracing.plan(module, predict, sizes)
        folder = tmp_path / f"pack-{path.name}"
        folder.mkdir()
        layers = [LayerIn(g.name, tuple(tensors[name] for name in g.tensors), g.on_demand, 0.001) for g in plan.groups]
        write_pack(folder, folder, layers, key="key", order=plan.order, source_sha256="", tied=plan.tied)
        return Weights.packed(path, {"folder": str(folder), "tensors_dir": str(folder), **order})

    return make
