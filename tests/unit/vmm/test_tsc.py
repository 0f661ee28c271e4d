from __future__ import annotations

import platform
import re

import pytest

from rewarm.vmm.qemu import CPU, cpu_text, kernel_words
from rewarm.vmm.tsc import host_tsc_khz


@pytest.mark.skipif(platform.machine() != "x86_64", reason="only x86 has this counter")
def test_the_same_each_time() -> None:
    rates = []
    for _ in range(3):
        host_tsc_khz.cache_clear()
        rates.append(host_tsc_khz())
    assert all(rate is not None and 500_000 < rate < 8_000_000 for rate in rates)
    first, *others = rates
    assert all(other == pytest.approx(first, rel=2e-3) for other in others)
    assert f"tsc_early_khz={rates[-1]}" in kernel_words("tcg").split()
    assert re.fullmatch(rf"{CPU},tsc=\d+MHz", cpu_text("tcg"))
    assert cpu_text("kvm") == CPU
