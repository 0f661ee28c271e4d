"""What connects a micro-VM's worker to its host: ports of a virtio console (QEMU), or vsock (Firecracker).

A virtio port is there from the start and outlasts a snapshot. On vsock the guest listens and the host connects, first
to the port for frames and then to that for the log; a restored machine finds both connections reset, and listens on.
"""

from __future__ import annotations

import contextlib
import io
import os
import socket
import time
from pathlib import Path

from rewarm.worker.stream import Channel

FRAMES_PORT, LOG_PORT = "rewarm.fn", "rewarm.log"
FRAMES_VSOCK_PORT, LOG_VSOCK_PORT = 5001, 5002

_PORTS = Path("/sys/class/virtio-ports")
_DEVICES = Path("/sys/bus/virtio/devices")
_VSOCK = "0x0013"  # the type of device 19 (Virtio 1.2, 5)
_PORTS_WAIT_S = 10.0
_HOST_AWAY_S = 60.0
_HOST_POLL_S = 0.002


def connect() -> Channel:
    """The connection for frames; what this process writes goes to the one for the log. Raises OSError."""
    if any(device.read_text().strip() == _VSOCK for device in _DEVICES.glob("*/device")):
        channel = Reconnecting(_listen(FRAMES_VSOCK_PORT), _listen(LOG_VSOCK_PORT))
        channel.accept()
        return channel
    _write_to(os.open(_port(LOG_PORT), os.O_WRONLY))
    return Port(os.open(_port(FRAMES_PORT), os.O_RDWR))


def _write_to(log: int) -> None:
    os.dup2(log, 1)
    os.dup2(log, 2)


# ---------------------------------------------------------------- virtio ports


def _port(name: str) -> str:
    """The device of the port that the host named so. Raises FileNotFoundError if it does not appear."""
    until_s = time.monotonic() + _PORTS_WAIT_S
    while True:
        for folder in _PORTS.iterdir() if _PORTS.is_dir() else ():
            if (folder / "name").read_text().strip() == name:
                return f"/dev/{folder.name}"
        if time.monotonic() > until_s:
            raise FileNotFoundError(f"the host gave this machine no port {name}")
        time.sleep(_HOST_POLL_S)


class Port:
    """A virtio-serial port as a channel. It reads as ended while the host is away, and takes 32 KiB at a time."""

    def __init__(self, file: int) -> None:
        self._file = io.FileIO(file, "r+b", closefd=False)  # open for as long as this process lives

    def recv_into(self, buffer: memoryview, /) -> int:
        """0 if the host stayed away for a minute."""
        until_s = 0.0
        while not (got := self._file.readinto(buffer)):
            now_s = time.monotonic()
            until_s = until_s or now_s + _HOST_AWAY_S
            if now_s > until_s:
                return 0
            time.sleep(_HOST_POLL_S)
        return got

    def sendall(self, data: bytes, /) -> None:
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]


# ---------------------------------------------------------------- vsock


def _listen(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    listener.bind((socket.VMADDR_CID_ANY, port))
    listener.listen(1)
    return listener


class Reconnecting:
    """One connection after the other as a channel. Nothing is under way when one ends: the machine was FROZEN."""

    def __init__(self, frames: socket.socket, log: socket.socket, away_s: float = _HOST_AWAY_S) -> None:
        """Both listen; `away_s` is how long the host is waited for."""
        self._frames, self._log = frames, log
        for listener in (frames, log):
            listener.settimeout(away_s)
        self._channel: socket.socket | None = None

    def accept(self) -> None:
        """Wait for the host's two connections. Raises OSError if it stays away."""
        self._channel, _ = self._frames.accept()
        self._channel.settimeout(None)
        with self._log.accept()[0] as log:
            log.setblocking(True)
            _write_to(log.fileno())

    def recv_into(self, buffer: memoryview, /) -> int:
        """0 if the host stayed away."""
        while True:
            if self._channel is not None:
                with contextlib.suppress(OSError):
                    if got := self._channel.recv_into(buffer):
                        return got
                self._channel.close()
            try:
                self.accept()
            except OSError:
                return 0

    def sendall(self, data: bytes, /) -> None:
        """What a host that has gone does not take is lost."""
        assert self._channel is not None
        with contextlib.suppress(OSError):
            self._channel.sendall(data)
