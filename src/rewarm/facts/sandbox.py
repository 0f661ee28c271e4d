"""What a sandbox is made of and how it may change.

    ABSENT ──▶ BARE ──▶ LANG ──▶ USER ──▶ READY ⇄ BUSY
       └──────────── restore ───────────────▲│peel        (every state may end in DYING ──▶ GONE)

BARE has a scratch directory and its sockets; LANG is a forked interpreter with the key's packages and none of the
user's code; USER has imported and constructed the user's code; READY has its weights and waits for a batch; BUSY runs
one. What is restored from a snapshot of an initialised instance is READY at once. DYING was told to end and has not
been reaped; GONE leaves nothing behind.
"""

from __future__ import annotations

import enum

from rewarm.facts.states import LEGAL_MOVES as LEGAL_MOVES
from rewarm.facts.states import SandboxState as SandboxState
from rewarm.facts.states import StartKind as StartKind


class Layer(enum.IntEnum):
    """The layers of an instance, lowest first; also the label of what a start found alive.

    ASLEEP is none of memory: a function's snapshot on disk, from which an instance is restored.
    """

    ASLEEP = 0
    BARE = 1
    LANG = 2
    USER = 3
    MODEL = 4


class IllegalMove(AssertionError):
    """A bug in the core or in a driver: never shown to callers, always fatal in tests."""


def check_move(old: SandboxState, new: SandboxState) -> None:
    """Raises IllegalMove unless `old` → `new` is in the table."""
    if new not in LEGAL_MOVES[old]:
        raise IllegalMove(f"{old.value} → {new.value}")
