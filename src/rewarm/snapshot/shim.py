"""Builds and checks the preloaded library that layers memory under a stock VMM (`shim.c`). Nothing else needs it.

It is compiled on first use, if this system has a C compiler, and kept under the digest of its source.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from rewarm.errors import SystemFault

COMPILERS = ("cc", "gcc", "clang")
#: Of what it reads in the environment.
PREFIX = "REWARM_SHIM_"
_FLAGS = ("-std=c11", "-O2", "-fPIC", "-shared", "-Wall", "-Wextra")
_COMPILE_TIMEOUT_S = 60.0
_TRY_TIMEOUT_S = 10.0


def build_shim(cache_dir: Path) -> Path:
    """The library, compiled into `cache_dir` unless it is there.

    Raises SystemFault that says what is missing, and how to get it.
    """
    source = Path(__file__).with_name("shim.c").read_bytes()
    digest = hashlib.sha256(b"\0".join((source, *map(str.encode, (*_FLAGS, *os.uname()[4:])))))
    shim = cache_dir / f"shim-{digest.hexdigest()[:16]}.so"
    if not shim.is_file():
        _compile(source, shim)
    _try(shim)
    return shim


def _compile(source: bytes, shim: Path) -> None:
    compiler = next((found for name in COMPILERS if (found := shutil.which(name))), None)
    if compiler is None:
        raise SystemFault("there is no C compiler to build the restore shim with; install gcc (make system-deps)")
    try:
        shim.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=shim.parent, prefix=".shim-") as scratch:
            fresh = Path(scratch, shim.name)
            command = [compiler, *_FLAGS, "-x", "c", "-", "-o", str(fresh)]
            done = subprocess.run(command, input=source, capture_output=True, timeout=_COMPILE_TIMEOUT_S)
            if done.returncode != 0:
                raise SystemFault(f"the restore shim does not compile here; {compiler} says: {_last_line(done.stderr)}")
            fresh.chmod(0o755)  # whoever a VMM runs as
            fresh.replace(shim)
    except (OSError, subprocess.SubprocessError) as error:
        raise SystemFault(f"the restore shim cannot be built in {shim.parent}: {error}") from error


def _try(shim: Path) -> None:
    """The dynamic linker goes on without a library it cannot load, and says so on stderr."""
    program = shutil.which("true")
    if program is None:
        return
    try:
        done = subprocess.run(
            [program], env=preload(shim, {}), capture_output=True, timeout=_TRY_TIMEOUT_S, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise SystemFault(f"the restore shim {shim} cannot be tried: {error}") from error
    if done.returncode != 0 or done.stderr:
        raise SystemFault(
            f"the restore shim {shim} cannot be loaded: {_last_line(done.stderr)}; is its directory mounted noexec, or "
            "has its path a space or a colon?"
        )


def preload(shim: Path, settings: Mapping[str, str]) -> dict[str, str]:
    """What to add to the environment of a VMM; `settings` without their prefix: MODE, MEMORY, …"""
    return {"LD_PRELOAD": str(shim)} | {f"{PREFIX}{name}": value for name, value in settings.items()}


def _last_line(text: bytes) -> str:
    lines = text.decode(errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else "nothing"
