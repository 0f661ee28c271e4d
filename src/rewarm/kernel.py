"""What processes that fork need of Linux: parent-death signal, child subreaper, closing descriptors, one thread; and to
be set apart, cgroups and namespaces."""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import struct
import time

#: Libraries read these when they are imported; more than one thread in a zygote would make it unable to fork.
#: onnxruntime ≥ 1.29 starts a telemetry thread (and a network connection) on import unless told not to.
SINGLE_THREADED_ENV = {
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "GOTO_NUM_THREADS": "1",
    "ORT_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
#: Largest packet on the control socket of a zygote.
PACKET_BYTES_MAX = 1 << 16

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36

_CLONE_NEWNS, _CLONE_NEWUTS, _CLONE_NEWIPC, _CLONE_NEWUSER = 0x00020000, 0x04000000, 0x08000000, 0x10000000
_CLONE_INTO_CGROUP = 1 << 33
_SYS_CLONE3, _SYS_CACHESTAT = 435, 451  # on every architecture
_MS_RDONLY, _MS_REMOUNT, _MS_BIND, _MS_REC, _MS_SLAVE = 1, 32, 4096, 16384, 1 << 19
_LOCKED_FLAGS = os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC  # a user namespace may not drop them from a mount
_CAPABILITY_VERSION = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)
_libc_with_gil = ctypes.PyDLL(None, use_errno=True)
_libc_with_gil.syscall.restype = ctypes.c_long


def _check(status: int, call: str) -> None:
    """Raises OSError for the errno of a call that failed."""
    if status != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{call}: {os.strerror(error)}")


def _prctl(option: int, value: int) -> None:
    _check(_libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0), f"prctl({option})")


def become_subreaper() -> None:
    """Orphans among this process's descendants become its children (Linux ≥ 3.4)."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with(parent_pid: int, wait_s: float = 10.0) -> None:
    """Be killed when `parent_pid` ends; exits at once if it is gone already.

    The signal is bound to whoever is the parent when it is set, so an orphan first waits to be adopted.
    """
    deadline_s = time.monotonic() + wait_s
    while os.getppid() != parent_pid:
        if time.monotonic() > deadline_s or not _exists(parent_pid):
            os._exit(1)
        time.sleep(0.0001)
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(1)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def close_from(first_fd: int) -> None:
    """Close every descriptor from `first_fd` up."""
    close_range = getattr(_libc, "close_range", None)
    if close_range is not None and close_range(ctypes.c_uint(first_fd), ctypes.c_uint(0xFFFFFFFF), 0) == 0:
        return
    for name in os.listdir("/proc/self/fd"):
        if int(name) >= first_fd:
            try:
                os.close(int(name))
            except OSError:
                pass  # the descriptor of the listing itself


def thread_count() -> int:
    """Threads of this process; a process with more than one must not fork."""
    return len(os.listdir("/proc/self/task"))


def cached_bytes(file: int, begin: int, end: int) -> int:
    """Bytes of a file's range that are in the page cache, in whole pages: cachestat(2), a hundredth of mincore's time.

    Raises OSError: before Linux 6.5, and where it is not allowed.
    """
    span = struct.pack("=2Q", begin, end - begin)
    found = ctypes.create_string_buffer(5 * 8)  # pages in the cache; and dirty, in writeback, evicted, lately evicted
    _check(int(_libc_with_gil.syscall(_SYS_CACHESTAT, file, span, found, 0)), "cachestat")
    return int(struct.unpack_from("=Q", found)[0]) * mmap.PAGESIZE


# ---------------------------------------------------------------- cgroups


def fork_into(cgroup: str) -> int:
    """`os.fork()` whose child is in the cgroup of this directory, as far as the kernel lets it. Raises OSError like it.

    The child may only fork again, with `os.fork()`, and exit: the C library may not have set it up.
    """
    pid = -1 if os.path.exists(os.path.join(cgroup, "tasks")) else _clone_into(cgroup)  # v1 has no such clone
    if pid < 0:
        pid = os.fork()
        if pid == 0:
            try:
                join_cgroup(cgroup)
            except OSError:
                pass  # without, then
    return pid


def _clone_into(cgroup: str) -> int:
    """clone3(2) with CLONE_INTO_CGROUP; -1 where the kernel cannot (before Linux 5.7) or may not."""
    try:
        folder = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return -1
    try:
        # struct clone_args: flags, pidfd, child_tid, parent_tid, exit_signal, stack and its size, tls, set_tid and its
        # size, cgroup
        args = struct.pack("=11Q", _CLONE_INTO_CGROUP, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, 0, 0, folder)
        return int(_libc_with_gil.syscall(_SYS_CLONE3, args, ctypes.c_size_t(len(args))))
    finally:
        os.close(folder)


def join_cgroup(cgroup: str) -> None:
    """Move this process, which has one thread, into the cgroup of this directory. Raises OSError.

    A thread that moves itself (v1: `tasks`) is spared the wait for a grace period of RCU, some 10 ms, that it takes to
    move a process (`cgroup.procs`): adr/0015.
    """
    try:
        file = os.open(os.path.join(cgroup, "tasks"), os.O_WRONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        file = os.open(os.path.join(cgroup, "cgroup.procs"), os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(file, b"0")
    finally:
        os.close(file)


# ---------------------------------------------------------------- namespaces


def unshare(as_user: bool) -> None:
    """Leave the IPC, UTS and mount namespaces that are shared with others; of one thread only. Raises OSError.

    `as_user`: by way of a user namespace with this user and group alone in it, as whoever is not root has to. Mounts
    made elsewhere later still appear here; mounts made here stay here.
    """
    uid, gid = os.geteuid(), os.getegid()
    spaces = _CLONE_NEWIPC | _CLONE_NEWUTS | _CLONE_NEWNS | (_CLONE_NEWUSER if as_user else 0)
    _check(_libc.unshare(spaces), "unshare")
    if as_user:
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            file = os.open(f"/proc/self/{name}", os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(file, text.encode())
            finally:
                os.close(file)
    _mount(b"/", _MS_REC | _MS_SLAVE)


def make_read_only(folder: str) -> None:
    """Nothing in `folder` can be written from this mount namespace, which must be a private one. Raises OSError."""
    path = os.fsencode(folder)
    _mount(path, _MS_BIND)
    _mount(path, _MS_REMOUNT | _MS_BIND | _MS_RDONLY | (os.statvfs(path).f_flag & _LOCKED_FLAGS))


def _mount(path: bytes, flags: int) -> None:
    _check(_libc.mount(path, path, None, ctypes.c_ulong(flags), None), f"mount {os.fsdecode(path)}")


def drop_capabilities() -> None:
    """Give up what a fresh user namespace gave to this thread. Raises OSError."""
    _check(_libc.capset(struct.pack("=Ii", _CAPABILITY_VERSION, 0), bytes(24)), "capset")
