"""Events that go into the core and effects that come out of it.

The core is `handle(event, now) -> effects`. A driver carries every effect out and answers with events. For each
effect the contract says which events may follow; a driver that breaks it fails `testing.check_sandbox_driver`.
"""

from __future__ import annotations

from rewarm.facts.effects import (
    Destroy,
    DropLang,
    Forget,
    Fork,
    LoadUser,
    Pin,
    Prefetch,
    RaiseBare,
    RaiseLang,
    Reject,
    Restore,
    Run,
    Sleep,
)
from rewarm.facts.events import (
    Arrived,
    Cancelled,
    Computed,
    Deployed,
    Draining,
    Exited,
    Flush,
    LangExited,
    LangFound,
    LangRaised,
    Load,
    Loaded,
    Measured,
    Pinned,
    Raised,
    Removed,
    RunDone,
    SleepLost,
    Slept,
    Tick,
    Unload,
)

__all__ = [
    "Arrived",
    "Cancelled",
    "Computed",
    "Deployed",
    "Destroy",
    "Draining",
    "DropLang",
    "Effect",
    "Event",
    "Exited",
    "Flush",
    "Forget",
    "Fork",
    "LangExited",
    "LangFound",
    "LangRaised",
    "Load",
    "LoadUser",
    "Loaded",
    "Measured",
    "Pin",
    "Pinned",
    "Prefetch",
    "RaiseBare",
    "RaiseLang",
    "Raised",
    "Reject",
    "Removed",
    "Restore",
    "Run",
    "RunDone",
    "Sleep",
    "SleepLost",
    "Slept",
    "Tick",
    "Unload",
]

Event = (
    Arrived | Cancelled | RunDone | Raised | LangRaised | LangFound | Exited | LangExited | Measured
    | Slept | SleepLost | Pinned | Loaded | Computed | Deployed | Removed | Flush | Unload | Load | Draining | Tick
)  # fmt: skip

Effect = (
    Run | Reject | RaiseBare | RaiseLang | Fork | LoadUser | Restore | Sleep | Forget | Destroy | DropLang
    | Pin | Prefetch
)  # fmt: skip
