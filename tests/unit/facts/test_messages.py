from __future__ import annotations

import inspect
import typing
from typing import Any

import pytest

from rewarm.facts import effects, events, messages
from rewarm.facts.function import LangKey
from rewarm.facts.messages import Exited, Flush, LangExited, Measured, Raised, Removed
from rewarm.facts.sandbox import SandboxState
from rewarm.facts.value import Value

EVENTS: tuple[type, ...] = typing.get_args(messages.Event)
EFFECTS: tuple[type, ...] = typing.get_args(messages.Effect)


def test_every_message_is_an_event_or_an_effect() -> None:
    classes = {value for module in (events, effects) for value in vars(module).values() if isinstance(value, type)}
    defined = {cls for cls in classes if cls.__module__ in (events.__name__, effects.__name__)}
    assert all(getattr(messages, cls.__name__) is cls for cls in defined)
    assert defined == set(EVENTS) | set(EFFECTS)
    assert not set(EVENTS) & set(EFFECTS)


@pytest.mark.parametrize("kind", [*EVENTS, *EFFECTS], ids=lambda kind: kind.__name__)
def test_messages_say_what_they_mean_and_name_their_fields(kind: Any) -> None:
    assert issubclass(kind, Value) and kind.__doc__
    taken = tuple(inspect.signature(kind).parameters)
    assert kind.__match_args__ == taken
    message, twin = kind(*taken), kind(*taken)  # any values do
    assert message.values() == taken
    assert message == twin and hash(message) == hash(twin)
    assert repr(message) == f"{kind.__name__}({', '.join(f'{name}={name!r}' for name in taken)})"
    for name in taken:
        assert message != kind(**{**dict(zip(taken, taken, strict=True)), name: "other"})


def test_an_end_that_was_asked_for_has_no_error() -> None:
    assert Exited(1).error is None
    assert LangExited(LangKey()).error is None


def test_values_compare_by_content() -> None:
    assert Raised(1, SandboxState.BARE, 0.1) == Raised(1, SandboxState.BARE, 0.1)
    assert Measured(1, 10) != Measured(LangKey(), 10)
    assert Removed("f") != Flush("f") and Removed("f") != "f", "the same fields of another kind"
