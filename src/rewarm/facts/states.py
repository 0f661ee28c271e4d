"""The states of a sandbox, its legal moves and the kinds of starts; a file of its own, compiled (adr/0008).

Compiled code has their members at hand; looking one up in an enumeration goes through interpreted code.
"""

from __future__ import annotations

import enum
from typing import Final


class SandboxState(enum.Enum):
    __hash__ = object.__hash__  # Enum's own is Python code; members are single objects, and looked up all the time

    ABSENT = "absent"
    BARE = "bare"
    LANG = "lang"
    USER = "user"
    READY = "ready"
    BUSY = "busy"
    DYING = "dying"
    GONE = "gone"


_S = SandboxState
LEGAL_MOVES: Final = {
    _S.ABSENT: frozenset({_S.BARE, _S.READY, _S.DYING, _S.GONE}),
    _S.BARE: frozenset({_S.LANG, _S.DYING, _S.GONE}),
    _S.LANG: frozenset({_S.USER, _S.BARE, _S.DYING, _S.GONE}),
    _S.USER: frozenset({_S.READY, _S.LANG, _S.DYING, _S.GONE}),
    _S.READY: frozenset({_S.BUSY, _S.USER, _S.LANG, _S.DYING, _S.GONE}),
    _S.BUSY: frozenset({_S.READY, _S.DYING, _S.GONE}),
    _S.DYING: frozenset({_S.GONE}),
    _S.GONE: frozenset(),
}


class StartKind(enum.Enum):
    """What a request found: the highest layer that was alive when it came (answer header Rewarm-Start)."""

    __hash__ = object.__hash__  # as above: counted per request

    WARM = "warm"
    USER = "user"
    LANG = "lang"
    BARE = "bare"
    COLD = "cold"
    RESTORED = "restored"
