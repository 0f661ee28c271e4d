"""What every benchmark needs: servers as processes, memory and CPU of a process tree, medians, plain tables.

Servers are started in a session of their own and are always stopped: SIGTERM, then SIGKILL for what is left of the
tree that was seen while the server lived.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
HOST = "127.0.0.1"
STOP_TIMEOUT_S = 15.0
TICKS_PER_S = os.sysconf("SC_CLK_TCK")

#: One thread per matrix product, for every server alike: two cores are shared by server, worker and load generator.
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


COMPILED = ROOT / "build" / "compiled"


class BenchmarkError(Exception):
    """A benchmark cannot go on; the message says why in one line."""


def lacks_compiled() -> str | None:
    """Why the package cannot be measured as a release has it, with its hot path compiled; None: it can."""
    stamp = COMPILED / ".stamp"
    newest_s = max(source.stat().st_mtime for source in (ROOT / "src").rglob("*.py"))
    if stamp.exists() and stamp.stat().st_mtime >= newest_s:
        return None
    return "build/compiled is missing or older than src: make compiled, or measure with --interpreted"


def run_compiled() -> None:
    """Go on with the package as a release has it: unless that is imported already, this program is started again."""
    from rewarm.core import node

    if Path(node.__file__).suffix == ".so":
        return
    missing = lacks_compiled()
    if missing is not None:
        raise SystemExit(missing)
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "PYTHONPATH": str(COMPILED)})


@dataclass
class Server:
    """A running server: where it listens, how long it took to answer, and where its output goes."""

    name: str
    process: subprocess.Popen[bytes]
    port: int
    log: Path
    ready_s: float = 0.0

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    def tail(self, lines: int = 15) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


@contextlib.contextmanager
def serving(
    name: str,
    command: Sequence[str],
    *,
    port: int,
    health: str,
    folder: Path,
    env: Mapping[str, str] | None = None,
    timeout_s: float = 60.0,
) -> Iterator[Server]:
    """Runs `command` until the block is left; yields when `GET health` answers 200. `ready_s` counts from the spawn."""
    log = folder / f"{name}-{port}.log"
    with log.open("wb") as out:
        started = time.perf_counter()
        process = subprocess.Popen(
            list(command),
            cwd=folder,
            env=_environment(env or {}),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    server = Server(name, process, port, log)
    seen: set[tuple[int, int]] = set()
    try:
        wait_ready(server, health, started + timeout_s)
        server.ready_s = time.perf_counter() - started
        seen |= set(tree(process.pid))
        yield server
    finally:
        stop(process, seen)


def _environment(env: Mapping[str, str]) -> dict[str, str]:
    """Ours, with the search path made absolute: a server runs in another folder."""
    merged = {**os.environ, **ONE_THREAD, **env}
    if path := merged.get("PYTHONPATH"):
        merged["PYTHONPATH"] = os.pathsep.join(str(Path(entry).resolve()) for entry in path.split(os.pathsep) if entry)
    return merged


def wait_ready(server: Server, health: str, deadline: float) -> None:
    """Polls until `GET health` answers 200. Raises BenchmarkError if the process ends or the deadline passes."""
    while True:
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection(HOST, server.port, timeout=2.0)
            try:
                connection.request("GET", health)
                if connection.getresponse().status == 200:
                    return
            finally:
                connection.close()
        if server.process.poll() is not None:
            raise BenchmarkError(f"{server.name} ended with status {server.process.returncode}:\n{server.tail()}")
        if time.perf_counter() > deadline:
            raise BenchmarkError(f"{server.name} did not become ready in time:\n{server.tail()}")
        time.sleep(0.005)


def stop(process: subprocess.Popen[bytes], seen: set[tuple[int, int]]) -> None:
    """SIGTERM to the server, SIGKILL after a while; whatever of its tree outlives it is killed, never waited for."""
    seen |= set(tree(process.pid))
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            seen |= set(tree(process.pid))
            process.kill()
            process.wait(STOP_TIMEOUT_S)
    deadline = time.perf_counter() + 2.0
    while (left := [pid for pid, born in seen if pid != process.pid and _born(pid) == born]) and (
        time.perf_counter() < deadline
    ):
        time.sleep(0.05)
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def exit_on_sigterm() -> None:
    """So that a benchmark that is itself stopped unwinds and stops its servers."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def request(
    port: int, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
) -> tuple[int, bytes]:
    """One request on a connection of its own; status and body."""
    connection = http.client.HTTPConnection(HOST, port, timeout=30.0)
    try:
        connection.request(method, path, body, dict(headers or {}))
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


# --- processes -----------------------------------------------------------------------------------------------------


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat after the command's name: state, parent, …"""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def _born(pid: int) -> int | None:
    """Start time of a living process in clock ticks: tells it from a later one with the same number."""
    fields = _stat(pid)
    return int(fields[19]) if fields and fields[0] not in "ZX" else None


def tree(root: int) -> list[tuple[int, int]]:
    """The living processes from `root` down, as (pid, start time)."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))):
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    pids, found = [root], []
    while pids:
        pid = pids.pop()
        born = _born(pid)
        if born is not None:
            found.append((pid, born))
        pids += children.get(pid, [])
    return found


def pss_mb(root: int) -> float:
    """Proportional set size of the tree in MB: shared pages are counted once, divided among those that share them."""
    total_kb = 0
    for pid, _ in tree(root):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total_kb += int(line.split()[1])
    return round(total_kb / 1024, 1)


def cpu_s(root: int) -> float:
    """CPU time of the tree's living processes so far, user and system."""
    ticks = 0
    for pid, _ in tree(root):
        if fields := _stat(pid):
            ticks += int(fields[11]) + int(fields[12])
    return ticks / TICKS_PER_S


# --- figures -------------------------------------------------------------------------------------------------------


def median(values: Sequence[float]) -> float:
    return statistics.median(values) if values else float("nan")


def ratio(a: float, b: float) -> float | None:
    """a / b to three places; None (null in JSON) where there is nothing to divide."""
    return round(a / b, 3) if a == a and b == b and b > 0 else None


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    model = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "unknown"
    )
    memory_kb = next((int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), 0)
    return {
        "cpus": len(os.sched_getaffinity(0)),
        "cpu": model,
        "memory_gb": round(memory_kb / (1 << 20), 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_1min": round(os.getloadavg()[0], 2),
    }


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Plain text: the first column to the left, the others to the right; floats to a sensible number of digits."""
    text = [[cell(value) for value in row] for row in rows]
    widths = [max(len(line[i]) for line in [list(header), *text]) for i in range(len(header))]
    print(f"\n{title}")
    for line in [list(header), ["-" * width for width in widths], *text]:
        first, *rest = line
        print("  ".join([first.ljust(widths[0]), *(value.rjust(w) for value, w in zip(rest, widths[1:], strict=True))]))


def cell(value: object) -> str:
    if value is None or (isinstance(value, float) and value != value):
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1f}" if abs(value) >= 100 else f"{value:.2f}"
    return str(value)


def say(text: str) -> None:
    """Progress, on standard error, so that standard output holds the results only."""
    print(text, file=sys.stderr, flush=True)


def finish(result: Mapping[str, Any], as_json: bool) -> None:
    """With --json, one object as the last line of standard output."""
    sys.stdout.flush()
    if as_json:
        print(json.dumps(result))
