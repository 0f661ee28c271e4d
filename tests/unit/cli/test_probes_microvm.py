"""What doctor says of micro-VMs: each row, and what follows from them, here and on a machine that has nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from rewarm.cli import probes_microvm
from rewarm.cli.probes import Check

KEYS = ["microvm_qemu", "microvm_guest", "microvm_accel", "microvm_shim", "microvm_userfaultfd", "microvm_mke2fs",
        "microvm_firecracker"]  # fmt: skip


def found(accel: str, qemu: bool | None = True) -> list[Check]:
    return [
        Check("microvm_qemu", "QEMU", qemu, "10.0.2", "" if qemu else "there is no QEMU; make system-deps"),
        Check("microvm_guest", "guest", True, "built"),
        Check("microvm_accel", "accelerator", True, accel),
        Check("microvm_shim", "shim", None, "none"),
    ]


def test_every_row_is_there_and_says_what_it_is_for(tmp_path: Path) -> None:
    checks = probes_microvm.all_checks(tmp_path / "home")
    assert [check.key for check in checks] == KEYS
    assert all(check.note for check in checks)
    assert all(check.ok is not False for check in checks), "without micro-VMs a machine is not broken"
    assert not (tmp_path / "home").exists()


def test_a_home_without_a_guest_says_how_to_build_one(tmp_path: Path) -> None:
    checks = {check.key: check for check in probes_microvm.all_checks(tmp_path)}
    assert checks["microvm_guest"].ok is None and "rewarm microvm build" in checks["microvm_guest"].note
    assert checks["microvm_accel"].value == "not tried"
    assert list(tmp_path.iterdir()) == []


def test_a_machine_that_has_nothing_is_told_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    checks = {check.key: check for check in probes_microvm.all_checks(tmp_path / "home")}
    assert checks["microvm_qemu"].ok is None and "make system-deps" in checks["microvm_qemu"].note
    assert checks["microvm_shim"].ok is None and "layered" in checks["microvm_shim"].note
    assert probes_microvm.choose_driver(list(checks.values())).startswith(
        'functions with isolation="microvm" cannot run: there is no qemu'
    )


def test_tcg_is_no_boundary_and_kvm_is_not_belittled() -> None:
    assert probes_microvm.choose_driver(found("tcg")).endswith("tcg, which is functional but not an isolation boundary")
    assert probes_microvm.choose_driver(found("kvm")) == 'functions with isolation="microvm" run in QEMU with kvm'


def test_firecracker_says_why_it_is_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    check = probes_microvm.all_checks(tmp_path / "home")[-1]
    assert (check.ok, check.value) == (None, "off")
    assert check.note.startswith("experimental; there is no firecracker")


def test_firecracker_is_used_where_it_works_and_needs_no_qemu() -> None:
    checks = [*found("tcg", qemu=None), Check("microvm_firecracker", "Firecracker", True, "1.17.0")]
    told = 'functions with isolation="microvm" run in Firecracker with kvm, which is experimental'
    assert probes_microvm.choose_driver(checks) == told
    off = Check("microvm_firecracker", "Firecracker", None, "off")
    assert "QEMU" in probes_microvm.choose_driver([*found("kvm"), off])


def test_what_is_missing_comes_first() -> None:
    told = probes_microvm.choose_driver(found("tcg", qemu=None))
    assert told == 'functions with isolation="microvm" cannot run: there is no QEMU; make system-deps'
