"""The published figures that the batching experiment stands next to. Constants, copied and never measured here."""

from __future__ import annotations

from dataclasses import dataclass

CITATION = (
    "Published experiment: MNIST CNN on AWS Lambda, 1024 MB, 60 s timeout, SLO 200 ms, "
    "static batches of 5 and dynamic batches of 5 or 0.3 s."
)


@dataclass(frozen=True, slots=True)
class PublishedRow:
    """One row as printed there: latencies in ms, `slo_pct` within 200 ms, `init_ms` over the whole run."""

    policy: str
    workload: str
    mean_ms: float
    p50_ms: float
    p99_ms: float
    slo_pct: float
    init_ms: float
    cost_usd: float


ROWS = (
    PublishedRow("static", "uniform", 168.9, 159.4, 248.9, 94.5, 8250, 0.000679),
    PublishedRow("static", "bursty", 164.5, 133.4, 432.2, 94.8, 6416, 0.000739),
    PublishedRow("dynamic", "uniform", 133.0, 126.6, 217.7, 98.75, 4369, 0.000609),
    PublishedRow("dynamic", "bursty", 139.0, 127.0, 208.0, 98.95, 4842, 0.000620),
)
