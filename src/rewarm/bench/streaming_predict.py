"""Experiment `streaming`: what the closed form says of each case, from what the same run measured."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rewarm.bench.streaming_rows import Case, ModelFacts
from rewarm.policy.pinning import timeline
from rewarm.units import MB
from rewarm.weights.format import Index


class _Start(NamedTuple):
    """Construction, and by layer the pass: computing, and waiting for rows of tables, but not for what is streamed."""

    setup_s: float
    pass_s: list[float]


class Learnt:
    """Medians of one run: bandwidth of the probes; construction and compute by layer, of warm starts and, as the
    product learns them, of those that stream, with a reader at work beside them; and what these waited for rows.

    Of those that stream, a case is predicted from the others, with more or less pinned, and not from its own starts.
    """

    def __init__(self, index: Index) -> None:
        self._facts = index.facts()
        self._bandwidths: list[float] = []
        self._warm: list[_Start] = []
        self._streamed: list[tuple[Case, _Start]] = []

    @property
    def bandwidth_bytes_s(self) -> float:
        return statistics.median(self._bandwidths)

    def bandwidth(self, bytes_s: float) -> None:
        self._bandwidths.append(bytes_s)

    def passed(self, case: Case, report: Mapping[str, Any], load_ms: float) -> None:
        """What computing takes, by itself or beside a reader, and what it takes to look rows up."""
        if "compute_s" not in report:
            return
        start = _Start(load_ms / 1e3, list(report["compute_s"]))
        for layer_no, seconds in report.get("rows_s", ()):
            start.pass_s[int(layer_no)] += seconds
        if case.cache == "warm":
            self._warm.append(start)
        elif case.mode == "streamed":
            self._streamed.append((case, start))

    def predicted_ms(self, case: Case) -> float | None:
        """Time to the first inference; None for ways that read as the system likes, or in pieces of their own."""
        setup_s, compute_s = _medians(self._warm)
        rest_s = setup_s + sum(compute_s)
        if case.mode == "warm" or (case.mode == "streamed" and case.cache == "warm"):
            return rest_s * 1e3
        if case.cache == "warm":
            return None
        if case.mode == "read-all":
            return (self._facts.total_bytes / self.bandwidth_bytes_s + rest_s) * 1e3
        if not case.mode.startswith("streamed"):
            return None
        pin_bytes = self._facts.streamed_bytes * case.pinned_pct // 100
        loads_s = self._loads_s(pin_bytes, last=case.mode == "streamed-suffix")
        others = [start for of, start in self._streamed if of != case]
        setup_s, compute_s = _medians(others or [start for _, start in self._streamed])
        return timeline.ttfi_s(loads_s, compute_s, setup_s) * 1e3

    def facts(self) -> ModelFacts:
        """`limit_ms`: max(construction and all computing, reading and the last layer's computing)."""
        setup_s, compute_s = _medians(self._warm)
        facts, bandwidth_bytes_s = self._facts, self.bandwidth_bytes_s
        limit_s = max(setup_s + sum(compute_s), facts.streamed_bytes / bandwidth_bytes_s + compute_s[-1])
        return ModelFacts(
            facts.total_bytes / MB, facts.streamed_bytes / MB, bandwidth_bytes_s / MB, sum(compute_s) * 1e3,
            setup_s * 1e3, limit_s * 1e3,
        )  # fmt: skip

    def _loads_s(self, pin_bytes: int, *, last: bool) -> list[float]:
        """By layer, with the first or the last `pin_bytes` of what is streamed there already."""
        layers = self._facts.layers
        loads_s = timeline.loads_s(layers[::-1] if last else layers, self.bandwidth_bytes_s, pin_bytes)
        return loads_s[::-1] if last else loads_s


def _medians(starts: Sequence[_Start]) -> tuple[float, list[float]]:
    """Of construction, and of each layer."""
    passes_s = zip(*(start.pass_s for start in starts), strict=True)
    return statistics.median(start.setup_s for start in starts), [statistics.median(of_layer) for of_layer in passes_s]
