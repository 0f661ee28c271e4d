"""What happens: events that go into the core. See `facts.messages`."""

from __future__ import annotations

from typing import Final

from rewarm.errors import RewarmError
from rewarm.facts.function import LangKey, Revision
from rewarm.facts.profile import Profile
from rewarm.facts.request import Request
from rewarm.facts.sandbox import SandboxState
from rewarm.facts.snapshot import SnapshotFacts
from rewarm.facts.value import Value


class Arrived(Value):
    """A request was read completely. Hot path: a plain tuple."""

    __match_args__ = ("request",)

    def __init__(self, request: Request) -> None:
        self.request: Final = request


class Cancelled(Value):
    """The caller went away. A queued request leaves its queue; a running one runs on and is not answered."""

    __match_args__ = ("request",)

    def __init__(self, request: Request) -> None:
        self.request: Final = request


class RunDone(Value):
    """A batch came back (each request answered by the driver's side). `run_s` is time inside the user's code."""

    __match_args__ = ("sandbox_id", "run_s")

    def __init__(self, sandbox_id: int, run_s: float) -> None:
        self.sandbox_id: Final = sandbox_id
        self.run_s: Final = run_s


class Raised(Value):
    """Sandbox `sandbox_id` reached `state` (BARE, LANG, USER or READY), which took `seconds`."""

    __match_args__ = ("sandbox_id", "state", "seconds")

    def __init__(self, sandbox_id: int, state: SandboxState, seconds: float) -> None:
        self.sandbox_id: Final = sandbox_id
        self.state: Final = state
        self.seconds: Final = seconds


class LangRaised(Value):
    """The zygote of `key` is alive; raising it took `seconds`."""

    __match_args__ = ("key", "seconds")

    def __init__(self, key: LangKey, seconds: float) -> None:
        self.key: Final = key
        self.seconds: Final = seconds


class Exited(Value):
    """A sandbox is gone, asked or not, and everything it held is released. `error` says why if nobody asked."""

    __match_args__ = ("sandbox_id", "error")

    def __init__(self, sandbox_id: int, error: RewarmError | None = None) -> None:
        self.sandbox_id: Final = sandbox_id
        self.error: Final = error


class LangFound(Value):
    """The Lang layer of a micro-VM's `key` is on disk, and takes so many bytes, though no RaiseLang asked for it."""

    __match_args__ = ("key", "disk_bytes")

    def __init__(self, key: LangKey, disk_bytes: int) -> None:
        self.key: Final = key
        self.disk_bytes: Final = disk_bytes


class LangExited(Value):
    """The zygote of `key` is gone or could not be raised."""

    __match_args__ = ("key", "error")

    def __init__(self, key: LangKey, error: RewarmError | None = None) -> None:
        self.key: Final = key
        self.error: Final = error


class Slept(Value):
    """The snapshot of the revision `digest` is on disk, whole and usable. An answer to Sleep; or it was found there."""

    __match_args__ = ("digest", "facts")

    def __init__(self, digest: str, facts: SnapshotFacts) -> None:
        self.digest: Final = digest
        self.facts: Final = facts


class SleepLost(Value):
    """There is no snapshot of the revision `digest`: it could not be made, is damaged, or was deleted by a stranger.

    If a Restore found it damaged this comes before the Exited of that sandbox. `error` says why, if anybody knows.
    """

    __match_args__ = ("digest", "error")

    def __init__(self, digest: str, error: RewarmError | None = None) -> None:
        self.digest: Final = digest
        self.error: Final = error


class Measured(Value):
    """Resident bytes (PSS) of a sandbox (int id) or a zygote (its key)."""

    __match_args__ = ("node", "resident_bytes")

    def __init__(self, node: int | LangKey, resident_bytes: int) -> None:
        self.node: Final = node
        self.resident_bytes: Final = resident_bytes


class Pinned(Value):
    """So many bytes of what was to be pinned of the pack `key` are held now: all of it, or what could be had."""

    __match_args__ = ("key", "size_bytes")

    def __init__(self, key: str, size_bytes: int) -> None:
        self.key: Final = key
        self.size_bytes: Final = size_bytes


class Loaded(Value):
    """A load of the pack `key` read `read_bytes` from storage (not what was in memory already) in `seconds`."""

    __match_args__ = ("key", "read_bytes", "seconds")

    def __init__(self, key: str, read_bytes: int, seconds: float) -> None:
        self.key: Final = key
        self.read_bytes: Final = read_bytes
        self.seconds: Final = seconds


class Computed(Value):
    """A first pass through the pack `key`: seconds of compute of each of its layers, in order, waits left out.

    `rows_s`: how long it waited for the rows of each layer that is read on demand, by the layer's number; only if
    something of it had to be read. `setup_s`: of the construction before it; None if that is not known.
    """

    __match_args__ = ("key", "compute_s", "rows_s", "setup_s")

    def __init__(
        self, key: str, compute_s: tuple[float, ...], rows_s: tuple[tuple[int, float], ...] = (),
        setup_s: float | None = None,
    ) -> None:  # fmt: skip
        self.key: Final = key
        self.compute_s: Final = compute_s
        self.rows_s: Final = rows_s
        self.setup_s: Final = setup_s


class Deployed(Value):
    """`revision` is what the name answers with from now on; instances of the old one are drained.

    `profile`: the run times measured of it, for a batching policy that plans with them.
    """

    __match_args__ = ("revision", "profile")

    def __init__(self, revision: Revision, profile: Profile | None = None) -> None:
        self.revision: Final = revision
        self.profile: Final = profile


class Removed(Value):
    """The function is gone: its queue is answered NotFound, its instances end."""

    __match_args__ = ("function",)

    def __init__(self, function: str) -> None:
        self.function: Final = function


class Flush(Value):
    """Stop gathering for `function`: what is queued now leaves as soon as an instance is free."""

    __match_args__ = ("function",)

    def __init__(self, function: str) -> None:
        self.function: Final = function


class Unload(Value):
    """Let go of every idle instance of `function` now, whatever the keep-alive policy says."""

    __match_args__ = ("function",)

    def __init__(self, function: str) -> None:
        self.function: Final = function


class Load(Value):
    """Have at least one instance of `function` ready (nothing if there is one)."""

    __match_args__ = ("function",)

    def __init__(self, function: str) -> None:
        self.function: Final = function


class Draining(Value):
    """No new requests; what is queued and running is finished. `final`: what is still queued is refused after all."""

    __match_args__ = ("final",)

    def __init__(self, final: bool = False) -> None:
        self.final: Final = final


class Tick(Value):
    """A moment the core asked for through `next_wakeup_s` has come."""
