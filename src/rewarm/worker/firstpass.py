"""Watching a module run: each part waits for its layer while the weights are still coming, and a clock runs along.

The hooks are torch's global ones and not those of a module, for modules with hooks of their own take other, slower ways
inside torch (nn.TransformerEncoderLayer), which round differently: the first answer would not be bit for bit the later.
Where nothing is waited for, only the whole is timed, by hooks of the few parts that may be called from outside: global
ones cost every part of a model about 20 µs, which is a twentieth of MiniLM's first pass.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from rewarm.weights.format import Index, LayerEntry
from rewarm.weights.pages import ROWS_MAX, ask_for_rows, wait_for

#: They use the parameters of their children without calling these.
_WHOLE = (nn.MultiheadAttention, nn.TransformerEncoderLayer)
#: Of their weights some rows are read.
TABLES = (nn.Embedding, nn.EmbeddingBag)


class Pass(NamedTuple):
    """One outermost call of a module or of a part of it: its time, how much of that was waiting, compute by layer.

    `rows_s`: what of the waiting was for rows of a table, by layer, where some had to be read.
    """

    seconds: float
    waited_s: float
    compute_s: tuple[float, ...]
    rows_s: Mapping[int, float] = {}


class _Part(NamedTuple):
    """What to do when a part of the module is called: -1 is nothing."""

    clock: int  # from now on the time is this layer's
    wait: int  # the last of the layers that must be there
    table: nn.Module | None  # of which rows are read on demand
    table_layer: int


class Watch:
    """Sees the calls of `module` and of its parts until `close`.

    `wait(layer)` is called before a part runs that needs it; `on_pass` after each outermost call. With `rows` those
    that a table is about to look up are waited for, too. Forward is expected to run in one thread at a time.
    """

    def __init__(
        self,
        module: nn.Module,
        layers: Sequence[LayerEntry],
        tied: Mapping[str, str],
        wait: Callable[[int], float],
        on_pass: Callable[[Pass], None],
        rows: bool = False,
    ) -> None:
        self._module = module  # parts are told apart by their identity, so they have to live
        self._parts = _parts(module, layers, tied)
        self._layer_count = len(layers)
        self._wait = wait
        self._on_pass = on_pass
        self._rows = rows
        self._rows_s: dict[int, float] = {}
        self._depth = 0
        self._since_s = 0.0
        self._marks: list[tuple[int, float, float]] = []  # layer, when its part was called, seconds waited
        self._handles = (
            register_module_forward_pre_hook(self._enter),
            register_module_forward_hook(self._leave, always_call=True),
        )

    def close(self) -> None:
        """Take the hooks away. Harmless a second time."""
        for handle in self._handles:
            handle.remove()

    def _enter(self, module: nn.Module, arguments: tuple[Any, ...]) -> None:
        part = self._parts.get(id(module))
        if part is None:  # of another model
            return
        now_s = time.perf_counter()
        if self._depth == 0:
            self._since_s = now_s
            self._marks.clear()
            self._rows_s = {}
        self._depth += 1
        waited_s = 0.0
        if part.table is not None and self._rows and arguments:
            rows_s = _look_ahead(part.table, arguments[0])
            if rows_s is not None:
                waited_s = rows_s
                self._rows_s[part.table_layer] = self._rows_s.get(part.table_layer, 0.0) + rows_s
        waited_s += self._wait(part.wait) if part.wait >= 0 else 0.0
        if part.clock >= 0:
            self._marks.append((part.clock, now_s, waited_s))

    def _leave(self, module: nn.Module, *_: Any) -> None:
        if id(module) not in self._parts:
            return
        self._depth -= 1
        if self._depth == 0:
            self._on_pass(self._passed(time.perf_counter()))

    def _passed(self, end_s: float) -> Pass:
        compute_s = [0.0] * self._layer_count
        if not self._marks:
            return Pass(end_s - self._since_s, 0.0, tuple(compute_s))
        ends_s = [now_s for _, now_s, _ in self._marks[1:]] + [end_s]
        since_s = self._since_s  # what comes before the first layer is counted to it
        for (layer, _, waited_s), until_s in zip(self._marks, ends_s, strict=True):
            compute_s[layer] += until_s - since_s - waited_s
            since_s = until_s
        waited_s = sum(waited for _, _, waited in self._marks)
        return Pass(end_s - self._since_s, waited_s, tuple(compute_s), self._rows_s)


def _parts(module: nn.Module, layers: Sequence[LayerEntry], tied: Mapping[str, str]) -> dict[int, _Part]:
    by_name = {name: number for number, layer in enumerate(layers) for name in layer.tensors}
    by_name.update({alias: by_name[name] for alias, name in tied.items()})
    twice = set(tied) | set(tied.values())
    layer_of: dict[int, int] = {}  # by identity of the parameter
    shared: set[int] = set()
    found = [("", module)]
    for prefix, of in found:  # it grows meanwhile
        for key, parameter in of._parameters.items():
            name = prefix + key
            if parameter is not None and name in by_name:
                layer_of[id(parameter)] = by_name[name]
                if name in twice:
                    shared.add(id(parameter))
        found += [(f"{prefix}{key}.", child) for key, child in of._modules.items() if child is not None]

    parts: dict[int, _Part] = {}

    def visit(of: nn.Module) -> int:
        """→ the first layer that it or anything below it needs, or as many as there are."""
        first_below = min([visit(child) for child in of._modules.values() if child is not None], default=len(layers))
        held = list(of.parameters()) if isinstance(of, _WHOLE) else list(of._parameters.values())
        own = sorted(layer_of[id(parameter)] for parameter in held if id(parameter) in layer_of)
        first = min([first_below, *own])
        if isinstance(of, TABLES):
            if any(id(parameter) in shared for parameter in held):  # with a head, which waits for it
                own = [number for number in own if layers[number].on_demand]
        elif not isinstance(of, _WHOLE):
            # What it needs after one of its children, such as the head of a whole model, must not hold it up.
            own = [number for number in own if number <= first_below]
        streamed = [number for number in own if not layers[number].on_demand]
        on_demand = isinstance(of, TABLES) and len(own) > len(streamed)
        parts[id(of)] = _Part(
            own[0] if own else -1, streamed[-1] if streamed else -1, of if on_demand else None,
            next((number for number in own if layers[number].on_demand), -1),
        )  # fmt: skip
        return first

    visit(module)
    return parts


def _look_ahead(table: Any, ids: Any) -> float | None:
    """Wait for the rows that are about to be looked up: seconds, or None if none had to be read."""
    if not isinstance(ids, torch.Tensor) or ids.is_floating_point() or ids.device.type != "cpu":
        return None
    weight = table.weight
    row_bytes = weight.stride(0) * weight.element_size()
    rows = torch.unique(ids)[:ROWS_MAX].tolist()
    missing = ask_for_rows(weight.data_ptr(), row_bytes, weight.shape[0], rows)
    return wait_for(missing) if missing else None


class FirstPass:
    """The first pass of a module whose weights are being streamed: waits, and is measured.

    `wait` and `done` are those of the stream. The hooks go when the first pass is over and all is loaded: if a pass
    leaves layers out, the next one may need them.
    """

    def __init__(self, module: nn.Module, index: Index, wait: Callable[[int], float], done: Callable[[], bool]) -> None:
        #: None until it is over.
        self.passed: Pass | None = None
        self._done = done
        self._watch = Watch(module, index.layers, index.tied, wait, self._on_pass, rows=True)

    def _on_pass(self, passed: Pass) -> None:
        if self.passed is None:
            self.passed = passed
        if self._done():
            self._watch.close()


class Stopwatch:
    """The first pass of a module whose weights are all in memory. Its time is shared out among the layers.

    Watches the module and the parts right below it, of which one may be called alone. A pass that fails is not one.
    """

    def __init__(self, module: nn.Module, index: Index) -> None:
        #: None until it is over.
        self.passed: Pass | None = None
        self._index = index
        self._running: list[nn.Module] = []
        self._since_s = 0.0
        self._handles = [
            handle
            for part in (module, *module.children())
            for handle in (part.register_forward_pre_hook(self._enter), part.register_forward_hook(self._leave))
        ]

    @staticmethod
    def fits(module: nn.Module) -> bool:
        """Whether hooks do not change how it computes."""
        return not any(isinstance(part, _WHOLE) for part in (module, *module.children()))

    def _enter(self, module: nn.Module, _: Any) -> None:
        if module in self._running:  # left over from a pass that failed
            self._running.clear()
        if not self._running:
            self._since_s = time.perf_counter()
        self._running.append(module)

    def _leave(self, module: nn.Module, *_: Any) -> None:
        if self._running[:1] != [module]:
            return
        seconds = time.perf_counter() - self._since_s
        self.passed = Pass(seconds, 0.0, self._index.shares(seconds))
        for handle in self._handles:
            handle.remove()
