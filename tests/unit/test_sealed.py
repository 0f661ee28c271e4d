from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewarm.sealed import seal, unseal

FIELDS = {"format": 1, "name": "ü", "sizes": [1, 2.5, None], "empty": {}}
SEALED = seal("index", FIELDS)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def test_the_bytes_that_lie_on_disks() -> None:
    assert SEALED == (
        b'{"digest":"05114b7ea9241f3c0783f4c81d25345b646cddf6abe16a021af8073bee0218e9",'
        b'"index":{"empty":{},"format":1,"name":"\\u00fc","sizes":[1,2.5,null]}}\n'
    )


@given(st.dictionaries(st.text(), JSON, max_size=5))
def test_what_was_sealed_comes_back_and_has_one_spelling(fields: dict[str, object]) -> None:
    body = unseal("index", seal("index", fields))
    assert body is not None and json.loads(body) == fields
    assert seal("index", dict(reversed(fields.items()))) == seal("index", fields)


def test_every_flipped_bit_is_seen() -> None:
    for place in range(len(SEALED)):
        for bit in range(8):
            flipped = bytearray(SEALED)
            flipped[place] ^= 1 << bit
            assert unseal("index", bytes(flipped)) is None


def test_every_truncation_and_every_byte_more_is_seen() -> None:
    for place in range(len(SEALED)):
        assert unseal("index", SEALED[:place]) is None
        assert unseal("index", SEALED[place + 1 :]) is None
        assert unseal("index", SEALED[:place] + b" " + SEALED[place:]) is None
    assert unseal("index", SEALED + b"\n") is None


@given(st.binary(max_size=300))
def test_no_other_bytes_are_sealed(data: bytes) -> None:
    assert unseal("index", data) is None


def test_it_is_sealed_under_one_name() -> None:
    assert unseal("manifest", SEALED) is None
    assert unseal("manifest", seal("manifest", FIELDS)) == unseal("index", SEALED)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_json_does_not_have(number: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        seal("index", {"number": number})
