"""What is known of a snapshot, and what its disk is worth."""

from __future__ import annotations

import math

import pytest

from rewarm.errors import BadDefinition
from rewarm.facts.prices import DISK_BYTES_PER_MEMORY_BYTE, as_memory_bytes
from rewarm.facts.snapshot import SnapshotFacts


def test_facts() -> None:
    facts = SnapshotFacts("ab", 240 << 20, 0.15, 2)
    assert (facts.digest, facts.disk_bytes, facts.restore_s, facts.cold_s) == ("ab", 240 << 20, 0.15, 2)
    assert SnapshotFacts("ab", 0, 0.0, 0) == SnapshotFacts("ab", 0, 0, 0.0)


@pytest.mark.parametrize("disk_bytes", [-1, 1.5, True, None])
def test_sizes_that_cannot_be(disk_bytes: object) -> None:
    with pytest.raises(BadDefinition, match="snapshot ab: it takes 0 or more bytes"):
        SnapshotFacts("ab", disk_bytes, 0.1, 1.0)  # type: ignore[arg-type]


@pytest.mark.parametrize("seconds", [-0.1, math.nan, math.inf, "1s", None, True])
def test_durations_that_cannot_be(seconds: object) -> None:
    with pytest.raises(BadDefinition, match="a restore takes 0 or more seconds"):
        SnapshotFacts("ab", 1, seconds, 1.0)  # type: ignore[arg-type]
    with pytest.raises(BadDefinition, match="a cold start takes 0 or more seconds"):
        SnapshotFacts("ab", 1, 0.1, seconds)  # type: ignore[arg-type]


def test_what_disk_is_worth() -> None:
    assert pytest.approx(0.004445 / 0.000111, rel=0.01) == DISK_BYTES_PER_MEMORY_BYTE
    assert as_memory_bytes(0) == 0
    assert as_memory_bytes(1) == 1, "0 would be unknown"
    assert as_memory_bytes(40 << 20) == 1 << 20
