"""Put the weights of a function in the order in which its code uses them.

    python -m rewarm.worker.packing ORDER.json

constructs the user's class once in this (separate, short-lived) process, runs `predict` on an example, and writes what
belongs into the folder of a pack (see `rewarm.weights`). ORDER.json:

    {"spec", "code_dir", "weights_path", "weights_sha256", "key", "out": empty folder, "tensors_dir", "known": file}

prints one JSON line:

    {"ok": true, "packed": true, "order": "traced", "layers": n, "bytes": n}
    {"ok": true, "packed": false, "why": "…"}
    {"ok": false, "code": "…", "error": "…"}
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewarm.errors import RewarmError
from rewarm.facts.function import FunctionSpec
from rewarm.weights import header
from rewarm.weights.format import Index, tensor_bytes
from rewarm.weights.pages import Mapped
from rewarm.weights.writer import LayerIn, TensorIn, load_known, write_pack
from rewarm.worker.layering import Plan, groups
from rewarm.worker.user import UserError, construct, find_entry, settle
from rewarm.worker.weights import Weights

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

_ANY_LENGTH = 16  # of an input's dimension -1 in the example
_NO_METHOD = "its code opens weights.path itself, and uses none of weights.module(), session() and arrays()"


class NothingToPack(Exception):
    """Why, in one line. The function works without."""


class PackingWeights(Weights):
    """The weights of a class that is constructed to be packed: as without a pack. They note what is made of them."""

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self.modules: list[nn.Module] = []
        self.sessions = self.listed = False
        self.setup_s = 0.0

    def module(self, factory: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        from rewarm.worker import checkpoints, modules

        tensors = checkpoints.file_tensors(self.path)
        module = modules.load(factory, args, kwargs, tensors)
        if not self.modules:
            since_s = time.perf_counter()  # of the second time: the first includes what torch does once in a process
            modules.load(factory, args, kwargs, tensors)
            self.setup_s = time.perf_counter() - since_s
        self.modules.append(module)
        return module

    def session(self, **options: Any) -> Any:
        self.sessions = True
        return super().session(**options)

    def arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        if self.path.suffix in (".npz", ".npy"):
            return super().arrays()
        self.listed = True
        if self.path.suffix == ".safetensors":
            return super().arrays()
        from rewarm.worker import checkpoints

        return {name: tensor.numpy() for name, tensor in checkpoints.file_tensors(self.path).items()}


def pack(order: Mapping[str, Any]) -> Index:
    """Carry out an order. Raises UserError, BadDefinition, SystemFault, NothingToPack."""
    spec = FunctionSpec.from_json(order["spec"])
    path, out = Path(order["weights_path"]), Path(order["out"])
    known = load_known(Path(order["known"]).read_bytes())
    settle(spec, str(order["code_dir"]))
    weights = PackingWeights(path)
    instance = construct(find_entry(spec.entry, str(order["code_dir"])), weights, str(order["code_dir"]))
    predict = _example_run(instance, spec)  # weights may be opened in the first predict only
    if weights.sessions:
        return _pack_graph(path, out, str(order["key"]), str(order["weights_sha256"]))
    if not weights.modules and not weights.listed:
        raise NothingToPack(_NO_METHOD)
    tensors = tensors_in(path)
    plan = _plan(weights, predict, tensors)
    computes_s = _computes_s(weights, plan, predict)
    layers = [
        LayerIn(group.name, tuple(tensors[name] for name in group.tensors), group.on_demand, compute_s)
        for group, compute_s in zip(plan.groups, computes_s, strict=True)
    ]
    return write_pack(
        out,
        Path(order["tensors_dir"]),
        layers,
        key=str(order["key"]),
        order=plan.order,
        source_sha256=str(order["weights_sha256"]),
        tied=plan.tied,
        setup_s=weights.setup_s,
        known=known,
    )


def _example_run(instance: Any, spec: FunctionSpec) -> Callable[[], Any] | None:
    """One predict with example inputs, which has run once; None if there are none, or it fails on them."""
    try:
        found = example(instance, spec)
        if found is None:
            return None
        args, kwargs = found
        instance.predict(*args, **kwargs)
    except Exception:
        traceback.print_exc()
        return None
    return lambda: instance.predict(*args, **kwargs)


def example(instance: Any, spec: FunctionSpec) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Arguments for one `predict`: what the class's `example()` returns, else ones as declared; None without either.

    `example` may return one argument, a tuple of them, or a dict by name.
    """
    own = getattr(instance, "example", None)
    if callable(own):
        given = own()
        return ((), given) if isinstance(given, dict) else (given if isinstance(given, tuple) else (given,), {})
    import numpy as np

    arrays = {}
    for name, tensor in spec.inputs:
        if tensor is None or tensor.dtype == "object":
            return None
        shape = (1, *(_ANY_LENGTH if size == -1 else size for size in tensor.shape))
        arrays[name] = np.ones(shape, tensor.dtype)
    return (), arrays


def _pack_graph(path: Path, out: Path, key: str, source_sha256: str) -> Index:
    from rewarm.worker.sessions_packing import NotPacked, pack_onnx

    try:
        return pack_onnx(path, out, key=key, source_sha256=source_sha256)
    except NotPacked as error:
        raise NothingToPack(str(error)) from error


def tensors_in(path: Path) -> dict[str, TensorIn]:
    """The tensors of a checkpoint, to be written."""
    if path.suffix == ".safetensors":
        mapped = Mapped(path, path.stat().st_size)

        def bytes_of(begin: int, end: int) -> Callable[[], memoryview]:
            return lambda: mapped.buffer[begin:end]

        entries = header.entries(mapped).items()
        return {name: TensorIn(name, e.dtype, e.shape, bytes_of(e.begin, e.end)) for name, e in entries}
    from rewarm.worker import checkpoints

    found = checkpoints.file_tensors(path).items()
    return {name: TensorIn(name, checkpoints.CODES[t.dtype], tuple(t.shape), _raw(t)) for name, t in found}


def _raw(tensor: torch.Tensor) -> Callable[[], memoryview]:
    import torch

    return lambda: tensor.reshape(-1).view(torch.uint8).numpy().data


def _plan(weights: PackingWeights, predict: Callable[[], Any] | None, tensors: Mapping[str, TensorIn]) -> Plan:
    sizes = {name: tensor_bytes(tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
    if not weights.modules:
        return Plan(groups(list(tensors), sizes, set()), "registered", {})
    from rewarm.worker import tracing

    return tracing.plan(weights.modules[0], predict, sizes)


def _computes_s(weights: PackingWeights, plan: Plan, predict: Callable[[], Any] | None) -> list[float]:
    if weights.modules and predict is not None:
        from rewarm.worker import tracing

        try:
            return tracing.computes_s(weights.modules[0], plan, predict)
        except Exception:
            traceback.print_exc()
    return [0.0] * len(plan.groups)


def _report(order: Mapping[str, Any]) -> dict[str, Any]:
    try:
        index = pack(order)
    except NothingToPack as error:
        return {"ok": True, "packed": False, "why": str(error)}
    except (UserError, RewarmError) as error:
        return {"ok": False, "code": error.code, "error": error.message}
    facts = index.facts()
    return {
        "ok": True, "packed": True, "order": index.order, "layers": len(facts.layers), "bytes": facts.total_bytes,
    }  # fmt: skip


def main(argv: Sequence[str]) -> None:
    # What user code prints must not get between us and our reader.
    with contextlib.redirect_stdout(sys.stderr):
        report = _report(json.loads(Path(argv[0]).read_bytes()))
    print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
    os._exit(0)  # threads and exit handlers of user code must not hold it up
