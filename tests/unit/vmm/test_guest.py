"""The real guest, whose packages are imported: booted once, saved, and restored again and again, in every way."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from rewarm.facts.function import FunctionSpec
from rewarm.guest import blank_image, function_image, packages_image
from rewarm.snapshot.manifest import Snapshot
from rewarm.snapshot.pager_client import PagerClient
from rewarm.vmm.publishing import UserOrder, load_order, publish_lang, publish_user, restored
from rewarm.vmm.site import Images, Site, survey

_RESTORES = 8
_CODE = "import numpy\ndef handler(event, context): return float(numpy.arange(event).sum())\n"


async def wake(site: Site, snapshot: Snapshot, images: Images, policy: str, times: int) -> None:
    for number in range(times):
        before = site.counts.policies[policy]
        async with restored(site, snapshot, images, f"clone-{number}", policy) as (machine, _):
            assert site.counts.policies[policy] == before + 1
            assert "rewarm shim" not in machine.console
            maps = Path(f"/proc/{machine.pid}/maps").read_text()
            assert ("loading-set" in maps) is (policy == "layered")
            assert machine.uid is None or os.stat(f"/proc/{machine.pid}").st_uid == machine.uid


@pytest.mark.slow
@pytest.mark.skipif("REWARM_TEST_MICROVM_S" in os.environ, reason="the time for micro-VMs is limited")
async def test_it_wakes_every_time(give_guest: Callable[[Path], None], tmp_path: Path) -> None:
    home = tmp_path / "home"
    give_guest(home)
    home.chmod(0o700)
    site = survey(home)
    site.pager = PagerClient(lambda: None)
    (home / "code").mkdir()
    (home / "code" / "app.py").write_text(_CODE)
    images = Images(packages_image(home, ("numpy",)), blank_image(home), 256 << 20, ("numpy",))
    loaded = images._replace(function=function_image(home, "a" * 64, home / "code", None))
    spec = FunctionSpec("f", "handler", "app:handler", memory_bytes=256 << 20, preload=("numpy",), isolation="microvm")
    try:
        for name in ("lang", "user"):
            (home / name).mkdir()
        lang = (await publish_lang(site, "microvm-256mb+python+numpy", images, home / "lang")).snapshot
        await wake(site, lang, images, "lazy", _RESTORES)
        order = UserOrder(spec, load_order(spec, 1, None))
        user = (await publish_user(site, lang, "a" * 64, loaded, order, home / "user")).snapshot
        missing = {"layered": site.means.shim is None, "uffd": not (site.means.shim and site.means.userfaultfd)}
        for policy in ("layered", "uffd", "prefetch"):
            if not missing.get(policy):
                await wake(site, user, loaded, policy, 5)
    finally:
        await site.pager.close()
    before = len(os.listdir("/proc/self/fd"))
    await wake(site, lang, images, "lazy", 1)
    assert len(os.listdir("/proc/self/fd")) == before
