"""Files of tensors as torch tensors: packs and `.safetensors` mapped, `.pt` loaded without running code.

What is mapped is shared with all who map the file, and read-only: to write into such a tensor ends the process
(SIGSEGV). Neither torch nor numpy knows of tensors that must not be written to.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from rewarm.errors import BadDefinition
from rewarm.weights import header
from rewarm.weights.format import Index, TensorEntry
from rewarm.weights.pages import Mapped

#: Code of a dtype in safetensors → torch's.
DTYPES: dict[str, torch.dtype] = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "U16": torch.uint16, "I16": torch.int16,
    "U32": torch.uint32, "I32": torch.int32, "U64": torch.uint64, "I64": torch.int64, "F16": torch.float16,
    "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64, "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz, "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
}  # fmt: skip
CODES = {dtype: code for code, dtype in DTYPES.items()}


def pack_tensors(index: Index, mappings: Sequence[Mapped]) -> dict[str, torch.Tensor]:
    """Views of the mapped data files of a pack, other names of tied tensors included. Reads no page."""
    found = _views(index.tensors, mappings)
    found.update({alias: found[name] for alias, name in index.tied.items()})
    return found


def file_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint as it was deployed. Raises BadDefinition for a file that is none, OSError.

    `.safetensors` is mapped; anything else is what `torch.save(module.state_dict())` wrote.
    """
    if path.suffix == ".safetensors":
        mapped = Mapped(path, path.stat().st_size)
        return _views(header.entries(mapped), [mapped])
    return _torch_load(path)


def _views(entries: Mapping[str, TensorEntry], mappings: Sequence[Mapped]) -> dict[str, torch.Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of memory that is not writable: that is the point
        files = [torch.frombuffer(mapped.buffer, dtype=torch.uint8) for mapped in mappings]
    as_dtype: dict[tuple[int, str], torch.Tensor] = {}
    return {name: _view(entry, files, as_dtype) for name, entry in entries.items()}


def _view(entry: TensorEntry, files: Sequence[torch.Tensor], as_dtype: dict[tuple[int, str], torch.Tensor]) -> Any:
    """`as_dtype`: whole files as elements of a dtype, each made once: calls of torch are what takes the time here."""
    code, shape, file, begin, end, _ = entry
    dtype = DTYPES[code]
    if begin == end:
        return torch.empty(shape, dtype=dtype)
    size_bytes = dtype.itemsize
    if begin % size_bytes:  # only in files of other writers
        return files[file][begin:end].clone().view(dtype).view(shape)
    whole = as_dtype.get((file, code))
    if whole is None:
        whole = files[file][: len(files[file]) // size_bytes * size_bytes].view(dtype)
        as_dtype[file, code] = whole
    return whole[begin // size_bytes : end // size_bytes].view(shape)


def _torch_load(path: Path) -> dict[str, torch.Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of pickles by others than torch, which end as errors
            try:
                found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError:  # the format before torch 1.6 cannot be mapped
                found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        text = "it holds pickled objects or code, and rewarm runs none of that"
        raise _bad(path, f"{text} ({_first_line(error)})") from None
    except Exception as error:  # whatever strange bytes do to torch
        raise _bad(path, f"torch.load: {_first_line(error)}") from None
    if not isinstance(found, Mapping) or not found:
        raise _bad(path, f"it holds a {type(found).__name__}")
    wrong = [name for name, tensor in found.items() if not (isinstance(name, str) and isinstance(tensor, torch.Tensor))]
    if wrong:
        raise _bad(path, f"{wrong[0]!r} is not a tensor in it")
    return {name: _plain(name, tensor, path) for name, tensor in found.items()}


def _plain(name: str, tensor: torch.Tensor, path: Path) -> torch.Tensor:
    """Contiguous, as a plain load has it: kernels may round otherwise on other strides."""
    if tensor.layout is not torch.strided or tensor.dtype not in CODES:
        raise _bad(path, f"tensor {name!r} is {tensor.dtype} with layout {tensor.layout}, which rewarm does not know")
    return tensor.detach().contiguous()


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def _bad(path: Path, why: str) -> BadDefinition:
    text = "save the model's state_dict() with safetensors.torch.save_file or torch.save"
    return BadDefinition(f"{path.name} is not a file of weights: {why}; {text}")
