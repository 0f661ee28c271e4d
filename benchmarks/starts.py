"""The start ladder on the digits model: `python benchmarks/starts.py [--quick] [--json]`.

Wall time from sending a request to its answer, seen by a caller on a kept-alive connection, when the server has
- nothing: no zygote and no instance, so that an interpreter starts and imports numpy and onnxruntime;
- a Lang layer: the zygote lives (packages imported), so that an instance is a fork of it that loads the model;
- a warm instance.
Three servers with three keep-alive policies run side by side and are asked in turn; the two not asked are idle. Each
sample waits until `/api/v1/instances` says that the rung holds, and counts only if `Rewarm-Start` agrees. Files are in
the page cache throughout. Figures are medians.

The JSON: {"nothing_ms", "lang_ms", "warm_ms", "fork_ms", "lang_over_nothing", "samples", "errors", "machine"}.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import re
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from _common import (
    HOST,
    ROOT,
    BenchmarkError,
    Server,
    exit_on_sigterm,
    finish,
    free_port,
    machine,
    median,
    print_table,
    ratio,
    request,
    say,
    serving,
)
from _systems import deploy

APP = ROOT / "examples" / "digits" / "app.py"
WEIGHTS = APP.with_name("digits.onnx")
FUNCTION = "digits"
TRIES_MAX = 3
SETTLE_TIMEOUT_S = 10.0

State = tuple[int, int]  # instances, Lang layers


@dataclass(frozen=True)
class Rung:
    """One step of the ladder: the policy that leads to it, what it looks like, and what the server calls it."""

    name: str
    title: str
    keepalive: str
    start: str  # Rewarm-Start
    holds: Callable[[State], bool]


RUNGS = (
    Rung("nothing", "nothing", "none", "cold", lambda s: s == (0, 0)),
    Rung("lang", "a living Lang layer", "fixed:user_s=0,lang_s=600", "lang", lambda s: s[0] == 0 and s[1] >= 1),
    Rung("warm", "a warm instance", "fixed:ttl=10min", "warm", lambda s: s[0] >= 1),
)


@dataclass
class Ladder:
    """Samples in milliseconds by rung, and what went wrong."""

    samples: dict[str, list[float]] = field(default_factory=lambda: {rung.name: [] for rung in RUNGS})
    errors: int = 0


def state(port: int) -> State:
    status, body = request(port, "GET", "/api/v1/instances")
    if status != 200:
        raise BenchmarkError(f"GET /api/v1/instances: {status} {body[:200]!r}")
    data = json.loads(body)
    return len(data["instances"]), len(data["langs"])


def settle(port: int, rung: Rung) -> bool:
    """Waits until the rung holds; False if it does not come about."""
    deadline = time.perf_counter() + SETTLE_TIMEOUT_S
    while not rung.holds(state(port)):
        if time.perf_counter() > deadline:
            return False
        time.sleep(0.02)
    time.sleep(0.05)  # what was let go of is reaped
    return True


def ask(connection: http.client.HTTPConnection, image: bytes) -> tuple[float, str]:
    """One request: milliseconds from send to the whole answer, and what the server says that it found alive."""
    began = time.perf_counter()
    connection.request("POST", f"/invoke/{FUNCTION}", image, {"Content-Type": "application/octet-stream"})
    answer = connection.getresponse()
    body = answer.read()
    took_ms = (time.perf_counter() - began) * 1e3
    if answer.status != 200:
        raise BenchmarkError(f"status {answer.status}: {body[:300]!r}")
    scores = np.frombuffer(body, "<f4")
    if scores.shape != (10,) or not np.isfinite(scores).all():
        raise BenchmarkError(f"not an answer of the digits model: {body[:80]!r}")
    return took_ms, answer.getheader("Rewarm-Start", "")


def connect(port: int) -> http.client.HTTPConnection:
    """Connected before the clock starts."""
    connection = http.client.HTTPConnection(HOST, port, timeout=60.0)
    connection.connect()
    return connection


def sample(server: Server, rung: Rung, image: bytes) -> float | None:
    """One sample that truly found the rung; None after TRIES_MAX that did not."""
    for _ in range(TRIES_MAX):
        if not settle(server.port, rung):
            say(f"{rung.name}: the server did not get there: instances, langs = {state(server.port)}")
            continue
        connection = connect(server.port)
        try:
            request_on(connection)
            took_ms, found = ask(connection, image)
        except (BenchmarkError, OSError, http.client.HTTPException) as error:
            say(f"{rung.name}: {error!r}")
            continue
        finally:
            connection.close()
        if found == rung.start:
            return took_ms
        say(f"{rung.name}: Rewarm-Start is {found!r}, not {rung.start!r}; again")
    return None


def request_on(connection: http.client.HTTPConnection) -> None:
    """A small request first, so that the connection is a kept-alive one that the server knows."""
    connection.request("GET", "/v2/health/live")
    connection.getresponse().read()


def fork_totals(port: int) -> tuple[float, float]:
    """Seconds and number of forks of an instance from its zygote so far, from the server's own histogram."""
    status, body = request(port, "GET", "/metrics")
    if status != 200:
        raise BenchmarkError(f"GET /metrics: {status}")
    totals = {"sum": 0.0, "count": 0.0}
    for line in body.decode().splitlines():
        found = re.match(r"rewarm_layer_seconds_(sum|count)\{(.*)\} (\S+)", line)
        if found and 'layer="lang"' in found[2]:
            totals[found[1]] += float(found[3])
    return totals["sum"], totals["count"]


def climb(count: int, folder: Path) -> tuple[Ladder, float]:
    """All samples, rung after rung in turn, and the mean of the forks in milliseconds."""
    image = np.random.default_rng(7).random(784, np.float32).astype("<f4").tobytes()
    ladder = Ladder()
    with contextlib.ExitStack() as stack:
        servers: dict[str, Server] = {}
        for rung in RUNGS:
            port = free_port()
            command = [sys.executable, "-m", "rewarm", "serve", "--home", str(folder / rung.name)]
            command += ["--port", str(port), "--keepalive", rung.keepalive]
            server = serving(f"rewarm-{rung.name}", command, port=port, health="/v2/health/ready", folder=folder)
            servers[rung.name] = stack.enter_context(server)
            deploy(servers[rung.name], str(APP))
            with contextlib.closing(connect(port)) as connection:
                ask(connection, image)  # files are in the page cache from here on, and the warm rung is warm
        forks_before = fork_totals(servers["lang"].port)
        for turn in range(count):
            for rung in RUNGS:
                took_ms = sample(servers[rung.name], rung, image)
                if took_ms is None:
                    ladder.errors += 1
                    if ladder.errors >= TRIES_MAX:
                        raise BenchmarkError(f"gave up at {rung.name}:\n{servers[rung.name].tail()}")
                else:
                    ladder.samples[rung.name].append(took_ms)
            say(f"{turn + 1}/{count}: " + ", ".join(f"{n} {s[-1]:.2f} ms" for n, s in ladder.samples.items() if s))
        seconds, forks = (a - b for a, b in zip(fork_totals(servers["lang"].port), forks_before, strict=True))
    return ladder, 1e3 * seconds / forks if forks else float("nan")


def show(ladder: Ladder, fork_ms: float) -> None:
    table = []
    for rung in RUNGS:
        samples = ladder.samples[rung.name]
        ends = (min(samples, default=None), max(samples, default=None))
        table.append([rung.title, len(samples), median(samples), *ends])
    print_table("First answer of the digits model, from", ["", "samples", "median ms", "min ms", "max ms"], table)
    over = ratio(median(ladder.samples["lang"]), median(ladder.samples["nothing"]))
    print(f"\nlang / nothing = {cell_of(over)} (goal <= 0.2, and lang <= 60 ms)")
    print(f"fork of an instance from its zygote: {fork_ms:.2f} ms on average (goal <= 15 ms); {ladder.errors} errors")


def cell_of(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def summary(ladder: Ladder, fork_ms: float) -> dict[str, Any]:
    medians = {f"{name}_ms": _rounded(median(samples)) for name, samples in ladder.samples.items()}
    return {
        **medians,
        "fork_ms": _rounded(fork_ms),
        "lang_over_nothing": ratio(median(ladder.samples["lang"]), median(ladder.samples["nothing"])),
        "samples": {name: len(samples) for name, samples in ladder.samples.items()},
        "errors": ladder.errors,
        "machine": machine(),
    }


def _rounded(value: float) -> float | None:
    return round(value, 3) if value == value else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="5 samples of each rung instead of 20")
    parser.add_argument("--json", action="store_true", help="print one JSON object last")
    parser.add_argument("--samples", type=int, help="samples of each rung")
    options = parser.parse_args()
    exit_on_sigterm()
    try:
        if not WEIGHTS.exists():
            raise BenchmarkError(f"{WEIGHTS.relative_to(ROOT)} is missing; examples/digits/train.py makes it")
        with tempfile.TemporaryDirectory(prefix="rewarm-starts-") as temporary:
            ladder, fork_ms = climb(options.samples or (5 if options.quick else 20), Path(temporary))
    except (BenchmarkError, OSError, http.client.HTTPException) as error:
        say(f"starts: {error}")
        return 2
    show(ladder, fork_ms)
    finish(summary(ladder, fork_ms), options.json)
    return 1 if ladder.errors else 0


if __name__ == "__main__":
    raise SystemExit(main())
