from __future__ import annotations

from rewarm.facts.request import Request
from rewarm.facts.sandbox import StartKind


def test_a_request_starts_warm_until_the_core_says_otherwise() -> None:
    request = Request("digits", 1.0, 61.0)
    assert (request.function, request.arrived_s, request.deadline_s, request.payload) == ("digits", 1.0, 61.0, None)
    assert (request.start, request.init_s) == (StartKind.WARM, 0.0)
    assert request.size_bytes == 0


def test_the_payload_is_carried_not_read() -> None:
    payload = object()
    assert Request("digits", 0.0, 1.0, payload).payload is payload


def test_repr_is_a_status_line() -> None:
    assert repr(Request("digits", 1.5, 2.0)) == "<Request digits arrived 1.500000>"


def test_compared_by_identity() -> None:
    one, other = Request("digits", 1.0, 2.0), Request("digits", 1.0, 2.0)
    assert one != other
    assert len({one, other}) == 2
