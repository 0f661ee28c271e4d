"""Experiment `snapshot`: its settings and what comes of it, as plain values."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

NATIVE, THROTTLED = "native", "throttled"

#: Case → the way of restoring that it is about; None: nothing is restored.
CASES: Mapping[str, str | None] = {
    "cold-boot": None, "lazy": "lazy", "lazy-4k": "lazy-4k", "read-all": "read-all", "prefetch": "prefetch",
    "layered": "layered", "uffd": "uffd", "cached": "cached", "warm": "layered", "other-input": "layered",
    "burst-same": "layered", "burst-different": "layered",
}  # fmt: skip
#: Left out of a quick run where reads are throttled: they take long, and the goals do not need them.
_SLOW = ("cold-boot", "read-all", "warm", "burst-same", "burst-different")
#: Ways of restoring whose clones are weighed, beside those of the bursts.
WEIGHED = ("lazy", "uffd")


@dataclass(frozen=True, slots=True)
class Settings:
    repeats: int = 7
    clones: int = 4
    warm_calls: int = 5
    quick: bool = False

    def to_json(self) -> dict[str, Any]:
        return {
            **asdict(self), "figures": "medians; MB are 2**20 bytes",
            "first_response_ms": "from before QEMU is started to the function's first answer, reseeding included; "
                                 "warm: a call of a function that has answered before; bursts: of each clone",
            "p_min_ms, p_max_ms": "the fastest and the slowest",
            "major_faults": "of QEMU, until the first answer",
            "read_mb": "from the disk until the first answer: by QEMU, by the pager and by what reads ahead",
            "runs": "how often it was measured; each clone of a burst counts",
        }  # fmt: skip


QUICK = Settings(repeats=3, quick=True)


class Case(NamedTuple):
    """What a row of the table is about, or with the name "density" clones that are only weighed."""

    name: str
    storage: str
    policy: str | None

    @property
    def published(self) -> bool:
        return self.name in CASES


def plan(settings: Settings, storages: Sequence[str], policies: Sequence[str]) -> list[Case]:
    """All cases, of those ways of restoring that this machine has the means for."""
    cases = []
    for storage in storages:
        names = [name for name in CASES if not (settings.quick and storage == THROTTLED and name in _SLOW)]
        cases += [Case(name, storage, CASES[name]) for name in names if CASES[name] in (None, *policies)]
    cases += [Case("density", NATIVE, policy) for policy in WEIGHED if policy in policies]
    return cases


class Sample(NamedTuple):
    """One start, or one call of what is warm."""

    first_response_ms: float
    major_faults: int
    read_mb: float


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the result. `to_json` has the published keys, `detail` what else was seen."""

    case: Case
    samples: tuple[Sample, ...]

    @property
    def first_response_ms(self) -> float:
        return statistics.median(one.first_response_ms for one in self.samples)

    @property
    def major_faults(self) -> float:
        return statistics.median(one.major_faults for one in self.samples)

    @property
    def read_mb(self) -> float:
        return statistics.median(one.read_mb for one in self.samples)

    @property
    def span_ms(self) -> tuple[float, float]:
        found_ms = [one.first_response_ms for one in self.samples]
        return min(found_ms), max(found_ms)

    def to_json(self) -> dict[str, Any]:
        min_ms, max_ms = self.span_ms
        return {
            "case": self.case.name, "storage": self.case.storage, "first_response_ms": round(self.first_response_ms, 3),
            "p_min_ms": round(min_ms, 3), "p_max_ms": round(max_ms, 3), "major_faults": self.major_faults,
            "read_mb": round(self.read_mb, 3), "runs": len(self.samples),
        }  # fmt: skip

    def detail(self) -> dict[str, Any]:
        samples_ms = [round(one.first_response_ms, 3) for one in self.samples]
        return {"case": self.case.name, "storage": self.case.storage, "policy": self.case.policy,
                "samples_ms": samples_ms}  # fmt: skip


@dataclass(frozen=True, slots=True)
class SnapshotFacts:
    """The snapshot that is restored, and its variant for one storage: what of it is read first, and how it is cut."""

    memory_mb: float
    nonzero_mb: float
    loading_mb: float
    regions: int
    gap_pages: int
    disk_mb: float

    @property
    def loading_share(self) -> float:
        """Of the memory that is not zero."""
        return self.loading_mb / self.nonzero_mb


@dataclass(frozen=True, slots=True)
class Result:
    settings: Settings
    machine: Mapping[str, Any]
    guest: Mapping[str, str]  # accel, why, qemu, cpu, kernel
    rows: Sequence[Row]
    density: Mapping[str, Sequence[float]]  # way of restoring → PSS of all clones together, MB, of each run
    snapshots: Mapping[str, SnapshotFacts]  # by storage
    publish_s: float
    failures: Sequence[str]  # starts that hung or broke off, and were done again
    left_out: Mapping[str, str]  # what was not measured → why

    def row(self, name: str, storage: str) -> Row | None:
        return next((row for row in self.rows if row.case[:2] == (name, storage)), None)

    def pss_mb(self, policy: str) -> float | None:
        """Of all clones together, median."""
        return statistics.median(self.density[policy]) if self.density.get(policy) else None
