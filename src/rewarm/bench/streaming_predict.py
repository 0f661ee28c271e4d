"""Experiment `streaming`: what the closed form says of each case, from what the same run measured."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from rewarm.bench.streaming_rows import Case, ModelFacts
from rewarm.policy.pinning import timeline
from rewarm.units import MB
from rewarm.weights.format import Index


class Learnt:
    """Medians of one run: bandwidth of the probes; construction and compute by layer, of warm starts and, as the
    product learns them, of those that stream, with a reader at work beside them; and what these waited for rows."""

    def __init__(self, index: Index) -> None:
        self._facts = index.facts()
        self._bandwidths: list[float] = []
        self._setups_s: dict[bool, list[float]] = {True: [], False: []}  # by whether the start streamed
        self._computes_s: dict[bool, list[list[float]]] = {True: [], False: []}
        self._rows_s: dict[int, list[float]] = {}

    @property
    def bandwidth_bytes_s(self) -> float:
        return statistics.median(self._bandwidths)

    def bandwidth(self, bytes_s: float) -> None:
        self._bandwidths.append(bytes_s)

    def passed(self, case: Case, report: Mapping[str, Any], load_ms: float) -> None:
        """What computing takes, by itself or beside a reader, and what it takes to look rows up."""
        streamed = case.mode == "streamed" and case.cache == "cold"
        if "compute_s" in report and (streamed or case.cache == "warm"):
            self._computes_s[streamed].append(list(report["compute_s"]))
            self._setups_s[streamed].append(load_ms / 1e3)
        for layer_no, seconds in report.get("rows_s", ()) if streamed else ():
            self._rows_s.setdefault(int(layer_no), []).append(seconds)

    def predicted_ms(self, case: Case) -> float | None:
        """Time to the first inference; None for ways that read as the system likes, or in pieces of their own."""
        setup_s, compute_s = self._alone()
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
        setup_s, compute_s = self._alone(streaming=True)
        for layer_no, found_s in self._rows_s.items():
            compute_s[layer_no] += statistics.median(found_s)
        return timeline.ttfi_s(loads_s, compute_s, setup_s) * 1e3

    def facts(self) -> ModelFacts:
        """`limit_ms`: max(construction and all computing, reading and the last layer's computing)."""
        setup_s, compute_s = self._alone()
        facts, bandwidth_bytes_s = self._facts, self.bandwidth_bytes_s
        limit_s = max(setup_s + sum(compute_s), facts.streamed_bytes / bandwidth_bytes_s + compute_s[-1])
        return ModelFacts(
            facts.total_bytes / MB, facts.streamed_bytes / MB, bandwidth_bytes_s / MB, sum(compute_s) * 1e3,
            setup_s * 1e3, limit_s * 1e3,
        )  # fmt: skip

    def _alone(self, *, streaming: bool = False) -> tuple[float, list[float]]:
        """Seconds of construction, and of computing each layer, without waits."""
        computes_s = zip(*self._computes_s[streaming], strict=True)
        return statistics.median(self._setups_s[streaming]), [statistics.median(of_layer) for of_layer in computes_s]

    def _loads_s(self, pin_bytes: int, *, last: bool) -> list[float]:
        """By layer, with the first or the last `pin_bytes` of what is streamed there already."""
        layers = self._facts.layers
        loads_s = timeline.loads_s(layers[::-1] if last else layers, self.bandwidth_bytes_s, pin_bytes)
        return loads_s[::-1] if last else loads_s
