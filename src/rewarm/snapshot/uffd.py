"""userfaultfd(2) as seen by whoever fills the memory: events, copies, zero pages. And whether this system has it."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from contextlib import suppress
from typing import NamedTuple

from rewarm.snapshot.regions import PAGE_BYTES

EVENT_PAGEFAULT, EVENT_REMOVE = 0x12, 0x15

_API = 0xAA
_EVENT_REMOVE = 1 << 3
#: What Firecracker asks for: that, MISSING_HUGETLBFS and WP_ASYNC.
_FIRECRACKER = _EVENT_REMOVE | 1 << 4 | 1 << 15
# The ioctls, as include/uapi/linux/userfaultfd.h makes them of 0xAA, a number, and the size of what they take.
_IOC_NEW = 0xAA00
_UFFDIO_API, _UFFDIO_UNREGISTER, _UFFDIO_WAKE = 0xC018AA3F, 0x8010AA01, 0x8010AA02
_UFFDIO_COPY, _UFFDIO_ZEROPAGE = 0xC028AA03, 0xC020AA04
_RANGE, _COPY, _ZERO = struct.Struct("=2Q"), struct.Struct("=4Qq"), struct.Struct("=3Qq")
_MESSAGE = struct.Struct("=BBHI3Q")  # event, and three words of which each event has its own idea
_MESSAGES_AT_ONCE = 64
DEVICE = "/dev/userfaultfd"
_SYS_USERFAULTFD = {"x86_64": 323, "aarch64": 282}


class Event(NamedTuple):
    """A fault at the address `begin` (`end` is 0), or the removal of `begin` to `end`."""

    kind: int
    begin: int
    end: int


class Uffd:
    """The descriptor that a VMM handed over; the memory is that VMM's. Owns the descriptor."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        os.set_blocking(descriptor, False)

    def fileno(self) -> int:
        return self._descriptor

    def close(self) -> None:
        os.close(self._descriptor)

    def events(self) -> list[Event]:
        """Those that wait, without waiting for one. Raises OSError."""
        try:
            data = os.read(self._descriptor, _MESSAGES_AT_ONCE * _MESSAGE.size)
        except BlockingIOError:
            return []
        found: list[Event] = []
        for kind, _, _, _, first, second, _ in _MESSAGE.iter_unpack(data):
            if kind == EVENT_PAGEFAULT:
                found.append(Event(kind, second, 0))  # the first word holds flags
            elif kind == EVENT_REMOVE:
                found.append(Event(kind, first, second))
        return found

    def copy(self, target: int, source: int, size_bytes: int) -> int:
        """Fills whole pages at `target` from this process's memory at `source`, and wakes who waits for them.

        A page that is there already stays. Returns the bytes dealt with: fewer if events have to be read first. Raises
        OSError: ESRCH if the process has ended, ENOENT if that memory has.
        """
        return self._fill(_UFFDIO_COPY, _COPY, target, source, size_bytes)

    def zero(self, target: int, size_bytes: int) -> int:
        """As `copy`, of zeros."""
        return self._fill(_UFFDIO_ZEROPAGE, _ZERO, target, None, size_bytes)

    def _fill(self, call: int, form: struct.Struct, target: int, source: int | None, size_bytes: int) -> int:
        done = 0
        while done < size_bytes:
            place = (target + done,) if source is None else (target + done, source + done)
            request = bytearray(form.pack(*place, size_bytes - done, 0, 0))
            try:
                fcntl.ioctl(self._descriptor, call, request)
                return size_bytes
            except OSError as error:
                filled = form.unpack(request)[-1]
                if filled > 0:
                    done += filled  # what stopped it comes as the error of the next call
                elif error.errno == errno.EEXIST:
                    self._wake(target + done)
                    done += PAGE_BYTES
                elif error.errno == errno.EAGAIN:
                    return done
                else:
                    raise
        return size_bytes

    def _wake(self, target: int) -> None:
        fcntl.ioctl(self._descriptor, _UFFDIO_WAKE, _RANGE.pack(target, PAGE_BYTES))

    def release(self, target: int, size_bytes: int) -> None:
        """From now on the kernel answers faults there, with zeros. Raises OSError."""
        fcntl.ioctl(self._descriptor, _UFFDIO_UNREGISTER, _RANGE.pack(target, size_bytes))


def open_uffd(features: int = _EVENT_REMOVE) -> int:
    """A descriptor for the memory of this process that also sees the faults of system calls. Raises OSError."""
    try:
        device = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        descriptor = _system_call()
    else:
        try:
            descriptor = fcntl.ioctl(device, _IOC_NEW, os.O_CLOEXEC | os.O_NONBLOCK)
        finally:
            os.close(device)
    try:
        fcntl.ioctl(descriptor, _UFFDIO_API, bytearray(struct.pack("=3Q", _API, features, 0)))
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _system_call() -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    number = _SYS_USERFAULTFD.get(os.uname().machine)
    if number is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    descriptor = int(libc.syscall(number, os.O_CLOEXEC | os.O_NONBLOCK))
    if descriptor < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return descriptor


def why_not() -> str | None:
    """What keeps this process from using userfaultfd, and what to do; None if nothing does."""
    found = _why_not(_EVENT_REMOVE)
    if found is None and os.geteuid() == 0 and not os.path.exists(DEVICE) and not _for_everybody():
        return f"there is no {DEVICE} (Linux ≥ 6.1), and root's VMMs are not root: set vm.unprivileged_userfaultfd=1"
    return found


def why_not_firecracker() -> str | None:
    """The same of Firecracker, which opens one by itself and as this user."""
    return _why_not(_FIRECRACKER)


def _why_not(features: int) -> str | None:
    try:
        descriptor = open_uffd(features)
    except OSError as error:
        if error.errno == errno.EINVAL:
            return "the userfaultfd of this kernel has not what is asked of it (Firecracker's needs Linux ≥ 6.7)"
        return (
            f"userfaultfd is not available ({error.strerror}): let this user open {DEVICE} (Linux ≥ 6.1), or set "
            "vm.unprivileged_userfaultfd=1"
        )
    with suppress(OSError):
        os.close(descriptor)
    return None


def _for_everybody() -> bool:
    try:
        with open("/proc/sys/vm/unprivileged_userfaultfd", encoding="ascii") as file:
            return file.read().strip() == "1"
    except OSError:
        return False
