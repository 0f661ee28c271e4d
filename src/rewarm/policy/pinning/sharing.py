"""Bytes that several models have in common, counted once.

Packs refer to bytes of data files; those of a model's fine-tuned variants refer to the same ones as far as tensors are
equal. What a model pins are the first bytes of its spans, and what is held for several is the union of theirs.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence

Spans = Sequence[tuple[str, int, int]]


def spans_of(tables: Sequence[int], table_spans: Mapping[int, Spans], streamed: Spans) -> Spans:
    """What is pinned of a model, from the first byte on: `tables`, then what is streamed."""
    return [*(span for table in tables for span in table_spans.get(table, ())), *streamed]


class Held:
    """A set of bytes: the fronts of some models. Sizes are bytes of `spans`, counted from their beginning."""

    __slots__ = ("_ranges",)

    def __init__(self) -> None:
        self._ranges: dict[str, list[tuple[int, int]]] = {}  # by file, in order; none touches the next

    def add(self, spans: Spans, size_bytes: int) -> None:
        """Hold the first `size_bytes`."""
        for file, begin, end, _ in _front(spans, size_bytes):
            ranges = self._ranges.setdefault(file, [])
            first = bisect_right(ranges, (begin, -1))
            if first and ranges[first - 1][1] >= begin:
                first -= 1
                begin = ranges[first][0]
            last = first
            while last < len(ranges) and ranges[last][0] <= end:
                end = max(end, ranges[last][1])
                last += 1
            ranges[first:last] = [(begin, end)]

    def lacks_bytes(self, spans: Spans, size_bytes: int) -> int:
        """How many of the first `size_bytes` are not held."""
        return sum(end - begin for begin, end in self._gaps(spans, size_bytes))

    def reach_bytes(self, spans: Spans, size_bytes: int, room_bytes: int) -> int:
        """The largest front, of at most `size_bytes`, of which no more than `room_bytes` are not held."""
        for begin, end in self._gaps(spans, size_bytes):
            if end - begin > room_bytes:
                return begin + room_bytes
            room_bytes -= end - begin
        return size_bytes

    def without_bytes(self, spans: Spans, size_bytes: int, wanted_bytes: int) -> int:
        """What is left of the first `size_bytes` when `wanted_bytes` are freed from its end, or 0 if it frees less.

        This set is what others hold, which is not freed.
        """
        if wanted_bytes <= 0:
            return size_bytes
        for begin, end in reversed(list(self._gaps(spans, size_bytes))):
            if end - begin >= wanted_bytes:
                return end - wanted_bytes
            wanted_bytes -= end - begin
        return 0

    def _gaps(self, spans: Spans, size_bytes: int) -> Iterator[tuple[int, int]]:
        """What is not held of the first `size_bytes`, in order: from and to where in `spans`."""
        for file, begin, end, at in _front(spans, size_bytes):
            ranges: Sequence[tuple[int, int]] = self._ranges.get(file, ())
            shift = at - begin
            number = max(0, bisect_right(ranges, (begin, -1)) - 1)
            while number < len(ranges) and ranges[number][0] < end:
                held_begin, held_end = ranges[number]
                if begin < held_begin:
                    yield begin + shift, held_begin + shift
                begin = max(begin, held_end)
                number += 1
            if begin < end:
                yield begin + shift, end + shift


def _front(spans: Spans, size_bytes: int) -> Iterator[tuple[str, int, int, int]]:
    """The first `size_bytes`: file, begin and end in it, and where in `spans` that is."""
    at = 0
    for file, begin, end in spans:
        if at >= size_bytes:
            return
        end = min(end, begin + size_bytes - at)
        yield file, begin, end, at
        at += end - begin
