"""Framing between server and worker: one message each way per batch, bodies as raw bytes.

Every frame, little-endian, no padding:

    0        8     9      10        12          16          20
    +--------+-----+------+---------+-----------+-----------+----------------+
    | length | typ | flag | count   | number    | sequence  | rest of frame  |
    | u64    | u8  | u8   | u16     | u32       | u32       | length-20 bytes|
    +--------+-----+------+---------+-----------+-----------+----------------+

`length` counts the whole frame. `sequence` numbers the batches of one sandbox; a reply carries its batch's.

RUN (server → worker): `number` is the time limit in ms; then `count` item heads, then metas and bodies in order.
            head: kind u8, flags u8, meta_len u16, body_len u32
REPLY (worker → server): `number` is microseconds inside user code; then `count` item heads, then metas and bodies.
            head: status u16, form u8, flags u8, meta_len u16, body_len u32
Where nothing but the body differs (one kind and no meta; or 200, one form, no flags and no meta), `flag` is
1 + 2 × kind (or form), and instead of heads there are `count` body lengths, u32: the usual batch costs one `pack`.
HELLO (worker → server): `number` is its pid. LOAD (to the worker), LOADED and FAILED (to the server): a JSON object.
NOTED (to the server), before the REPLY of the batch with which an instance's weights were loaded: JSON, how that went.

Of guests only, whose snapshots are taken and restored, without a body but for the first:
RESUME (to the guest), the first frame after a start or a restore: seed 64 bytes, ns since the epoch u64, name in UTF-8.
            No JSON: under TCG all that a woken guest runs has to be translated first, and a decoder is long.
RESUMED (to the server): its randomness, clock and name are its own from here.
FREEZE (to the guest), before a snapshot is taken. FROZEN (to the server): it holds still until the next RESUME.
Either may be answered by FAILED instead, if a hook of user code raised.

Both ends are ours and of one version, on a socketpair: a frame that does not parse is a bug or a worker that wrote
where it must not, and ends the worker (`WireError`), never the server.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import lru_cache
from http import HTTPStatus
from typing import Final, NamedTuple

HEAD = struct.Struct("<QBBHII")
_ITEM = struct.Struct("<BBHI")
_ANSWER = struct.Struct("<HBBHI")
SEED_BYTES: Final = 64
_RESUME = struct.Struct("<64sQ")
HEAD_BYTES: Final = 20  # HEAD.size
FRAME_BYTES_MAX = 8 << 30

RUN: Final = 1
REPLY: Final = 2
HELLO: Final = 3
LOAD: Final = 4
LOADED: Final = 5
FAILED: Final = 6
NOTED: Final = 7
RESUME: Final = 8
RESUMED: Final = 9
FREEZE: Final = 10
FROZEN: Final = 11

# How the caller spoke, and so how the worker decodes and answers.
KIND_JSON: Final = 0
KIND_RAW: Final = 1
KIND_V2: Final = 2
KIND_LAMBDA: Final = 3
# What a body is.
FORM_JSON: Final = 0
FORM_RAW: Final = 1
FORM_V2_BINARY: Final = 2
FORMS = frozenset({FORM_JSON, FORM_RAW, FORM_V2_BINARY})
STATUSES = frozenset(status.value for status in HTTPStatus)
#: Answer flag: the status is about the user's function, not about the service.
FLAG_FUNCTION_ERROR: Final = 1

BODY_BYTES_MAX = (1 << 32) - 1
META_BYTES_MAX = (1 << 16) - 1
#: Of one caller's answer. The worker refuses to send more; the server takes no frame that such answers can not fill.
ANSWER_BYTES_MAX = 64 << 20
CONTROL_BYTES_MAX = 1 << 20  # of a frame outside a batch; more than one read of a socket, see Reader.feed


class WireError(Exception):
    """Bytes that are not a frame."""


class Item(NamedTuple):
    """One request as the worker sees it. `meta` depends on the kind (see worker.tensors and worker.handlers).

    The server's side makes plain tuples of the same fields: cheaper, and as good to send.
    """

    kind: int
    meta: bytes
    body: bytes | memoryview


AnyItem = tuple[int, bytes, bytes | memoryview]


class Answer(NamedTuple):
    """One answer as the front door sees it. `meta` is the JSON length of a v2 binary body, else empty."""

    status: int
    form: int
    flags: int
    meta: bytes
    body: bytes


AnyAnswer = tuple[int, int, int, bytes, bytes]


def encode_run(items: Sequence[AnyItem], sequence: int, limit_ms: int) -> bytes:
    """One RUN frame. Raises WireError if a body or meta is larger than its length field."""
    kind = items[0][0]
    bodies = [item[2] for item in items if item[0] == kind and not item[1]]
    try:
        if len(bodies) == len(items):
            return _uniform(RUN, kind, bodies, min(limit_ms, 0xFFFFFFFF), sequence & 0xFFFFFFFF)
        pack = _ITEM.pack
        heads: list[bytes] = []
        tail: list[bytes | memoryview] = []
        total = HEAD_BYTES + _ITEM.size * len(items)
        for kind, meta, body in items:
            heads.append(pack(kind, 0, len(meta), len(body)))
            if meta:
                tail.append(meta)
            tail.append(body)
            total += len(meta) + len(body)
        head = HEAD.pack(total, RUN, 0, len(items), min(limit_ms, 0xFFFFFFFF), sequence & 0xFFFFFFFF)
    except struct.error as error:
        raise WireError(f"a request does not fit into a frame: {error}") from error
    return b"".join((head, *heads, *tail))


def _uniform(frame_type: int, kind: int, bodies: Sequence[bytes | memoryview], number: int, sequence: int) -> bytes:
    count = len(bodies)
    total = HEAD_BYTES + 4 * count
    lengths: list[int] = []
    for body in bodies:
        length = len(body)
        lengths.append(length)
        total += length
    head = HEAD.pack(total, frame_type, 1 + 2 * kind, count, number, sequence)
    return b"".join([head, _lengths(count).pack(*lengths), *bodies])


def uniform_bodies(frame: bytes | memoryview, count: int) -> list[bytes]:
    """The bodies of a frame with the uniform flag. Raises WireError if the lengths do not add up."""
    return _cut(frame if isinstance(frame, bytes) else bytes(frame), count)  # one copy, then slices are the bodies


def _cut(frame: bytes, count: int) -> list[bytes]:
    at = HEAD_BYTES + 4 * count
    if at > len(frame):
        raise WireError(f"a frame of {len(frame)} bytes promises {count} bodies")
    bodies: list[bytes] = []
    for length in _lengths(count).unpack_from(frame, HEAD_BYTES):
        end: int = at + length
        bodies.append(frame[at:end])
        at = end
    if at != len(frame):
        raise WireError(f"a frame of {len(frame)} bytes describes {at}")
    return bodies


@lru_cache(maxsize=256)
def _lengths(count: int) -> struct.Struct:
    return struct.Struct(f"<{count}I")


def decode_run(frame: memoryview, count: int, flag: int = 0) -> list[Item]:
    """The items of a RUN frame; bodies may be views into `frame`, which must stay unchanged while they are used."""
    if flag & 1:
        return [Item(flag >> 1, b"", body) for body in uniform_bodies(frame, count)]
    items: list[Item] = []
    at = HEAD_BYTES
    rest = at + _ITEM.size * count
    for _ in range(count):
        kind, _, meta_len, body_len = _ITEM.unpack_from(frame, at)
        at += _ITEM.size
        meta = bytes(frame[rest : rest + meta_len]) if meta_len else b""
        rest += meta_len
        items.append(Item(kind, meta, frame[rest : rest + body_len]))
        rest += body_len
    return items


def encode_uniform_reply(form: int, bodies: Sequence[bytes], sequence: int, run_us: int) -> bytes:
    """One REPLY frame in which every answer is a 200 of the same form."""
    return _uniform(REPLY, form, bodies, min(run_us, 0xFFFFFFFF), sequence)


def encode_reply(answers: Sequence[Answer], sequence: int, run_us: int) -> bytes:
    """One REPLY frame."""
    pack = _ANSWER.pack
    heads, tail, total = [], [], HEAD_BYTES + _ANSWER.size * len(answers)
    for status, form, flags, meta, body in answers:
        heads.append(pack(status, form, flags, len(meta), len(body)))
        if meta:
            tail.append(meta)
        tail.append(body)
        total += len(meta) + len(body)
    head = HEAD.pack(total, REPLY, 0, len(answers), min(run_us, 0xFFFFFFFF), sequence)
    return b"".join((head, *heads, *tail))


def decode_reply(frame: bytes, count: int, flag: int = 0) -> list[AnyAnswer]:
    """The answers of a REPLY frame. Raises WireError if the lengths do not add up."""
    if flag & 1:
        form = flag >> 1
        if form not in FORMS:
            raise WireError(f"a reply of form {form}")
        return [(200, form, 0, b"", body) for body in uniform_bodies(frame, count)]
    answers: list[AnyAnswer] = []
    rest = HEAD_BYTES + _ANSWER.size * count
    if rest > len(frame):
        raise WireError(f"a reply of {len(frame)} bytes promises {count} answers")
    for status, form, flags, meta_len, body_len in _ANSWER.iter_unpack(memoryview(frame)[HEAD_BYTES:rest]):
        body_at = rest + meta_len
        end = body_at + body_len
        if status not in STATUSES or form not in FORMS:
            raise WireError(f"a reply of status {status} and form {form}")
        answers.append((status, form, flags, frame[rest:body_at] if meta_len else b"", frame[body_at:end]))
        rest = end
    if rest != len(frame):
        raise WireError(f"a reply of {len(frame)} bytes describes {rest}")
    return answers


def reply_bytes_max(count: int) -> int:
    """The longest frame that answers a batch of `count` requests may fill."""
    longest = HEAD_BYTES + count * (_ANSWER.size + META_BYTES_MAX + ANSWER_BYTES_MAX)
    return min(longest, FRAME_BYTES_MAX)


def encode_resume(seed: bytes, wall_ns: int, name: str) -> bytes:
    """A RESUME frame; the seed has `SEED_BYTES`."""
    return encode_plain(RESUME, _RESUME.pack(seed, wall_ns) + name.encode())


def decode_resume(body: memoryview) -> tuple[bytes, int, bytes]:
    """Seed, ns since the epoch, name. Raises WireError."""
    if len(body) < _RESUME.size:
        raise WireError(f"a RESUME of {len(body)} bytes")
    seed, wall_ns = _RESUME.unpack_from(body)
    return seed, wall_ns, bytes(body[_RESUME.size :])


def encode_plain(frame_type: int, body: bytes = b"", number: int = 0) -> bytes:
    """A frame without items: any but RUN and REPLY."""
    return HEAD.pack(HEAD_BYTES + len(body), frame_type, 0, 0, number, 0) + body


class Reader:
    """Cuts a stream of chunks into frames of at most `limit` bytes."""

    __slots__ = ("_buffer", "limit")

    def __init__(self, limit: int = CONTROL_BYTES_MAX) -> None:
        self._buffer = bytearray()
        self.limit = limit

    def feed(self, chunk: bytes) -> list[bytes]:
        """The frames that are complete now. Raises WireError on a head that cannot be one."""
        buffer = self._buffer
        if not buffer and len(chunk) >= HEAD_BYTES and HEAD.unpack_from(chunk)[0] == len(chunk):
            return [chunk]  # by far the most frequent case: exactly one whole frame
        buffer += chunk
        frames = []
        while len(buffer) >= HEAD_BYTES:
            length = HEAD.unpack_from(buffer)[0]
            if not HEAD_BYTES <= length <= self.limit:
                raise WireError(f"a frame of {length} bytes, at most {self.limit}")
            if len(buffer) < length:
                break
            frames.append(bytes(memoryview(buffer)[:length]))  # one copy, not two
            del buffer[:length]
        return frames
