"""The framing in JavaScript is the framing of rewarm.wire, whatever the pieces in which frames arrive."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from pathlib import Path

import pytest

import rewarm.worker.node
from rewarm import wire

pytestmark = pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")

WIRE = Path(rewarm.worker.node.__file__).with_name("wire.mjs")
#: Reads chunks (length, bytes) and answers each RUN: bodies of even length as JSON, others raw, with meta as status.
ECHO = """
import { readFileSync, writeFileSync } from "node:fs";
const [wirePath] = process.argv.slice(1);
const wire = await import(wirePath);
const reader = new wire.Reader();
const input = readFileSync(0);
for (let at = 0; at < input.length; ) {
  const length = input.readUInt32LE(at);
  for (const frame of reader.feed(Buffer.from(input.subarray(at + 4, at + 4 + length)))) {
    const plain = frame.type === wire.LOAD;
    writeFileSync(1, plain ? wire.encodePlain(wire.LOADED, wire.decodePlain(frame), 7) : wire.encodeReply(
      wire.decodeRun(frame).map(({ kind, meta, body }) => ({
        status: Number(meta.toString() || 200), form: body.length % 2, flags: kind === wire.KIND_LAMBDA ? 1 : 0, body,
      })), frame.sequence, frame.number));
  }
  at += 4 + length;
}
"""


def through_node(stream: bytes, seed: int) -> list[bytes]:
    """The frames that come back for a stream that arrives in pieces of random length."""
    chance = random.Random(seed)
    pieces, at = [], 0
    while at < len(stream):
        piece = stream[at : at + chance.choice((1, 7, 19, 20, 21, 64, 1000, 65536))]
        pieces.append(len(piece).to_bytes(4, "little") + piece)
        at += len(piece)
    done = subprocess.run(
        ["node", "--input-type=module", "-e", ECHO, WIRE.as_uri()], input=b"".join(pieces), capture_output=True,
        timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    return wire.Reader(wire.FRAME_BYTES_MAX).feed(done.stdout)


@pytest.mark.parametrize("seed", range(3))
def test_runs_and_replies(seed: int) -> None:
    chance = random.Random(seed)
    batches = []
    for _ in range(60):
        uniform = chance.random() < 0.5
        kind = chance.choice((wire.KIND_JSON, wire.KIND_RAW, wire.KIND_LAMBDA))
        length = chance.choice((0, 1, 2, 50, 5000))
        batch = []
        for _ in range(chance.choice((1, 1, 2, 16))):
            each = kind if uniform else chance.choice((wire.KIND_JSON, wire.KIND_RAW, wire.KIND_LAMBDA))
            meta = b"" if uniform or chance.random() < 0.5 else chance.choice((b"200", b"400", b"500"))
            batch.append((each, meta, chance.randbytes(length if uniform else chance.randrange(300))))
        batches.append(batch)
    stream = b"".join(wire.encode_run(batch, number, 1000 + number) for number, batch in enumerate(batches))
    replies = through_node(stream, seed)
    assert len(replies) == len(batches)
    for number, (batch, reply) in enumerate(zip(batches, replies, strict=True)):
        _, frame_type, flag, count, run_us, sequence = wire.HEAD.unpack_from(reply)
        assert (frame_type, count, run_us, sequence) == (wire.REPLY, len(batch), 1000 + number, number)
        assert wire.decode_reply(reply, count, flag) == [
            (int(meta or 200), len(body) % 2, int(kind == wire.KIND_LAMBDA), b"", body) for kind, meta, body in batch
        ]


def test_plain_frames() -> None:
    said = {"text": "grün \U0001f600", "n": [1, None]}
    (reply,) = through_node(wire.encode_plain(wire.LOAD, json.dumps(said).encode()), 1)
    assert wire.HEAD.unpack_from(reply) == (len(reply), wire.LOADED, 0, 0, 7, 0)
    assert json.loads(reply[wire.HEAD_BYTES :]) == said
