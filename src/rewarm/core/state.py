"""The records of the core: one per function, sandbox, Lang layer, Bare and snapshot.

Only the modules beside this change them.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable

from rewarm.core.ledger import Ledger
from rewarm.core.timers import Timers
from rewarm.errors import RewarmError
from rewarm.facts.function import FunctionSpec, LangKey, Revision
from rewarm.facts.request import Request
from rewarm.facts.sandbox import LEGAL_MOVES, SandboxState, StartKind, check_move
from rewarm.facts.snapshot import SnapshotFacts
from rewarm.policy.batching.base import BatchingPolicy
from rewarm.policy.keepalive.base import KeepalivePolicy, LayerView

INF = float("inf")
START_TIMEOUT_S_MIN = 60.0  # importing a large framework from a cold disk is slow, but not slower than this
_VM_TIMEOUT_S = 360.0  # what needs a guest to boot: two attempts (vmm.publishing), whatever else the machine does

OnRun = Callable[[FunctionSpec, int, float, float], None]
OnGone = Callable[[LayerView, bool, float], None]


def gone_hook(keepalive: KeepalivePolicy) -> OnGone | None:
    """`on_gone` of a policy that wants to hear of ends (`WatchesEnds`)."""
    return keepalive.on_gone if getattr(keepalive, "watches_ends", False) else None  # type: ignore[attr-defined]


def start_timeout_s(key: LangKey) -> float:
    """What a runtime of `key`, and an instance of it, is given to come up."""
    return _VM_TIMEOUT_S if key.vm_bytes else START_TIMEOUT_S_MIN


class Mean:
    """A running mean over the last `window` samples' worth of weight; `value` is the prior until the first sample."""

    __slots__ = ("count", "value", "window")

    def __init__(self, prior: float, window: int = 16) -> None:
        self.value = prior
        self.count = 0
        self.window = window

    def add(self, sample: float) -> None:
        self.count += 1
        self.value += (sample - self.value) / min(self.count, self.window)


class FunctionState:
    """One deployed function: its queue, its policies and its sandboxes."""

    __slots__ = (
        "batching", "batching_watches", "flushing", "idle", "keepalive", "key", "last_error", "max_instances",
        "name", "on_gone", "on_run", "prewarm_at_s", "prewarm_instances", "queue", "queue_max", "removed",
        "resident", "retry_at_s", "revision", "rising", "sandboxes", "scale_at_s", "snapshot", "start_s", "starved",
        "timeout_s", "timer_at_s", "up_s", "user_s", "watches", "worth_holds",
    )  # fmt: skip

    def __init__(self, revision: Revision, batching: BatchingPolicy, keepalive: KeepalivePolicy) -> None:
        self.name = revision.name
        self.take_on(revision, batching, keepalive)
        self.queue: deque[Request] = deque()
        self.sandboxes: dict[int, Sandbox] = {}  # all that are not GONE, dying ones included
        self.idle: list[Sandbox] = []  # READY, most recently used last
        self.rising = 0
        self.flushing = False
        self.removed = False
        self.starved = False  # wants an instance and there is no memory for it now
        self.retry_at_s = -INF  # after a failed start: no further one before this, while others live
        self.scale_at_s = -INF  # arrivals do not ask for more instances before this
        self.timer_at_s = INF
        self.prewarm_at_s = INF
        self.prewarm_instances = 0  # how many there shall be then

    def take_on(self, revision: Revision, batching: BatchingPolicy, keepalive: KeepalivePolicy) -> None:
        """Answer with `revision` from now on. What was measured of the one before says nothing about it."""
        self.revision = revision
        self.key: LangKey = revision.spec.lang_key
        self.batching = batching
        self.keepalive = keepalive
        # A policy that ignores arrivals says so with a class attribute, which saves a call per request.
        self.watches = getattr(keepalive, "watches_arrivals", True)
        self.on_run: OnRun | None = keepalive.on_run if getattr(keepalive, "watches_runs", False) else None  # type: ignore[attr-defined]
        self.on_gone = gone_hook(keepalive)
        self.worth_holds = float(getattr(keepalive, "worth_holds", 0.0))
        self.batching_watches = getattr(batching, "watches_arrivals", True)
        self.queue_max, self.max_instances = revision.spec.queue_max, revision.spec.max_instances
        self.timeout_s = revision.spec.timeout_s
        self.start_s = Mean(0.25)  # from the decision to READY
        self.user_s = Mean(0.1)  # what the User layer alone costs
        self.up_s = self.user_s  # what raising an instance that idles would cost: to wake it, if it sleeps on disk
        self.snapshot: Snapshot | None = None  # of a function that can sleep
        self.resident = Mean(32 << 20)
        self.last_error: RewarmError | None = None

    @property
    def own(self) -> int:
        """Sandboxes of the current revision, dying ones included: those of an older one are on their way out."""
        count = 0
        for sandbox in self.sandboxes.values():
            if sandbox.revision is self.revision:
                count += 1
        return count

    @property
    def live(self) -> int:
        """Instances that serve or are about to: not dying, and of the current revision."""
        count = 0  # a loop, not a sum: it is asked for several times in a start
        for sandbox in self.sandboxes.values():
            if sandbox.state is not SandboxState.DYING and sandbox.revision is self.revision:
                count += 1
        return count

    def __repr__(self) -> str:
        return f"<{self.name} v{self.revision.version}: {len(self.queue)} queued, {len(self.sandboxes)} sandboxes>"


class Sandbox:
    """One instance on its way up, idle, busy or on its way out."""

    __slots__ = (
        "batch", "created_s", "ending", "expires_s", "found", "function", "holds_lang", "id", "idle_since_s", "key",
        "last_used_s", "ready_at_s", "rested", "reuses", "revision", "run_deadline_s", "state", "timer_at_s", "uses",
        "worth", "worth_until_s",
    )  # fmt: skip

    def __init__(self, sandbox_id: int, function: FunctionState, found: StartKind, now: float) -> None:
        self.id = sandbox_id
        self.function = function
        self.revision = function.revision
        self.key = function.key
        self.state = SandboxState.ABSENT
        self.found = found
        self.created_s = now
        self.ready_at_s = INF
        self.idle_since_s = now
        self.last_used_s = now
        self.expires_s = INF
        self.run_deadline_s = INF
        self.timer_at_s = INF
        self.uses = 0
        self.rested = False  # it has been idle since its last run
        self.reuses = 0  # runs that found it idle
        self.worth = 0.0  # per byte, as its policy said when it was last asked; good until `worth_until_s`
        self.worth_until_s = -INF
        self.holds_lang = False  # counted among those that keep the Lang layer of its key from being idle
        self.batch: list[Request] | None = None
        self.ending = ""  # why it was told to end; empty while it was not

    def move(self, state: SandboxState) -> None:
        """Change state; raises IllegalMove if the table forbids it."""
        if state not in LEGAL_MOVES[self.state]:  # looked up here: a call more for each of some ten moves a start
            check_move(self.state, state)
        self.state = state

    @property
    def rising(self) -> bool:
        return self.state in RISING

    def __repr__(self) -> str:
        held = f", {len(self.batch)} requests" if self.batch else ""
        return f"<sandbox {self.id} {self.function.name} {self.state.value}{held}>"


RISING = frozenset({SandboxState.ABSENT, SandboxState.BARE, SandboxState.LANG, SandboxState.USER})


class LayerState(enum.Enum):
    RISING = "rising"
    ALIVE = "alive"
    DYING = "dying"


class LangLayer:
    """One started runtime: the zygote of every function with its key, or, of a key that does not fork, a spare."""

    __slots__ = (
        "created_s", "expires_s", "idle_since_s", "key", "last_used_s", "state", "timer_at_s", "uses",
        "waiting",
    )  # fmt: skip

    def __init__(self, key: LangKey, now: float) -> None:
        self.key = key
        self.state = LayerState.RISING
        self.waiting: list[Sandbox] = []  # BARE sandboxes to be forked from it once it is alive
        self.created_s = now
        self.idle_since_s = now
        self.last_used_s = now
        self.expires_s = INF
        self.timer_at_s = INF
        self.uses = 0

    @property
    def node(self) -> LangKey:
        """Its name on the account."""
        return self.key

    def __repr__(self) -> str:
        return f"<lang {self.key} {self.state.value}>"


class KnownOfKey:
    """What is known of the Lang layers of one key."""

    __slots__ = ("bytes", "holders", "reuses", "seconds", "uses")

    def __init__(self, bytes_prior: float) -> None:
        #: Sandboxes that are not gone; of a key that is consumed, those that have not got their runtime yet.
        self.holders = 0
        self.seconds = Mean(0.0)  # measured, to raise a runtime; 0.0 while unknown
        self.bytes = Mean(bytes_prior)  # that it holds
        self.uses = 0  # forks
        self.reuses = 0  # those of them whose start found the runtime alive


class Bare:
    """A scratch directory with its sockets that waits for a function, whichever comes first."""

    __slots__ = ("created_s", "expires_s", "id", "idle_since_s", "last_used_s", "state", "timer_at_s")

    def __init__(self, sandbox_id: int, now: float) -> None:
        self.id = sandbox_id  # the sandbox that it becomes will have it too
        self.state = LayerState.RISING
        self.created_s = now
        self.idle_since_s = now
        self.last_used_s = now
        self.expires_s = INF
        self.timer_at_s = INF

    def __repr__(self) -> str:
        return f"<bare {self.id} {self.state.value}>"


class SnapshotState(enum.Enum):
    NONE = "none"
    MAKING = "making"
    THERE = "asleep"


class Snapshot:
    """What a function that can sleep has on disk of its initialised instance: nothing yet, or the one snapshot."""

    __slots__ = (
        "expires_s", "facts", "failures", "function", "idle_since_s", "last_used_s", "make_s", "ordered_s", "restore_s",
        "revision", "state", "timer_at_s", "uses",
    )  # fmt: skip

    def __init__(self, function: FunctionState, now: float) -> None:
        self.function = function
        self.revision = function.revision
        self.state = SnapshotState.NONE
        self.facts: SnapshotFacts | None = None  # of the last one that was there
        self.restore_s = Mean(0.0)  # what waking takes
        self.ordered_s = now
        self.make_s = 0.0  # what making it took; 0.0 while unknown
        self.failures = 0  # in a row
        self.idle_since_s = now
        self.last_used_s = now
        self.expires_s = INF
        self.timer_at_s = INF
        self.uses = 0  # instances restored from it

    @property
    def node(self) -> str:
        """Its name on the disk account."""
        return self.revision.digest

    @property
    def idle(self) -> bool:
        return self.state is SnapshotState.THERE and not self.function.sandboxes

    @property
    def saved_s(self) -> float:
        """By how much a start from it is shorter; 0.0 while unknown."""
        return self.facts.cold_s - self.restore_s.value if self.facts is not None else 0.0

    @property
    def useless(self) -> bool:
        """It is known that starts are no shorter with it."""
        return self.facts is not None and self.saved_s <= 0.0

    def __repr__(self) -> str:
        return f"<snapshot of {self.function.name} v{self.revision.version} {self.state.value}>"


class Ground:
    """What all layers of one node stand on: the accounts, the timers, the rule for the layers that functions share."""

    __slots__ = ("closing", "disk", "draining", "evictions", "keepalive", "last_id", "ledger", "on_gone", "timers")

    def __init__(self, ledger: Ledger, disk: Ledger, timers: Timers, keepalive: KeepalivePolicy) -> None:
        self.ledger = ledger
        self.disk = disk  # bytes of snapshots: no part of `ledger`
        self.timers = timers
        self.keepalive = keepalive
        self.on_gone = gone_hook(keepalive)
        self.draining = False  # nothing is raised any more but what the queues need
        self.closing = False  # nothing is raised any more
        self.evictions = 0
        self.last_id = 0

    def keep(self, layer: Sandbox | LangLayer | Bare | Snapshot, for_s: float | None, now: float) -> None:
        """Its window begins: it is woken when that is over, if it ever is."""
        layer.expires_s = INF if for_s is None else now + for_s
        self.timers.arm(layer, layer.expires_s)

    def new_id(self) -> int:
        self.last_id += 1
        return self.last_id
