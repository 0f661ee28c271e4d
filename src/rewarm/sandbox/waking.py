"""One micro-VM on its way up, and what the guest itself says of its end."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
from typing import TYPE_CHECKING, Final

from rewarm.errors import RewarmError, SandboxFailed, SnapshotCorrupt, SnapshotMismatch
from rewarm.sandbox.library import Asset, Recipe

if TYPE_CHECKING:
    from rewarm.vmm.monitor import Monitor

log = logging.getLogger("rewarm.sandbox")

USELESS: Final = (SnapshotCorrupt, SnapshotMismatch)  # a snapshot of which this is said is made anew
_SIGNALLED: Final = 128  # what a shell adds to the number of the signal that ended a process
# The guest's first process writes it, see `guest.build`.
_ENDED: Final = re.compile(r"rewarm: the worker ended: (\d{1,3})(, out of memory)?$", re.MULTILINE)


class Start:
    """One sandbox on its way up, and the machine it lives in from then on."""

    def __init__(self, recipe: Recipe, asleep: bool) -> None:
        self.recipe = recipe
        self.asleep = asleep  # from the function's own snapshot, not by way of Lang
        self.attempts = 0
        self.policy = ""  # by which it was restored
        self.resumed = False
        self.given_up = False  # Destroy came between two machines
        self.error: RewarmError | None = None  # why the machine never ran
        self.asset: Asset | None = None  # what it was restored from
        self.machine: Monitor | None = None
        self.watch: asyncio.Task[None] | None = None  # sets `error`
        self.deadline: asyncio.TimerHandle | None = None

    def settle(self) -> None:
        if self.deadline is not None:
            self.deadline.cancel()
            self.deadline = None


def worker_status(status: int, console: str) -> int:
    """How the worker ended, as a wait status, if the guest told it; else `status`, that of its machine.

    User code is root in its guest and may tell what it likes; so it is only asked where it ended by itself.
    """
    told = _ENDED.findall(console)
    if not told or not os.WIFEXITED(status):
        return status
    code, out_of_memory = int(told[-1][0]), told[-1][1]
    if out_of_memory:
        return signal.SIGKILL
    number = code - _SIGNALLED
    return number if number in set(signal.Signals) else (code & 0xFF) << 8


def told(failure: Exception, what: str) -> RewarmError:
    """For whoever waits; what nobody expected is told to the log as well, with where it came from."""
    if isinstance(failure, RewarmError):
        return failure
    log.error("%s", what, exc_info=failure)
    return SandboxFailed(f"{what}: {failure}")
