"""How a snapshot's memory reaches the guest that is restored from it.

    policy     the VMM maps                                 meanwhile                               needs
    lazy       the memory file, as it does by itself        nothing
    prefetch   the same                                     a thread reads the loading set, in      a loading set
                                                            the memory file
    layered    zero pages fresh, the loading set from its   a thread reads that file                a loading set, the
               file, the rest from the memory file                                                  shim
    uffd       anonymous memory                             the pager copies the loading set,       the shim, userfault-
                                                            then answers faults                     fd, the pager

`auto` is `layered`, which shares most between clones and leaves no process that can die, or what comes next: each
policy falls back to the next when its means are missing: uffd → layered → prefetch → lazy. Of Firecracker, which takes
no shim and speaks to the pager by itself, it is `uffd`, or what comes next.

For recording, and to compare with: `lazy-4k` is `lazy` where each fault fetches its page alone (needs the shim),
`read-all` reads the whole file before, `cached` is `lazy` of files that the caller has read before its clock started.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

from rewarm.errors import BadDefinition, RewarmError, SnapshotCorrupt, SystemFault
from rewarm.snapshot.ahead import Readahead, Span
from rewarm.snapshot.holes import data_extents
from rewarm.snapshot.manifest import Snapshot
from rewarm.snapshot.pager_client import Listening, PagerClient
from rewarm.snapshot.regions import PAGE_BYTES, closed
from rewarm.snapshot.shim import PREFIX, build_shim, preload
from rewarm.snapshot.uffd import DEVICE, why_not, why_not_firecracker

POLICIES = ("lazy", "prefetch", "layered", "uffd")
EXPERIMENTS = ("lazy-4k", "read-all", "cached")
AUTO = "auto"

_NEXT = {"uffd": "layered", "layered": "prefetch", "prefetch": "lazy", "lazy-4k": "lazy"}
_CHUNK_BYTES = 1 << 20
_FILES = {"LD_PRELOAD", f"{PREFIX}LAYOUT", f"{PREFIX}LOADING_SET"}  # of the environment
#: Of this process: whatever its restores read ahead, each file once at a time.
_ahead = Readahead()


class Means(NamedTuple):
    """What this machine has to restore with; `why` says what is missing ("shim", "userfaultfd"), and how to get it."""

    shim: Path | None
    userfaultfd: bool
    why: dict[str, str]
    connects: bool = False  # the VMM finds the pager by itself, for which QEMU needs the shim


def detect_means(cache_dir: Path) -> Means:
    """Looks, and builds the shim in `cache_dir` if it is not there: takes up to a second the first time."""
    why: dict[str, str] = {}
    shim: Path | None = None
    try:
        shim = build_shim(cache_dir)
    except SystemFault as error:
        why["shim"] = str(error)
    if (reason := why_not()) is not None:
        why["userfaultfd"] = reason
    return Means(shim, reason is None, why)


def firecracker_means() -> Means:
    """The same for Firecracker."""
    why = {"shim": "Firecracker is one static program, which preloads nothing"}
    if (reason := why_not_firecracker()) is not None:
        why["userfaultfd"] = reason
    return Means(None, reason is None, why, connects=True)


class RestorePlan:
    """One restore. `policy` is what it came down to; spawn the VMM with `env` added to its environment and `pass_fds`.

    `begin` just before the VMM is spawned, `end` once it is, or will not be. The VMM may run as a user that cannot
    enter the folders of this one: between the two, `env` names files by descriptors that are among `pass_fds`.
    `listen`, of a VMM that connects to a pager: has one wait at a path, which the VMM's owner closes in the end.
    """

    __slots__ = ("policy", "env", "pass_fds", "memory", "listen", "_channel", "_open", "_reads")

    def __init__(
        self,
        policy: str,
        memory: Path,
        env: dict[str, str],
        reads: tuple[Path, list[Span]] | None,
        channel: socket.socket | None,
        listen: Callable[[Path], Listening] | None = None,
    ) -> None:
        self.policy = policy
        self.memory = memory
        self.listen = listen
        self.env = env
        self.pass_fds: tuple[int, ...] = () if channel is None else (channel.fileno(),)
        self._reads = reads
        self._channel = channel
        self._open: list[int] = []

    def begin(self) -> None:
        """Reading begins in a thread, unless another restore of the snapshot is at it. "read-all" waits for its end."""
        for name in _FILES & self.env.keys():
            with suppress(OSError):  # the VMM will say it better
                self.env[name] = f"/proc/self/fd/{self._hand_over(self.env[name], os.O_RDONLY)}"
        if self._channel is not None:
            with suppress(OSError):  # before Linux 6.1 the shim may do without
                self.env[f"{PREFIX}UFFD"] = str(self._hand_over(DEVICE, os.O_RDWR))
        if self.policy == "read-all":
            _read_all(self.memory)
        elif self._reads is not None:
            with suppress(OSError):
                _ahead.begin(*self._reads)

    def _hand_over(self, path: str, flags: int) -> int:
        descriptor = os.open(path, flags | os.O_CLOEXEC)
        self._open.append(descriptor)
        self.pass_fds += (descriptor,)
        return descriptor

    def end(self) -> None:
        """Closes here what the VMM has inherited. Harmless a second time."""
        while self._open:
            os.close(self._open.pop())
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        self.pass_fds = ()


def plan(snapshot: Snapshot, wanted: str, means: Means, pager: PagerClient | None = None) -> RestorePlan:
    """How to restore `snapshot` by the policy `wanted`, or by the best one that there are means for.

    Raises BadDefinition for a policy that nobody knows, SnapshotCorrupt if the layout is damaged or the memory missing.
    """
    if wanted not in (AUTO, *POLICIES, *EXPERIMENTS):
        raise BadDefinition(f"no restore policy {wanted!r}; there are {', '.join((AUTO, *POLICIES))}")
    policy = _first(wanted, means)
    while not _possible(policy, snapshot, means, pager):
        policy = _NEXT[policy]
    channel: socket.socket | None = None
    listen: Callable[[Path], Listening] | None = None
    if policy == "uffd":
        assert pager is not None
        try:
            if means.connects:
                pager.start()
                listen = partial(pager.serve_at, snapshot)
            else:
                channel = pager.serve(snapshot)
        except (RewarmError, OSError):
            return plan(snapshot, _NEXT[policy], means)
    try:
        env = {} if means.shim is None else _environment(policy, snapshot, means.shim, channel)
        return RestorePlan(policy, snapshot.memory, env, _reads(policy, snapshot), channel, listen)
    except BaseException as error:
        if channel is not None:
            channel.close()
        if isinstance(error, OSError):
            raise SnapshotCorrupt(f"the memory of a snapshot cannot be used: {error}") from error
        raise


def asks_for_pager(wanted: str, means: Means) -> bool:
    """Whether restores by `wanted` are served by a pager here, if there is one."""
    return means.userfaultfd and _first(wanted, means) == "uffd"


def _first(wanted: str, means: Means) -> str:
    if wanted != AUTO:
        return wanted
    return "uffd" if means.connects else "layered"


def _possible(policy: str, snapshot: Snapshot, means: Means, pager: PagerClient | None) -> bool:
    if policy in ("lazy", "read-all", "cached"):
        return True
    if policy == "prefetch":
        return snapshot.loading_set is not None
    if policy == "uffd":
        return (means.shim is not None or means.connects) and means.userfaultfd and pager is not None
    return means.shim is not None and (policy == "lazy-4k" or snapshot.loading_set is not None)


def _environment(policy: str, snapshot: Snapshot, shim: Path, channel: socket.socket | None) -> dict[str, str]:
    """What the shim reads; nothing for a policy that does without."""
    if policy not in ("lazy-4k", "layered", "uffd"):
        return {}
    status = os.stat(snapshot.memory)
    settings = {"MODE": policy, "MEMORY": f"{status.st_dev}:{status.st_ino}"}
    if policy == "layered":
        settings |= {"LAYOUT": str(snapshot.layout), "LOADING_SET": str(snapshot.loading_set)}
    elif channel is not None:
        settings |= {"PAGER": str(channel.fileno())}
    return preload(shim, settings)


def _reads(policy: str, snapshot: Snapshot) -> tuple[Path, list[Span]] | None:
    """What to read ahead."""
    loading = snapshot.manifest.loading
    if loading is None:
        return None
    if policy == "layered":
        assert snapshot.loading_set is not None
        return snapshot.loading_set, [Span(0, loading.loading_pages * PAGE_BYTES)]
    if policy == "prefetch":
        layout = snapshot.read_layout()
        assert layout is not None
        regions = closed(layout.loading, loading.prefetch_gap_pages)
        return snapshot.memory, [Span(first * PAGE_BYTES, pages * PAGE_BYTES) for first, pages in regions]
    return None


def _read_all(path: Path) -> None:
    with path.open("rb", buffering=0) as file:
        buffer = bytearray(_CHUNK_BYTES)
        for begin, end in data_extents(file.fileno(), os.fstat(file.fileno()).st_size):
            for offset in range(begin, end, _CHUNK_BYTES):
                os.preadv(file.fileno(), [buffer], offset)
