"""Whom a monitor of virtual machines runs as: where the server is root, as a user that nobody else is.

User and group have the same number, of a range that no distribution hands out (it lies above what systemd gives to
containers). In a user namespace without that range it is `nobody`, shared with whoever else is; any other server's
machines run as the server's user, as do those of a root that lacks what it takes to start, end and look at others.
"""

from __future__ import annotations

import functools
import itertools
import os
import secrets
from pathlib import Path

FIRST_UID, UIDS = 2_000_000_000, 100_000_000
_NOBODY = 65534
#: linux/capability.h
_NEEDED = {"chown": 0, "kill": 5, "setgid": 6, "setuid": 7, "setpcap": 8, "sys_ptrace": 19}
# Where to begin: another server on this machine hardly begins nearby.
_numbers = itertools.count(secrets.randbelow(UIDS))


def take_uid() -> int | None:
    """Another one each time, as user and as group; None: as the server's."""
    if obstacle() is not None:
        return None
    return FIRST_UID + next(_numbers) % UIDS if _mapped(FIRST_UID, UIDS) else _NOBODY


@functools.cache
def obstacle() -> str | None:
    """Why monitors run as the server's user; None if they do not."""
    if os.geteuid() != 0:
        return "the server is not root"
    held = _capabilities()
    missing = [name for name, bit in _NEEDED.items() if not held >> bit & 1]
    if missing:
        return f"root lacks the capabilities {', '.join(missing)} here"
    return None if _mapped(_NOBODY, 1) else "this user namespace has one user"


def runs_as() -> str:
    """The same for a person: "as …"."""
    why = obstacle()
    if why is not None:
        return f"as the server's user: {why}"
    own = _mapped(FIRST_UID, UIDS)
    return f"as users of their own, {FIRST_UID} to {FIRST_UID + UIDS - 1}" if own else "as nobody"


def _capabilities() -> int:
    """A bit for each that is effective."""
    for line in Path("/proc/self/status").read_text("utf-8", "replace").splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0


@functools.cache
def _mapped(first: int, count: int) -> bool:
    """Whether all these exist as users and groups of this namespace."""
    for name in ("uid_map", "gid_map"):
        lines = Path("/proc/self", name).read_text("ascii").splitlines()
        spans = [[int(word) for word in line.split()] for line in lines]
        if not any(begin <= first and first + count <= begin + size for begin, _, size in spans):
            return False
    return True
