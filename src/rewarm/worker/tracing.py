"""In which order a model uses its weights, and how long each layer computes: seen in one run, at pack time.

What is watched are the calls of torch and the tensors given to them, not modules: so parameters used without their
module being called (F.linear(x, self.weight), tied heads, attention of torch's own) are seen where they are used. What
the run did not use comes last, in the order in which the module registered it.
"""

from __future__ import annotations

import bisect
import itertools
import statistics
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from rewarm.worker.firstpass import TABLES, Pass, Watch
from rewarm.worker.layering import Group, Plan, groups

_BY_ROW = frozenset({"embedding", "embedding_bag"})
#: They ask what a tensor is, not what it holds; properties are all `__get__`.
_QUESTIONS = frozenset({
    "__get__", "__len__", "__hash__", "__repr__", "size", "dim", "numel", "nelement", "ndimension", "stride", "type",
    "is_floating_point", "is_complex", "element_size", "data_ptr", "storage_offset", "is_contiguous", "get_device",
    "requires_grad_",
})  # fmt: skip
_TIMED_RUNS = 3


class Recorder(TorchFunctionMode):
    """While it is entered, notes when each parameter is first used: as a whole, or as a table of which rows are read.

    Parameters are told by where their memory lies, so views of them count.
    """

    def __init__(self, parameters: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self._places = sorted((p.data_ptr(), p.data_ptr() + p.nbytes, name) for name, p in parameters.items())
        self._begins = [begin for begin, _, _ in self._places]
        self._whole: dict[str, int] = {}
        self._by_row: dict[str, int] = {}
        self._clock = itertools.count()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        called = getattr(function, "__name__", "")
        if called not in _QUESTIONS:
            used = self._by_row if called in _BY_ROW else self._whole
            for tensor in _tensors((args, kwargs)):
                name = self._name(tensor)
                if name is not None:
                    used.setdefault(name, next(self._clock))
        return function(*args, **kwargs)

    def order(self) -> list[str]:
        """The parameters used, by first use; a table that is also used as a whole counts from there."""
        first = {**self._by_row, **self._whole}
        return sorted(first, key=lambda name: first[name])

    def tables(self) -> set[str]:
        """Those of which nothing but rows was read."""
        return set(self._by_row) - set(self._whole)

    def _name(self, tensor: torch.Tensor) -> str | None:
        if tensor.is_meta or tensor.layout is not torch.strided or tensor.numel() == 0:
            return None
        at = bisect.bisect_right(self._begins, tensor.data_ptr()) - 1
        return self._places[at][2] if at >= 0 and tensor.data_ptr() < self._places[at][1] else None


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _tensors(each)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def plan(module: nn.Module, predict: Callable[[], Any] | None, size_bytes: Mapping[str, int]) -> Plan:
    """The layers of a checkpoint (its tensors and their sizes) whose tensors `module` has, in order of use.

    As the module registered them without `predict`, or if that fails or uses none of them. Buffers come first, since
    they are read when the module is made.
    """
    names: dict[int, list[str]] = {}
    parameters = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if name in size_bytes:
            names.setdefault(id(parameter), []).append(name)
            parameters[id(parameter)] = parameter
    # Of several names of one parameter the last is that of its values, as in `modules.assign`.
    own = {held[-1]: parameters[key] for key, held in names.items()}
    tied = {alias: held[-1] for held in names.values() for alias in held[:-1]}
    recorder = _record(own, predict) if predict is not None else None
    traced = recorder.order() if recorder is not None else []
    unused = [name for name in own if name not in traced]
    tables = (recorder.tables() if recorder is not None else set()) | (_of_tables(module, own) & set(unused))
    buffers = tuple(name for name in size_bytes if name not in own and name not in tied)
    found = groups([*traced, *unused], size_bytes, tables)
    return Plan(
        ([Group("buffers", buffers, False)] if buffers else []) + found, "traced" if traced else "registered", tied
    )


def _record(parameters: Mapping[str, torch.Tensor], predict: Callable[[], Any]) -> Recorder | None:
    recorder = Recorder(parameters)
    try:
        with recorder:
            predict()
    except Exception:  # it ran before, but not every code bears to be watched
        traceback.print_exc()
        return None
    return recorder


def _of_tables(module: nn.Module, named: Mapping[str, torch.Tensor]) -> set[str]:
    """Names of parameters that belong to nothing but embeddings."""
    owners: dict[int, set[bool]] = {}
    for part in module.modules():
        for parameter in part.parameters(recurse=False):
            owners.setdefault(id(parameter), set()).add(isinstance(part, TABLES))
    return {name for name, parameter in named.items() if owners[id(parameter)] == {True}}


def computes_s(module: nn.Module, plan: Plan, predict: Callable[[], Any]) -> list[float]:
    """Seconds of compute of each layer in one `predict`, medians of 3 after one more. Raises what `predict` raises."""
    passes: list[Pass] = []
    runs: list[list[float]] = []
    watch = Watch(module, plan.layers(), plan.tied, lambda layer: 0.0, passes.append)
    try:
        for _ in range(1 + _TIMED_RUNS):
            passes.clear()
            predict()
            runs.append([sum(times) for times in zip(*(each.compute_s for each in passes), strict=True)])
    finally:
        watch.close()
    return [statistics.median(times) for times in zip(*runs[1:], strict=True)]
