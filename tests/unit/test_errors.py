from __future__ import annotations

import re

import pytest

from rewarm import errors
from rewarm.errors import (
    BY_CODE,
    BadTensor,
    Busy,
    DeadlineExceeded,
    FunctionError,
    InstanceDied,
    NotFound,
    OutOfMemory,
    PortInUse,
    RewarmError,
    SandboxFailed,
    StartFailed,
    SystemFault,
    Unavailable,
    UsageError,
    from_code,
)

ALL = list(BY_CODE.values())


def drawn_tree() -> dict[str, tuple[str | None, int | None]]:
    """Class name → (parent, status) as the module's docstring draws them."""
    found: dict[str, tuple[str | None, int | None]] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"((?:│   |    |├── |└── )*)([A-Z]\w+)(?:\s+(\d{3})\b)?", line)
        if match and (match[1] or match[2] == "RewarmError"):
            depth = len(match[1]) // 4
            path[depth:] = [match[2]]
            found[match[2]] = (path[depth - 1] if depth else None, int(match[3]) if match[3] else None)
    return found


def test_the_docstring_draws_the_tree() -> None:
    drawn = drawn_tree()
    assert set(drawn) == {cls.__name__ for cls in ALL}
    for cls in ALL:
        parent, status = drawn[cls.__name__]
        assert parent == (None if cls is RewarmError else cls.__bases__[0].__name__)
        assert status in (None, cls.status)


def test_every_class_has_a_code_of_its_own() -> None:
    names = [v for v in vars(errors).values() if isinstance(v, type) and issubclass(v, RewarmError)]
    assert set(names) == set(ALL)
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", code) for code in BY_CODE)
    assert all("code" in vars(cls) for cls in ALL)


@pytest.mark.parametrize("cls", ALL)
def test_status_exit_code_and_advice_fit_together(cls: type[RewarmError]) -> None:
    assert 400 <= cls.status <= 599
    assert cls.exit_code in range(1, 6)
    assert (cls.exit_code == 2) == issubclass(cls, UsageError)
    assert (cls.retry_after_s is not None) == (cls.status in (429, 503))


@pytest.mark.parametrize(
    ("cls", "exit_code"),
    [(SystemFault, 1), (NotFound, 2), (Busy, 3), (Unavailable, 3), (DeadlineExceeded, 4), (OutOfMemory, 5)],
)
def test_exit_codes(cls: type[RewarmError], exit_code: int) -> None:
    assert cls("x").exit_code == exit_code


def test_message_and_json() -> None:
    error = NotFound("no function 'digits'; see rewarm ls")
    assert str(error) == error.message == "no function 'digits'; see rewarm ls"
    assert error.to_json() == {"error": "no function 'digits'; see rewarm ls", "code": "not_found"}


def test_advice_is_on_the_class_and_may_be_refined() -> None:
    assert Busy("full").to_json() == {"error": "full", "code": "queue_full", "retry_after_s": 1.0}
    refined = Busy("full", retry_after_s=0.0)
    assert refined.to_json()["retry_after_s"] == 0.0
    assert Busy.retry_after_s == 1.0
    assert NotFound("x", retry_after_s=2.0).to_json()["retry_after_s"] == 2.0


def test_function_errors_carry_the_type_of_what_was_raised() -> None:
    assert FunctionError("boom").error_type == "Error"
    error = StartFailed("no module named x", error_type="ModuleNotFoundError", retry_after_s=5.0)
    assert (error.error_type, error.retry_after_s, error.status) == ("ModuleNotFoundError", 5.0, 500)


@pytest.mark.parametrize("code", sorted(BY_CODE))
def test_errors_cross_a_process_boundary_by_code(code: str) -> None:
    error = from_code(code, "what happened", "ValueError")
    assert type(error) is BY_CODE[code]
    assert (error.code, str(error)) == (code, "what happened")
    if isinstance(error, FunctionError):
        assert error.error_type == "ValueError"


def test_an_unknown_code_is_a_function_error() -> None:
    error = from_code("from_the_future", "hm", "Odd")
    assert type(error) is FunctionError
    assert error.error_type == "Odd"


def test_kinship() -> None:
    assert issubclass(OutOfMemory, InstanceDied)
    assert BadTensor("x").status == 400
    assert {SandboxFailed.status, PortInUse.status, RewarmError.status} == {500}
