"""The keeper as a real process, and the server's side of it."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import resource
import select
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from rewarm.errors import Unavailable, WeightsCorrupt
from rewarm.testing import held_by_process
from rewarm.weights.format import open_pack
from rewarm.weights.keeper_client import Failed, KeeperClient, Loaded, PackAt, Pinned, Report
from rewarm.weights.pages import Mapped
from rewarm.weights.writer import LayerIn, TensorIn, write_pack

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs mlock and /proc")

MIB = 1 << 20
WAIT_S = 30.0
_PR_CAPBSET_DROP, _CAP_IPC_LOCK = 24, 14
_libc = ctypes.CDLL(None)


def make_pack(home: Path, key: str, size_bytes: int) -> PackAt:
    tensors_dir, folder = home / "tensors", home / "packs" / key
    tensors_dir.mkdir(exist_ok=True)
    folder.mkdir(parents=True)
    data = os.urandom(size_bytes)
    layers = [LayerIn("only", (TensorIn("weight", "U8", (size_bytes,), lambda: data),))]
    write_pack(folder, tensors_dir, layers, key=key, order="traced", source_sha256="0" * 64)
    for path in folder.glob("*.safetensors"):
        path.rename(tensors_dir / path.name)
    return PackAt(key, folder, tensors_dir)


def data_file(pack: PackAt) -> Path:
    return open_pack(pack.folder, pack.tensors_dir).path(0)


def evict(pack: PackAt) -> None:
    """Out of memory with what nobody maps or holds."""
    file = os.open(data_file(pack), os.O_RDONLY)
    os.fsync(file)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(file)


def in_memory(pack: PackAt) -> int:
    """Bytes of the file; its header of one page is not part of what is streamed."""
    path = data_file(pack)
    mapped = Mapped(path, path.stat().st_size)
    found = mapped.resident_bytes(0, mapped.size_bytes)
    mapped.close()
    return found


def is_alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


@pytest.fixture
def pack(tmp_path: Path) -> PackAt:
    """8 MiB, none of which are in memory."""
    pack = make_pack(tmp_path, "one", 8 * MIB)
    evict(pack)
    if in_memory(pack):
        pytest.skip("this file system keeps its pages")
    return pack


# ---------------------------------------------------------------- the process


def may_not_lock() -> None:
    """Between fork and exec: not even root may, then."""
    _libc.prctl(_PR_CAPBSET_DROP, _CAP_IPC_LOCK)
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))


class Raw:
    """A keeper without a client."""

    def __init__(self, process: subprocess.Popen[bytes], control: socket.socket) -> None:
        self.process = process
        self.control = control

    def send(self, **order: object) -> None:
        self.control.send(json.dumps(order).encode())

    def order(self, op: str, pack: PackAt, **fields: object) -> None:
        self.send(op=op, key=pack.key, folder=str(pack.folder), tensors_dir=str(pack.tensors_dir), **fields)

    def next(self) -> dict[str, Any]:
        return json.loads(self.control.recv(1 << 16))  # type: ignore[no-any-return]


def start_raw(lock: bool = True) -> Raw:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    near.settimeout(WAIT_S)
    with far:
        command = [sys.executable, "-m", "rewarm.weights.keeper", str(far.fileno()), str(os.getpid())]
        process = subprocess.Popen(command, pass_fds=[far.fileno()], preexec_fn=None if lock else may_not_lock)
    return Raw(process, near)


@pytest.fixture
def raw() -> Iterator[Raw]:
    raw = start_raw()
    yield raw
    raw.control.close()
    assert raw.process.wait(WAIT_S) == 0


def test_it_imports_neither_an_engine_nor_numpy() -> None:
    code = "import sys, rewarm.weights.keeper; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"numpy", "torch", "onnxruntime", "asyncio"} & set(modules)


@pytest.mark.usefixtures("may_lock")
def test_what_is_no_order_is_refused_and_the_next_one_served(raw: Raw, pack: PackAt) -> None:
    for packet in (b"{", b"[]", b"{}", b'{"op": "pin"}', b"x" * 70_000, b'{"op": "status", "id": null}'):
        raw.control.send(packet)
        assert raw.next()["op"] == "refused"
    raw.order("dance", pack)
    assert "dance" in raw.next()["error"]
    raw.order("pin", pack, bytes="many")
    assert raw.next()["op"] == "refused"
    raw.order("pin", PackAt("x", pack.folder / "no", pack.folder / "no"), bytes=1)
    assert raw.next()["op"] == "corrupt"
    raw.order("pin", pack, bytes=MIB)
    assert raw.next() == {"op": "pinned", "key": "one", "bytes": MIB, "locked": True, "why": ""}


def test_signals_to_the_group_are_the_servers(raw: Raw) -> None:
    raw.send(op="status", id=1)
    raw.next()  # it is up
    for number in (signal.SIGINT, signal.SIGTERM):
        raw.process.send_signal(number)
    raw.send(op="status", id=2)
    assert raw.next()["id"] == 2


def test_where_it_may_not_lock_it_touches_and_says_so(pack: PackAt) -> None:
    raw = start_raw(lock=False)
    try:
        raw.order("pin", pack, bytes=MIB)
        report = raw.next()
        assert (report["op"], report["bytes"], report["locked"]) == ("pinned", MIB, False)
        assert "RLIMIT_MEMLOCK" in report["why"]
        assert in_memory(pack) >= MIB
        raw.send(op="status", id=1)
        assert raw.next()["locked_bytes"] == 0
    finally:
        raw.control.close()
        raw.process.wait(WAIT_S)


SERVER = """
import asyncio, sys
from pathlib import Path
from rewarm.weights.keeper_client import KeeperClient, PackAt

async def main():
    pinned = asyncio.Event()
    keeper = KeeperClient(lambda report: pinned.set())
    keeper.pin(PackAt("one", Path(sys.argv[1]), Path(sys.argv[2])), 1 << 20)
    await pinned.wait()
    print(keeper.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


def test_it_dies_with_the_server(pack: PackAt) -> None:
    command = [sys.executable, "-c", SERVER, str(pack.folder), str(pack.tensors_dir)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        pid = int(server.stdout.readline())
        pidfd = os.pidfd_open(pid)
        try:
            assert not select.select([pidfd], [], [], 0.0)[0]
            server.kill()
            assert select.select([pidfd], [], [], WAIT_S)[0]  # readable: it has ended
        finally:
            os.close(pidfd)
    with contextlib.suppress(ChildProcessError):  # ours, if an earlier test made this process a subreaper
        os.waitpid(pid, 0)
    evict(pack)
    assert in_memory(pack) == 0


# ---------------------------------------------------------------- the client


class Listening:
    """A client and what it hears."""

    def __init__(self, folder: Path) -> None:
        self.before = held_by_process(folder / "nothing")
        self.heard: asyncio.Queue[Report] = asyncio.Queue()
        self.client = KeeperClient(self.heard.put_nowait, backoff_s=0.001)
        self.folder = folder

    async def next(self) -> Report:
        return await asyncio.wait_for(self.heard.get(), WAIT_S)

    async def close(self) -> None:
        await self.client.close()
        left = held_by_process(self.folder / "nothing") - self.before
        assert not left, sorted(left)


@pytest.fixture
async def listening(tmp_path: Path) -> AsyncIterator[Listening]:
    """Nothing is left when it has closed: no process, no descriptor."""
    listening = Listening(tmp_path)
    yield listening
    await listening.close()


async def test_there_is_no_process_before_the_first_need(listening: Listening, pack: PackAt) -> None:
    listening.client.forget(pack)
    listening.client.pin(pack, 0)
    assert listening.client.pid is None
    listening.client.start()
    pid = listening.client.pid
    listening.client.start()
    assert pid is not None and listening.client.pid == pid
    assert (await listening.client.status()).locked_bytes == 0


async def test_verify_reads_a_file_once_until_it_is_changed(listening: Listening, pack: PackAt) -> None:
    await listening.client.verify(pack)
    evict(pack)
    await listening.client.verify(pack)
    assert in_memory(pack) == 0
    assert (await listening.client.status()).verified_files == 1
    path = data_file(pack)
    data = bytearray(path.read_bytes())
    data[5 * MIB] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    with pytest.raises(WeightsCorrupt, match="digest"):
        await listening.client.verify(pack)
    os.truncate(path, MIB)
    with pytest.raises(WeightsCorrupt, match=str(MIB)):
        await listening.client.verify(pack)
    path.unlink()
    with pytest.raises(WeightsCorrupt, match="missing"):
        await listening.client.verify(pack)


async def test_prefetch_reads_once_and_tells_the_bandwidth(listening: Listening, pack: PackAt) -> None:
    client = listening.client
    for _ in range(3):
        client.prefetch(pack)  # joined
    report = await listening.next()
    assert isinstance(report, Loaded)
    assert report.read_bytes == 8 * MIB and report.bandwidth_bytes_s is not None
    assert client.bandwidth.bytes_s(report.device) == report.bandwidth_bytes_s
    assert report.device == pack.folder.stat().st_dev
    assert in_memory(pack) >= 8 * MIB
    client.prefetch(pack)
    again = await listening.next()
    assert isinstance(again, Loaded)
    assert (again.read_bytes, again.bandwidth_bytes_s) == (0, None)
    assert listening.heard.empty()


@pytest.mark.usefixtures("may_lock")
async def test_a_pack_that_was_cut_is_told_and_the_others_go_on(listening: Listening, pack: PackAt) -> None:
    other = make_pack(pack.folder.parents[1], "two", MIB)
    os.truncate(data_file(pack), MIB)
    listening.client.prefetch(pack)
    listening.client.pin(pack, MIB)
    listening.client.pin(other, MIB)
    reports = [await listening.next() for _ in range(3)]
    assert Pinned("two", MIB, True, "") in reports
    failed = [report for report in reports if isinstance(report, Failed)]
    assert {(report.key, report.what, report.corrupt) for report in failed} == {
        ("one", "prefetch", True), ("one", "pin", True),
    }  # fmt: skip


@pytest.mark.usefixtures("may_lock")
async def test_pinned_pages_stay_and_the_rest_goes(listening: Listening, pack: PackAt) -> None:
    client = listening.client
    client.prefetch(pack)
    assert isinstance(await listening.next(), Loaded)
    client.pin(pack, 2 * MIB)
    assert await listening.next() == Pinned("one", 2 * MIB, True, "")
    evict(pack)
    assert 2 * MIB <= in_memory(pack) < 8 * MIB
    assert (await client.status()).locked_bytes == 2 * MIB
    client.pin(pack, 1 << 40)
    assert await listening.next() == Pinned("one", 8 * MIB, True, "")
    client.forget(pack)
    assert await listening.next() == Pinned("one", 0, True, "")
    evict(pack)
    assert in_memory(pack) == 0
    assert (await client.status()).locked_bytes == 0


@pytest.mark.usefixtures("may_lock")
async def test_killed_it_is_started_again_with_its_pins(listening: Listening, pack: PackAt) -> None:
    client = listening.client
    dropped = make_pack(pack.folder.parents[1], "two", MIB)
    client.pin(dropped, MIB)
    client.pin(pack, 2 * MIB)
    client.pin(dropped, 0)
    while await listening.next() != Pinned("one", 2 * MIB, True, ""):
        pass
    pid = client.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    await client.verify(pack)  # asked of the old one, perhaps, answered by the new one
    lost = await listening.next()
    while isinstance(lost, Pinned) and (lost.size_bytes or lost.key == "two"):
        lost = await listening.next()  # from before
    assert lost == Pinned("one", 0, False, "the keeper of weights has ended", soon=True)
    assert await listening.next() == Pinned("one", 2 * MIB, True, "")
    assert client.pid not in (None, pid)
    assert (await client.status()).locked_bytes == 2 * MIB
    evict(pack)
    assert 2 * MIB <= in_memory(pack) < 8 * MIB


async def test_it_is_not_started_for_ever(listening: Listening, pack: PackAt) -> None:
    client = listening.client
    for _ in range(6):
        assert client.available
        await client.status()
        assert client.pid is not None
        os.kill(client.pid, signal.SIGKILL)
        while client.pid is not None:
            await asyncio.sleep(0)
    assert not client.available
    with pytest.raises(Unavailable, match="restart the server"):
        await client.verify(pack)
    client.prefetch(pack)
    client.pin(pack, MIB)
    assert client.pid is None


async def test_who_waits_is_told_when_it_closes(listening: Listening, pack: PackAt) -> None:
    asked = asyncio.create_task(listening.client.verify(pack))
    await asyncio.sleep(0)
    pid = listening.client.pid
    assert pid is not None
    await listening.client.close()
    await listening.client.close()
    assert not is_alive(pid)
    with pytest.raises(Unavailable):
        await asked
    listening.client.start()
    assert listening.client.pid is None
