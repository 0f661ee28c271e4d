"""Whatever user code does to its process hurts its own request only, and leaves nothing behind in the server's.

Node, executor and process driver as in the server, in this process and without HTTP, so that everything the server
would hold can be counted.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import orjson
import pytest

from rewarm import wire
from rewarm.clock import system_clock
from rewarm.control.executor import Executor
from rewarm.core.node import Node
from rewarm.errors import FunctionTimeout, InstanceDied, OutOfMemory, RewarmError, StartFailed
from rewarm.facts import messages as m
from rewarm.facts.function import FunctionSpec, Revision
from rewarm.facts.request import Request
from rewarm.obs.logs import LogStore
from rewarm.policy.keepalive.fixed import FixedKeepalive
from rewarm.sandbox.guard import GuardedDriver
from rewarm.sandbox.process import ProcessDriver
from rewarm.testing import held_by_process

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")

APP = """
import ctypes, os, subprocess, sys, time
from pathlib import Path


def main(event, context):
    what = event.get("do")
    if what == "segfault":
        ctypes.string_at(0)
    elif what == "abort":
        os.abort()
    elif what == "hang":
        while True:
            pass
    elif what == "sys.exit":
        sys.exit(0)
    elif what == "os._exit":
        os._exit(0)
    elif what == "kill":
        os.kill(os.getpid(), 9)
    elif what == "allocate":
        return len(bytearray(event["bytes"]))
    elif what == "flood":
        chunk = "x" * 1023 + chr(10)
        for _ in range(event["chunks"]):
            sys.stdout.write(chunk)
    elif what == "daemonize":
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                time.sleep(600)
            os._exit(0)
    elif what == "children":
        for _ in range(3):
            subprocess.Popen(["sleep", "600"])
        subprocess.Popen(["sleep", "600"], start_new_session=True)
    elif what == "files":
        for n in range(50):
            Path(os.environ["TMPDIR"], "deep", str(n)).mkdir(parents=True)
            Path(os.environ["TMPDIR"], "deep", str(n), "file").write_text("x" * 1000)
    elif what == "garbage":
        os.write(3, b"no frame at all, and longer than the head of one")
    elif what == "lies":
        import struct
        hello = struct.pack("<QBBHII", 20, 3, 0, 0, event["pid"], 0)
        loaded = struct.pack("<QBBHII", 22, 5, 0, 0, 0, 0) + b"{}"
        os.write(3, {"hello": hello, "loaded": loaded}[event["frame"]])
        time.sleep(600)
    elif what == "close":
        os.closerange(0, 64)
        time.sleep(600)
    if event.get("then"):
        main({"do": event["then"]}, context)
    return event.get("n")
"""


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(100):
        if condition():
            return
        await asyncio.sleep(0.05)
    raise AssertionError("it never came to that")


class Server:
    """What `rewarm serve` puts together, less its front door."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run_dir = folder / "run"
        self.run_dir.mkdir()
        self.logs = LogStore(1 << 20, time.time)
        self.driver = GuardedDriver(ProcessDriver(self.run_dir))
        self.node = Node(8 << 30, FixedKeepalive())
        self.executor = Executor(self.node, self.driver, self.logs)
        self._open: dict[Request, asyncio.Future[object]] = {}
        self._versions: Counter[str] = Counter()

    def answer(self, requests: list[Request], answers: list[wire.AnyAnswer], run_us: int) -> None:
        for request, answer in zip(requests, answers, strict=True):
            self._open.pop(request).set_result(answer)

    def reject(self, request: Request, error: RewarmError) -> None:
        self._open.pop(request).set_exception(error)

    def deploy(self, name: str, code: str = APP, **fields: object) -> None:
        self._versions[name] += 1
        folder = self.folder / f"{name}-{self._versions[name]}"
        folder.mkdir()
        (folder / "app.py").write_text(code)
        fields = {"max_instances": 1, **fields}
        spec = FunctionSpec(name, "handler", "app:main", **fields)  # type: ignore[arg-type]
        self.executor.post(m.Deployed(Revision(spec, folder.name, self._versions[name], str(folder))))

    def begin(self, name: str, **event: object) -> asyncio.Future[object]:
        now = system_clock()
        request = Request(name, now, now + 60.0, (wire.KIND_JSON, b"", orjson.dumps(event)))
        future = self._open[request] = asyncio.get_running_loop().create_future()
        self.executor.post(m.Arrived(request))
        return future

    async def call(self, name: str, **event: object) -> tuple[int, object]:
        """(status, body); raises what the caller would be told."""
        answer = await asyncio.wait_for(self.begin(name, **event), 60.0)
        assert isinstance(answer, tuple)
        return answer[0], orjson.loads(answer[4])

    async def serves(self, name: str) -> bool:
        return await self.call(name, n=7) == (200, 7)

    def pid(self, name: str) -> int:
        (sandbox_id,) = self.node.functions[name].sandboxes
        return self.driver.pids()[sandbox_id]

    def counts(self) -> Counter[str]:
        """How many processes, descriptors and paths this process is answerable for."""
        return Counter(line.split()[0] for line in held_by_process(self.run_dir))

    async def back_to(self, counts: Counter[str]) -> None:
        """Wait until nothing more is held than at first. Less may be: other tests' servers scale to zero meanwhile."""
        try:
            await until(lambda: self.counts() <= counts)
        except AssertionError:
            raise AssertionError(f"held {counts} before, now {sorted(held_by_process(self.run_dir))}") from None


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    """With one idle instance of `f`; everything is gone again when it closes."""
    before = held_by_process(tmp_path / "run")
    server = Server(tmp_path)
    server.executor.start(server)
    server.deploy("f", timeout_s=30.0)
    assert await server.serves("f")
    try:
        yield server
    finally:
        await server.executor.close()
        left = held_by_process(tmp_path / "run") - before
        assert not left, sorted(left)


@pytest.mark.parametrize(
    ("event", "error"),
    [
        ({"do": "segfault"}, InstanceDied),
        ({"do": "abort"}, InstanceDied),
        ({"do": "sys.exit"}, InstanceDied),
        ({"do": "os._exit"}, InstanceDied),
        ({"do": "kill"}, OutOfMemory),
        ({"do": "garbage"}, InstanceDied),
        ({"do": "close"}, InstanceDied),
        ({"do": "files", "then": "os._exit"}, InstanceDied),
        ({"do": "flood", "chunks": 2000, "then": "os._exit"}, InstanceDied),
        ({"do": "daemonize", "then": "segfault"}, InstanceDied),
        ({"do": "children", "then": "os._exit"}, InstanceDied),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
async def test_an_instance_that_ends_is_replaced(
    server: Server, event: dict[str, object], error: type[RewarmError]
) -> None:
    before, pid = server.counts(), server.pid("f")
    with pytest.raises(InstanceDied) as caught:
        await server.call("f", **event)
    assert type(caught.value) is error
    assert await server.serves("f")
    assert server.pid("f") != pid
    await server.back_to(before)


@pytest.mark.parametrize("frame", ["hello", "loaded"])
async def test_an_instance_that_lies_about_itself_is_ended(server: Server, frame: str) -> None:
    """Frames that only the worker may send, from user code: above all they must not make us kill a stranger."""
    before = server.counts()
    stranger = await asyncio.create_subprocess_exec("sleep", "600")
    try:
        with pytest.raises(InstanceDied):
            await server.call("f", do="lies", frame=frame, pid=stranger.pid)
        assert await server.serves("f")
        server.executor.post(m.Unload("f"))
        assert await server.serves("f")
        assert stranger.returncode is None
    finally:
        stranger.kill()
        await stranger.wait()
    await server.back_to(before)


async def test_a_hang(server: Server) -> None:
    before = server.counts()
    server.deploy("f", timeout_s=0.3)
    assert await server.serves("f")
    hanging = server.begin("f", do="hang")
    waiting = [server.begin("f", n=n) for n in range(3)]
    with pytest.raises(FunctionTimeout):
        await hanging
    answers = await asyncio.gather(*waiting)
    assert [answer[0] for answer in answers if isinstance(answer, tuple)] == [200, 200, 200]
    await server.back_to(before)


async def test_memory_beyond_the_limit(server: Server) -> None:
    before = server.counts()
    server.deploy("f", memory_bytes=256 << 20)
    assert await server.call("f", do="allocate", bytes=16 << 20) == (200, 16 << 20)
    pid = server.pid("f")
    status, body = await server.call("f", do="allocate", bytes=1 << 30)
    assert status == OutOfMemory.status
    assert isinstance(body, dict) and body["code"] == OutOfMemory.code
    assert await server.serves("f")
    assert server.pid("f") == pid  # MemoryError is an exception like others
    await server.back_to(before)


async def test_killed_from_outside_while_busy_and_while_idle(server: Server) -> None:
    before = server.counts()
    busy = server.begin("f", do="hang")
    await asyncio.sleep(0.05)
    os.kill(server.pid("f"), signal.SIGKILL)
    with pytest.raises(OutOfMemory):
        await busy
    assert await server.serves("f")
    os.kill(server.pid("f"), signal.SIGKILL)
    await until(lambda: not server.node.functions["f"].sandboxes)
    assert await server.serves("f")
    await server.back_to(before)


async def test_a_zygote_that_is_killed_takes_nobody_along(server: Server) -> None:
    before = server.counts()
    (key,) = server.node.pool.langs
    pid = server.pid("f")
    os.kill(server.driver.pids()[key], signal.SIGKILL)
    await until(lambda: not server.node.pool.langs)
    assert await server.serves("f")
    assert server.pid("f") == pid
    os.kill(pid, signal.SIGKILL)
    await until(lambda: not server.node.functions["f"].sandboxes)
    assert await server.serves("f")
    await server.back_to(before)


async def test_a_flood_of_output_while_others_answer(server: Server) -> None:
    server.deploy("g")
    assert await server.serves("g")
    before = server.counts()
    flood = server.begin("f", do="flood", chunks=20_000, n=1)  # 20 MB
    served = 0
    while not flood.done():
        assert await asyncio.wait_for(server.serves("g"), 5.0)
        served += 1
        await asyncio.sleep(0.01)
    assert await flood
    assert served > 10
    assert await server.serves("f")
    assert sum(len(line.text) for line in server.logs.of("f").tail(10**6, None)) <= 2 << 20
    await server.back_to(before)


async def test_a_daemon_is_found_even_if_its_instance_lives_on(server: Server) -> None:
    before = server.counts()
    status, _ = await server.call("f", do="daemonize", n=1)
    assert status == 200
    server.executor.post(m.Unload("f"))
    assert await server.serves("f")
    await server.back_to(before)


@pytest.mark.parametrize(
    "code",
    ["raise ValueError('no')", "import os; os._exit(0)", "import sys; sys.exit(3)",
     "import ctypes; ctypes.string_at(0)",
     "def main(:", "x = bytearray(1 << 40)", "import os; os.write(3, b'x' * 100)",
     "import os, struct; os.write(3, struct.pack('<QBBHII', 22, 6, 0, 0, 0, 0) + b'{}')",
     "while True: print('x' * 1000)\n"],
)  # fmt: skip
async def test_code_that_does_not_come_up(server: Server, code: str) -> None:
    before = server.counts()
    server.deploy("bad", code, timeout_s=1.0)
    if code.startswith("while"):
        start = server.begin("bad")
        await asyncio.sleep(0.5)
        server.executor.post(m.Removed("bad"))
        with pytest.raises(RewarmError):
            await start
    else:
        with pytest.raises((StartFailed, InstanceDied)) as caught:
            await server.call("bad")
        assert caught.value.message
    assert await server.serves("f")
    await server.back_to(before)


async def test_many_ends_at_once(server: Server) -> None:
    before = server.counts()
    server.deploy("f", max_instances=4)
    dying = [server.begin("f", do=("os._exit", "segfault", "kill")[n % 3]) for n in range(12)]
    ends = await asyncio.gather(*dying, return_exceptions=True)
    assert all(isinstance(end, InstanceDied) for end in ends)
    assert await server.serves("f")
    for sandbox_id in list(server.node.functions["f"].sandboxes)[1:]:
        server.driver.carry_out(m.Destroy(sandbox_id, "test"))
    await server.back_to(before)
