"""The framing between server and worker."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewarm import wire

kinds = st.sampled_from([wire.KIND_JSON, wire.KIND_RAW, wire.KIND_V2, wire.KIND_LAMBDA])
items = st.lists(st.tuples(kinds, st.binary(max_size=20), st.binary(max_size=200)), min_size=1, max_size=20)
answers = st.lists(
    st.tuples(st.sampled_from([200, 400, 500]), st.sampled_from(sorted(wire.FORMS)), st.integers(0, 1),
              st.binary(max_size=20), st.binary(max_size=200)),
    min_size=1, max_size=20,
)  # fmt: skip


def head(frame: bytes) -> tuple[int, int, int, int, int, int]:
    return wire.HEAD.unpack_from(frame)  # type: ignore[return-value]


@given(items)
def test_a_batch_arrives_as_it_was_sent(batch: list[tuple[int, bytes, bytes]]) -> None:
    frame = wire.encode_run(batch, 7, 1500)
    length, frame_type, flag, count, limit_ms, sequence = head(frame)
    assert (length, frame_type, count, limit_ms, sequence) == (len(frame), wire.RUN, len(batch), 1500, 7)
    found = [(i.kind, i.meta, bytes(i.body)) for i in wire.decode_run(memoryview(frame), count, flag)]
    assert found == batch


@given(answers)
def test_answers_arrive_as_they_were_sent(replies: list[tuple[int, int, int, bytes, bytes]]) -> None:
    frame = wire.encode_reply([wire.Answer(*reply) for reply in replies], 3, 42)
    _, _, flag, count, run_us, sequence = head(frame)
    assert (run_us, sequence) == (42, 3)
    assert wire.decode_reply(frame, count, flag) == replies


@given(st.lists(st.binary(max_size=50), min_size=1, max_size=20), st.sampled_from(sorted(wire.FORMS)))
def test_uniform_answers(bodies: list[bytes], form: int) -> None:
    frame = wire.encode_uniform_reply(form, bodies, 1, 2)
    _, _, flag, count, _, _ = head(frame)
    assert flag & 1
    assert wire.decode_reply(frame, count, flag) == [(200, form, 0, b"", body) for body in bodies]


def test_one_kind_without_meta_needs_no_item_heads() -> None:
    plain = wire.encode_run([(wire.KIND_JSON, b"", b"[1]")] * 4, 1, 1)
    mixed = wire.encode_run([(wire.KIND_JSON, b"", b"[1]")] * 3 + [(wire.KIND_RAW, b"", b"[1]")], 1, 1)
    assert head(plain)[2] & 1 and not head(mixed)[2] & 1
    assert len(plain) < len(mixed)


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_reply_that_is_cut_short_is_refused(cut: int) -> None:
    for frame, flag in (
        (wire.encode_uniform_reply(0, [b"abc", b"defg"], 1, 1), 1),
        (wire.encode_reply([wire.Answer(200, 0, 0, b"m", b"abc")] * 2, 1, 1), 0),
    ):
        with pytest.raises(wire.WireError):
            wire.decode_reply(frame[:-cut], 2, flag)


@pytest.mark.parametrize(("status", "form"), [(999, 0), (0, 0), (200, 9)])
def test_a_status_or_form_that_does_not_exist_is_refused(status: int, form: int) -> None:
    frame = wire.encode_reply([wire.Answer(status, form, 0, b"", b"")], 1, 1)
    with pytest.raises(wire.WireError):
        wire.decode_reply(frame, 1)


def test_a_uniform_form_that_does_not_exist_is_refused() -> None:
    with pytest.raises(wire.WireError):
        wire.decode_reply(wire.encode_uniform_reply(9, [b""], 1, 1), 1, 1 + 2 * 9)


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=8), st.integers(1, 50))
def test_frames_are_found_in_any_cut_of_the_stream(bodies: list[bytes], step: int) -> None:
    stream = b"".join(wire.encode_plain(wire.LOAD, body) for body in bodies)
    reader, found = wire.Reader(), []
    for at in range(0, len(stream), step):
        found += reader.feed(stream[at : at + step])
    assert [frame[wire.HEAD_BYTES :] for frame in found] == bodies


@given(st.binary(min_size=64, max_size=64), st.integers(0, (1 << 64) - 1), st.text(max_size=70))
def test_a_resume_arrives_as_it_was_sent(seed: bytes, wall_ns: int, name: str) -> None:
    frame = wire.encode_resume(seed, wall_ns, name)
    assert head(frame)[:2] == (len(frame), wire.RESUME)
    assert wire.decode_resume(memoryview(frame)[wire.HEAD_BYTES :]) == (seed, wall_ns, name.encode())
