"""What the figures were measured on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

_PACKAGES = ("numpy", "onnxruntime", "torch")


def describe() -> dict[str, Any]:
    """Plain JSON; nothing in it names the host or its user."""
    return {
        "cpu": cpu_model(),
        "cores": usable_cores(),
        "memory_bytes": memory_bytes(),
        "kernel": platform.release(),
        "system": platform.system(),
        "python": platform.python_version(),
        "load_average_1min": round(os.getloadavg()[0], 2),
        "packages": {name: version for name in _PACKAGES if (version := package_version(name))},
    }


def usable_cores() -> int:
    return len(os.sched_getaffinity(0))


def memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.lower().startswith(("model name", "hardware")))
    return next(names, platform.machine())


def package_version(name: str) -> str | None:
    """The installed version, read from its metadata: nothing is imported."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
