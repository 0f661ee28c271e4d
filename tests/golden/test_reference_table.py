"""The simulator against the reference table of the shipped Azure trace (docs/simulator.md): day 1 of Azure Functions
2019, 400 functions, by the minute, one container per function, the first use cold, idle memory to the end of the day.

The figures were made by an independent program that looks at gaps between active minutes only.
"""

from __future__ import annotations

import functools

import pytest

from rewarm.policy import registry
from rewarm.sim.costs import Costs, Draw, LangCosts, UserCosts
from rewarm.sim.report import Report
from rewarm.sim.run import Settings, simulate
from rewarm.sim.traces.base import Options

ACTIVE_MINUTES = 88_190
#: Only the User layer costs anything, and time only as much as a start needs to be one.
USER_ONLY = Costs(1e-9, 0, {"python": LangCosts(1e-9, 0)}, {"": UserCosts(Draw(1e-6), Draw(1))})

#: Policy → cold active minutes, idle GB·h.
REFERENCE = {
    "none": (25_907, 0.0),
    "fixed:ttl=1min": (19_345, 28.2),
    "fixed:ttl=5min": (4_904, 86.3),
    "fixed:ttl=10min": (3_144, 101.4),
    "fixed:ttl=20min": (1_914, 117.8),
    "fixed:ttl=60min": (784, 158.9),
    "fixed:ttl=240min": (513, 218.7),
    "histogram:forecast=false": (803, 131.8),
    "fixed:ttl=10d": (400, 301.7),  # never unloaded
}


@functools.cache
def by_the_minute(policy: str) -> Report:
    settings = Settings("azure-2019", Options(whole_minutes=True), USER_ONLY, max_instances=1)
    return simulate(settings, registry.parse(policy))


@pytest.mark.slow
@pytest.mark.parametrize("policy", REFERENCE)
def test_the_reference_table(policy: str) -> None:
    cold, idle_gb_h = REFERENCE[policy]
    found = by_the_minute(policy)
    assert found.invocations == ACTIVE_MINUTES
    assert found.started == pytest.approx(cold, rel=0.01)
    assert found.idle_gb_h == pytest.approx(idle_gb_h, rel=0.01, abs=1e-9)
    assert found.wait_s_p99 == 0.0
    assert found.idle_gb_h_by_layer["user"] == pytest.approx(found.idle_gb_h)


@pytest.mark.slow
def test_what_is_exact() -> None:
    """A window that ends the moment a call comes still serves it, and minutes that follow one another share a run."""
    found = by_the_minute("fixed:ttl=10min")
    assert found.started == 3_144
    assert found.idle_gb_h == pytest.approx(101.433431, abs=1e-5)
