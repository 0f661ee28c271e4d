"""Writes a model of the zoo as .safetensors: random weights, the same for the same seed, a slice at a time."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from rewarm.bench.zoo.models import FACTORIES
from rewarm.errors import NotFound, SystemFault
from rewarm.units import MB, human_bytes

_MADE_BY = "rewarm.bench.zoo"
_SLICE_ELEMENTS = 1 << 22  # what is held of a tensor at a time
_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.int64: "I64"}

Progress = Callable[[int, int, str], None]  # MB written, MB in all, the tensor under way


def weights_file(name: str, folder: Path, seed: int = 0, progress: Progress | None = None) -> Path:
    """The path of the model's file in `folder`, written unless it is there already.

    A file appears whole or not at all. Raises NotFound for a name that the zoo has not and SystemFault if the folder
    cannot be written or its disk is too full.
    """
    if name not in FACTORIES:
        raise NotFound(f"the zoo has no model {name!r}; it has {', '.join(FACTORIES)}")
    with torch.device("meta"):
        tensors = FACTORIES[name]().state_dict()
    header, data_bytes = _header(tensors, {"made_by": _MADE_BY, "model": name, "seed": str(seed)})
    path = folder / f"{name}-{seed}.safetensors"
    if _begins_with(path, header, len(header) + data_bytes):
        return path
    partial = folder / f".{path.name}.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _check_room(folder, len(header) + data_bytes)
        with partial.open("wb") as file:
            file.write(header)
            for tensor, part in _slices(tensors, seed):
                file.write(part.view(torch.uint8).numpy().data)
                if progress is not None:
                    progress(file.tell() // MB, data_bytes // MB, tensor)
            file.flush()
            os.fsync(file.fileno())  # dirty pages cannot be dropped from the page cache
        partial.rename(path)
    except OSError as error:
        raise SystemFault(f"cannot write {path}: {error.strerror}; name another folder") from error
    finally:
        with contextlib.suppress(OSError):  # it has its name, or never came to be
            partial.unlink()
    return path


def _header(tensors: Mapping[str, Any], metadata: Mapping[str, str]) -> tuple[bytes, int]:
    """The file's first bytes, and how many bytes of data follow.

    Format: https://github.com/huggingface/safetensors, "Format".
    """
    entries: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name in _order(tensors):
        tensor = tensors[name]
        begin, end = end, end + tensor.numel() * tensor.element_size()
        entries[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text, end


def _order(tensors: Mapping[str, Any]) -> list[str]:
    """As the library writes them, so as published files have them: the widest elements first, then by name."""
    return sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))


def _begins_with(path: Path, header: bytes, size_bytes: int) -> bool:
    try:
        with path.open("rb") as file:
            return os.fstat(file.fileno()).st_size == size_bytes and file.read(len(header)) == header
    except (FileNotFoundError, NotADirectoryError):  # writing it will tell
        return False
    except OSError as error:
        raise SystemFault(f"cannot read {path}: {error.strerror}") from error


def _check_room(folder: Path, needed_bytes: int) -> None:
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < needed_bytes:
        raise SystemFault(f"{folder} has {human_bytes(free_bytes)} free, and {human_bytes(needed_bytes)} are needed")


def _slices(tensors: Mapping[str, Any], seed: int) -> Iterator[tuple[str, torch.Tensor]]:
    for name in _order(tensors):
        tensor = tensors[name]
        digest = hashlib.sha256(f"{_MADE_BY}:{seed}:{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        mean, spread = _scale(name, tensor.shape)
        for begin in range(0, tensor.numel(), _SLICE_ELEMENTS):
            count = min(_SLICE_ELEMENTS, tensor.numel() - begin)
            part = torch.randn(count, generator=generator).mul_(spread).add_(mean)
            yield name, (part.abs_() if name.endswith("running_var") else part).to(tensor.dtype)


def _scale(name: str, shape: torch.Size) -> tuple[float, float]:
    """Mean and standard deviation such that activations neither vanish nor blow up on their way through the model."""
    if not shape:
        return 0.0, 0.0  # num_batches_tracked
    if len(shape) == 1:
        centre = 0.0 if name.endswith(("bias", "running_mean")) else 1.0
        return centre, 0.02
    if "embed" in name:
        return 0.0, 1.0
    gain = 2.0 if len(shape) == 4 else 1.0  # He et al. 2015: a ReLU follows
    return 0.0, math.sqrt(gain / math.prod(shape[1:]))
