"""What Ctrl-C does to commands that work in several processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SIM = ("sim", "azure-2019", "--jobs", "2", "--policy", ",".join(f"fixed:ttl={minutes}min" for minutes in range(1, 30)))
KEEPALIVE = ("experiment", "keepalive", "--jobs", "2")


def of_session(leader: int) -> list[int]:
    """The living processes of a session, zombies not among them."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session = path.read_text().rpartition(")")[2].split()[:4]
        except OSError:  # ended meanwhile
            continue
        if int(session) == leader and state != "Z":
            found.append(int(path.parent.name))
    return found


# At once: workers that are still importing. Later: workers that work, and more runs waiting for them.
@pytest.mark.parametrize(("command", "after_s"), [(SIM, 0.0), (SIM, 2.0), (KEEPALIVE, 2.0)])
def test_ctrl_c_ends_the_workers_and_what_is_queued(command: tuple[str, ...], after_s: float, tmp_path: Path) -> None:
    if command is KEEPALIVE:
        pytest.importorskip("matplotlib")
        command = (*command, "--out", str(tmp_path))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run in the background
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "rewarm", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            start_new_session=True,
        )  # fmt: skip
    finally:
        signal.signal(signal.SIGINT, before)
    try:
        until_s = time.monotonic() + 30
        while len(of_session(process.pid)) < 4:  # itself, two workers, and the resource tracker of multiprocessing
            assert time.monotonic() < until_s and process.poll() is None
            time.sleep(0.01)
        time.sleep(after_s)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        since_s = time.monotonic()
        _, stderr = process.communicate(timeout=20)
        took_s = time.monotonic() - since_s
        while (left := of_session(process.pid)) and time.monotonic() < since_s + 5:
            time.sleep(0.01)
        assert (process.returncode, left) == (130, [])
        assert "Traceback" not in stderr
        assert took_s < 4.0  # under a second on a machine with nothing else to do
    finally:
        for pid in of_session(process.pid):
            os.kill(pid, signal.SIGKILL)
        process.communicate()
