"""Experiment `snapshot`: the function's snapshot, made as a deploy makes it, and the copies that bursts start from."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rewarm.bench import snapshot_function as function
from rewarm.bench.snapshot_rows import SnapshotFacts
from rewarm.errors import SystemFault
from rewarm.facts.function import FunctionSpec
from rewarm.guest.images import blank_image, function_image
from rewarm.guest.packages import packages_image
from rewarm.snapshot.manifest import (
    LAYOUT_NAME,
    LOADING_SET_NAME,
    MANIFEST_NAME,
    MEMORY_NAME,
    STATE_NAME,
    open_snapshot,
)
from rewarm.snapshot.regions import PAGE_BYTES
from rewarm.units import MB, human_bytes
from rewarm.vmm.publishing import UserOrder, load_order, publish_lang, publish_user
from rewarm.vmm.samples import samples_of
from rewarm.vmm.site import Images, Site

_FREE_BYTES_MIN = 4 << 30
_COPY_S_MAX = 300.0
_OWN = (LOADING_SET_NAME, LAYOUT_NAME, MANIFEST_NAME)  # what a variant for another storage has to itself
#: The input that starts are measured with, and one that was not recorded.
FIRST, UNSEEN = json.dumps(function.SAMPLES["first.json"]), json.dumps(function.UNSEEN)
BODIES = [json.dumps(words) for words in function.SAMPLES.values()]


@dataclass(frozen=True, slots=True)
class Prepared:
    """What starts need. `native` has a snapshot's folder for each clone; the first is the one that was published."""

    images: Images
    load: dict[str, Any]  # the body of LOAD
    native: list[Path]
    publish_s: float

    def drives(self, site: Site) -> list[Path]:
        return [site.guest.rootfs, self.images.packages, self.images.function]


def require_room(folder: Path) -> None:
    """Raises SystemFault if the disk is too full for the snapshots."""
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < _FREE_BYTES_MIN:
        raise SystemFault(
            f"the experiment needs {human_bytes(_FREE_BYTES_MIN)} on the disk of {folder}, which has "
            f"{human_bytes(free_bytes)}; make room or name another home with --home"
        )


def prepare(home: Path, site: Site, scratch: Path, clones: int, tell: Callable[[str], None]) -> Prepared:
    """Publish the function through its Lang layer and copy the result. Raises what publishing raises."""
    spec = function_spec()
    code_dir = write_code(scratch / "code")
    tell("making images")
    packages = packages_image(home, spec.lang_key.packages)
    lang_images = Images(packages, blank_image(home), spec.lang_key.vm_bytes, spec.lang_key.packages)
    images = lang_images._replace(function=function_image(scratch, "snapshot-mlp", code_dir, None))
    load = load_order(spec, 1, None)
    order = UserOrder(spec, load, samples_of(spec, code_dir))
    lang_dir, user_dir = scratch / "lang", scratch / "native-0"
    lang_dir.mkdir()
    user_dir.mkdir()
    since_s = time.monotonic()
    with asyncio.Runner() as runner:
        tell("publishing: runtime")
        lang = runner.run(publish_lang(site, str(spec.lang_key), lang_images, lang_dir)).snapshot
        tell("publishing: function")
        runner.run(publish_user(site, lang, "snapshot-mlp", images, order, user_dir))
    publish_s = time.monotonic() - since_s
    tell("copying")
    native = [scratch / f"native-{number}" for number in range(clones)]
    for target in native[1:]:
        copy(user_dir.iterdir(), target)
    return Prepared(images, load, native, publish_s)


def variants(native: list[Path], name: str, clones: int, record: Callable[[Path], None]) -> list[Path]:
    """The same snapshots for another storage: their memory is shared by links, what is read first is recorded anew."""
    found = [folder.with_name(f"{name}-{number}") for number, folder in enumerate(native[:clones])]
    for source, target in zip(native, found, strict=False):
        target.mkdir()
        for part in (STATE_NAME, MEMORY_NAME):
            os.link(source / part, target / part)
    copy((native[0] / part for part in _OWN), found[0])
    record(found[0])
    for target in found[1:]:
        copy((found[0] / part for part in _OWN), target)
    return found


def facts(folder: Path) -> SnapshotFacts:
    snapshot = open_snapshot(folder)
    found = snapshot.manifest.loading
    assert found is not None, "publishing records what a wake touches"
    page_mb = PAGE_BYTES / MB
    return SnapshotFacts(
        snapshot.manifest.platform.memory_bytes / MB, found.nonzero_pages * page_mb, found.loading_pages * page_mb,
        found.regions, found.merge_gap_pages, snapshot.disk_bytes / MB,
    )  # fmt: skip


def function_spec() -> FunctionSpec:
    """As deploying the file on its own would find it."""
    spec: FunctionSpec = vars(function.SnapshotMlp)["__rewarm__"]
    return replace(spec, entry=f"snapshot_function:{function.SnapshotMlp.__qualname__}")


def write_code(folder: Path) -> Path:
    folder.mkdir()
    shutil.copyfile(function.__file__, folder / "snapshot_function.py")
    for name, words in function.SAMPLES.items():
        (folder / name).write_text(json.dumps(words), encoding="ascii")
    return folder


def copy(sources: Iterable[Path], target: Path) -> None:
    """On blocks of their own, holes stay holes. What is dirty could not be dropped from the page cache: none is."""
    found = [path for path in sources if path.exists()]
    target.mkdir(exist_ok=True)
    command = ["cp", "--sparse=always", "--reflink=never", "--force", *map(str, found), str(target)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_COPY_S_MAX)
    if done.returncode:
        raise SystemFault(f"snapshots cannot be copied: {done.stderr.strip()}")
    for path in found:
        file = os.open(target / path.name, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(file)
        finally:
            os.close(file)
