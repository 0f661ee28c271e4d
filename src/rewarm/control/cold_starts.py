"""How often each packed model is started cold, kept over a restart of the server: `cold-starts.json` in its home.

    {"at": seconds since the epoch, "per_s": {key of a pack: cold starts a second}}

Replaced by one rename, never synced: lost, or damaged, it costs learning the same once more, and pins come later.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

NAME = "cold-starts.json"
_BYTES_MAX = 4 << 20  # more than ten thousand models have


def save(home: Path, per_s: Mapping[str, float], wall_s: float) -> None:
    """Nothing happens if the disk is full, or read-only."""
    fresh = home / f"{NAME}.new"
    with suppress(OSError):
        fresh.write_text(json.dumps({"at": wall_s, "per_s": dict(per_s)}) + "\n", encoding="utf-8")
        os.replace(fresh, home / NAME)


def load(home: Path) -> tuple[dict[str, float], float]:
    """Cold starts a second by key, and when that was so, in seconds since the epoch. Nothing if the file is no good."""
    try:
        with (home / NAME).open("rb") as file:
            found = json.loads(file.read(_BYTES_MAX))
        per_s = {str(key): float(rate) for key, rate in found["per_s"].items()}
        at_s = float(found["at"])
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {}, 0.0
    if not all(0.0 <= rate < math.inf for rate in (at_s, *per_s.values())):
        return {}, 0.0
    return per_s, at_s
