"""Prices. AWS Lambda's list (x86, first tier) is the one that everything here is billed by.

INIT is billed like a run since 2025-08-01. What disk is worth beside memory is from AWS Fargate's list (us-east-1,
Linux/x86), which sells both: $0.004445 for a GB·h of memory, $0.000111 for a GB·h of ephemeral storage.
"""

from __future__ import annotations

import math
from typing import Final

PRICE_PER_CALL = 2e-7  # $; one batch is one call
PRICE_PER_GB_S = 1.66667e-5  # $
DISK_BYTES_PER_MEMORY_BYTE: Final = 40.0  # for as much money, over the same time


def as_memory_bytes(disk_bytes: int) -> int:
    """So many bytes of memory cost as much as `disk_bytes` on disk. 0 only of nothing: to a policy 0 is unknown."""
    return math.ceil(disk_bytes / DISK_BYTES_PER_MEMORY_BYTE)


def call_usd(memory_bytes: int, run_s: float) -> float:
    """What one call of `run_s` seconds costs: the fee, and memory × time rounded up to 1 ms."""
    # The product is rounded first: 0.007 s are 7 ms and not 8 by a float's last digit.
    billed_ms = max(1, math.ceil(round(run_s * 1e3, 6)))
    return PRICE_PER_CALL + PRICE_PER_GB_S * (memory_bytes / 2**30) * billed_ms / 1e3
