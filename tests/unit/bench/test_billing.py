from __future__ import annotations

import pytest

from rewarm.bench.billing import billed_ms, cost_usd


@pytest.mark.parametrize(
    ("init_ms", "run_ms", "billed"),
    [(0, 0, 0), (0, 0.01, 1), (0, 1.0, 1), (0, 1.001, 2), (265.72, 395.99, 662), (0.4, 0.4, 1), (0.1, 1.9, 2)],
)
def test_init_and_run_are_rounded_up_together(init_ms: float, run_ms: float, billed: int) -> None:
    # 265.72 + 395.99 → 662 is AWS's own sample of a REPORT line.
    assert billed_ms(init_ms, run_ms) == billed


def test_cost_by_hand() -> None:
    # 1000 calls at $0.0000002 = $0.0002; 10 000 ms of 1 GB at $0.0000166667 a second = $0.000166667.
    assert cost_usd(1000, 10_000, 1024) == pytest.approx(0.0002 + 0.000166667)
    # Half the memory halves the duration's share and not the calls'.
    assert cost_usd(1000, 10_000, 512) == pytest.approx(0.0002 + 0.0000833335)
    assert cost_usd(0, 0, 1024) == 0
