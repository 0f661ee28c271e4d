"""Experiment `streaming`, torch: the product's way of loading a model beside the others. Runs in a case's child.

All get the same start: the module is built by the product's own code, without values, and takes the loaded tensors as
they are. So loaders are compared, and not those who know that trick with those who do not.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from rewarm.bench.streaming_loaders import WAYS, Order, read_all, write_tensorizer
from rewarm.bench.zoo.generate import weights_file
from rewarm.bench.zoo.models import FACTORIES, example_input
from rewarm.facts.function import FunctionSpec
from rewarm.weights.format import open_pack
from rewarm.weights.loader import Stream
from rewarm.weights.pages import Mapped
from rewarm.worker import modules, packing
from rewarm.worker.checkpoints import pack_tensors
from rewarm.worker.firstpass import Pass, Watch
from rewarm.worker.weights import Weights


def open_case(order: Order) -> Start:
    """See `streaming_case.Case`."""
    torch.set_num_threads(1)
    if order.get("timeline"):
        return Watched(order)
    return Streamed(order) if order["mode"].startswith("streamed") else Loaded(order)


class Start:
    """What all have in common."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.factory = FACTORIES[order["model"]]
        self.input = example_input(order["model"], order["seed"])
        self.net: Any = None

    def first_pass(self) -> None:
        with torch.inference_mode():
            self.output = self.net(self.input)

    def answer(self) -> bytes:
        return bytes(self.output.float().numpy().data)

    def report(self) -> Mapping[str, Any]:
        return {}


class Loaded(Start):
    """Has all tensors, in one of WAYS, before it runs."""

    def __init__(self, order: Order) -> None:
        super().__init__(order)
        self.tensors = WAYS[order["mode"]](order)

    def load(self) -> None:
        self.net = modules.load(self.factory, (), {}, self.tensors())


class Streamed(Start):
    """The product, as an instance of a function uses it."""

    def load(self) -> None:
        order = {name: self.order[name] for name in ("bandwidth_bytes_s", "pinned_bytes")}
        order |= {"folder": self.order["pack"], "tensors_dir": self.order["pack"]}
        self.weights = Weights.packed(self.order["weights"], order)
        self.net = self.weights.module(self.factory)

    def report(self) -> Mapping[str, Any]:
        return self.weights.report() or {}


class Watched(Start):
    """The product's parts, put together so that every wait is seen: for the picture, not for the figures."""

    def load(self) -> None:
        self.since_s = time.perf_counter()
        pack = open_pack(Path(self.order["pack"]), Path(self.order["pack"]))
        self.index = pack.index
        files = [Mapped(pack.path(place), file.size_bytes) for place, file in enumerate(pack.index.files)]
        self.stream = Stream(pack.index, files)
        self.loaded_s: list[float] = []
        self.watcher = threading.Thread(target=self._watch_loads)
        self.watcher.start()
        self.net = modules.load(self.factory, (), {}, pack_tensors(pack.index, files))
        self.waits: list[tuple[int, float, float]] = []  # layer, from, until
        Watch(self.net, pack.index.layers, pack.index.tied, self._wait, self._passed)

    def _watch_loads(self) -> None:
        for layer_no in range(len(self.index.layers)):
            self.stream.wait(layer_no)
            self.loaded_s.append(time.perf_counter())

    def _wait(self, layer_no: int) -> float:
        since_s = time.perf_counter()
        waited_s = self.stream.wait(layer_no)
        self.waits.append((layer_no, since_s, time.perf_counter()))
        return waited_s

    def _passed(self, passed: Pass) -> None:
        end_s = time.perf_counter()
        self.pass_s = (end_s - passed.seconds, end_s)

    def report(self) -> Mapping[str, Any]:
        """`loads_ms` by layer, `computes_ms` between the waits; from the start of the load."""
        self.watcher.join()
        since_s, end_s = self.pass_s
        starts_s = [since_s, *(until_s for _, _, until_s in self.waits)]
        ends_s = [*(from_s for _, from_s, _ in self.waits), end_s]
        return {
            "loads_ms": self._pairs_ms([self.since_s, *self.loaded_s[:-1]], self.loaded_s),
            "computes_ms": self._pairs_ms(starts_s, ends_s),
        }

    def _pairs_ms(self, begins_s: list[float], ends_s: list[float]) -> list[tuple[float, float]]:
        return [
            ((begin_s - self.since_s) * 1e3, (end_s - self.since_s) * 1e3)
            for begin_s, end_s in zip(begins_s, ends_s, strict=True)
        ]


# ---------------------------------------------------------------- what is prepared


def make(order: Order) -> dict[str, Any]:
    """Writes what `order["make"]` names: the zoo's file, the same in another format, or an input."""
    torch.set_num_threads(1)
    model, to = order["model"], Path(order["to"])
    match order["make"]:
        case "weights":
            return {"path": str(weights_file(model, to, order["seed"]))}
        case "pt":
            torch.save({name: tensor.clone() for name, tensor in read_all(order)().items()}, to)
        case "tensors":
            write_tensorizer(read_all(order)(), to)
        case "pack":
            _pack(order, to)
        case "onnx":
            _export(order, to)
        case "input":
            np.save(to, example_input(model, order["seed"]).numpy())
    return {"path": str(to)}


def _export(order: Order, to: Path) -> None:
    """By the exporter that traces: the newer one needs a package more."""
    net = modules.load(FACTORIES[order["model"]], (), {}, read_all(order)())
    torch.onnx.export(net, (example_input(order["model"], order["seed"]),), str(to), dynamo=False, opset_version=17)


class Packed:
    """What is deployed, as `rewarm.worker.packing` wants it: one that knows its example."""

    order: ClassVar[Order]

    def __init__(self, weights: Weights) -> None:
        self.net = weights.module(FACTORIES[self.order["model"]])

    def example(self) -> torch.Tensor:
        return example_input(self.order["model"], self.order["seed"])

    def predict(self, inputs: torch.Tensor) -> Any:
        with torch.inference_mode():
            return self.net(inputs)


def _pack(order: Order, to: Path) -> None:
    """By the product's own code: traced and measured. The data file stays beside the index."""
    Packed.order = order
    spec = FunctionSpec(order["model"], "predict", f"{__name__}:Packed", inputs=(("inputs", None),))
    to.mkdir()
    known = to / "known.json"
    known.write_text("{}")
    packing.pack({
        "spec": spec.to_json(), "code_dir": str(to), "weights_path": order["weights"], "weights_sha256": "",
        "key": order["model"], "out": str(to), "tensors_dir": str(to), "known": str(known),
    })  # fmt: skip
