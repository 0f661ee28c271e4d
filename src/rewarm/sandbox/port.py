"""The sandbox port: what the core's effects become, and what comes back.

A driver carries effects out without blocking and reports through its sink, on the event loop's thread:

- RaiseBare  → Raised(BARE)                       | Exited
- Fork       → Raised(LANG)                       | Exited; the sandbox is that function's from here on
- LoadUser   → Raised(USER) then Raised(READY)    | Exited with the reason (StartFailed, bad_definition …)
- Run        → RunDone, then `answer` for its requests | Exited
- Destroy    → Exited without error; nothing but Exited comes for this sandbox any more
- RaiseLang  → LangRaised                         | LangExited with the reason
- DropLang   → LangExited; of a micro-VM's key the snapshot on disk is deleted
- Restore    → Raised(READY)                      | Exited; SleepLost before it if the snapshot is at fault
- Sleep      → Slept                              | SleepLost with the reason
- Forget     → nothing

The last three are for drivers of micro-VMs only, as are RaiseBare with `vm` and Lang keys with `vm_bytes`. Of such
a key LangFound may come unasked (its snapshot is on disk), and LangExited (it was deleted).

Exited comes exactly once for each sandbox, after everything it held is released: processes reaped, directory removed,
descriptors closed. A sandbox that dies by itself is Exited with an error that says how. Effects for a sandbox that is
already gone are ignored: the two crossed on the way.

A Lang key that does not fork (`LangKey.forks`) is consumed by Fork: its one runtime becomes the sandbox's process. No
LangExited comes for it, and a RaiseLang of the same key may follow at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from rewarm.errors import RewarmError
from rewarm.facts.function import LangKey, Revision
from rewarm.facts.messages import Effect, Event
from rewarm.facts.request import Request
from rewarm.wire import AnyAnswer

Node = int | LangKey


class Sink(Protocol):
    """Where a driver reports to."""

    def post(self, event: Event) -> None:
        """Something happened; may lead to `carry_out` being called before it returns."""

    def answer(self, requests: list[Request], answers: list[AnyAnswer], run_us: int) -> None:
        """The answers of one batch, in the order of its requests."""

    def log(self, function: str, sandbox_id: int, chunk: bytes) -> None:
        """User code of a sandbox wrote this to stdout or stderr."""


class Models(Protocol):
    """What a driver asks about packed weights. Only for revisions with a pack."""

    def check(self, revision: Revision, then: Callable[[RewarmError | None], None]) -> None:
        """Call `then` once it is known whether the pack is whole, perhaps at once: with None, or with what is wrong."""

    def order(self, revision: Revision) -> dict[str, Any] | None:
        """What the instance is told of it: folder, tensors_dir, pinned_bytes, bandwidth_bytes_s."""


class SandboxDriver(Protocol):
    name: str

    def attach(self, sink: Sink) -> None:
        """Begin; called once, before anything else, on the thread of the running event loop."""

    def carry_out(self, effect: Effect) -> None:
        """Start carrying out one effect. Never blocks, never raises for what user code or the machine does."""

    def pids(self) -> dict[Node, int]:
        """The main process of each living sandbox and zygote, for measuring."""

    def drain_log(self, sandbox_id: int) -> None:
        """Report what the sandbox has written so far, now."""

    async def close(self) -> None:
        """End everything; returns when nothing is left."""
