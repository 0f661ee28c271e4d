"""Experiment `streaming`: its settings and what comes of it, as plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from rewarm.bench.zoo import CATALOGUE

#: Modes that are the product's: what it predicts can be held against them.
OURS = ("streamed", "streamed-suffix")
#: Modes that read a pack; the others read the model in a form of their own.
PACKED = (*OURS, "on-demand", "warm")
#: Models that onnxruntime has, too.
ON_ONNX = ("bert-base", "resnet-50")


@dataclass(frozen=True, slots=True)
class Settings:
    models: tuple[str, ...] = tuple(CATALOGUE)
    repeats: int = 5
    seed: int = 0
    quick: bool = False

    def to_json(self) -> dict[str, Any]:
        return {
            "quick": self.quick, "models": list(self.models), "repeats": self.repeats, "seed": self.seed,
            "threads": 1, "figures": "medians; MB are 2**20 bytes",
            "ttfi_ms": "from the start of the load, in a process forked from one with the engine imported, to the end "
                       "of the first inference; building the module is in it, the fork is not",
            "bubble_ms": "how long computing stood still for weights: streamed on torch, as the hooks waited; "
                         "else what ttfi_ms is above that of warm",
            "predicted_ms": "the closed form with this run's bandwidth and the computing times of other starts of its "
                            "kind, streamed or warm; null where it says nothing",
            "private_mb": "dirty private pages after the first inference",
            "read_mb": "what the process had read from the disk; pins were read before it",
        }  # fmt: skip


QUICK = Settings(models=("bert-base", "minilm"), quick=True)


class Case(NamedTuple):
    """What a row of the table is about; `cache`: "cold" or "warm"."""

    model: str
    engine: str
    mode: str
    cache: str
    pinned_pct: int = 0


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the result: medians. `to_json` has the published keys, `detail` what else was seen."""

    case: Case
    ttfi_ms: float
    load_ms: float
    bubble_ms: float
    predicted_ms: float | None
    private_mb: float
    read_mb: float
    samples_ms: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        predicted_ms = None if self.predicted_ms is None else round(self.predicted_ms, 3)
        return {
            **self.case._asdict(), "ttfi_ms": round(self.ttfi_ms, 3), "bubble_ms": round(self.bubble_ms, 3),
            "predicted_ms": predicted_ms, "private_mb": round(self.private_mb, 3), "read_mb": round(self.read_mb, 3),
        }  # fmt: skip

    def detail(self) -> dict[str, Any]:
        samples_ms = [round(ms, 3) for ms in self.samples_ms]
        return {**self.case._asdict(), "load_ms": round(self.load_ms, 3), "samples_ms": samples_ms}


@dataclass(frozen=True, slots=True)
class Timeline:
    """One start, layer by layer. Milliseconds from the start of the load."""

    model: str
    pinned_pct: int
    layers: tuple[str, ...]
    loads_ms: tuple[tuple[float, float], ...]  # of each layer that is not on demand
    computes_ms: tuple[tuple[float, float], ...]
    end_ms: float

    def to_json(self) -> dict[str, Any]:
        def pairs(spans: Sequence[tuple[float, float]]) -> list[list[float]]:
            return [[round(begin, 3), round(end, 3)] for begin, end in spans]

        return {
            "model": self.model, "pinned_pct": self.pinned_pct, "layers": list(self.layers),
            "loads_ms": pairs(self.loads_ms), "computes_ms": pairs(self.computes_ms), "end_ms": round(self.end_ms, 3),
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What a model is and what this machine does with it: the limit that no order of loading can beat."""

    total_mb: float
    streamed_mb: float
    bandwidth_mb_s: float
    compute_ms: float
    setup_ms: float
    limit_ms: float


@dataclass(frozen=True, slots=True)
class Result:
    settings: Settings
    machine: Mapping[str, Any]
    rows: Sequence[Row]
    models: Mapping[str, ModelFacts]
    timelines: Sequence[Timeline]
    left_out: Mapping[str, str]  # what was not measured → why

    def row(self, model: str, engine: str, mode: str, cache: str, pinned_pct: int = 0) -> Row | None:
        wanted = Case(model, engine, mode, cache, pinned_pct)
        return next((row for row in self.rows if row.case == wanted), None)
