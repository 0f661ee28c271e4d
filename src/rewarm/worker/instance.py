"""An instance: one process, forked from a zygote, that loads one function and runs its batches one after another.

It knows one socket. It says HELLO, is told to LOAD, says LOADED or FAILED, and from then on answers each RUN with a
REPLY. Whatever user code does beyond raising an exception (exit, crash, hang, eat memory) ends this process and
nothing else; the server sees it go.
"""

from __future__ import annotations

import gc
import json
import os
import random
import resource
import signal
import socket
import sys
import traceback
from typing import TYPE_CHECKING, Any, Protocol

import orjson

from rewarm import kernel, wire
from rewarm.worker.answers import Outcome
from rewarm.worker.user import UserError, load_user, one_line

if TYPE_CHECKING:
    from rewarm.worker.weights import Weights

_DATA_FD = 3
_SILENT_MAX = 8  # batches without a first pass, refused ones for example, until nobody asks any more


class Engine(Protocol):
    """Runs one batch. Whatever user code raises is an answer, not an exception."""

    def run(self, items: list[wire.Item], limit_ms: int) -> Outcome:
        """Items of any kinds; as many answers, in order."""

    def run_bodies(self, kind: int, bodies: list[bytes], limit_ms: int) -> Outcome:
        """The same for bodies of one kind without meta."""


def main(data_fd: int, log_fd: int, order: dict[str, Any]) -> None:
    """Runs in the forked child; never returns."""
    channel = _settle(data_fd, log_fd, order)
    channel.sendall(wire.encode_plain(wire.HELLO, number=os.getpid()))
    stream = _Stream(channel)
    status = 1
    try:
        loaded = _load(stream, channel, str(order["namespaces"]))
        if loaded is not None:
            _loop(stream, channel, *loaded)
            status = 0
    except SystemExit as stop:  # user code called sys.exit(): the process ends, as it asked
        status = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status & 0xFF)


def _settle(data_fd: int, log_fd: int, order: dict[str, Any]) -> socket.socket:
    """Take the process apart from its zygote: descriptors, namespaces, limits, directory, randomness, signals."""
    high = max(data_fd, log_fd, 10) + 1
    data, log = high, high + 1
    os.dup2(data_fd, data)
    os.dup2(log_fd, log)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.dup2(data, _DATA_FD, inheritable=False)
    kernel.close_from(_DATA_FD + 1)
    sys.stdout = open(1, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    if order["namespaces"] != "none":
        try:
            kernel.unshare(order["namespaces"] == "user")
        except OSError as error:  # less isolation than hoped for is no reason not to start
            print(f"this instance is not isolated: {error}", file=sys.stderr)
    memory_bytes = int(order["memory_bytes"])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    files = 1024 if hard == resource.RLIM_INFINITY else min(1024, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    scratch = str(order["scratch"])
    os.chdir(scratch)
    os.environ["TMPDIR"] = os.environ["HOME"] = scratch
    for number in (signal.SIGINT, signal.SIGTERM):  # the zygote ignores them; user code finds the usual
        signal.signal(number, signal.SIG_DFL)
    random.seed()  # forks of one zygote would otherwise share their random numbers
    numpy_random = sys.modules.get("numpy.random")  # numpy 2 loads it on first use, and seeds it then
    if numpy_random is not None:
        numpy_random.seed(int.from_bytes(os.urandom(4), "little"))
    return socket.socket(fileno=_DATA_FD)


def _load(stream: _Stream, channel: socket.socket, namespaces: str) -> tuple[Engine, Weights | None] | None:
    frame_type, _, _, _, _, body = stream.frame()
    if frame_type != wire.LOAD:
        raise wire.WireError(f"expected LOAD, got frame type {frame_type}")
    order = json.loads(bytes(body))
    if namespaces != "none":
        _shut(str(order["code_dir"]), namespaces)
    try:
        engine, timings, weights = load_user(order)
    except UserError as error:
        report = {"code": error.code, "error": error.message, "error_type": error.error_type}
        channel.sendall(wire.encode_plain(wire.FAILED, orjson.dumps(report)))
        return None
    gc.collect()
    gc.freeze()
    channel.sendall(wire.encode_plain(wire.LOADED, orjson.dumps(timings)))
    return engine, weights


def _shut(code_dir: str, namespaces: str) -> None:
    """The last of its isolation, for which the folder of its code must be known."""
    try:
        try:
            kernel.make_read_only(code_dir)
        finally:
            if namespaces == "user":
                kernel.drop_capabilities()
    except OSError as error:
        print(f"this instance is not isolated: {error}", file=sys.stderr)


def _loop(stream: _Stream, channel: socket.socket, engine: Engine, weights: Weights | None) -> None:
    silent = 0
    while True:
        frame_type, flag, count, limit_ms, sequence, _ = stream.frame()
        if frame_type != wire.RUN:
            raise wire.WireError(f"expected RUN, got frame type {frame_type}")
        try:
            reply = _run(stream.view, flag, count, limit_ms, sequence, engine)
        except Exception as error:  # the engines catch what user code raises: this is our bug, said in the log
            traceback.print_exc()
            text = f"the worker failed on the batch: {one_line(error)}"
            failure = orjson.dumps({"error": text, "code": "internal"})
            reply = wire.encode_reply([wire.Answer(500, wire.FORM_JSON, 0, b"", failure)] * count, sequence, 0)
        if weights is not None:  # it has told nothing of its load yet
            report, silent = weights.report(), silent + 1
            if report is not None or silent == _SILENT_MAX:
                weights = None
            if report is not None:
                said = {name: value for name, value in report.items() if value is not None}
                reply = wire.encode_plain(wire.NOTED, orjson.dumps(said)) + reply
        channel.sendall(reply)


def _run(frame: memoryview, flag: int, count: int, limit_ms: int, sequence: int, engine: Engine) -> bytes:
    if flag & 1:
        outcome = engine.run_bodies(flag >> 1, wire.uniform_bodies(frame, count), limit_ms)
    else:
        outcome = engine.run(wire.decode_run(frame, count), limit_ms)
    if outcome.answers is None:
        return wire.encode_uniform_reply(outcome.form, outcome.bodies, sequence, outcome.run_us)
    return wire.encode_reply(outcome.answers, sequence, outcome.run_us)


class _Stream:
    """Reads frames into one buffer that grows to the largest frame seen (bounded by what the server sends)."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._buffer = bytearray(1 << 16)
        self._filled = 0
        self._length = 0
        self.view = memoryview(self._buffer)

    def frame(self) -> tuple[int, int, int, int, int, memoryview]:
        """(type, flag, count, number, sequence, body); `view` holds the whole frame until the next call."""
        self._drop_last()
        self._fill(wire.HEAD_BYTES)
        length, frame_type, flag, count, number, sequence = wire.HEAD.unpack_from(self._buffer)
        if not wire.HEAD_BYTES <= length <= wire.FRAME_BYTES_MAX:
            raise wire.WireError(f"a frame of {length} bytes")
        self._fill(length)
        self._length = length
        self.view = memoryview(self._buffer)[:length]
        return frame_type, flag, count, number, sequence, self.view[wire.HEAD_BYTES :]

    def _drop_last(self) -> None:
        if self._length:
            rest = self._filled - self._length
            if rest:
                self._buffer[:rest] = self._buffer[self._length : self._filled]
            self._filled, self._length = rest, 0

    def _fill(self, wanted: int) -> None:
        if len(self._buffer) < wanted:
            # A new object, not a resize: user code may still hold views of the last batch.
            self._buffer = self._buffer[: self._filled] + bytearray(wanted - self._filled)
        while self._filled < wanted:
            got = self._channel.recv_into(memoryview(self._buffer)[self._filled :])
            if got == 0:
                os._exit(0)  # the server let go of us
            self._filled += got
