"""Real `rewarm serve` processes, each in a home of its own, and the callers that talk to them."""

from __future__ import annotations

import http.client
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tarfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import rewarm

WAIT_S = 20.0
_MARK = "REWARM_E2E_MARK"
_SOURCES = str(Path(rewarm.__file__).resolve().parents[1])

_SERVE_WITH_LIMITS = """
import json, logging, pathlib, sys
from rewarm.app import serve
from rewarm.config import HttpLimits, ServerConfig
logging.basicConfig(level="INFO")
sys.exit(serve(ServerConfig(pathlib.Path(sys.argv[1]), port=0, limits=HttpLimits(**json.loads(sys.argv[2])))))
"""


def until(condition: Callable[[], Any], what: str, timeout_s: float = WAIT_S) -> Any:
    """Poll `condition` until it is true; what it returned then."""
    end_s = time.monotonic() + timeout_s
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < end_s, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.02)


@dataclass(frozen=True)
class Reply:
    """An HTTP answer; header names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    def refused(self, status: int, code: str) -> str:
        """Checks that this is a typed error, fit for a caller's eyes; its message."""
        assert self.status == status, self
        said = self.json()
        assert said["code"] == code, said
        message = said["error"]
        assert isinstance(message, str) and message and "\n" not in message and "Traceback" not in message, said
        return message


@dataclass(frozen=True)
class Ran:
    """A finished command line."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)

    def failed(self, code: int) -> str:
        """Checks exit code and that a person gets one line and no traceback; that line."""
        assert self.code == code, self
        lines = self.err.splitlines()
        told = [line for line in lines if line.startswith("error: ")]
        assert len(told) == 1 and "Traceback" not in self.err + self.out, self
        return told[0].removeprefix("error: ")


class Raw:
    """A TCP connection that sends exactly what it is told to."""

    def __init__(self, host: str, port: int, timeout_s: float = WAIT_S) -> None:
        self.sock = socket.create_connection((host, port), timeout=timeout_s)
        self.file = self.sock.makefile("rb")

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.file.close()
        self.sock.close()

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def reply(self) -> Reply:
        """The next answer on this connection."""
        status_line = self.file.readline()
        assert status_line.startswith(b"HTTP/1.1 "), status_line
        headers: dict[str, str] = {}
        while (line := self.file.readline()) not in (b"\r\n", b""):
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.strip().lower()] = value.strip()
        status = int(status_line.split()[1])
        length = 0 if status in (100, 204) else int(headers["content-length"])
        return Reply(status, headers, self.file.read(length))

    def closed(self) -> bool:
        """True if the server ends the connection without another byte."""
        try:
            return self.file.read(1) == b""
        except ConnectionResetError:
            return True


class Server:
    """One `rewarm serve` process."""

    def __init__(
        self, home: Path, log: Path, options: tuple[str, ...] = (), env: Mapping[str, str] | None = None,
        limits: Mapping[str, float] | None = None,
    ) -> None:  # fmt: skip
        self.home = home
        self.log = log
        self.mark = uuid.uuid4().hex
        self.env = {**os.environ, "PYTHONPATH": _SOURCES, **(env or {})}
        self.env.pop("REWARM_URL", None)
        command = [sys.executable, "-m", "rewarm", "serve", "--home", str(home), "--port", "0", *options]
        if limits is not None:  # the command line has no words for most of them
            command = [sys.executable, "-c", _SERVE_WITH_LIMITS, str(home), json.dumps(dict(limits))]
        with log.open("wb") as sink:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, env={**self.env, _MARK: self.mark}
            )
        self.host = "127.0.0.1"
        self.port = int(until(self._port, "the server says where it listens")[1])
        self.url = f"http://{self.host}:{self.port}"
        until(self._ready, "the server is ready")

    def _port(self) -> re.Match[str] | None:
        assert self.process.poll() is None, self.log.read_text()
        return re.search(r"on http://[\d.]+:(\d+)", self.log.read_text())

    def _ready(self) -> bool:
        try:
            return self.call("GET", "/v2/health/ready").status == 200
        except OSError:
            return False

    # ------------------------------------------------------------ the end

    def processes(self) -> list[int]:
        """The server and everything that descends from it, whoever its parent is by now."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    if f"{_MARK}={self.mark}".encode() in (entry / "environ").read_bytes():
                        found.append(int(entry.name))
                except OSError:
                    pass
        return found

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def ended(self, timeout_s: float = WAIT_S) -> int:
        """The exit status, once nothing of it is left: no process, no file of a sandbox."""
        status = self.process.wait(timeout_s)
        until(lambda: not self.processes(), f"no process is left of {self.processes()}")
        return status

    def stop(self) -> None:
        """SIGTERM, and everything a good end means."""
        if self.process.poll() is None:
            self.terminate()
        status = self.ended()
        said = self.log.read_text()
        assert status == 0, said
        assert list((self.home / "run").iterdir()) == []
        assert list((self.home / "tmp").iterdir()) == []
        assert "Traceback" not in said and "never awaited" not in said, said

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    # ------------------------------------------------------------ callers

    def raw(self) -> Raw:
        return Raw(self.host, self.port)

    def call(
        self, verb: str, path: str, body: bytes | str | None = None, headers: Mapping[str, str] | None = None,
        timeout_s: float = WAIT_S,
    ) -> Reply:  # fmt: skip
        """One request on a connection of its own."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=timeout_s)
        try:
            connection.request(verb, path, body, dict(headers or {}))
            response = connection.getresponse()
            found = {name.lower(): value for name, value in response.getheaders()}
            return Reply(response.status, found, response.read())
        finally:
            connection.close()

    def get(self, path: str) -> Any:
        """A good answer's JSON."""
        reply = self.call("GET", path)
        assert reply.status == 200, reply
        return reply.json()

    def invoke(self, name: str, event: Any = None, timeout_s: float = WAIT_S, **headers: str) -> Reply:
        named = {key.replace("_", "-"): value for key, value in headers.items()}
        return self.call("POST", f"/invoke/{name}", json.dumps({} if event is None else event), named, timeout_s)

    def invoke_many(self, name: str, events: list[Any], threads: int = 16) -> list[Reply]:
        """All at once, in order."""
        with ThreadPoolExecutor(min(threads, len(events))) as pool:
            return list(pool.map(lambda event: self.invoke(name, event), events))

    def stats(self, name: str) -> Any:
        return self.get(f"/api/v1/functions/{name}/stats")

    def function(self, name: str) -> Any:
        return self.get(f"/api/v1/functions/{name}")

    def instances(self, name: str | None = None, state: str | None = None) -> list[Any]:
        alive = self.get("/api/v1/instances")["instances"]
        return [i for i in alive if name in (None, i["function"]) and state in (None, i["state"])]

    def langs(self) -> list[Any]:
        return list(self.get("/api/v1/instances")["langs"])

    def warm(self, name: str) -> None:
        """Have one instance ready."""
        assert self.call("POST", f"/api/v1/functions/{name}/load").status == 200
        until(lambda: self.instances(name, "ready"), f"{name} has an instance")

    # ------------------------------------------------------------ deploying

    def put(
        self, source: str, *, file: str = "app.py", select: str | None = None, handler: str | None = None,
        name: str | None = None, others: Mapping[str, bytes] | None = None, **overrides: Any,
    ) -> Reply:  # fmt: skip
        """PUT an archive made by hand, as docs/http-api.md describes it."""
        manifest = {"file": file, "select": select, "handler": handler, "name": name, "overrides": overrides}
        members = {"rewarm-deploy.json": json.dumps(manifest).encode(), file: source.encode(), **(others or {})}
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            for path, content in members.items():
                member = tarfile.TarInfo(path)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        return self.call("PUT", "/api/v1/functions", archive.getvalue(), {"content-type": "application/x-tar"}, 60.0)

    def deploy(self, source: str, **how: Any) -> Any:
        """A deploy that has to work: `{name, version, digest, unchanged}`."""
        reply = self.put(source, **how)
        assert reply.status == 201, reply
        return reply.json()

    def cli(self, *words: str, input: str | None = None, timeout_s: float = 60.0) -> Ran:
        """The real command line against this server."""
        return run_cli(*words, input=input, timeout_s=timeout_s, env={**self.env, "REWARM_URL": self.url})


def run_cli(*words: str, env: Mapping[str, str], input: str | None = None, timeout_s: float = 60.0) -> Ran:
    done = subprocess.run(
        [sys.executable, "-m", "rewarm", *words], env=dict(env), capture_output=True, text=True, input=input,
        timeout=timeout_s, check=False,
    )  # fmt: skip
    return Ran(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="session", name="until")
def until_fixture() -> Callable[..., Any]:
    return until


@pytest.fixture(scope="session")
def cli() -> Callable[..., Ran]:
    """The command line where no server runs."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("REWARM_")}
    return lambda *words, **how: run_cli(*words, env={**env, "PYTHONPATH": _SOURCES}, **how)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One for all tests that only need some server. Names of functions are the tests' own to keep apart."""
    folder = tmp_path_factory.mktemp("shared")
    running = Server(folder / "home", folder / "server.log", ("--body-limit", "1MB", "--keepalive", "fixed:ttl=60s"))
    try:
        yield running
        running.stop()
    finally:
        if running.process.poll() is None:
            running.kill()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts servers of the test's own: `start("--keepalive", "none", home=…)`. Each must end well."""
    running: list[Server] = []

    def one(
        *options: str, home: Path | None = None, env: Mapping[str, str] | None = None,
        limits: Mapping[str, float] | None = None,
    ) -> Server:  # fmt: skip
        count = len(running)
        log = tmp_path / f"server-{count}.log"
        running.append(Server(home or tmp_path / f"home-{count}", log, options, env, limits))
        return running[-1]

    try:
        yield one
        for each in running:
            if each.process.poll() is None:
                each.stop()
    finally:
        for each in running:
            if each.process.poll() is None:
                each.kill()
