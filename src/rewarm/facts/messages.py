"""Events that go into the core and effects that come out of it.

The core is `handle(event, now) -> effects`. A driver carries every effect out and answers with events. For each
effect the contract says which events may follow; a driver that breaks it fails `testing.check_sandbox_driver`. What
comes often is a named tuple: to make a frozen dataclass takes three times as long.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from rewarm.errors import RewarmError
from rewarm.facts.function import FunctionSpec, LangKey, Revision
from rewarm.facts.profile import Profile
from rewarm.facts.request import Request
from rewarm.facts.sandbox import SandboxState
from rewarm.facts.snapshot import SnapshotFacts

# ---------------------------------------------------------------- events


class Arrived(NamedTuple):
    """A request was read completely. Hot path: a plain tuple."""

    request: Request


class Cancelled(NamedTuple):
    """The caller went away. A queued request leaves its queue; a running one runs on and is not answered."""

    request: Request


class RunDone(NamedTuple):
    """A batch came back (each request answered by the driver's side). `run_s` is time inside the user's code."""

    sandbox_id: int
    run_s: float


class Raised(NamedTuple):
    """Sandbox `sandbox_id` reached `state` (BARE, LANG, USER or READY), which took `seconds`."""

    sandbox_id: int
    state: SandboxState
    seconds: float


class LangRaised(NamedTuple):
    """The zygote of `key` is alive; raising it took `seconds`."""

    key: LangKey
    seconds: float


class Exited(NamedTuple):
    """A sandbox is gone, asked or not, and everything it held is released. `error` says why if nobody asked."""

    sandbox_id: int
    error: RewarmError | None = None


class LangFound(NamedTuple):
    """The Lang layer of a micro-VM's `key` is on disk, and takes so many bytes, though no RaiseLang asked for it."""

    key: LangKey
    disk_bytes: int


class LangExited(NamedTuple):
    """The zygote of `key` is gone or could not be raised."""

    key: LangKey
    error: RewarmError | None = None


class Slept(NamedTuple):
    """The snapshot of the revision `digest` is on disk, whole and usable. An answer to Sleep; or it was found there."""

    digest: str
    facts: SnapshotFacts


class SleepLost(NamedTuple):
    """There is no snapshot of the revision `digest`: it could not be made, is damaged, or was deleted by a stranger.

    If a Restore found it damaged this comes before the Exited of that sandbox. `error` says why, if anybody knows.
    """

    digest: str
    error: RewarmError | None = None


class Measured(NamedTuple):
    """Resident bytes (PSS) of a sandbox (int id) or a zygote (its key)."""

    node: int | LangKey
    resident_bytes: int


class Pinned(NamedTuple):
    """So many bytes at the front of the pack `key` are held now: all that was asked for, or what could be had."""

    key: str
    size_bytes: int


class Loaded(NamedTuple):
    """A load of the pack `key` read `read_bytes` from storage (not what was in memory already) in `seconds`."""

    key: str
    read_bytes: int
    seconds: float


class Computed(NamedTuple):
    """A first pass through the pack `key`: seconds of compute of each of its layers, in order, waits left out."""

    key: str
    compute_s: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Deployed:
    """`revision` is what the name answers with from now on; instances of the old one are drained.

    `profile`: the run times measured of it, for a batching policy that plans with them.
    """

    revision: Revision
    profile: Profile | None = None


@dataclass(frozen=True, slots=True)
class Removed:
    """The function is gone: its queue is answered NotFound, its instances end."""

    function: str


@dataclass(frozen=True, slots=True)
class Flush:
    """Stop gathering for `function`: what is queued now leaves as soon as an instance is free."""

    function: str


@dataclass(frozen=True, slots=True)
class Unload:
    """Let go of every idle instance of `function` now, whatever the keep-alive policy says."""

    function: str


@dataclass(frozen=True, slots=True)
class Load:
    """Have at least one instance of `function` ready (nothing if there is one)."""

    function: str


@dataclass(frozen=True, slots=True)
class Draining:
    """No new requests; what is queued and running is finished. `final`: what is still queued is refused after all."""

    final: bool = False


@dataclass(frozen=True, slots=True)
class Tick:
    """A moment the core asked for through `next_wakeup_s` has come."""


Event = (
    Arrived | Cancelled | RunDone | Raised | LangRaised | LangFound | Exited | LangExited | Measured
    | Slept | SleepLost | Pinned | Loaded | Computed | Deployed | Removed | Flush | Unload | Load | Draining | Tick
)  # fmt: skip

# ---------------------------------------------------------------- effects


class Run(NamedTuple):
    """Run these requests as one batch. → RunDone, or Exited if the sandbox died with them. Hot path."""

    sandbox_id: int
    requests: list[Request]


class Reject(NamedTuple):
    """Answer `request` with `error` without running it (or: it was lost with its sandbox)."""

    request: Request
    error: RewarmError


class RaiseBare(NamedTuple):
    """Make scratch directory and sockets, for nobody yet. → Raised(BARE) or Exited. `vm`: for a micro-VM."""

    sandbox_id: int
    vm: bool = False


class RaiseLang(NamedTuple):
    """Start the zygote of `key`: a fork of the zygote `parent`, or from nothing. → LangRaised or LangExited."""

    key: LangKey
    parent: LangKey | None


class Fork(NamedTuple):
    """Fork the zygote of `key` into the sandbox, which is `spec`'s from here on. → Raised(LANG) or Exited.

    A key that does not fork is consumed: the one runtime that waits goes into the sandbox, no LangExited comes for it,
    and RaiseLang of the key may follow at once.
    """

    sandbox_id: int
    key: LangKey
    spec: FunctionSpec


class LoadUser(NamedTuple):
    """Import and construct the revision's code, map its weights. → Raised(USER), Raised(READY); or Exited."""

    sandbox_id: int
    revision: Revision


class Restore(NamedTuple):
    """Make the sandbox from the snapshot of the revision, all at once. → Raised(READY) or Exited.

    If what failed is the snapshot, SleepLost comes first, so that the next start does without it.
    """

    sandbox_id: int
    revision: Revision


class Sleep(NamedTuple):
    """See to it that the revision's snapshot is on disk: made in a VM of its own if it is not. → Slept or SleepLost."""

    revision: Revision


class Forget(NamedTuple):
    """Delete the revision's snapshot. No answer. Sandboxes restored from it live on."""

    revision: Revision


class Destroy(NamedTuple):
    """End the sandbox at once (nothing in it is worth waiting for). → Exited."""

    sandbox_id: int
    reason: str


class DropLang(NamedTuple):
    """End the zygote, or delete it if it is a micro-VM's, on disk. Instances made of it live on. → LangExited."""

    key: LangKey
    reason: str


class Pin(NamedTuple):
    """Hold the first `size_bytes` of what a load of the pack `key` streams in memory, no more; 0: let go of it.

    → Pinned, once for each: what could not be had by then is not tried again. And Pinned if it changes by itself,
    e.g. because the process that holds it ended.
    """

    key: str
    size_bytes: int


class Prefetch(NamedTuple):
    """An instance that loads the pack `key` is about to start: begin to read it now. → Loaded, if it had to be read."""

    key: str


Effect = (
    Run | Reject | RaiseBare | RaiseLang | Fork | LoadUser | Restore | Sleep | Forget | Destroy | DropLang
    | Pin | Prefetch
)  # fmt: skip
