from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewarm.errors import BadDefinition
from rewarm.units import counted, human_bytes, human_seconds, seconds, size_bytes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("200ms", 0.2), ("1.5s", 1.5), ("10min", 600.0), ("2m", 120.0), ("1h", 3600.0), ("1d", 86400.0),
        ("50us", 5e-5), ("50µs", 5e-5), ("3 sec", 3.0), ("  7 s ", 7.0), (".5s", 0.5), ("1e3ms", 1.0),
        ("200MS", 0.2), ("1H", 3600.0), ("5", 5.0), ("0", 0.0), (0, 0.0), (3, 3.0), (0.25, 0.25),
    ],
)  # fmt: skip
def test_seconds(text: str | float, expected: float) -> None:
    result = seconds(text)
    assert result == pytest.approx(expected)
    assert type(result) is float


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("512MB", 512 << 20), ("1GB", 1 << 30), ("1GiB", 1 << 30), ("1g", 1 << 30), ("64k", 64 << 10),
        ("64KiB", 64 << 10), ("2kb", 2048), ("3m", 3 << 20), ("3mib", 3 << 20), ("1TB", 1 << 40), ("1t", 1 << 40),
        ("1tib", 1 << 40), ("10b", 10), ("10 B", 10), ("1.5KB", 1536), ("0.1b", 1), ("77", 77), (77, 77), (0, 0),
    ],
)  # fmt: skip
def test_size_bytes(text: str | int, expected: int) -> None:
    result = size_bytes(text)
    assert result == expected
    assert type(result) is int


@pytest.mark.parametrize("text", ["", "ms", "fast", "-1s", "1 2s", "1..2s", "1s2", "0x10", "٣s"])
def test_seconds_needs_a_number_and_a_unit(text: str) -> None:
    with pytest.raises(BadDefinition, match="is not a duration; write a number and a unit"):
        seconds(text)


@pytest.mark.parametrize("text", ["", "MB", "-1MB", "1 2MB", "big"])
def test_size_needs_a_number_and_a_unit(text: str) -> None:
    with pytest.raises(BadDefinition, match="is not a size; write a number and a unit"):
        size_bytes(text)


def test_unknown_units_are_named() -> None:
    with pytest.raises(BadDefinition, match="'5 fortnights': unknown unit 'fortnights' for a duration; use one of us"):
        seconds("5 fortnights")
    with pytest.raises(BadDefinition, match="'5ms': unknown unit 'ms' for a size; use one of b, k"):
        size_bytes("5ms")


@pytest.mark.parametrize("value", [None, True, False, b"1s", [1], object()])
def test_wrong_types(value: object) -> None:
    with pytest.raises(BadDefinition, match="is not a duration"):
        seconds(value)  # type: ignore[arg-type]
    with pytest.raises(BadDefinition, match="is not a size"):
        size_bytes(value)  # type: ignore[arg-type]


def test_a_size_is_whole() -> None:
    with pytest.raises(BadDefinition, match="is not a size"):
        size_bytes(1.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [-1, -0.001, math.inf, math.nan, "1e999s"])
def test_a_duration_is_finite_and_not_negative(value: str | float) -> None:
    with pytest.raises(BadDefinition, match="finite and not negative"):
        seconds(value)


def test_a_size_is_not_negative() -> None:
    with pytest.raises(BadDefinition, match="must not be negative"):
        size_bytes(-1)


@pytest.mark.parametrize("call", [lambda: size_bytes("1e999MB"), lambda: seconds(10**400)])
def test_too_large_to_be_meant(call: object) -> None:
    with pytest.raises(BadDefinition):
        call()  # type: ignore[operator]


@given(st.text(max_size=12))
def test_any_text_is_a_value_or_a_bad_definition(text: str) -> None:
    try:
        assert seconds(text) >= 0
    except BadDefinition as error:
        assert "\n" not in str(error) or "\n" in text


@given(st.integers(0, 1 << 50))
def test_bytes_are_exact(count: int) -> None:
    assert size_bytes(count) == size_bytes(f"{count}") == size_bytes(f"{count}b") == count


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"), (1023, "1023 B"), (1024, "1.0 KB"), (1536, "1.5 KB"), (5 << 20, "5.0 MB"), (3 << 30, "3.0 GB"),
        (5 << 40, "5120.0 GB"), (-2048, "-2.0 KB"),
    ],
)  # fmt: skip
def test_human_bytes(count: float, text: str) -> None:
    assert human_bytes(count) == text


@pytest.mark.parametrize(
    ("duration_s", "text"),
    [(0, "0.0 ms"), (0.0123, "12.3 ms"), (1, "1.0 s"), (59.94, "59.9 s"), (75, "1.2 min"), (7200, "2.0 h")],
)
def test_human_seconds(duration_s: float, text: str) -> None:
    assert human_seconds(duration_s) == text


def test_counted() -> None:
    assert [counted(count, "layer") for count in (0, 1, 2)] == ["0 layers", "1 layer", "2 layers"]
