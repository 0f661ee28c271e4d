"""The drive with what a Lang key imports."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rewarm.errors import BadDefinition, MicrovmUnavailable
from rewarm.guest.packages import distributions, packages_image

PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"

pytestmark = pytest.mark.usefixtures("mke2fs")


def guest(home: Path, python: str = PYTHON) -> Path:
    """A guest by name only."""
    folder = home / "microvm" / "guest"
    folder.mkdir(parents=True)
    facts = {"format": 1, "guest_id": "id", "python": python, "kernel_version": "6.1", "sha256": {}}
    (folder / "guest.json").write_text(json.dumps(facts))
    for name in ("kernel", "initrd", "rootfs.img"):
        (folder / name).write_bytes(b"")
    return home


def names(*packages: str) -> set[str]:
    return {str(found.metadata["Name"]).lower() for found in distributions(packages)}


def test_a_package_brings_what_it_requires_and_no_extras() -> None:
    assert names("numpy") == {"numpy"}
    assert names("numpy.linalg", "json") == {"numpy"}
    assert {"starlette", "anyio", "idna"} <= names("starlette")
    assert not {"uvicorn", "httpx"} & names("starlette")


def test_a_package_that_is_not_installed() -> None:
    with pytest.raises(BadDefinition, match="preload names nonsense_of_ours, which is not installed"):
        names("numpy", "nonsense_of_ours")


def test_the_worker_runs_from_the_drive_alone(tmp_path: Path, debugfs: Callable[[Path, str], bytes]) -> None:
    image = packages_image(guest(tmp_path), ("numpy",))
    assert packages_image(tmp_path, ("numpy",)) == image
    assert packages_image(tmp_path, ()) != image
    tree = tmp_path / "tree"
    tree.mkdir()
    debugfs(image, f"rdump / {tree}")
    code = (
        "import rewarm, numpy; from rewarm.worker import guest, arrays; from rewarm.worker.zygote import preload;"
        "preload(['numpy']); print(rewarm.__file__, numpy.__file__); import importlib.util as u;"
        "print(u.find_spec('rewarm.cli'), u.find_spec('click'), arrays.__cached__, arrays.__spec__.loader)"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-s", "-P", "-c", code], capture_output=True, text=True, check=True,
        env={"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}, cwd=tmp_path,
    )  # fmt: skip
    assert f"{tree}/rewarm/__init__.py {tree}/numpy/__init__.py" in done.stdout
    assert "None None" in done.stdout
    compiled = next((tree / "rewarm" / "worker" / "__pycache__").glob("arrays.*.pyc")).read_bytes()
    assert compiled[4:8] == b"\1\0\0\0"  # by hash, and never checked (PEP 552)
    assert b"/packages/rewarm/worker/arrays.py" in compiled


def test_a_guest_of_another_python(tmp_path: Path) -> None:
    with pytest.raises(MicrovmUnavailable, match=f"Python 2.7 and this server runs on {PYTHON}; run: rewarm microvm"):
        packages_image(guest(tmp_path, "2.7"), ())


def test_an_editable_install_cannot_be_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = tmp_path / "site"
    info = site / "odd-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: odd\nVersion: 1.0\n")
    (info / "RECORD").write_text("odd-1.0.dist-info/METADATA,,\n")
    (info / "top_level.txt").write_text("odd\n")
    monkeypatch.syspath_prepend(str(site))
    with pytest.raises(BadDefinition, match="odd is installed in a way that cannot be copied"):
        packages_image(guest(tmp_path), ("odd",))
