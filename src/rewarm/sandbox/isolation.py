"""What sets an instance apart from the rest of the machine: what the operator wants, and what the machine allows."""

from __future__ import annotations

import functools
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from rewarm import kernel
from rewarm.errors import BadDefinition

VARIABLE = "REWARM_ISOLATION"

#: How a process leaves the namespaces of the server: not at all, as root, or by way of a user namespace.
NONE, ROOT, USER = "none", "root", "user"

_PROBE_TIMEOUT_S = 5.0
# In a process of its own, with one thread. Says on standard output how, on standard error what the kernel refused.
_PROBE = """
import os, runpy, sys
kernel = runpy.run_path(sys.argv[1])
as_user = os.geteuid() != 0
try:
    kernel["unshare"](as_user)
    print("user" if as_user else "root")
    kernel["make_read_only"](os.path.dirname(sys.argv[1]))
except OSError as error:
    print(error.strerror, file=sys.stderr)
"""


@dataclass(frozen=True, slots=True)
class Isolation:
    """What is wanted; of what the machine does not allow nothing fails."""

    cgroups: bool = True
    namespaces: bool = True


_WANTED = {
    "all": Isolation(), "cgroups": Isolation(namespaces=False), "namespaces": Isolation(cgroups=False),
    "none": Isolation(cgroups=False, namespaces=False),
}  # fmt: skip


def wanted(environ: Mapping[str, str]) -> Isolation:
    """What REWARM_ISOLATION asks for; without it, all. Raises BadDefinition."""
    value = environ.get(VARIABLE, "all")
    if value not in _WANTED:
        raise BadDefinition(f"{VARIABLE} is {value[:40]!r}: set it to one of {', '.join(_WANTED)}, or unset it")
    return _WANTED[value]


@dataclass(frozen=True, slots=True)
class Namespaces:
    """What a process here can do: `mode` is NONE, ROOT or USER, `refused` what the kernel said no to, or empty."""

    mode: str
    refused: str


def begin_probe() -> Callable[[], str]:
    """`probe().mode`, to be asked for when the first instance starts: found out meanwhile, so that the start of a
    server does not wait for it."""
    thread = threading.Thread(target=probe, name="probe", daemon=True)
    thread.start()

    def mode() -> str:
        thread.join()
        return probe().mode

    return mode


@functools.cache
def probe() -> Namespaces:
    """Try it once, in a child process; blocks, for `_PROBE_TIMEOUT_S` at most."""
    command = [sys.executable, "-I", "-S", "-c", _PROBE, str(Path(kernel.__file__))]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PROBE_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Namespaces(NONE, str(error))
    mode = done.stdout.strip()
    refused = done.stderr.strip().rpartition("\n")[2]
    return Namespaces(mode if mode in (ROOT, USER) else NONE, refused)
