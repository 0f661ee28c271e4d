"""The server's side of the pager: it starts the process, hands VMs to it, and tells when it has died."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from rewarm.errors import Unavailable
from rewarm.helper import Helper
from rewarm.snapshot.manifest import Snapshot

log = logging.getLogger("rewarm.snapshot")

_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid


class PagerClient:
    """`died` is called once if the process ends by itself: its VMs will not go on, and have to be restored anew.

    Of one event loop, on whose thread everything happens. Nothing waits but `close`.
    """

    def __init__(self, died: Callable[[], None]) -> None:
        self._died = died
        self._process = Helper("rewarm.snapshot.pager", self._hung_up)
        self._listening: set[Listening] = set()

    @property
    def pid(self) -> int | None:
        """Of the process, if there is one."""
        return self._process.pid

    def start(self) -> None:
        """Have a process from now on; `serve` does that too. Raises OSError if it cannot be started."""
        self._process.start()

    def serve(self, snapshot: Snapshot) -> socket.socket:
        """Have a VM filled from a snapshot. It inherits the socket returned, which the caller then closes.

        If nobody ever holds it but the caller, closing it is all. Raises Unavailable.
        """
        near, far = socket.socketpair()
        try:
            with near:
                near.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)  # tells the pager the pid
                self._order(snapshot, near, 0)
        except BaseException:
            far.close()
            raise
        return far

    def serve_at(self, snapshot: Snapshot, socket_path: Path) -> Listening:
        """As `serve`, for a VMM that connects to a Unix socket, once. Raises OSError."""
        self.start()
        listening = Listening(self, snapshot, socket_path)
        self._listening.add(listening)
        return listening

    def _order(self, snapshot: Snapshot, channel: socket.socket, pid: int) -> None:
        try:
            self.start()
            assert self._process.control is not None
            loading = snapshot.loading_set is not None
            order = {"folder": str(snapshot.folder), "loading": loading, "pid": pid}
            socket.send_fds(self._process.control, [json.dumps(order).encode()], [channel.fileno()])
        except OSError as error:  # it is about to be found dead, or has more orders than it can take
            raise Unavailable(f"the pager does not listen ({error}); try again") from error

    def _hung_up(self) -> None:
        """It never says anything, so this is its end, and not by `close`."""
        self._process.stop()
        log.error("the pager of restored VMs has died: those it served are lost, and have to be restored anew")
        self._died()

    async def close(self) -> None:
        """End the process and wait until it is gone. Harmless a second time."""
        for listening in list(self._listening):
            listening.close()
        await self._process.close()

    # ------------------------------------------------------------ who connects

    def connected(self, listening: Listening, channel: socket.socket) -> None:
        """A VMM has connected, and is known by that."""
        self._listening.discard(listening)
        with channel, suppress(Unavailable):  # it finds nobody at the other end
            peer = channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            self._order(listening.snapshot, channel, _CREDENTIALS.unpack(peer)[0])

    def closed(self, listening: Listening) -> None:
        """It is not waited for any more."""
        self._listening.discard(listening)


class Listening:
    """A Unix socket that waits for one VMM. Whoever asked for it closes it, if need be before anybody connects."""

    def __init__(self, client: PagerClient, snapshot: Snapshot, path: Path) -> None:
        self.snapshot = snapshot
        self._client = client
        self._path = path
        self._loop = asyncio.get_running_loop()
        self._socket: socket.socket | None = socket.socket(socket.AF_UNIX)
        try:
            self._socket.bind(str(path))
            self._socket.listen(1)
        except OSError:
            self._socket.close()
            raise
        self._socket.setblocking(False)
        self._loop.add_reader(self._socket.fileno(), self._accept)

    def _accept(self) -> None:
        assert self._socket is not None
        with suppress(BlockingIOError):
            channel, _ = self._socket.accept()
            self.close()
            self._client.connected(self, channel)

    def close(self) -> None:
        """Harmless a second time."""
        if self._socket is not None:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None
            with suppress(OSError):
                self._path.unlink()
            self._client.closed(self)
