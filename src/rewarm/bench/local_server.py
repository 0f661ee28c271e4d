"""A server of one's own for an experiment: a real `rewarm serve` process in a temporary home."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from rewarm.bench.api import Api
from rewarm.errors import SystemFault

_READY_S_MAX = 30.0
_STOP_S_MAX = 15.0


@contextlib.contextmanager
def local_server(options: Sequence[str] = ()) -> Iterator[str]:
    """The URL of a fresh server, which ends with the block. `options` are further options of `rewarm serve`."""
    with tempfile.TemporaryDirectory(prefix="rewarm-bench-") as folder:
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        log = Path(folder, "server.log")
        command = [sys.executable, "-m", "rewarm", "serve", "--port", str(port), "--home", str(Path(folder, "home"))]
        with log.open("wb") as sink:
            process = subprocess.Popen([*command, *options], stdin=subprocess.DEVNULL, stdout=sink, stderr=sink)
        try:
            _wait_ready(process, url, log)
            yield url
        finally:
            _stop(process)


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    until_s = time.monotonic() + _READY_S_MAX
    while process.poll() is None and time.monotonic() < until_s:
        try:
            with Api(url, timeout_s=5.0) as api:
                api.server()
                return
        except SystemFault:
            time.sleep(0.02)
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    ended = "ended" if process.poll() is not None else f"did not answer within {_READY_S_MAX:g} s"
    said = next(
        (line for line in reversed(lines) if line.startswith("error: ")), lines[-1] if lines else "it said nothing"
    )
    raise SystemFault(f"the experiment's server {ended}: {said.removeprefix('error: ')}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_S_MAX)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    # Its instances end with it (parent-death signal); nothing to sweep here.


def start_and_unload(api: Api, name: str, timeout_s: float = 60.0) -> None:
    """Starts an instance once and lets it go: what it was forked from stays alive, the instance does not."""
    until_s = time.monotonic() + timeout_s
    inits = api.stats(name)["inits"]
    api.load(name)
    while api.stats(name)["inits"] == inits:
        _pause(until_s, f"{name} has not started {timeout_s:g} s after load")
    api.unload(name)
    while any(entry["function"] == name for entry in api.instances()["instances"]):
        _pause(until_s, f"{name} still has instances {timeout_s:g} s after unload")


def _pause(until_s: float, complaint: str) -> None:
    if time.monotonic() > until_s:
        raise SystemFault(complaint)
    time.sleep(0.02)
