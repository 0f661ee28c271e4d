"""What user code wants to be told of snapshots: called in micro-VMs only, where one initialised instance is saved once
and woken many times.

    @rewarm.before_snapshot
    def close() -> None: ...      # sockets, files, anything that must not be in two places

    @rewarm.after_restore
    def open_again() -> None: ... # random state of your own, times that you remember, whatever `close` let go of

Randomness of the system, of `random`, `numpy.random`, `ssl` and torch, the clock and the host's name are new by then.
Hooks run one after another: those before a snapshot last first, those after a restore first first. One that raises
ends the instance.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

Hook = TypeVar("Hook", bound=Callable[[], Any])

_before_snapshot: list[Callable[[], Any]] = []
_after_restore: list[Callable[[], Any]] = []


def before_snapshot(hook: Hook) -> Hook:
    """Register a function without arguments to be called before a snapshot is taken; also a decorator."""
    _before_snapshot.append(hook)
    return hook


def after_restore(hook: Hook) -> Hook:
    """Register a function without arguments to be called after each restore, before any request; also a decorator."""
    _after_restore.append(hook)
    return hook


def run_before_snapshot() -> None:
    """Raises what a hook raises."""
    for hook in reversed(_before_snapshot):
        hook()


def run_after_restore() -> None:
    """Raises what a hook raises."""
    for hook in _after_restore:
        hook()
