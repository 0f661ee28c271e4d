"""The worker of a micro-VM without the machine: a port that is a pipe, a Machine that only notes what it is told."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rewarm import wire
from rewarm.facts.function import FunctionSpec

_GUEST = """\
import sys
from rewarm.worker import instance
from rewarm.worker.guest import Guest, Machine
from rewarm.worker.ports import Port

class Noted(Machine):
    def become(self, seed, wall_ns, name):
        print("become", seed.hex(), wall_ns, name.decode(), flush=True)

    def mount_function(self):
        print("mount", flush=True)

instance.end_with(lambda: Guest(Port(int(sys.argv[1])), Noted()).live(sys.argv[2:]))
"""
SEED = bytes(range(64))


class Host:
    """The other end."""

    def __init__(self, *packages: str) -> None:
        self._socket, far = socket.socketpair()
        self._socket.settimeout(20)
        self._reader, self._frames = wire.Reader(1 << 20), [b""][1:]
        words = [sys.executable, "-c", _GUEST, str(far.fileno()), *packages]
        self.process = subprocess.Popen(
            words, pass_fds=[far.fileno()], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={"PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip
        far.close()

    def ask(self, frame_type: int, body: Any) -> tuple[int, Any]:
        self._socket.sendall(wire.encode_plain(frame_type, json.dumps(body).encode()))
        return self.answer()

    def resume(self, name: str = "one") -> tuple[int, Any]:
        self._socket.sendall(wire.encode_resume(SEED, 5, name))
        return self.answer()

    def answer(self) -> tuple[int, Any]:
        frame = self._frame()
        body = frame[wire.HEAD_BYTES :]
        return wire.HEAD.unpack_from(frame)[1], json.loads(body) if body else None

    def call(self, event: Any) -> Any:
        self._socket.sendall(wire.encode_run([(wire.KIND_JSON, b"", json.dumps(event).encode())], 7, 5000))
        frame = self._frame()
        _, _, flag, count, _, sequence = wire.HEAD.unpack_from(frame)
        assert sequence == 7
        return json.loads(wire.decode_reply(frame, count, flag)[0][4])

    def load(self, folder: Path, code: str) -> tuple[int, Any]:
        (folder / "app.py").write_text(textwrap.dedent(code))
        spec = FunctionSpec("f", "handler", "app:handler").to_json()
        return self.ask(wire.LOAD, {"spec": spec, "code_dir": str(folder), "weights_path": None, "version": 1})

    def end(self) -> tuple[int, str]:
        """Status and what it wrote, once it has ended."""
        output = self.process.communicate(timeout=20)[0]
        return self.process.returncode, output

    def hang_up(self) -> None:
        self._socket.close()

    def _frame(self) -> bytes:
        while not self._frames:
            self._frames += self._reader.feed(self._socket.recv(1 << 16))
        return self._frames.pop(0)


@pytest.fixture
def host() -> Iterator[Host]:
    host = Host()
    try:
        assert host.answer()[0] == wire.HELLO
        yield host
    finally:
        host.process.kill()
        host.process.communicate()
        host.hang_up()


def test_it_is_frozen_and_woken_before_and_after_its_function_is_loaded(host: Host, tmp_path: Path) -> None:
    assert host.ask(wire.FREEZE, {}) == (wire.FROZEN, None)
    assert host.resume() == (wire.RESUMED, None)
    loaded, timings = host.load(
        tmp_path,
        """
        import rewarm
        SEEN = []
        rewarm.before_snapshot(lambda: SEEN.append("closed first"))
        rewarm.before_snapshot(lambda: SEEN.append("opened last"))
        rewarm.after_restore(lambda: SEEN.append("awake"))
        def handler(event, context):
            return SEEN
        """,
    )
    assert loaded == wire.LOADED
    assert set(timings) == {"user_s", "ready_s"}
    assert host.call({}) == []
    assert host.ask(wire.FREEZE, {}) == (wire.FROZEN, None)
    assert host.resume("two") == (wire.RESUMED, None)
    assert host.call({}) == ["opened last", "closed first", "awake"]
    host.process.kill()
    become = f"become {SEED.hex()} 5"
    assert host.end()[1].splitlines() == [f"{become} one", "mount", f"{become} two"]


def test_a_resume_that_is_cut_short_ends_it(host: Host) -> None:
    host._socket.sendall(wire.encode_plain(wire.RESUME, SEED))
    status, output = host.end()
    assert status == 1
    assert "a RESUME of 64 bytes" in output


def test_a_request_may_follow_in_the_same_write(host: Host, tmp_path: Path) -> None:
    host.resume()
    host.load(tmp_path, "import rewarm\nSEEN = []\nrewarm.after_restore(lambda: SEEN.append(1))\n"
                        "def handler(event, context): return SEEN\n")  # fmt: skip
    host.ask(wire.FREEZE, {})
    run = wire.encode_run([(wire.KIND_JSON, b"", b"{}")], 7, 5000)
    host._socket.sendall(wire.encode_resume(SEED, 5, "two") + run)
    assert host.answer() == (wire.RESUMED, None)
    frame = host._frame()
    assert wire.decode_reply(frame, 1, wire.HEAD.unpack_from(frame)[2])[0][4] == b"[1]"


def test_without_randomness_of_its_own_nothing_is_loaded(host: Host, tmp_path: Path) -> None:
    host.resume()
    host.ask(wire.FREEZE, {})
    (tmp_path / "app.py").write_text("print('user code ran')")
    host._socket.sendall(wire.encode_plain(wire.LOAD, b"{}"))
    status, output = host.end()
    assert status == 1
    assert "LOAD before RESUME" in output
    assert "user code ran" not in output


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("import nonsense_of_ours", "add it to preload"),
        ("raise OSError('[Errno 101] Network is unreachable')", "a micro-VM has no network"),
        ("raise ValueError('no')", ""),
    ],
)
def test_code_that_does_not_come_up_is_told_and_ends_it(host: Host, tmp_path: Path, line: str, hint: str) -> None:
    host.resume()
    answer, report = host.load(tmp_path, line)
    assert answer == wire.FAILED
    assert report["code"] == "start_failed"
    assert hint in report["error"]
    assert ("micro-VM" in report["error"]) == bool(hint)
    assert host.end()[0] == 1


@pytest.mark.parametrize("hook", ["before_snapshot", "after_restore"])
def test_a_hook_that_raises_is_told_and_ends_it(host: Host, tmp_path: Path, hook: str) -> None:
    host.resume()
    host.load(tmp_path, f"import rewarm\n@rewarm.{hook}\ndef f(): 1 / 0\ndef handler(event, context): return 1\n")
    answer, report = host.ask(wire.FREEZE, {}) if hook == "before_snapshot" else host.resume()
    assert answer == wire.FAILED
    assert report["error"].startswith(f"the hook {hook} raised ZeroDivisionError: division by zero (app.py line 3)")
    assert report["error_type"] == "ZeroDivisionError"
    assert host.end()[0] == 1


def test_user_code_that_exits_ends_it_with_its_status(host: Host, tmp_path: Path) -> None:
    host.resume()
    host.load(tmp_path, "import os\ndef handler(event, context): os._exit(9)\n")
    host._socket.sendall(wire.encode_run([(wire.KIND_JSON, b"", b"1")], 1, 5000))
    assert host.end()[0] == 9


def test_packages_that_do_not_import() -> None:
    host = Host("nonsense_of_ours")
    try:
        answer, report = host.answer()
        assert answer == wire.FAILED
        assert "No module named 'nonsense_of_ours'" in report["error"]
        assert host.end()[0] == 1
    finally:
        host.process.kill()
        host.hang_up()


def test_a_frame_out_of_its_turn_ends_it(host: Host) -> None:
    host._socket.sendall(wire.encode_plain(wire.HELLO))
    status, output = host.end()
    assert status == 1
    assert "a frame of type 3 out of its turn" in output
