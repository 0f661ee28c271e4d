"""The ways to load a checkpoint that experiment `streaming` compares with the product's. Runs in a case's child.

A way takes the order of its case, which has the paths, and does its imports; what it returns is timed, and gives the
tensors by name.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from rewarm.weights.format import open_pack
from rewarm.weights.pages import Mapped
from rewarm.worker.checkpoints import DTYPES, pack_tensors

Tensors = Mapping[str, torch.Tensor]
Order = Mapping[str, Any]
Load = Callable[[], Tensors]

#: Of libraries whose tensors lie in memory that only lives as long as they do.
_kept: list[Any] = []


def read_all(order: Order) -> Load:
    """Reads the whole file into memory of its own, in as few calls as there can be, and makes views of it."""

    def load() -> Tensors:
        path = Path(order["weights"])
        with path.open("rb", buffering=0) as file:
            (header_bytes,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(header_bytes))
            data = torch.empty(path.stat().st_size - 8 - header_bytes, dtype=torch.uint8)
            rest = data.numpy().data
            while count := file.readinto(rest):  # Linux reads at most 2 GiB at once
                rest = rest[count:]
        header.pop("__metadata__", None)
        return {name: _view(data, entry) for name, entry in header.items()}

    return load


def _view(data: torch.Tensor, entry: Mapping[str, Any]) -> torch.Tensor:
    begin, end = entry["data_offsets"]
    return data[begin:end].view(DTYPES[entry["dtype"]]).view(entry["shape"])


def mapped(order: Order) -> Load:
    """Maps the pack's files and reads nothing: pages come when they are touched."""

    def load() -> Tensors:
        pack = open_pack(Path(order["pack"]), Path(order["pack"]))
        files = [Mapped(pack.path(place), file.size_bytes) for place, file in enumerate(pack.index.files)]
        return pack_tensors(pack.index, files)

    return load


def torch_load(order: Order) -> Load:
    return lambda: torch.load(order["pt"], map_location="cpu", weights_only=True)


def torch_load_mapped(order: Order) -> Load:
    return lambda: torch.load(order["pt"], map_location="cpu", weights_only=True, mmap=True)


def safetensors(order: Order) -> Load:
    from safetensors.torch import load_file

    return lambda: load_file(order["weights"])


def runai(order: Order) -> Load:
    from runai_model_streamer import SafetensorsStreamer

    def load() -> Tensors:
        with SafetensorsStreamer() as streamer:
            streamer.stream_file(order["weights"])
            return {name: tensor.clone() for name, tensor in streamer.get_tensors()}  # it uses its buffer again

    return load


def fastsafetensors(order: Order) -> Load:
    from fastsafetensors import SafeTensorsFileLoader, SingleGroup

    def load() -> Tensors:
        loader = SafeTensorsFileLoader(SingleGroup(), "cpu", nogds=True)
        loader.add_filenames({0: [order["weights"]]})
        files = loader.copy_files_to_device()
        _kept.extend((loader, files))
        return {name: files.get_tensor(name) for name in loader.get_keys()}

    return load


def tensorizer(order: Order) -> Load:
    from tensorizer import TensorDeserializer

    def load() -> Tensors:
        found = TensorDeserializer(order["tensors"], device="cpu")
        _kept.append(found)
        return dict(found.items())

    return load


def write_tensorizer(tensors: Tensors, path: Path) -> None:
    """The file that `tensorizer` loads."""
    from tensorizer import TensorSerializer

    serializer = TensorSerializer(str(path))
    serializer.write_state_dict(dict(tensors))
    serializer.close()


#: mode of the experiment → the way
WAYS: dict[str, Callable[[Order], Load]] = {
    "read-all": read_all,
    "on-demand": mapped,
    "warm": mapped,
    "torch.load": torch_load,
    "torch.load-mmap": torch_load_mapped,
    "safetensors": safetensors,
    "runai-model-streamer": runai,
    "fastsafetensors": fastsafetensors,
    "tensorizer": tensorizer,
}
