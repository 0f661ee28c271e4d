"""`rewarm microvm`: what it says of a home with and without a guest."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from rewarm.store.home import Home

Cli = Callable[..., Result]
FACTS = {
    "format": 1, "guest_id": "ab" * 16, "python": "3.11", "kernel_version": "6.1.0-1-cloud-amd64",
    "sha256": {"kernel": "1", "initrd": "2", "rootfs": "3"},
}  # fmt: skip


@pytest.fixture
def guest(tmp_path: Path) -> Path:
    """A home with a guest in it."""
    home = tmp_path / "home"
    Home.open(home).close()
    folder = home / "microvm" / f"guest-{FACTS['guest_id']}"
    folder.mkdir(parents=True)
    (folder / "guest.json").write_text(json.dumps(FACTS))
    for name in ("kernel", "initrd", "rootfs.img"):
        (folder / name).write_bytes(bytes(10_000))
    (home / "microvm" / "guest").symlink_to(folder.name)
    return home


@pytest.mark.parametrize("name", ["build", "status", "rm"])
def test_every_part_has_examples_and_json(cli: Cli, name: str) -> None:
    text = cli("microvm", name, "--help").stdout
    assert "Examples:" in text
    assert "--json" in text


def test_status_of_a_home_that_is_not_there(cli: Cli, tmp_path: Path) -> None:
    home = tmp_path / "home"
    found = cli("microvm", "status", "--home", str(home))
    assert found.exit_code == 0
    assert found.stdout == "no guest was built; run: rewarm microvm build\n"
    assert not home.exists()
    told = json.loads(cli("microvm", "status", "--home", str(home), "--json").stdout)
    assert (told["guest"], told["kept"], told["disk_bytes"]) == (None, [], 0)


def test_status_with_a_guest(cli: Cli, guest: Path) -> None:
    found = cli("microvm", "status", "--home", str(guest))
    assert "Linux 6.1.0-1-cloud-amd64, Python 3.11" in found.stdout
    assert f"guest-{FACTS['guest_id']}" in found.stdout
    told = json.loads(cli("microvm", "status", "--home", str(guest), "--json").stdout)
    assert told["guest"]["sha256"] == FACTS["sha256"]
    assert told["disk_bytes"] >= 30_000
    assert [kept["name"] for kept in told["kept"]] == [f"guest-{FACTS['guest_id']}"]


def test_rm_removes_all_but_not_below_a_server(cli: Cli, guest: Path) -> None:
    with Home.open(guest):
        refused = cli("microvm", "rm", "--home", str(guest))
        assert refused.exit_code == 1
        assert "in use by process" in refused.stderr
    told = json.loads(cli("microvm", "rm", "--home", str(guest), "--json").stdout)
    assert told["freed_bytes"] >= 30_000
    assert not (guest / "microvm").exists()
    assert cli("microvm", "rm", "--home", str(guest)).stdout == "freed 0 B\n"


def test_build_without_apt_says_what_is_missing(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found = cli("microvm", "build", "--home", str(tmp_path / "home"), "--json")
    assert found.exit_code == 1
    assert json.loads(found.stdout)["code"] == "microvm_unavailable"
    assert "apt" in found.stderr
    Home.open(tmp_path / "home").close()  # it is a home from here on


def test_build_in_a_folder_that_is_no_home(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "letters").write_text("")
    found = cli("microvm", "build", "--home", str(tmp_path))
    assert found.exit_code == 1
    assert "is not a home of rewarm" in found.stderr
