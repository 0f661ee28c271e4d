"""AWS Lambda's price list (x86, first tier), the one that everything here is billed by.

INIT is billed like a run since 2025-08-01.
"""

from __future__ import annotations

import math

PRICE_PER_CALL = 2e-7  # $; one batch is one call
PRICE_PER_GB_S = 1.66667e-5  # $


def call_usd(memory_bytes: int, run_s: float) -> float:
    """What one call of `run_s` seconds costs: the fee, and memory × time rounded up to 1 ms."""
    # The product is rounded first: 0.007 s are 7 ms and not 8 by a float's last digit.
    billed_ms = max(1, math.ceil(round(run_s * 1e3, 6)))
    return PRICE_PER_CALL + PRICE_PER_GB_S * (memory_bytes / 2**30) * billed_ms / 1e3
