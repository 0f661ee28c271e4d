"""What is to be done: effects that come out of the core. See `facts.messages`."""

from __future__ import annotations

from typing import Final

from rewarm.errors import RewarmError
from rewarm.facts.function import FunctionSpec, LangKey, Revision
from rewarm.facts.request import Request
from rewarm.facts.value import Value


class Run(Value):
    """Run these requests as one batch. → RunDone, or Exited if the sandbox died with them. Hot path."""

    __match_args__ = ("sandbox_id", "requests")

    def __init__(self, sandbox_id: int, requests: list[Request]) -> None:
        self.sandbox_id: Final = sandbox_id
        self.requests: Final = requests


class Reject(Value):
    """Answer `request` with `error` without running it (or: it was lost with its sandbox)."""

    __match_args__ = ("request", "error")

    def __init__(self, request: Request, error: RewarmError) -> None:
        self.request: Final = request
        self.error: Final = error


class RaiseBare(Value):
    """Make scratch directory and sockets, for nobody yet. → Raised(BARE) or Exited. `vm`: for a micro-VM."""

    __match_args__ = ("sandbox_id", "vm")

    def __init__(self, sandbox_id: int, vm: bool = False) -> None:
        self.sandbox_id: Final = sandbox_id
        self.vm: Final = vm


class RaiseLang(Value):
    """Start the zygote of `key`: a fork of the zygote `parent`, or from nothing. → LangRaised or LangExited."""

    __match_args__ = ("key", "parent")

    def __init__(self, key: LangKey, parent: LangKey | None) -> None:
        self.key: Final = key
        self.parent: Final = parent


class Fork(Value):
    """Fork the zygote of `key` into the sandbox, which is `spec`'s from here on. → Raised(LANG) or Exited.

    A key that does not fork is consumed: the one runtime that waits goes into the sandbox, no LangExited comes for it,
    and RaiseLang of the key may follow at once.
    """

    __match_args__ = ("sandbox_id", "key", "spec")

    def __init__(self, sandbox_id: int, key: LangKey, spec: FunctionSpec) -> None:
        self.sandbox_id: Final = sandbox_id
        self.key: Final = key
        self.spec: Final = spec


class LoadUser(Value):
    """Import and construct the revision's code, map its weights. → Raised(USER), Raised(READY); or Exited."""

    __match_args__ = ("sandbox_id", "revision")

    def __init__(self, sandbox_id: int, revision: Revision) -> None:
        self.sandbox_id: Final = sandbox_id
        self.revision: Final = revision


class Restore(Value):
    """Make the sandbox from the snapshot of the revision, all at once. → Raised(READY) or Exited.

    If what failed is the snapshot, SleepLost comes first, so that the next start does without it.
    """

    __match_args__ = ("sandbox_id", "revision")

    def __init__(self, sandbox_id: int, revision: Revision) -> None:
        self.sandbox_id: Final = sandbox_id
        self.revision: Final = revision


class Sleep(Value):
    """See to it that the revision's snapshot is on disk: made in a VM of its own if it is not. → Slept or SleepLost."""

    __match_args__ = ("revision",)

    def __init__(self, revision: Revision) -> None:
        self.revision: Final = revision


class Forget(Value):
    """Delete the revision's snapshot. No answer. Sandboxes restored from it live on."""

    __match_args__ = ("revision",)

    def __init__(self, revision: Revision) -> None:
        self.revision: Final = revision


class Destroy(Value):
    """End the sandbox at once (nothing in it is worth waiting for). → Exited."""

    __match_args__ = ("sandbox_id", "reason")

    def __init__(self, sandbox_id: int, reason: str) -> None:
        self.sandbox_id: Final = sandbox_id
        self.reason: Final = reason


class DropLang(Value):
    """End the zygote, or delete it if it is a micro-VM's, on disk. Instances made of it live on. → LangExited."""

    __match_args__ = ("key", "reason")

    def __init__(self, key: LangKey, reason: str) -> None:
        self.key: Final = key
        self.reason: Final = reason


class Pin(Value):
    """Hold the first `size_bytes` of the pack `key` in memory, no more; 0: let go of it.

    First are the layers `tables`, of those that are read on demand, then what a load streams, in execution order.
    → Pinned, once for each: what could not be had by then is not tried again. And Pinned if it changes by itself,
    e.g. because the process that holds it ended.
    """

    __match_args__ = ("key", "size_bytes", "tables")

    def __init__(self, key: str, size_bytes: int, tables: tuple[int, ...] = ()) -> None:
        self.key: Final = key
        self.size_bytes: Final = size_bytes
        self.tables: Final = tables


class Prefetch(Value):
    """An instance that loads the pack `key` is about to start: begin to read it now. → Loaded, if it had to be read."""

    __match_args__ = ("key",)

    def __init__(self, key: str) -> None:
        self.key: Final = key
