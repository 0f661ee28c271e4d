"""The pager: a process that fills the memory of restored VMs through userfaultfd.

    python -m rewarm.snapshot.pager FD SERVER_PID

One for all VMs, since a Python process takes longer to start than a VM to wake. It ends when the server hangs up or
dies. If it dies, its VMs stop at their next fault, and never read zeros instead: they hold the userfaultfd open, too.

Control channel: one SOCK_SEQPACKET socket; each packet is a JSON object with one descriptor.

    server → pager   {"folder": of the snapshot, "loading": has it a loading set, "pid": of the VM, or 0}

The descriptor is the socket on which the VM says what memory it has, with Firecracker's handshake: a JSON list of
{"base_host_virt_addr", "size", "offset", "page_size"}, with the userfaultfd as SCM_RIGHTS. Where the server does not
know the pid yet, the socket has SO_PASSCRED. A VM whose pages cannot be had (files gone, or damaged) is killed.
"""

from __future__ import annotations

import array
import errno
import json
import os
import resource
import select
import signal
import socket
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from rewarm import kernel
from rewarm.errors import RewarmError, SnapshotCorrupt
from rewarm.kernel import PACKET_BYTES_MAX
from rewarm.snapshot.ahead import Readahead
from rewarm.snapshot.filling import Filling, Mapping, Source
from rewarm.snapshot.regions import PAGE_BYTES
from rewarm.snapshot.uffd import Uffd

_HANDSHAKE_BYTES_MAX = 64 << 10
_HANDSHAKE_FDS_MAX = 4
_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid
_LATER_S = 0.001  # until what was not there is looked for again
_ENDED = (errno.ESRCH, errno.ENOENT)  # the process, or its memory


class Guest:
    """A VM from the order to its end. `filling`: once it has said what memory it has."""

    def __init__(self, channel: socket.socket, source: Source | None, pid: int) -> None:
        self.channel = channel
        self.source = source
        self.filling: Filling | None = None
        self.pidfd = -1
        self._pid = pid
        self._said = b""
        self._descriptors: list[int] = []

    def hear(self) -> list[Mapping] | None:
        """Reads on; the mappings once the handshake is complete. Raises EOFError, OSError, SnapshotCorrupt."""
        room = socket.CMSG_SPACE(_HANDSHAKE_FDS_MAX * 4) + socket.CMSG_SPACE(_CREDENTIALS.size)
        data, extras, _, _ = self.channel.recvmsg(_HANDSHAKE_BYTES_MAX, room)
        for level, kind, value in extras:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                found = array.array("i")
                found.frombytes(value[: len(value) - len(value) % found.itemsize])
                self._descriptors += found
            elif (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS) and not self._pid:
                self._pid = _CREDENTIALS.unpack(value)[0]
        if not data:
            raise EOFError
        if self.pidfd < 0:
            self.pidfd = os.pidfd_open(self._pid)  # by which its end is seen
        self._said += data
        try:
            mappings = [_mapping(item) for item in json.loads(self._said)]
        except ValueError:
            if len(self._said) >= _HANDSHAKE_BYTES_MAX:
                raise SnapshotCorrupt("a VM says no end of nonsense about its memory") from None
            return None  # there is more to come
        except (KeyError, TypeError) as error:
            raise SnapshotCorrupt(f"a VM's memory cannot be {self._said[:300]!r}") from error
        return mappings if self._descriptors else None

    def fill(self, mappings: list[Mapping]) -> Filling:
        """Raises OSError and SnapshotCorrupt."""
        assert self.source is not None
        uffd = Uffd(self._descriptors.pop(0))
        try:
            self.filling = Filling(uffd, mappings, self.source)
        except BaseException:
            uffd.close()
            raise
        return self.filling

    def kill(self) -> None:
        if self.pidfd >= 0:
            with suppress(OSError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def close(self) -> None:
        self.channel.close()
        if self.source is not None:
            self.source.close()
        if self.filling is not None:
            self.filling.uffd.close()
        for descriptor in (*self._descriptors, self.pidfd):
            if descriptor >= 0:
                os.close(descriptor)


def _mapping(item: dict[str, int]) -> Mapping:
    # Firecracker before 1.11 had the bytes of a page in "page_size_kib".
    if item.get("page_size", item.get("page_size_kib", PAGE_BYTES)) != PAGE_BYTES:
        raise TypeError("huge pages")
    mapping = Mapping(item["base_host_virt_addr"], item["size"], item["offset"])
    if any(type(number) is not int or number < 0 or number % PAGE_BYTES for number in mapping):
        raise TypeError("not whole pages")
    return mapping


class Pager:
    """One thread for all; another reads ahead."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._ahead = Readahead()
        self._poll = select.epoll()
        self._handlers: dict[int, Callable[[], None]] = {}
        self._busy: dict[Guest, Filling] = {}  # there is work to do without an event: a step for each in turn
        self._open = True
        self._closed = False  # something was, since the last look
        self._handle(control.fileno(), self._order)

    def run(self) -> None:
        """Until the server hangs up."""
        moved = False
        while self._open:
            timeout_s = None if not self._busy else 0.0 if moved else _LATER_S
            self._closed = False
            for descriptor, _ in self._poll.poll(timeout_s):
                self._handlers[descriptor]()
                if self._closed:
                    break  # what else was ready may be closed, and its number another's; it is told again
            moved = False
            for guest, filling in list(self._busy.items()):
                moved = self._work(guest, filling, filling.step) or moved

    def _work(self, guest: Guest, filling: Filling, work: Callable[[], bool]) -> bool:
        """True if it got on."""
        try:
            moved = work()
        except (OSError, RewarmError) as error:
            self._fail(guest, error)
            return False
        if filling.busy:
            self._busy[guest] = filling
        else:
            self._busy.pop(guest, None)
        return moved

    # ------------------------------------------------------------ what happens

    def _handle(self, descriptor: int, handler: Callable[[], None]) -> None:
        self._handlers[descriptor] = handler
        self._poll.register(descriptor, select.EPOLLIN)

    def _forget(self, descriptor: int) -> None:
        if self._handlers.pop(descriptor, None) is not None:
            self._poll.unregister(descriptor)
            self._closed = True

    def _order(self) -> None:
        packet, descriptors, _, _ = socket.recv_fds(self._control, PACKET_BYTES_MAX, 1)
        if not packet:
            self._open = False
            return
        if not descriptors:
            _say("too many open files: a VM is not filled, and maps the memory file itself")
            return
        order, channel = json.loads(packet), socket.socket(fileno=descriptors[0])
        try:
            source = Source(Path(order["folder"]), order["loading"], self._ahead)
        except (OSError, RewarmError) as error:
            _say(f"no VM can be filled from {order['folder']}: {error}")
            _refuse(Guest(channel, None, order["pid"]))
            return
        guest = Guest(channel, source, order["pid"])
        self._handle(channel.fileno(), lambda: self._hear(guest))

    def _hear(self, guest: Guest) -> None:
        try:
            mappings = guest.hear()
            if mappings is None:
                return
            self._forget(guest.channel.fileno())
            filling = guest.fill(mappings)
        except EOFError:
            self._end(guest)  # it has ended, or maps the file itself
            return
        except (OSError, RewarmError) as error:
            self._fail(guest, error)
            return
        self._handle(guest.pidfd, lambda: self._end(guest))
        self._handle(filling.uffd.fileno(), lambda: self._answer(guest, filling))
        self._busy[guest] = filling

    def _answer(self, guest: Guest, filling: Filling) -> None:
        self._work(guest, filling, filling.answer)

    def _fail(self, guest: Guest, error: Exception) -> None:
        if not (isinstance(error, OSError) and error.errno in _ENDED):
            _say(f"a VM cannot be filled any more, and is killed: {error}")
            guest.kill()
        self._end(guest)

    def _end(self, guest: Guest) -> None:
        self._busy.pop(guest, None)
        for descriptor in (guest.channel.fileno(), guest.pidfd):
            self._forget(descriptor)
        if guest.filling is not None:
            self._forget(guest.filling.uffd.fileno())
        guest.close()
        guest.filling = None


def _refuse(guest: Guest) -> None:
    """A VM that has said nothing yet finds the channel shut, and maps the memory file itself; else it is killed."""
    with suppress(OSError, RewarmError, EOFError):
        guest.channel.shutdown(socket.SHUT_RDWR)
        guest.hear()
    guest.kill()
    guest.close()


def _say(text: str) -> None:
    print(f"rewarm pager: {text}", file=sys.stderr, flush=True)


def main(argv: list[str]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # sent to the whole group, they are the server's to handle
    kernel.die_with(int(argv[1]))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # five for each VM
    with suppress(OSError):
        Pager(socket.socket(fileno=int(argv[0]))).run()
    os._exit(0)  # not waiting for what is read ahead


if __name__ == "__main__":
    main(sys.argv[1:])
