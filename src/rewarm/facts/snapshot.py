"""What thinking knows of a function's snapshot on disk: what keeping it costs and what waking from it saves."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rewarm.errors import BadDefinition


@dataclass(frozen=True, slots=True)
class SnapshotFacts:
    """A snapshot of an initialised instance of the revision `digest`. Raises BadDefinition for what cannot be.

    `disk_bytes` is what it takes on disk, holes left out. `restore_s` is what waking from it took when it was made,
    from the order to READY; `cold_s` what a start without it takes, from nothing to READY.
    """

    digest: str
    disk_bytes: int
    restore_s: float
    cold_s: float

    def __post_init__(self) -> None:
        if type(self.disk_bytes) is not int or self.disk_bytes < 0:
            raise BadDefinition(f"snapshot {self.digest}: it takes 0 or more bytes, not {self.disk_bytes!r}")
        for label, seconds in (("restore", self.restore_s), ("cold start", self.cold_s)):
            if type(seconds) not in (int, float) or not math.isfinite(seconds) or seconds < 0.0:
                raise BadDefinition(f"snapshot {self.digest}: a {label} takes 0 or more seconds, not {seconds!r}")
