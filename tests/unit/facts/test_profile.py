"""Profiles: what is refused, and what lies between the measured points."""

from __future__ import annotations

from typing import Any

import pytest

from rewarm.errors import BadDefinition
from rewarm.facts.prices import PRICE_PER_CALL, PRICE_PER_GB_S, call_usd
from rewarm.facts.profile import BODIES_MAX, Profile

TWO = Profile((1, 4), (100, 200), ((0.010, 0.040), (0.020, 0.080)))


def test_between_sizes_the_curve_is_linear() -> None:
    assert Profile((1, 4, 6), (1,), ((0.01, 0.04, 0.05),)).curve_s() == pytest.approx(
        (0.01, 0.02, 0.03, 0.04, 0.045, 0.05)
    )


def test_between_bodies_too_and_beyond_at_the_last_slope() -> None:
    for body_bytes, factor in ((0, 1.0), (100, 1.0), (150, 1.5), (200, 2.0), (400, 4.0)):
        assert TWO.curve_s(body_bytes) == pytest.approx([factor * s for s in (0.01, 0.02, 0.03, 0.04)])


def test_more_work_is_never_quicker() -> None:
    assert Profile((1, 2, 4), (1,), ((0.02, 0.01, 0.03),)).curve_s() == pytest.approx((0.02, 0.02, 0.02, 0.03))
    larger_was_quicker = Profile((1, 2), (10, 20), ((0.02, 0.03), (0.01, 0.04)))
    assert larger_was_quicker.curve_s(20) == pytest.approx((0.02, 0.04))
    assert larger_was_quicker.curve_s(1000)[0] == pytest.approx(0.02)


def test_json_round_trip() -> None:
    assert Profile.from_json({**TWO.to_json(), "digest": "ignored"}) == TWO


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"sizes": [2, 4]}, "begin with 1"),
        ({"sizes": [1, 1]}, "rise"),
        ({"sizes": [4, 1]}, "rise"),
        ({"sizes": []}, "whole numbers"),
        ({"sizes": [1, 1000]}, "up to 256"),
        ({"sizes": [True, 4]}, "whole numbers"),
        ({"sizes": 3}, "not a profile"),
        ({"body_bytes": [200, 100]}, "rise"),
        ({"body_bytes": [-1, 100]}, "whole numbers"),
        ({"body_bytes": list(range(BODIES_MAX + 1))}, "at most 64 sizes of bodies"),
        ({"run_s": [[0.1, 0.2]]}, "a row for each of body_bytes"),
        ({"run_s": [[0.1], [0.2]]}, "a row for each of body_bytes"),
        ({"run_s": [[0.1, 0.2], [0.1, 0]]}, "seconds above 0, not 0"),
        ({"run_s": [[0.1, 0.2], [0.1, float("nan")]]}, "seconds above 0"),
        ({"run_s": [[0.1, 0.2], [0.1, "1"]]}, "seconds above 0"),
        ({"run_s": [0.1, 0.2]}, "not a profile"),
    ],
)
def test_what_is_not_a_profile(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(BadDefinition, match=says):
        Profile.from_json({**TWO.to_json(), **changes})


@pytest.mark.parametrize("data", [None, [], "x", {}, {"sizes": [1]}])
def test_what_is_no_object(data: Any) -> None:
    with pytest.raises(BadDefinition, match="sizes, body_bytes and run_s"):
        Profile.from_json(data)


def test_a_call_is_billed_by_the_millisecond() -> None:
    assert call_usd(1 << 30, 0.007) == pytest.approx(PRICE_PER_CALL + 0.007 * PRICE_PER_GB_S, rel=1e-12)
    assert call_usd(1 << 30, 0.0070001) == pytest.approx(PRICE_PER_CALL + 0.008 * PRICE_PER_GB_S, rel=1e-12)
    assert call_usd(512 << 20, 0.0) == pytest.approx(PRICE_PER_CALL + 0.0005 * PRICE_PER_GB_S, rel=1e-12)
