"""The graph of an ONNX model as packing sees it: which node reads which initialiser first, and what can stay unread.

Works on the messages of the package onnx without importing it. Names are those of the main graph; what the nodes of a
subgraph (If, Loop, Scan) read counts as read by the node that holds it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

#: A layer has at least so many bytes, so that reading it is one long read and there are not too many of them.
LAYER_BYTES = 4 << 20
#: A table is read on demand from this size on, if it has so many rows: of a few, a pass may well read all, and a small
#: one is streamed sooner than some of its rows are read, each of which waits behind what is streamed.
TABLE_BYTES, TABLE_ROWS = 4 << 20, 64

#: Operators that read single rows of some inputs: (domain, operator) → their places.
_ROW_READERS = {("", "Gather"): (0,), ("com.microsoft", "EmbedLayerNormalization"): (2, 3, 4)}

#: Operators that only move values.
_MOVERS = {("", "Reshape"), ("", "Transpose")}


class Group(NamedTuple):
    """Initialisers that are first read one after another: a layer of the pack, with its seconds of compute."""

    tensors: tuple[str, ...]
    on_demand: bool
    compute_s: float


def subgraphs(node: Any) -> Iterator[Any]:
    """The graphs that a node holds, without those of their nodes."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def every_node(graph: Any) -> Iterator[Any]:
    """The nodes of a graph and of all graphs in it, in the order of the file."""
    for node in graph.node:
        yield node
        for inner in subgraphs(node):
            yield from every_node(inner)


def every_graph(graph: Any) -> Iterator[Any]:
    """A graph and all graphs in it."""
    yield graph
    for node in graph.node:
        for inner in subgraphs(node):
            yield from every_graph(inner)


def hoist(main: Any, movable: Callable[[Any], bool]) -> None:
    """Move the initialisers of subgraphs that are `movable` to the main graph, whose names are visible everywhere.

    Branches of one If may give the same name to different weights; in the main graph there is one of each. One that is
    an input or output of its subgraph stays.
    """
    taken = {name for node in every_node(main) for name in (*node.input, *node.output)}
    taken |= {value.name for graph in every_graph(main) for value in (*graph.input, *graph.initializer)}
    for graph in list(every_graph(main))[1:]:
        told = {value.name for value in (*graph.input, *graph.output)}
        moved = [tensor for tensor in graph.initializer if movable(tensor) and tensor.name not in told]
        if not moved:
            continue
        names = {tensor.name: _fresh(tensor.name, taken) for tensor in moved}
        _rename(graph.node, names)
        for tensor in moved:
            copy = main.initializer.add()
            copy.CopyFrom(tensor)
            copy.name = names[tensor.name]
        kept = [tensor for tensor in graph.initializer if tensor.name not in names]
        del graph.initializer[:]
        graph.initializer.extend(kept)


def merge_equal(main: Any) -> None:
    """One initialiser of all that are equal, and one node of all that only move the same values in the same way.

    Exporters write a shape for each Reshape, and onnxruntime's optimiser a Reshape for each Gemm: of BERT-base that is
    half of all initialisers, and an eighth of the time in which a session is made.
    """
    told = {value.name for value in (*main.input, *main.output)}
    values: dict[bytes, str] = {}
    moves: dict[bytes, str] = {}
    renamed: dict[str, str] = {}
    for tensor in main.initializer:
        if not tensor.external_data and tensor.name not in told:
            content = type(tensor)()
            content.CopyFrom(tensor)
            content.ClearField("name")
            _merge(content.SerializeToString(deterministic=True), tensor.name, values, renamed)
    _keep(main.initializer, lambda tensor: tensor.name not in renamed)
    for node in main.node:
        _rename([node], renamed)
        if (node.domain, node.op_type) in _MOVERS and node.output[0] not in told:
            content = type(node)()
            content.CopyFrom(node)
            content.ClearField("name")
            content.ClearField("output")
            _merge(content.SerializeToString(deterministic=True), node.output[0], moves, renamed)
    _keep(main.node, lambda node: node.output[0] not in renamed)


def _merge(content: bytes, name: str, first: dict[bytes, str], renamed: dict[str, str]) -> None:
    former = first.setdefault(content, name)
    if former != name:
        renamed[name] = former


def _keep(items: Any, wanted: Callable[[Any], bool]) -> None:
    kept = [item for item in items if wanted(item)]
    del items[:]
    items.extend(kept)


def _fresh(name: str, taken: set[str]) -> str:
    number = 1
    while f"{name}.{number}" in taken:
        number += 1
    taken.add(f"{name}.{number}")
    return f"{name}.{number}"


def _rename(nodes: Iterable[Any], names: Mapping[str, str]) -> None:
    """Other names for what nodes read, and what those of their subgraphs read."""
    for node in nodes:
        for place, name in enumerate(node.input):
            if name in names:
                node.input[place] = names[name]
        for inner in subgraphs(node):
            _rename(inner.node, names)


def first_reads(nodes: Iterable[Any], names: Collection[str]) -> dict[str, int]:
    """For each of `names` that is read: the place of its first reader among `nodes`; in that order."""
    places: dict[str, int] = {}
    for place, node in enumerate(nodes):
        inner = (name for graph in subgraphs(node) for each in every_node(graph) for name in each.input)
        for name in (*node.input, *inner):
            if name in names and name not in places:
                places[name] = place
    return places


def tables(graph: Any, candidates: Iterable[Any], size_bytes: Mapping[str, int]) -> set[str]:
    """The large ones of which every reader picks single rows, as a lookup of embeddings does."""
    found = {
        tensor.name: len(tensor.dims)
        for tensor in candidates
        if tensor.dims and tensor.dims[0] >= TABLE_ROWS and size_bytes[tensor.name] >= TABLE_BYTES
    }
    for node in every_node(graph):
        for place, name in enumerate(node.input):
            if name in found and not _reads_rows(node, place, found[name]):
                del found[name]
    return set(found)


def _reads_rows(node: Any, place: int, rank: int) -> bool:
    if place not in _ROW_READERS.get((node.domain.removeprefix("ai.onnx"), node.op_type), ()):
        return False
    axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
    return axis in (0, -rank)


def groups(
    places: Mapping[str, int], size_bytes: Mapping[str, int], on_demand: Collection[str], node_s: Sequence[float]
) -> list[Group]:
    """Layers in execution order, from the first readers of initialisers (`first_reads`) and the seconds of each node.

    A node's time belongs to the last streamed layer that begins with it or before it; what runs before any, to the
    first. So a layer can begin when its bytes and those before it are there, which is what planning counts with.
    `node_s` may be empty: not measured.
    """
    begun: list[tuple[int, list[str], bool]] = []
    streamed: tuple[int, list[str], bool] | None = None
    last = -1
    for name, place in places.items():
        if name in on_demand:
            begun.append((place, [name], True))
            continue
        if streamed is None or (place > last and sum(size_bytes[held] for held in streamed[1]) >= LAYER_BYTES):
            streamed = (place, [], False)
            begun.append(streamed)
        streamed[1].append(name)
        last = place
    if streamed is None:  # nothing to wait for, but there is something to compute
        begun.append((0, [], False))
    starts = [place for place, _, waits in begun if not waits][1:]
    ends = iter([*starts, len(node_s)])
    result, since = [], 0
    for _, names, waits in begun:
        until = since if waits else next(ends)
        result.append(Group(tuple(names), waits, sum(node_s[since:until], 0.0)))
        since = until
    return result
