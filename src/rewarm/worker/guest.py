"""The worker inside a micro-VM: an instance whose connection is a port of the machine (see `ports`).

    python3 -m rewarm.worker.guest PACKAGE…

It imports the packages as a zygote does and says HELLO. From then on it may be frozen and woken any number of times,
before its function is loaded (a snapshot of a Lang layer) and after (of an instance): each RESUME gives it randomness,
a clock and a name of its own. When it ends, the machine ends: whoever started it, PID 1, sees to that.
"""

from __future__ import annotations

import ctypes
import fcntl
import gc
import json
import os
import socket
import struct
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import orjson

from rewarm import hooks, wire
from rewarm.worker import instance
from rewarm.worker.identity import reseed
from rewarm.worker.ports import connect
from rewarm.worker.stream import Channel, Stream
from rewarm.worker.user import MEANINGS, UserError, one_line
from rewarm.worker.zygote import preload

if TYPE_CHECKING:
    from rewarm.worker.weights import Weights

_FUNCTION_DRIVE, _FUNCTION_DIR = "/dev/vdc", "/fn"

# linux/random.h, linux/fs.h, sys/mount.h
_RNDADDENTROPY, _RNDRESEEDCRNG, _BLKFLSBUF = 0x40085203, 0x5207, 0x1261
# The head of a struct rand_pool_info: how many bits of a seed are random, how many bytes it has. A bytearray, since
# `ioctl` takes anything else for one first, and makes up an error.
_POOL_HEAD = bytearray(struct.pack("ii", 8 * wire.SEED_BYTES, wire.SEED_BYTES))
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOATIME = 1, 2, 4, 1024

_RESUMED = wire.encode_plain(wire.RESUMED)

#: What user code meets here and not in a process of its own.
_NO_NETWORK = "a micro-VM has no network"
_MEANINGS = {
    "No module named": "a micro-VM has what preload names and that requires, and nothing else: add it to preload",
    "Name or service not known": _NO_NETWORK,
    "Temporary failure in name resolution": _NO_NETWORK,
    "Network is unreachable": _NO_NETWORK,
}


def main(packages: list[str]) -> None:
    """Never returns."""
    channel = connect()
    sys.stdout = open(1, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    instance.end_with(lambda: Guest(channel, Machine()).live(packages))


class Machine:
    """What only root of a machine of its own may do."""

    def __init__(self) -> None:
        """Raises OSError."""
        self._random = os.open("/dev/urandom", os.O_WRONLY)  # open for as long as this process lives

    def become(self, seed: bytes, wall_ns: int, name: bytes) -> None:
        """Take on randomness, wall time and name. Raises OSError."""
        # All bits of the seed are counted, and what was mixed is handed out at once, not in a minute.
        fcntl.ioctl(self._random, _RNDADDENTROPY, _POOL_HEAD + seed)
        fcntl.ioctl(self._random, _RNDRESEEDCRNG)
        time.clock_settime_ns(time.CLOCK_REALTIME, wall_ns)
        socket.sethostname(name)  # type: ignore[arg-type] # as bytes: a string is refused first, and then encoded

    def mount_function(self) -> None:
        """The drive may be another one than at boot, so nothing that was read from it then counts. Raises OSError."""
        with open(_FUNCTION_DRIVE, "rb") as drive:
            fcntl.ioctl(drive, _BLKFLSBUF)
        flags = _MS_RDONLY | _MS_NOSUID | _MS_NODEV | _MS_NOATIME
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mount(_FUNCTION_DRIVE.encode(), _FUNCTION_DIR.encode(), b"ext4", ctypes.c_ulong(flags), None):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), _FUNCTION_DRIVE)


class Guest:
    """What the host asks of it, frame by frame."""

    def __init__(self, channel: Channel, machine: Machine) -> None:
        self._channel = channel
        self._machine = machine
        self._stream = Stream(channel)
        self._awake = False
        self._code_dir: str | None = None  # once it is loaded

    def live(self, packages: list[str]) -> int:
        """Import, say HELLO, serve. Returns the status with which to end."""
        try:
            preload(packages)
        except Exception as error:
            self._say(wire.FAILED, _report(f"the packages of this runtime do not import: {one_line(error)}", error))
            return 1
        self._channel.sendall(wire.encode_plain(wire.HELLO, number=os.getpid()))
        try:
            while True:
                frame_type, _, _, _, _, body = self._stream.frame()
                if frame_type == wire.LOAD:
                    break
                self._control(frame_type, body)
            loaded = self._load(json.loads(bytes(body)))
            if loaded is None:
                return 1
            engine, weights = loaded
            instance.serve(self._stream, self._channel, engine, weights, self._control)
        except UserError as error:  # of a hook
            self._say(wire.FAILED, {"code": error.code, "error": error.message, "error_type": error.error_type})
            return 1

    def _load(self, order: dict[str, Any]) -> tuple[instance.Engine, Weights | None] | None:
        if not self._awake:
            raise wire.WireError("LOAD before RESUME: two of these would have the same randomness")
        self._machine.mount_function()
        MEANINGS.update(_MEANINGS)
        self._code_dir = str(order["code_dir"])
        return instance.load(order, self._channel)

    def _control(self, frame_type: int, body: memoryview) -> None:
        if frame_type == wire.RESUME:
            self._resume(body)
        elif frame_type == wire.FREEZE:
            self._freeze()
        else:
            raise wire.WireError(f"a frame of type {frame_type} out of its turn")

    def _resume(self, body: memoryview) -> None:
        self._machine.become(*wire.decode_resume(body))
        reseed()
        self._awake = True
        self._call(hooks.run_after_restore, "after_restore")
        self._channel.sendall(_RESUMED)

    def _freeze(self) -> None:
        self._awake = False
        self._call(hooks.run_before_snapshot, "before_snapshot")
        gc.collect()
        gc.freeze()  # the collector would otherwise write to pages that are else read, or not touched at all
        sys.stdout.flush()
        sys.stderr.flush()
        self._channel.sendall(wire.encode_plain(wire.FROZEN))

    def _call(self, run: Callable[[], None], name: str) -> None:
        if self._code_dir is None:  # what packages registered is not for a machine without a function
            return
        try:
            run()
        except Exception as error:
            said = one_line(error, self._code_dir)
            raise UserError(f"the hook {name} raised {said}", type(error).__name__) from error

    def _say(self, frame_type: int, body: dict[str, Any]) -> None:
        self._channel.sendall(wire.encode_plain(frame_type, orjson.dumps(body)))


def _report(message: str, error: Exception) -> dict[str, Any]:
    return {"code": "start_failed", "error": message, "error_type": type(error).__name__}


if __name__ == "__main__":
    main(sys.argv[1:])
