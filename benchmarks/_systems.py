"""How each serving system is started for the throughput benchmark: rewarm, mosec, and the optional peers.

Every system but rewarm is a script of `peers/`, run by the python of an environment of its own (`.bench/NAME`), told by
BENCH_PORT, BENCH_CASES (comma-separated), BENCH_WEIGHTS (folder of the .npz files) and BENCH_WAIT_MS.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from _common import COMPILED, HERE, ROOT, BenchmarkError, Server, free_port, lacks_compiled, pss_mb, serving
from _mlp import CASES, save_weights

#: mosec's throughput at 64 connections is the same for 0 to 10 ms, as batches fill; 0 spares its lone caller the wait.
MOSEC_WAIT_MS = 0


@dataclass
class Running:
    """A started system: the server and where each case is posted; `idle_pss_mb` is taken before any request."""

    server: Server
    paths: Mapping[str, str]
    idle_pss_mb: float
    nested: bool = False  # takes a list of rows, not a row


Launch = Callable[[Sequence[str], Path], AbstractContextManager[Running]]


@dataclass(frozen=True)
class System:
    """A serving system and the cases that it can take."""

    name: str
    launch: Launch
    cases: Sequence[str]
    missing: str | None = None  # why it cannot run here


def environment(name: str, bench_env: Path | None) -> Path:
    """The python of a system's own environment. REWARM_BENCH_ENVS moves the folder that holds them all."""
    if bench_env is not None:
        return bench_env / "bin" / "python"
    return Path(os.environ.get("REWARM_BENCH_ENVS", ROOT / ".bench")) / name / "bin" / "python"


def rewarm(interpreted: bool) -> System:
    """As a release has it, with the hot path compiled, or this checkout as it stands, interpreted."""
    path = ROOT / "src" if interpreted else COMPILED
    missing = None if interpreted else lacks_compiled()

    def launch(wanted: Sequence[str], folder: Path) -> AbstractContextManager[Running]:
        return _launch_rewarm(wanted, folder, path)

    return System("rewarm", launch, tuple(CASES), missing)


def mosec(bench_env: Path | None, wait_ms: int) -> System:
    return _peer("mosec", "mosec_app.py", environment("mosec", bench_env), tuple(CASES), "/", wait_ms=wait_ms)


def peer(name: str) -> System:
    """One of the optional rows. Raises BenchmarkError for a name that is not among them."""
    try:
        cases, health, timeout_s, nested = PEERS[name]
    except KeyError:
        raise BenchmarkError(f"unknown peer {name!r}; choose from {', '.join(PEERS)}") from None
    return _peer(name, f"{name}_app.py", environment(name, None), cases, health, timeout_s=timeout_s, nested=nested)


#: Cases (LitServe and BentoML: JSON only), health path, patience in seconds, and whether a request is a list of rows.
PEERS: dict[str, tuple[tuple[str, ...], str, float, bool]] = {
    "fastapi": (("json784", "json4", "raw"), "/health", 60.0, False),
    "litserve": (("json784", "json4"), "/health", 60.0, False),
    "bentoml": (("json784", "json4"), "/readyz", 60.0, True),
    "ray": (("json784", "json4", "raw"), "/-/healthz", 120.0, False),
}


def _peer(
    name: str,
    script: str,
    python: Path,
    cases: Sequence[str],
    health: str,
    *,
    wait_ms: int = 0,
    timeout_s: float = 60.0,
    nested: bool = False,
) -> System:
    @contextlib.contextmanager
    def launch(wanted: Sequence[str], folder: Path) -> Iterator[Running]:
        port = free_port()
        env = {
            "BENCH_PORT": str(port),
            "BENCH_CASES": ",".join(wanted),
            "BENCH_WEIGHTS": str(folder),
            "BENCH_WAIT_MS": str(wait_ms),
            "PATH": f"{python.parent}{os.pathsep}{os.environ.get('PATH', '')}",
            "PYTHONPATH": str(HERE / "peers"),
        }
        save_weights(folder)
        command = [str(python), str(HERE / "peers" / script)]
        with serving(name, command, port=port, health=health, folder=folder, env=env, timeout_s=timeout_s) as server:
            yield Running(server, {case: f"/{case}" for case in wanted}, pss_mb(server.process.pid), nested)

    missing = None if python.exists() else f"{name} is not installed: make bench-deps PEERS={name}"
    return System(name, launch, cases, missing)


@contextlib.contextmanager
def _launch_rewarm(wanted: Sequence[str], folder: Path, package: Path) -> Iterator[Running]:
    """Both functions are deployed from a copy of `apps/` that holds the weights; idle memory is before the deploy."""
    app, home, port = folder / "apps", folder / "home", free_port()
    if not app.exists():
        app.mkdir()
        shutil.copy(HERE / "apps" / "mlp.py", app)
        save_weights(app)
    shutil.rmtree(home, ignore_errors=True)
    command = [sys.executable, "-m", "rewarm", "serve", "--home", str(home), "--port", str(port)]
    env = {"PYTHONPATH": str(package)}
    with serving("rewarm", command, port=port, health="/v2/health/ready", folder=folder, env=env) as server:
        idle_mb = pss_mb(server.process.pid)
        for function in ("Mlp784", "Mlp4"):
            deploy(server, f"{app / 'mlp.py'}:{function}")
        yield Running(server, {case: f"/invoke/{CASES[case].model}" for case in wanted}, idle_mb)


def deploy(server: Server, what: str) -> None:
    """`rewarm deploy FILE:Name` against a running server."""
    command = [sys.executable, "-m", "rewarm", "deploy", what, "--url", server.url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        raise BenchmarkError(f"rewarm deploy failed with status {done.returncode}: {done.stdout}{done.stderr}")
