"""An instance: one process, forked from a zygote, that loads one function and runs its batches one after another.

It knows one socket. It says HELLO, is told to LOAD, says LOADED or FAILED, and from then on answers each RUN with a
REPLY. Whatever user code does beyond raising an exception (exit, crash, hang, eat memory) ends this process and
nothing else; the server sees it go.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

import orjson

from rewarm import kernel, wire
from rewarm.worker.answers import Outcome
from rewarm.worker.identity import reseed
from rewarm.worker.stream import Channel, Stream
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


def main(data_fd: int, log_fd: int, order: dict[str, Any]) -> NoReturn:
    """Runs in the forked child; never returns."""
    channel = _settle(data_fd, log_fd, order)
    channel.sendall(wire.encode_plain(wire.HELLO, number=os.getpid()))
    end_with(lambda: _live(channel, str(order["namespaces"])))


def _live(channel: socket.socket, namespaces: str) -> int:
    stream = Stream(channel)
    frame_type, _, _, _, _, body = stream.frame()
    if frame_type != wire.LOAD:
        raise wire.WireError(f"expected LOAD, got frame type {frame_type}")
    order = json.loads(bytes(body))
    if namespaces != "none":
        _shut(str(order["code_dir"]), namespaces)
    loaded = load(order, channel)
    if loaded is None:
        return 1
    serve(stream, channel, *loaded, _refuse)


def end_with(live: Callable[[], int]) -> NoReturn:
    """Call it and end this process, with the status that it returns or what user code asked for; says why it raised."""
    status = 1
    try:
        status = live()
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
    reseed()  # forks of one zygote would otherwise share their random numbers
    return socket.socket(fileno=_DATA_FD)


def load(order: dict[str, Any], channel: Channel) -> tuple[Engine, Weights | None] | None:
    """Carry out a LOAD order and answer it; None if user code could not be brought up."""
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


def _refuse(frame_type: int, body: memoryview) -> None:
    raise wire.WireError(f"expected RUN, got frame type {frame_type}")


def serve(
    stream: Stream, channel: Channel, engine: Engine, weights: Weights | None,
    other: Callable[[int, memoryview], None],
) -> NoReturn:  # fmt: skip
    """Run batches until the server lets go; `other` is given the type and the body of any frame but RUN."""
    silent = 0
    while True:
        frame_type, flag, count, limit_ms, sequence, body = stream.frame()
        if frame_type != wire.RUN:
            other(frame_type, body)
            continue
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
