"""The estimate of a disk's bandwidth."""

from __future__ import annotations

import pytest

from rewarm.weights.bandwidth import FIRST_GUESS_BYTES_S, SAMPLE_BYTES_MIN, Bandwidth


def test_a_disk_that_was_not_read_from_is_guessed() -> None:
    bandwidth = Bandwidth()
    bandwidth.add(1, SAMPLE_BYTES_MIN - 1, 1.0)  # too little to tell
    bandwidth.add(1, SAMPLE_BYTES_MIN, 0.0)
    assert not bandwidth.measured(1)
    assert bandwidth.bytes_s(1) == FIRST_GUESS_BYTES_S


def test_every_disk_has_its_own() -> None:
    bandwidth = Bandwidth()
    bandwidth.add(1, 8 << 20, 2.0)
    bandwidth.add(2, 8 << 20, 4.0)
    assert (bandwidth.bytes_s(1), bandwidth.bytes_s(2)) == (4 << 20, 2 << 20)
    assert bandwidth.measured(1)


@pytest.mark.parametrize(("speeds", "expected"), [([5], 5), ([9, 5], 5), ([4, 3, 2, 1, 5], 2), (range(1, 17), 4)])
def test_the_lower_quartile(speeds: list[int], expected: int) -> None:
    bandwidth = Bandwidth()
    for speed in speeds:
        bandwidth.add(1, speed << 22, 1.0)
    assert bandwidth.bytes_s(1) == expected << 22


def test_what_was_long_ago_is_forgotten() -> None:
    bandwidth = Bandwidth()
    for speed in [1] * 16 + [3] * 13:
        bandwidth.add(1, speed << 22, 1.0)
    assert bandwidth.bytes_s(1) == 3 << 22
