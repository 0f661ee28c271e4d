"""Looking into JavaScript before it is deployed: which node, which export."""

from __future__ import annotations

from pathlib import Path

import pytest

from rewarm.errors import SystemFault
from rewarm.worker.node.inspect import export_name, version
from rewarm.worker.user import UserError


@pytest.fixture
def says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The program that is found as `node`."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path / "node"


def program(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.mark.parametrize("said", ["v18.19.0", "v20.11.1", "v24.0.0-nightly20260101"])
def test_a_node_that_is_new_enough(says: Path, said: str) -> None:
    program(says, f"echo {said}")
    assert f"v{version()}" == said


@pytest.mark.parametrize("said", ["echo v18.18.2", "echo v12.22.12", "echo nonsense", "exit 1"])
def test_a_node_that_cannot_be_used(says: Path, said: str) -> None:
    program(says, said)
    with pytest.raises(SystemFault, match=r"install Node\.js 18\.19 or newer"):
        version()


def test_no_node(says: Path) -> None:
    assert not says.exists()
    with pytest.raises(SystemFault, match=r"install Node\.js"):
        version()


@pytest.mark.parametrize(
    ("file", "select", "handler", "export"),
    [
        ("app.mjs", None, None, "handler"),
        ("app.mjs", "lengths", None, "lengths"),
        ("app.mjs", None, "app.lengths", "lengths"),
        ("app.mjs", None, "app.mjs.lengths", "lengths"),
        ("app.v2.cjs", None, "app.v2.routes.hello", "routes.hello"),
    ],
)
def test_the_export(file: str, select: str | None, handler: str | None, export: str) -> None:
    assert export_name(Path(file), select, handler) == export


@pytest.mark.parametrize("handler", ["app", "app.", "other.handler", "handler"])
def test_a_handler_of_another_file(handler: str) -> None:
    with pytest.raises(UserError, match=r"app\.EXPORT"):
        export_name(Path("app.mjs"), None, handler)
