"""Public fakes and conformance suites: what a driver or a policy must do, as a function that anyone can call."""

from rewarm.clock import ManualClock
from rewarm.testing.drivers import check_driver
from rewarm.testing.fake_driver import FakeDriver, Outcome, Seconds
from rewarm.testing.hosts import Host, Listening, LiveHost, Setting, SimulatedHost
from rewarm.testing.policies import check_batching_policy, check_keepalive_policy, check_policy
from rewarm.testing.record import Record
from rewarm.testing.sandboxes import check_sandbox_driver
from rewarm.testing.sleeping import SLEEP_CHECKS, VM_CHECKS
from rewarm.testing.stage import held_by_process
from rewarm.testing.world import World

__all__ = [
    "SLEEP_CHECKS",
    "VM_CHECKS",
    "FakeDriver",
    "Host",
    "Listening",
    "LiveHost",
    "ManualClock",
    "Outcome",
    "Record",
    "Seconds",
    "Setting",
    "SimulatedHost",
    "World",
    "check_batching_policy",
    "check_driver",
    "check_keepalive_policy",
    "check_policy",
    "check_sandbox_driver",
    "held_by_process",
]
