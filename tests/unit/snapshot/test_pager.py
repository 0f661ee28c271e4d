from __future__ import annotations

import asyncio
import hashlib
import os
import select
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from rewarm.errors import Unavailable
from rewarm.snapshot.manifest import Snapshot
from rewarm.snapshot.pager_client import PagerClient
from rewarm.snapshot.regions import PAGE_BYTES
from rewarm.snapshot.restore import Means, RestorePlan, plan

Make = Callable[..., Snapshot]
Start = Callable[..., Any]

ZEROS = bytes(16)
WAIT_S = 20.0

pytestmark = pytest.mark.usefixtures("shim", "userfaultfd")


class Watched:
    """A client, and how often its pager died."""

    def __init__(self) -> None:
        self.deaths = 0
        self.client = PagerClient(self._died)

    def _died(self) -> None:
        self.deaths += 1


@pytest.fixture
async def pager() -> AsyncIterator[Watched]:
    watched = Watched()
    watched.client.start()
    yield watched
    await watched.client.close()


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not true():
            await asyncio.sleep(0.005)


def uffd(snapshot: Snapshot, means: Means, pager: Watched) -> RestorePlan:
    restore = plan(snapshot, "uffd", means, pager.client)
    assert restore.policy == "uffd"
    return restore


def descriptors(pager: Watched) -> int:
    return len(os.listdir(f"/proc/{pager.client.pid}/fd"))


def anonymous_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))


async def test_every_page_is_what_it_was(
    make: Make, means: Means, pager: Watched, start: Start, sample: bytes, tmp_path: Path
) -> None:
    guest = start(uffd(make(), means, pager))
    assert await asyncio.to_thread(guest.dump, tmp_path / "dump") == sample
    assert guest.end() == "" and pager.deaths == 0


async def test_without_a_loading_set(
    make: Make, means: Means, pager: Watched, start: Start, sample: bytes, tmp_path: Path
) -> None:
    guest = start(uffd(make(touched=None), means, pager))
    assert await asyncio.to_thread(guest.dump, tmp_path / "dump") == sample


async def test_the_loading_set_comes_by_itself(make: Make, means: Means, pager: Watched, start: Start) -> None:
    small, large = make("small", touched=set()), make("large", touched=set(range(200, 350)))
    without, guest = start(uffd(small, means, pager)), start(uffd(large, means, pager))
    await until(lambda: anonymous_bytes(guest.pid) >= anonymous_bytes(without.pid) + 140 * PAGE_BYTES)


async def test_many_machines_at_once(
    make: Make, means: Means, pager: Watched, start: Start, sample: bytes, tmp_path: Path
) -> None:
    snapshots = [make("one"), make("other", touched=set(range(1000, 1024)))]
    guests = [start(uffd(snapshots[number % 2], means, pager)) for number in range(6)]
    dumps = (asyncio.to_thread(guest.dump, tmp_path / str(number)) for number, guest in enumerate(guests))
    assert await asyncio.gather(*dumps) == [sample] * 6


async def test_what_the_guest_gives_back_is_zero(make: Make, means: Means, pager: Watched, start: Start) -> None:
    guest = start(uffd(make(), means, pager))
    ask = asyncio.to_thread
    for first in (210, 300):  # of the loading set, and cold
        assert await ask(guest.page, first) != ZEROS
        assert await ask(guest.ask, f"drop {first} 2") == "0"
        assert await ask(guest.page, first) == ZEROS
        assert await ask(guest.page, first + 1) == ZEROS
        assert await ask(guest.page, first + 2) != ZEROS


async def test_what_was_written_stays(make: Make, means: Means, pager: Watched, start: Start) -> None:
    guest = start(uffd(make(), means, pager))
    for number in (0, 50, 211, 700, 1001):
        assert await asyncio.to_thread(guest.ask, f"poke {number}") == "poked"
        assert (await asyncio.to_thread(guest.page, number))[:1] == b"X"


async def test_nothing_is_left_of_a_machine_that_ended(make: Make, means: Means, pager: Watched, start: Start) -> None:
    warm = start(uffd(make("warm"), means, pager))
    await asyncio.to_thread(warm.page, 0)
    snapshot = make()
    before = descriptors(pager)
    guests = [start(uffd(snapshot, means, pager)) for _ in range(3)]
    for guest in guests:
        await asyncio.to_thread(guest.page, 300)
    assert descriptors(pager) > before
    for guest in guests:
        guest.end()
    unused = uffd(snapshot, means, pager)
    unused.end()  # was never spawned
    await until(lambda: descriptors(pager) <= before)
    assert await asyncio.to_thread(warm.page, 300) != ZEROS


async def test_if_the_pager_dies_the_guest_stops_and_reads_no_zeros(
    make: Make, means: Means, pager: Watched, start: Start
) -> None:
    guest = start(uffd(make(), means, pager))
    assert await asyncio.to_thread(guest.page, 300) != ZEROS
    assert pager.client.pid is not None
    os.kill(pager.client.pid, signal.SIGKILL)
    await until(lambda: pager.deaths == 1)
    assert pager.client.pid is None
    answer = asyncio.create_task(asyncio.to_thread(guest.page, 305))
    done, _ = await asyncio.wait([answer], timeout=0.3)
    assert not done
    guest.end()
    assert await answer == b""
    again = start(uffd(make("again"), means, pager))  # by a new pager
    assert await asyncio.to_thread(again.page, 305) != ZEROS


async def test_a_machine_whose_memory_file_was_cut_is_killed(
    make: Make, means: Means, pager: Watched, start: Start
) -> None:
    cut, whole = make("cut"), make("whole")
    guest, other = start(uffd(cut, means, pager)), start(uffd(whole, means, pager))
    assert await asyncio.to_thread(guest.page, 300) != ZEROS
    cut.memory.chmod(0o644)
    os.truncate(cut.memory, 100 * PAGE_BYTES)
    assert await asyncio.to_thread(guest.ask, "page 305") == ""
    assert await asyncio.to_thread(other.page, 305) != ZEROS
    assert pager.deaths == 0


async def test_a_damaged_layout_leaves_the_plain_mapping(
    make: Make, means: Means, pager: Watched, start: Start, sample: bytes, tmp_path: Path
) -> None:
    snapshot = make()
    assert snapshot.layout is not None
    snapshot.layout.unlink()
    restore = uffd(snapshot, means, pager)
    refused = select.poll()
    refused.register(restore.pass_fds[0], 0)
    assert await asyncio.to_thread(refused.poll, WAIT_S * 1000)
    guest = start(restore)
    assert await asyncio.to_thread(guest.dump, tmp_path / "dump") == sample
    assert "rewarm shim: uffd: Broken pipe" in guest.end()


@pytest.mark.parametrize(
    "said",
    [
        "[]",
        "{}",
        '[{"size": 1}]',
        '[{"base_host_virt_addr": 1, "size": 4096, "offset": 0}]',
        '[{"base_host_virt_addr": 4096, "size": 4096, "offset": 0, "page_size": 2097152}]',
        '[{"base_host_virt_addr": 4096, "size": 8388608, "offset": 0}]',  # more than the snapshot has
        '[{"base_host_virt_addr": 4096, "size": 4194304, "offset": 0}]',  # and the descriptor is no userfaultfd
    ],
)
async def test_a_machine_that_talks_nonsense_is_killed(make: Make, pager: Watched, said: str) -> None:
    with pager.client.serve(make()) as far:
        code = (
            "import os, socket, sys, time; s = socket.socket(fileno=int(sys.argv[1])); "
            "socket.send_fds(s, [sys.argv[2].encode()], [0]); time.sleep(60)"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(far.fileno()), said], pass_fds=[far.fileno()], stdin=subprocess.DEVNULL
        )
    assert await asyncio.to_thread(process.wait, WAIT_S) == -signal.SIGKILL
    assert pager.deaths == 0


async def test_a_vmm_that_connects(make: Make, pager: Watched, sample: bytes, tmp_path: Path) -> None:
    path = tmp_path / "uffd.sock"
    listening = pager.client.serve_at(make(), path)
    script = Path(__file__).with_name("fake_vmm.py")
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(script), str(path), str(len(sample)), stdout=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(WAIT_S):
        out, _ = await process.communicate()
    assert out.decode().strip() == hashlib.sha256(sample).hexdigest()
    assert not path.exists()
    listening.close()


async def test_a_vmm_that_never_connects(make: Make, pager: Watched, tmp_path: Path) -> None:
    path = tmp_path / "uffd.sock"
    listening = pager.client.serve_at(make("one"), path)
    with pytest.raises(OSError):
        pager.client.serve_at(make("other"), path)
    listening.close()
    assert not path.exists()
    pager.client.serve_at(make("third"), path)  # closed with the client
    await pager.client.close()
    assert not path.exists() and pager.deaths == 0


async def test_an_end_that_was_asked_for_is_no_death(pager: Watched) -> None:
    pid = pager.client.pid
    await pager.client.close()
    await pager.client.close()
    assert pager.client.pid is None and pager.deaths == 0
    assert not Path(f"/proc/{pid}").exists()


async def test_it_ends_with_its_server(tmp_path: Path) -> None:
    code = (
        "import asyncio, time\nfrom rewarm.snapshot.pager_client import PagerClient\n"
        "async def main():\n    client = PagerClient(lambda: None)\n    client.start()\n"
        "    print(client.pid, flush=True)\n    time.sleep(60)\nasyncio.run(main())"
    )
    server = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    pid = int(server.stdout.readline())
    server.kill()
    server.communicate()
    await until(lambda: not alive(pid))


def alive(pid: int) -> bool:
    """A zombie is not: whoever adopted it has not looked yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def test_orders_that_nobody_takes_are_refused(make: Make, means: Means, pager: Watched) -> None:
    snapshot = make()
    assert pager.client.pid is not None
    os.kill(pager.client.pid, signal.SIGSTOP)
    plans = []
    with pytest.raises(Unavailable, match="does not listen"):
        for _ in range(10_000):
            plans.append(pager.client.serve(snapshot))
    assert plan(snapshot, "uffd", means, pager.client).policy == "layered"
    for far in plans:
        far.close()
