"""What the snapshot experiment deploys, copies and asks, as far as that needs no QEMU."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from rewarm.bench import snapshot_function as function
from rewarm.bench import snapshot_prepare as prepare
from rewarm.bench.experiment_snapshot import Runner, run
from rewarm.bench.snapshot_prepare import BODIES, FIRST, UNSEEN
from rewarm.bench.snapshot_rows import QUICK
from rewarm.bench.streaming_runtime import CaseFailed
from rewarm.cli.main import rewarm
from rewarm.control.deploy import inspect
from rewarm.errors import MicrovmUnavailable
from rewarm.facts.function import FunctionSpec
from rewarm.snapshot.manifest import LAYOUT_NAME, LOADING_SET_NAME, MANIFEST_NAME, MEMORY_NAME, STATE_NAME
from rewarm.vmm.samples import samples_of

PARTS = (STATE_NAME, MEMORY_NAME, LOADING_SET_NAME, LAYOUT_NAME, MANIFEST_NAME)


def test_the_function_is_deployed_as_any_other(tmp_path: Path) -> None:
    code_dir = prepare.write_code(tmp_path / "code")
    spec = FunctionSpec.from_json(inspect(code_dir / "snapshot_function.py", None, None)["spec"])
    assert spec == prepare.function_spec()
    assert spec.isolation == "microvm" and spec.vm_bytes == 512 << 20
    assert [bytes(item[2]).decode() for item in samples_of(spec, code_dir)] == BODIES


def test_its_inputs_differ_and_so_do_its_answers() -> None:
    assert BODIES[0] == FIRST and len({*BODIES, UNSEEN}) == 3
    words = np.array([json.loads(body) for body in (*BODIES, UNSEEN)])
    assert words.shape == (3, function.WORDS) and words.min() >= 0 and words.max() < function.ROWS
    answers = function.SnapshotMlp().predict(words)
    assert answers.shape == (3, function.CLASSES) and len({row.tobytes() for row in answers}) == 3
    assert (function.SnapshotMlp().predict(words) == answers).all()


def fake_snapshot(folder: Path) -> Path:
    """Files of a snapshot's names, its memory with one page of data among holes."""
    folder.mkdir()
    for name in PARTS:
        (folder / name).write_bytes(name.encode())
    with (folder / MEMORY_NAME).open("r+b") as file:
        file.truncate(8 << 20)
        file.seek(4 << 20)
        file.write(b"data")
    for name in PARTS:
        (folder / name).chmod(0o444)
    return folder


def test_copies_are_files_of_their_own_with_the_same_holes(tmp_path: Path) -> None:
    source, target = fake_snapshot(tmp_path / "a"), tmp_path / "b"
    prepare.copy(source.iterdir(), target)
    for name in PARTS:
        assert (target / name).read_bytes() == (source / name).read_bytes()
        assert (target / name).stat().st_ino != (source / name).stat().st_ino
    assert (target / MEMORY_NAME).stat().st_blocks * 512 < 1 << 20


def test_variants_share_the_memory_and_have_their_own_loading_set(tmp_path: Path) -> None:
    native = [fake_snapshot(tmp_path / f"native-{number}") for number in range(3)]

    def record(folder: Path) -> None:
        os.unlink(folder / LOADING_SET_NAME)
        (folder / LOADING_SET_NAME).write_text("recorded anew")

    found = prepare.variants(native, "throttled", 3, record)
    assert [folder.name for folder in found] == ["throttled-0", "throttled-1", "throttled-2"]
    for source, target in zip(native, found, strict=True):
        assert (target / MEMORY_NAME).samefile(source / MEMORY_NAME)
        assert (target / LOADING_SET_NAME).read_text() == "recorded anew"
        assert (source / LOADING_SET_NAME).read_text() == LOADING_SET_NAME


def test_a_copy_that_fails_is_told(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"")
    with pytest.raises(prepare.SystemFault, match="snapshots cannot be copied"):
        prepare.copy([fake_snapshot(tmp_path / "a")], tmp_path / "b")  # a folder, and cp copies none


def test_a_home_without_a_guest_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(MicrovmUnavailable):
        run(tmp_path, QUICK)
    assert list(tmp_path.iterdir()) == []


def test_a_child_that_cannot_open_its_site_says_why(tmp_path: Path) -> None:
    order = {"home": str(tmp_path), "procs": None, "packages": "p", "function": "f", "memory_bytes": 1, "load": {}}
    with Runner("native") as runner:
        for _ in range(2):  # it goes on with the next order
            with pytest.raises(CaseFailed, match="MicrovmUnavailable: "):
                runner.order(order)


def test_help_says_what_it_takes() -> None:
    said = CliRunner().invoke(rewarm, ["experiment", "snapshot", "--help"])
    assert said.exit_code == 0
    for word in ("--quick", "--home", "five minutes", "microvm build", "4 GB of disk"):
        assert word in " ".join(said.output.split()), said.output


def test_without_a_guest_the_command_says_how_to_build_one(tmp_path: Path) -> None:
    said = CliRunner().invoke(rewarm, ["experiment", "snapshot", "--quick", "--home", str(tmp_path)])
    assert said.exit_code != 0
    assert isinstance(said.exception, MicrovmUnavailable) or "error:" in said.output
