"""How fast a disk reads, for plans: of what was measured lately, rather the low than the middle.

A plan that counts on too much bandwidth pins too little, and its starts stall; one that counts on too little pins some
bytes too many. Disks shared with others vary by a factor of three within minutes, hence the quantile.
"""

from __future__ import annotations

from collections import deque

#: Bytes per second of a disk that nothing was read from yet: about what a shared NVMe disk gives.
FIRST_GUESS_BYTES_S = 1e9
#: Less says more about latency than about bandwidth.
SAMPLE_BYTES_MIN = 4 << 20

_SAMPLES = 16
_QUANTILE = 0.25


class Bandwidth:
    """Of each device (`st_dev`) the last 16 samples."""

    def __init__(self) -> None:
        self._samples: dict[int, deque[float]] = {}

    def add(self, device: int, read_bytes: int, seconds: float) -> None:
        """So many bytes came from the device, not from memory, in so many seconds. Too few of them are ignored."""
        if read_bytes >= SAMPLE_BYTES_MIN and seconds > 0.0:
            self._samples.setdefault(device, deque(maxlen=_SAMPLES)).append(read_bytes / seconds)

    def measured(self, device: int) -> bool:
        return device in self._samples

    def bytes_s(self, device: int) -> float:
        """The lower quartile in bytes per second: the sample that a quarter of them are not above; else the guess."""
        samples = sorted(self._samples.get(device, ()))
        return samples[int(_QUANTILE * (len(samples) - 1))] if samples else FIRST_GUESS_BYTES_S
