from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path

import pytest

import rewarm
from rewarm.errors import BadDefinition, SnapshotCorrupt
from rewarm.snapshot.manifest import Snapshot
from rewarm.snapshot.pager_client import PagerClient
from rewarm.snapshot.record import cached_pages
from rewarm.snapshot.restore import EXPERIMENTS, POLICIES, Means, RestorePlan, asks_for_pager, firecracker_means, plan

Make = Callable[..., Snapshot]
Cold = Callable[[Snapshot], None]

SHIM = Path("/nowhere/shim.so")
ALL = Means(SHIM, True, {})
NO_SHIM = Means(None, True, {"shim": "no compiler"})
NO_UFFD = Means(SHIM, False, {"userfaultfd": "not allowed"})
FIRECRACKER = Means(None, True, {"shim": "static"}, connects=True)


@pytest.fixture
async def pager() -> AsyncIterator[PagerClient]:
    client = PagerClient(lambda: None)
    yield client
    await client.close()


@pytest.mark.parametrize(
    ("wanted", "means", "loading", "policy"),
    [
        ("auto", ALL, True, "layered"),
        ("auto", NO_SHIM, True, "prefetch"),
        ("auto", ALL, False, "lazy"),
        ("layered", NO_SHIM, True, "prefetch"),
        ("layered", ALL, False, "lazy"),
        ("prefetch", NO_SHIM, True, "prefetch"),
        ("prefetch", ALL, False, "lazy"),
        ("lazy", ALL, True, "lazy"),
        ("uffd", ALL, True, "layered"),  # nobody brought a pager
        ("uffd", NO_UFFD, True, "layered"),
        ("uffd", NO_SHIM, True, "prefetch"),
        ("uffd", NO_SHIM, False, "lazy"),
        ("lazy-4k", ALL, False, "lazy-4k"),
        ("lazy-4k", NO_SHIM, True, "lazy"),
        ("read-all", NO_SHIM, True, "read-all"),
        ("cached", NO_SHIM, True, "cached"),
        ("auto", FIRECRACKER, True, "prefetch"),  # nobody brought a pager
        ("auto", FIRECRACKER, False, "lazy"),
        ("layered", FIRECRACKER, True, "prefetch"),
        ("lazy-4k", FIRECRACKER, True, "lazy"),
    ],
)
def test_a_policy_falls_back_to_what_there_are_means_for(
    make: Make, wanted: str, means: Means, loading: bool, policy: str
) -> None:
    snapshot = make() if loading else make(touched=None)
    found = plan(snapshot, wanted, means)
    assert (found.policy, found.memory, found.pass_fds) == (policy, snapshot.memory, ())
    assert ("LD_PRELOAD" in found.env) is (policy in ("layered", "lazy-4k"))


@pytest.mark.parametrize(("means", "policy"), [(ALL, "uffd"), (NO_UFFD, "layered"), (NO_SHIM, "prefetch")])
async def test_with_a_pager(make: Make, pager: PagerClient, means: Means, policy: str) -> None:
    found = plan(make(), "uffd", means, pager)
    assert found.policy == policy and (pager.pid is not None) is (policy == "uffd")
    fds = found.pass_fds
    assert len(fds) == (policy == "uffd")
    found.end()
    found.end()
    assert found.pass_fds == ()
    for number in fds:
        with pytest.raises(OSError):
            os.fstat(number)


@pytest.mark.parametrize("wanted", ["auto", "uffd"])
async def test_a_vmm_that_connects_is_waited_for(make: Make, pager: PagerClient, tmp_path: Path, wanted: str) -> None:
    found = plan(make(), wanted, FIRECRACKER, pager)
    assert (found.policy, found.env, found.pass_fds) == ("uffd", {}, ())
    found.begin()
    assert found.pass_fds == () and found.listen is not None
    with closing(found.listen(tmp_path / "pager.sock")):
        assert (tmp_path / "pager.sock").exists()
    assert not (tmp_path / "pager.sock").exists()


async def test_a_pager_that_does_not_start(make: Make, pager: PagerClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert plan(make(), "uffd", FIRECRACKER, pager).policy == "prefetch"
    assert plan(make("other"), "uffd", ALL, pager).policy == "layered"


@pytest.mark.parametrize(
    ("wanted", "means", "asks"),
    [("auto", ALL, False), ("uffd", ALL, True), ("uffd", NO_UFFD, False), ("auto", FIRECRACKER, True),
     ("lazy", FIRECRACKER, False)],
)  # fmt: skip
def test_who_asks_for_a_pager(wanted: str, means: Means, asks: bool) -> None:
    assert asks_for_pager(wanted, means) is asks


def test_why_firecracker_has_no_pager() -> None:
    means = firecracker_means()
    assert means.shim is None and means.connects
    assert means.userfaultfd is ("userfaultfd" not in means.why)


async def test_a_memory_that_is_missing(make: Make, pager: PagerClient) -> None:
    snapshot = make()
    pager.start()
    snapshot.memory.unlink()
    before = os.listdir("/proc/self/fd")
    with pytest.raises(SnapshotCorrupt):
        plan(snapshot, "uffd", ALL, pager)
    assert os.listdir("/proc/self/fd") == before


async def test_automatically_no_pager_is_asked_for(make: Make, pager: PagerClient) -> None:
    assert plan(make(), "auto", ALL, pager).policy == "layered" and pager.pid is None


def test_a_policy_that_nobody_knows(make: Make) -> None:
    with pytest.raises(BadDefinition, match="auto, lazy, prefetch, layered, uffd"):
        plan(make(), "eager", ALL)


def test_the_shim_is_told_what_to_do(make: Make) -> None:
    snapshot = make()
    status = snapshot.memory.stat()
    assert plan(snapshot, "layered", ALL).env == {
        "LD_PRELOAD": str(SHIM),
        "REWARM_SHIM_MODE": "layered",
        "REWARM_SHIM_MEMORY": f"{status.st_dev}:{status.st_ino}",
        "REWARM_SHIM_LAYOUT": str(snapshot.layout),
        "REWARM_SHIM_LOADING_SET": str(snapshot.loading_set),
    }


def in_memory(snapshot: Snapshot, name: str) -> set[int]:
    return cached_pages(snapshot.folder / name)


async def read(snapshot: Snapshot, restore: RestorePlan, name: str, pages: set[int]) -> None:
    """`begin` returns, and then the pages of a file come."""
    restore.begin()
    async with asyncio.timeout(20.0):
        while not in_memory(snapshot, name) >= pages:
            await asyncio.sleep(0.002)


@pytest.fixture
def cold_snapshot(make: Make, cold: Cold) -> Snapshot:
    snapshot = make()
    cold(snapshot)
    if in_memory(snapshot, "memory"):
        pytest.skip("the files of this directory stay in memory")
    return snapshot


async def test_prefetch_reads_the_loading_set_in_the_memory_file(cold_snapshot: Snapshot) -> None:
    await read(cold_snapshot, plan(cold_snapshot, "prefetch", NO_SHIM), "memory", {0, 1, 210, 220, 602, 641, 1023})
    assert not in_memory(cold_snapshot, "memory") & {300, 1001}
    assert in_memory(cold_snapshot, "loading-set") == set()


async def test_layered_reads_the_compact_file(cold_snapshot: Snapshot) -> None:
    loading = cold_snapshot.manifest.loading
    assert loading is not None
    restore = plan(cold_snapshot, "layered", ALL)
    await read(cold_snapshot, restore, "loading-set", set(range(loading.loading_pages)))
    assert in_memory(cold_snapshot, "memory") == set()


def test_read_all_reads_it_before(cold_snapshot: Snapshot) -> None:
    plan(cold_snapshot, "read-all", NO_SHIM).begin()
    assert in_memory(cold_snapshot, "memory") >= {0, 1, 2, 210, 300, 1001}


@pytest.mark.parametrize("policy", ["lazy", "cached", "lazy-4k"])
def test_others_read_nothing(cold_snapshot: Snapshot, policy: str) -> None:
    plan(cold_snapshot, policy, ALL).begin()
    assert in_memory(cold_snapshot, "memory") == in_memory(cold_snapshot, "loading-set") == set()


def test_files_that_are_gone_do_not_stop_the_beginning(make: Make) -> None:
    snapshot = make()
    restore = plan(snapshot, "layered", ALL)
    assert snapshot.loading_set is not None
    snapshot.loading_set.unlink()
    restore.begin()  # the VMM, or `open_snapshot`, says it better


def test_what_an_ordinary_user_has_to_do() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    code = (
        "import os; from rewarm.snapshot.uffd import why_not; os.setgroups([]); os.setgid(65534); os.setuid(65534); "
        "print(why_not())"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(rewarm.__file__).parents[1])}
    said = subprocess.run([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True).stdout
    assert "vm.unprivileged_userfaultfd=1" in said or said == "None\n"


def test_the_menu() -> None:
    assert POLICIES == ("lazy", "prefetch", "layered", "uffd")
    assert not set(EXPERIMENTS) & set(POLICIES)
