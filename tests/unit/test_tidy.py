"""The house style as a test. An exception is listed with its reason; one that is not needed any more fails."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SRC = ROOT / "src" / "rewarm"
FILE_LINES_MAX = 400
FUNCTION_LINES_MAX = 60

#: "src/rewarm/room/file.py" → why it may be longer.
LONG_FILES: dict[str, str] = {}
#: "src/rewarm/room/file.py:Class.function" → why it may be longer.
LONG_FUNCTIONS: dict[str, str] = {}
#: "tests/…/test_x.py" → why it has to patch a name of ours.
PATCHES: dict[str, str] = {}
#: file → why it names a path that exists on one machine only.
MACHINE_PATHS: dict[str, str] = {}

# Written in pieces, so that this file does not find itself.
_MACHINE_PATH = re.compile("|".join([r"(?<![\w.}*-])/" + "work/", "/tmp/" + "bash_jobs", r"\.\./" + r"shared\b"]))

SOURCES = sorted(SRC.rglob("*.py"))


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def project_files() -> list[Path]:
    """What is or would be committed; without git (a source archive) the files of the project's own folders."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
        files = [ROOT / name for name in listed if name]
    except (OSError, subprocess.CalledProcessError):
        folders = ("src", "tests", "docs", "adr", "examples", "benchmarks")
        files = [*ROOT.glob("*.*"), *(path for folder in folders for path in (ROOT / folder).rglob("*"))]
    return sorted({path for path in files if path.is_file() and "__pycache__" not in path.parts})


def functions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, int]]:
    """Qualified name and length in lines of every function, methods and nested ones included."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            yield f"{prefix}{node.name}", node.end_lineno - node.lineno + 1
            yield from functions(node, f"{prefix}{node.name}.")
        elif isinstance(node, ast.ClassDef):
            yield from functions(node, f"{prefix}{node.name}.")
        else:
            yield from functions(node, prefix)


def own_patches(tree: ast.Module) -> list[int]:
    """Lines with a `patch(…)`, `patch.object(…)` or `patch.dict(…)` whose target is a name of rewarm."""
    ours = {"rewarm"}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "rewarm":
            ours |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            ours |= {a.asname for a in node.names if a.asname and a.name.split(".")[0] == "rewarm"}

    def is_patch(function: ast.expr) -> bool:
        if isinstance(function, ast.Attribute):
            return function.attr == "patch" or is_patch(function.value)
        return isinstance(function, ast.Name) and function.id == "patch"

    def is_ours(target: ast.expr) -> bool:
        if isinstance(target, ast.Constant):
            return isinstance(target.value, str) and target.value.split(".")[0] == "rewarm"
        while isinstance(target, ast.Attribute):
            target = target.value
        return isinstance(target, ast.Name) and target.id in ours

    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and is_patch(node.func)]
    return [c.lineno for c in calls if any(is_ours(a) for a in [*c.args[:1], *(k.value for k in c.keywords)])]


def judge(found: dict[str, str], allowed: dict[str, str]) -> None:
    """`found` maps an offender to what is wrong with it. Fails on one not allowed and on a permit not used."""
    wrong = [f"{key}: {what}" for key, what in sorted(found.items()) if key not in allowed]
    unused = [f"{key}: the exception is not needed any more" for key in sorted(allowed) if key not in found]
    silent = [f"{key}: the exception gives no reason" for key, reason in sorted(allowed.items()) if not reason.strip()]
    assert not (wrong + unused + silent), "\n" + "\n".join(wrong + unused + silent)


def test_files_are_short() -> None:
    lengths = {relative(path): len(path.read_text("utf-8").splitlines()) for path in SOURCES}
    judge({f: f"{n} lines, at most {FILE_LINES_MAX}" for f, n in lengths.items() if n > FILE_LINES_MAX}, LONG_FILES)


def test_functions_are_short() -> None:
    found = {
        f"{relative(path)}:{name}": f"{lines} lines, at most {FUNCTION_LINES_MAX}"
        for path in SOURCES
        for name, lines in functions(ast.parse(path.read_text("utf-8")))
        if lines > FUNCTION_LINES_MAX
    }
    judge(found, LONG_FUNCTIONS)


def test_rooms_and_modules_say_what_they_are_for() -> None:
    for folder in {path.parent for path in SOURCES}:
        assert (folder / "__init__.py").is_file(), f"{relative(folder)} has no __init__.py"
    public = [path for path in SOURCES if path.name == "__init__.py" or not path.name.startswith("_")]
    silent = [relative(path) for path in public if not ast.get_docstring(ast.parse(path.read_text("utf-8")))]
    assert not silent, f"no docstring: {silent}"


def test_tests_do_not_patch_our_own_names() -> None:
    found: dict[str, str] = {}
    for path in sorted((ROOT / "tests").rglob("*.py")):
        if lines := own_patches(ast.parse(path.read_text("utf-8"))):
            found[relative(path)] = f"patches a name of rewarm in line {lines}; use a fake from rewarm.testing"
    judge(found, PATCHES)


def test_no_paths_of_one_machine() -> None:
    found: dict[str, str] = {}
    for path in project_files():
        text = path.read_bytes().decode("utf-8", "replace")
        if match := _MACHINE_PATH.search(text):
            found[relative(path)] = f"line {text.count(chr(10), 0, match.start()) + 1} names {match[0]}"
    judge(found, MACHINE_PATHS)


# ---------------------------------------------------------------- the rules themselves


@pytest.mark.parametrize(
    ("code", "lines"),
    [
        ('from unittest import mock\nmock.patch("rewarm.clock.system_clock")', [2]),
        ('def test(mocker):\n    mocker.patch(\n        "rewarm.app")', [2]),
        ("from rewarm.core import node\nfrom unittest.mock import patch\npatch.object(node, 'x')", [3]),
        ("import rewarm.app as app, unittest.mock as m\nwith m.patch.dict(app.TABLE, {}): pass", [2]),
        ("import rewarm\npatch(target='rewarm.x')", [2]),
        ('mock.patch("os.fork"); patch("rewarmed.x"); monkeypatch.setenv("rewarm", "1")', []),
    ],
)
def test_patches_are_seen(code: str, lines: list[int]) -> None:
    assert own_patches(ast.parse(code)) == lines


def test_functions_are_measured() -> None:
    code = "class A:\n    async def f(self):\n        def g():\n            pass\n\nif A:\n    def h(): pass\n"
    assert list(functions(ast.parse(code))) == [("A.f", 3), ("A.f.g", 2), ("h", 1)]


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("in /" + "work/main", True),
        ('"/' + "work/x", True),
        ("/tmp/" + "bash_jobs.0/1", True),
        ("see ../" + "shared/design", True),
        ("framework/", False),
        ("net/work/x", False),
        ("../sharedlib", False),
    ],
)
def test_machine_paths_are_seen(text: str, seen: bool) -> None:
    assert bool(_MACHINE_PATH.search(text)) is seen


def test_exceptions_must_be_needed_and_have_a_reason() -> None:
    judge({"a": "too long"}, {"a": "a table"})
    with pytest.raises(AssertionError, match="a: too long"):
        judge({"a": "too long"}, {})
    with pytest.raises(AssertionError, match="not needed any more"):
        judge({}, {"a": "a table"})
    with pytest.raises(AssertionError, match="no reason"):
        judge({"a": "too long"}, {"a": " "})
