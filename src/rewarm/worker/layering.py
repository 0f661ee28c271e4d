"""From tensors in the order of their use to the layers of a pack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from rewarm.weights.format import LayerEntry

#: Smaller layers of one block become one. 4 MiB is about 2 ms of a disk: to wait for less than the whole of that gains
#: nothing that can be measured, and models of thousands of small tensors would have as many layers.
LAYER_BYTES_MIN = 4 << 20


class Group(NamedTuple):
    """A layer to be: tensors by name, in the order of their use."""

    name: str
    tensors: tuple[str, ...]
    on_demand: bool


class Plan(NamedTuple):
    """What goes into a pack of tensors, in this order. `tied`: other name of a tensor → its name in a group."""

    groups: list[Group]
    order: Literal["traced", "registered"]
    tied: dict[str, str]

    def layers(self) -> list[LayerEntry]:
        """As they will stand in the index, without times."""
        return [LayerEntry(*group, 0.0) for group in self.groups]


def groups(order: Sequence[str], size_bytes: Mapping[str, int], tables: set[str]) -> list[Group]:
    """Layers of what is used one after another: what one module owns, and small modules of one block together.

    `tables`: tensors that are read by row, so on demand, unless they are so small that they are there at once.
    """
    found: list[Group] = []
    filled_bytes = 0
    for name in order:
        owner, on_demand = name.rpartition(".")[0], name in tables and size_bytes[name] >= LAYER_BYTES_MIN
        last = found[-1] if found else None
        if last is not None and last.on_demand == on_demand and _joins(owner, last, filled_bytes):
            found[-1] = last._replace(tensors=(*last.tensors, name))
        else:
            found.append(Group(owner or name, (name,), on_demand))
            filled_bytes = 0
        filled_bytes += size_bytes[name]
    return found


def _joins(owner: str, last: Group, filled_bytes: int) -> bool:
    last_owner = last.tensors[-1].rpartition(".")[0]
    return owner == last_owner or (filled_bytes < LAYER_BYTES_MIN and _block(owner) == _block(last_owner))


def _block(owner: str) -> str:
    """`encoder.layer.3.attention.query` is of block `encoder.layer.3`; without a number it is of what it is part of."""
    parts = owner.split(".")[:-1]
    last = max((place for place, part in enumerate(parts) if part.isdigit()), default=len(parts) - 1)
    return ".".join(parts[: last + 1])
