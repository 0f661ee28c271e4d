"""A function in micro-VMs on a real server: deployed, asleep, woken with right answers, whatever is killed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime", reason="the example's engine")

EXAMPLE = Path(__file__).resolve().parents[2] / "examples/digits"
WAKES = int(os.environ.get("REWARM_TEST_WAKES", "3"))
WAIT_S = 120.0  # a guest takes long on a busy machine

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

BROKEN = """
import numpy as np
import rewarm

@rewarm.function(name="broken", memory="1GB", preload=["numpy", "onnxruntime"], isolation="microvm")
class Broken:
    def __init__(self):
        raise ValueError("no luck today")

    def predict(self, x: np.ndarray) -> np.ndarray:
        return x
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, give_guest: Callable[[Path], None]) -> Path:
    """One for all tests here: the first of them has the guest booted and the function published."""
    path = tmp_path_factory.mktemp("microvm") / "home"
    give_guest(path)
    return path


@pytest.fixture
def serve(start: Callable[..., Any], home: Path) -> Callable[..., Any]:
    """A server that has digits in micro-VMs."""

    def one(*options: str, **how: Any) -> Any:
        server = start("--memory", "4GB", *options, home=home, **how)
        if not server.get("/api/v1/functions")["functions"]:
            done = server.cli("deploy", str(EXAMPLE / "app.py"), "--isolation", "microvm", timeout_s=300.0)
            assert done.code == 0 and "wakes in" in done.out, (done, server.log.read_text())
        return server

    return one


def machines(home: Path) -> list[int]:
    """The pids of virtual machines whose memory is a file of this home."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if b"qemu-system" in (entry / "cmdline").read_bytes() and f" {home}/" in (entry / "maps").read_text():
                    found.append(int(entry.name))
    return found


class Digits:
    """Calls with images whose digits are known."""

    def __init__(self, server: Any, until: Callable[..., Any]) -> None:
        self._server = server
        self._until = until
        samples = np.load(EXAMPLE / "test_digits.npz")
        self._images = (samples["images"][:100] / np.float32(255)).astype(np.float32)
        self._labels = samples["labels"][:100]

    def ask(self, number: int) -> str:
        """The kind of start; the answer must be right."""
        reply = self._server.invoke("digits", self._images[number].tolist(), timeout_s=WAIT_S)
        assert reply.status == 200, (reply, self._server.log.read_text())
        assert int(np.argmax(reply.json())) == self._labels[number]
        return str(reply.headers["rewarm-start"])

    def to_zero(self) -> None:
        self._server.call("POST", "/api/v1/functions/digits/unload")
        self._until(lambda: not self._server.instances("digits"), "it has scaled to zero", WAIT_S)
        self._until(self.asleep, "it is asleep", WAIT_S)

    def asleep(self) -> bool:
        nodes = self._server.get("/api/v1/ps")["nodes"]
        return any(node["layer"] == "asleep" and node["state"] == "asleep" for node in nodes)


def test_it_scales_to_zero_and_wakes(serve: Callable[..., Any], until: Callable[..., Any]) -> None:
    server = serve()
    digits = Digits(server, until)
    for wake in range(WAKES):
        digits.to_zero()
        assert digits.ask(wake % 20) == "restored"
        assert digits.ask((wake + 1) % 20) == "warm"
    alive = server.get("/api/v1/ps")
    assert sum(alive["microvms"]["policies"].values()) == alive["microvms"]["restores"] >= WAKES
    (asleep,) = (node for node in alive["nodes"] if node["layer"] == "asleep")
    assert asleep["uses"] >= WAKES and asleep["disk_bytes"] > 1 << 20 and asleep["resident_bytes"] == 0
    (user,) = (node for node in alive["nodes"] if node["layer"] == "user")
    until(lambda: server.instances("digits")[0]["resident_bytes"] > 8 << 20, "its machine is measured")
    assert user["pid"] in machines(server.home)
    assert b"rewarm_microvm_restores_total" in server.call("GET", "/metrics").body


def test_its_machine_is_killed(serve: Callable[..., Any], until: Callable[..., Any]) -> None:
    server = serve()
    digits = Digits(server, until)
    until(digits.asleep, "it is asleep", WAIT_S)
    digits.ask(0)
    (before,) = server.instances("digits")
    os.kill(before["pid"], signal.SIGKILL)
    until(lambda: before["id"] not in [each["id"] for each in server.instances("digits")], "its end is known")
    digits.ask(1)


def test_the_server_is_killed(serve: Callable[..., Any], until: Callable[..., Any], home: Path) -> None:
    """Nothing of it is left, and the next server wakes what slept without booting anything."""
    server = serve()
    Digits(server, until).ask(0)
    assert len(machines(home)) == 1
    server.kill()
    until(lambda: not server.processes() and not machines(home), "no process is left")
    server = serve()
    assert list((home / "tmp").iterdir()) == [] and list((home / "run").iterdir()) == []
    digits = Digits(server, until)
    until(digits.asleep, "it is asleep", WAIT_S)
    assert digits.ask(1) == "restored"
    assert server.get("/api/v1/ps")["microvms"]["boots"] == 0


def test_its_snapshot_is_damaged(serve: Callable[..., Any], until: Callable[..., Any], home: Path) -> None:
    """The caller does not notice: it starts the long way, and sleeps again afterwards."""
    server = serve()
    digits = Digits(server, until)
    until(digits.asleep, "it is asleep", WAIT_S)
    (memory,) = (home / "snapshots").glob("[0-9a-f]*/memory")
    memory.chmod(0o600)
    with memory.open("r+b") as file:
        os.pwrite(file.fileno(), b"damage", os.lseek(file.fileno(), 0, os.SEEK_DATA))
    assert digits.ask(2) != "restored"
    assert server.get("/api/v1/ps")["microvms"]["lost"] == 1
    digits.to_zero()
    assert digits.ask(3) == "restored"


def test_code_that_does_not_come_up(serve: Callable[..., Any]) -> None:
    """Whoever deploys it reads what it raised, and nothing of it stays."""
    server = serve()
    reply = server.put(BROKEN)
    assert "no luck today" in reply.refused(500, "start_failed")
    assert server.call("GET", "/api/v1/functions/broken").status == 404


def test_without_a_guest(start: Callable[..., Any], tmp_path: Path) -> None:
    """It is refused with what to do; functions in processes are served as ever."""
    server = start()
    server.deploy("def main(event, context): return event", handler="app.main", name="plain")
    reply = server.put("def main(event, context): return event", handler="app.main", name="vm", isolation="microvm")
    message = reply.refused(500, "microvm_unavailable")
    assert "make system-deps" in message or "rewarm microvm build" in message
    assert server.invoke("plain", {"a": 1}).json() == {"a": 1}
    began_s = time.monotonic()
    assert json.loads(server.call("GET", "/api/v1/ps").body)["microvms"]["boots"] == 0
    assert time.monotonic() - began_s < 5.0
