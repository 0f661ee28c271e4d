"""What the same work would cost on AWS Lambda.

    cost = $0.0000002 × calls + $0.0000166667 × (memory_mb / 1024) × Σ ceil_ms(init + run) / 1000

Source: AWS Lambda pricing, x86, US East, first tier (aws.amazon.com/lambda/pricing): $0.20 per million requests and
$0.0000166667 per GB-second, the duration rounded up to 1 ms. The INIT phase is billed since 2025-08-01. A "request"
is one call of the function, so a batch of any size is one.
"""

from __future__ import annotations

import math

from rewarm.facts.prices import PRICE_PER_CALL, PRICE_PER_GB_S

CALL_USD = PRICE_PER_CALL
GB_SECOND_USD = PRICE_PER_GB_S
SOURCE = (
    "AWS Lambda pricing (x86, US East): $0.20 per million calls, $0.0000166667 per GB-second, "
    "rounded up to 1 ms, INIT billed since 2025-08-01; one batch is one call"
)


def billed_ms(init_ms: float, run_ms: float) -> int:
    """One call's billed duration: init and run together, rounded up to a whole millisecond."""
    # Rounded to a nanosecond first: 2.0000000001 ms is float noise, not a third millisecond.
    return max(0, math.ceil(round(init_ms + run_ms, 6)))


def cost_usd(calls: int, billed_ms_total: float, memory_mb: float) -> float:
    return CALL_USD * calls + GB_SECOND_USD * (memory_mb / 1024) * billed_ms_total / 1000
