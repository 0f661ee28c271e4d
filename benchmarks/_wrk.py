"""One window of load with wrk: figures as numbers, every kind of error counted."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from _common import HERE, BenchmarkError

MARK = "rewarm-wrk "


@dataclass(frozen=True)
class Window:
    """What one run of wrk saw. `errors` is answers of 400 and up, connect, read, write and timeout errors together."""

    requests: int
    rps: float
    p50_ms: float
    p99_ms: float
    errors: int


def drive(
    url: str, body: Path, content_type: str, *, connections: int, seconds: int, script: str = "post.lua"
) -> Window:
    """POSTs the file `body` over and over: one thread, `connections` at a time, closed loop."""
    tool = shutil.which("wrk")
    if tool is None:
        raise BenchmarkError("wrk is not installed (Debian and Ubuntu: apt-get install wrk)")
    command = [tool, "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s"]
    command += ["-s", str(HERE / "wrk" / script), url, "--", str(body), content_type]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 30, check=False)
    line = next((line for line in done.stdout.splitlines() if line.startswith(MARK)), None)
    if line is None:
        raise BenchmarkError(f"wrk printed no summary: {done.stdout[-400:]}{done.stderr[-400:]}")
    data = json.loads(line.removeprefix(MARK))
    errors = sum(int(data[kind]) for kind in ("connect", "read", "write", "timeout", "status"))
    requests = int(data["requests"]) - int(data["status"])
    return Window(
        requests=requests,
        rps=requests / (data["duration_us"] / 1e6),
        p50_ms=data["p50_us"] / 1e3,
        p99_ms=data["p99_us"] / 1e3,
        errors=errors,
    )
