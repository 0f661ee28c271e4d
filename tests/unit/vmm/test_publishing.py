"""What ends the making of a snapshot where there is no guest to boot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rewarm.errors import SandboxFailed, SnapshotFailed
from rewarm.guest.build import GuestFiles
from rewarm.snapshot.restore import Means
from rewarm.vmm.kvm import Accel
from rewarm.vmm.publishing import check_room, publish_lang
from rewarm.vmm.qemu import Qemu
from rewarm.vmm.site import Images, Site

Letters = Any  # the fixture's class: conftest cannot be imported


def site_of(letters: Letters, script: Path) -> Site:
    """With a QEMU that is a script."""
    hw = letters.hw
    guest = GuestFiles(letters.folder, hw.kernel, hw.initrd, hw.drives[0], "id", "3.11", "6.1", {})
    return Site(guest, Qemu(script, (10, 0, 0)), Accel("tcg", "a test"), Means(None, False, {}))


@pytest.mark.parametrize(("signal", "said"), [("BUS", "no space for the memory"), ("SEGV", "the micro-VM ended")])
async def test_a_disk_that_gets_full(letters: Letters, open_dir: Path, signal: str, said: str) -> None:
    """QEMU ends by SIGBUS where a page of a file has no room."""
    script = open_dir / "qemu"
    script.write_text(f"#!/bin/sh\nkill -{signal} $$\n")
    script.chmod(0o755)
    site, folder = site_of(letters, script), letters.folder / "made"
    folder.mkdir()
    images = Images(letters.hw.drives[0], letters.hw.drives[0], 32 << 20)
    with pytest.raises(SnapshotFailed if signal == "BUS" else SandboxFailed, match=said):
        await publish_lang(site, "python", images, folder)
    assert site.counts.boots == 1


def test_a_disk_that_is_full(tmp_path: Path) -> None:
    check_room(tmp_path, 4096)
    with pytest.raises(SnapshotFailed, match=r"no space for a snapshot in .*: \d+ MB are needed and \d+ MB are free"):
        check_room(tmp_path, 1 << 62)
    with pytest.raises(SnapshotFailed):
        check_room(tmp_path / "none", 4096)
