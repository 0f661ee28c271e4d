"""What thinking knows of a packed model: its layers in execution order, without files, tensors or paths."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from rewarm.errors import BadDefinition


class LayerFacts(NamedTuple):
    """One layer: its bytes in the data files, and its seconds of compute in the first pass.

    A layer that is read `on_demand`, a table of which a pass reads some rows, is not streamed: the pass waits `rows_s`
    for these rows, as far as that is known, whatever the bytes of the whole table. It is pinned whole or not at all.
    """

    name: str
    size_bytes: int
    compute_s: float
    on_demand: bool = False
    rows_s: float = 0.0


@dataclass(frozen=True, slots=True)
class PackFacts:
    """A pack: layers in execution order. Raises BadDefinition for sizes and durations that cannot be.

    `setup_s`: seconds from the start of the load until the first layer could run if it were there (construction).
    `spans`: where the streamed bytes are, in execution order: file, begin, end. `table_spans`: the same of the layers
    that are read on demand, each after its layer's number. Packs that name the same bytes share them; one that names
    none shares none.
    """

    key: str
    layers: tuple[LayerFacts, ...]
    setup_s: float = 0.0
    spans: tuple[tuple[str, int, int], ...] = ()
    table_spans: tuple[tuple[int, str, int, int], ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.key, str) or not self.key:
            raise BadDefinition(f"a pack has a key, not {self.key!r}")
        if not _is_duration(self.setup_s):
            raise BadDefinition(f"pack {self.key}: setup takes 0 or more seconds, not {self.setup_s!r}")
        for layer in self.layers:
            if type(layer.size_bytes) is not int or layer.size_bytes < 0:
                raise BadDefinition(f"pack {self.key}: {layer.name} has 0 or more bytes, not {layer.size_bytes!r}")
            if not _is_duration(layer.compute_s):
                raise BadDefinition(f"pack {self.key}: {layer.name} takes 0 or more seconds, not {layer.compute_s!r}")
        if self.spans or self.table_spans:
            _check_spans(self)

    @property
    def total_bytes(self) -> int:
        return sum(layer.size_bytes for layer in self.layers)

    @property
    def streamed_bytes(self) -> int:
        """All but what is read on demand: what a load reads."""
        return sum(layer.size_bytes for layer in self.layers if not layer.on_demand)

    @property
    def compute_s(self) -> float:
        """A whole first pass with nothing to wait for, after `setup_s`."""
        return sum(layer.compute_s for layer in self.layers)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; `from_json` is its inverse."""
        return {
            "key": self.key, "setup_s": self.setup_s, "layers": [list(layer[:4]) for layer in self.layers],
            "spans": [list(span) for span in self.spans],
            "table_spans": [list(span) for span in self.table_spans],
        }  # fmt: skip

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> PackFacts:
        """Raises BadDefinition if a field is missing or of a wrong kind."""
        try:
            layers = tuple(
                LayerFacts(str(name), size_bytes, compute_s, bool(on_demand))
                for name, size_bytes, compute_s, on_demand in data["layers"]
            )
            spans = tuple((str(file), begin, end) for file, begin, end in data["spans"])
            tables = tuple((layer, str(file), begin, end) for layer, file, begin, end in data["table_spans"])
            return PackFacts(data["key"], layers, data["setup_s"], spans, tables)
        except (KeyError, TypeError, ValueError) as error:
            raise BadDefinition(f"not the facts of a pack: {error!r}; deploy the function again") from error


def _check_spans(pack: PackFacts) -> None:
    for file, begin, end in (*pack.spans, *((span[1:]) for span in pack.table_spans)):
        if not type(begin) is type(end) is int or not 0 <= begin < end:
            raise BadDefinition(f"pack {pack.key}: bytes {begin!r} to {end!r} of {file} cannot be")
    found_bytes = sum(end - begin for _, begin, end in pack.spans)
    if found_bytes != pack.streamed_bytes:
        raise BadDefinition(f"pack {pack.key}: its layers have {pack.streamed_bytes} bytes and its spans {found_bytes}")
    for number, layer in enumerate(pack.layers):
        found_bytes = sum(end - begin for of, _, begin, end in pack.table_spans if of == number)
        if found_bytes != (layer.size_bytes if layer.on_demand else 0):
            raise BadDefinition(
                f"pack {pack.key}: {layer.name} has {layer.size_bytes} bytes and its spans {found_bytes}"
            )


def _is_duration(seconds: object) -> bool:
    return type(seconds) in (int, float) and math.isfinite(seconds) and seconds >= 0.0  # type: ignore[arg-type,operator]
