"""A small server that answers as docs/http-api.md says, with no function behind it."""

from __future__ import annotations

import io
import json
import tarfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from click.testing import CliRunner, Result

from rewarm.cli.main import rewarm

Reply = tuple[int, dict[str, str], bytes]
TIMING = {"Rewarm-Start": "warm", "Rewarm-Queue-Ms": "0.5", "Rewarm-Init-Ms": "0", "Rewarm-Run-Ms": "1.25",
          "Rewarm-Batch-Size": "1"}  # fmt: skip


def reply_json(value: Any, status: int = 200, **headers: str) -> Reply:
    return status, {"Content-Type": "application/json", **headers}, json.dumps(value).encode()


@dataclass
class Asked:
    verb: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes


@dataclass
class FakeServer:
    """`replies` overrides the answer to "VERB /path"; `asked` is everything that came."""

    url: str = ""
    replies: dict[str, Callable[[Asked], Reply]] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    functions: dict[str, dict[str, Any]] = field(default_factory=dict)
    instances: dict[str, Any] = field(
        default_factory=lambda: {"instances": [], "langs": [], "ledger": {"budget_bytes": 2 << 30, "held_bytes": 0}}
    )
    answer: Callable[[bytes], bytes] = lambda body: body
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def fail(self, route: str, status: int, code: str, message: str, **extra: Any) -> None:
        self.replies[route] = lambda _: reply_json({"error": message, "code": code, **extra}, status)

    def deploy(self, name: str, **changes: Any) -> None:
        self.functions[name] = {
            "name": name, "version": 1, "digest": "ab" * 32, "kind": "predict", "batching": {"name": "none"},
            "keepalive": None, "memory_bytes": 1 << 30, "max_instances": 2, "instances": 0, "queued": 0,
            "created_at": 0.0, "weights_bytes": 0, "ready": True, "last_error": None, "calls": 0, "inits": 0,
            "rows": {},
            **changes,
        }  # fmt: skip

    def handle(self, asked: Asked) -> Reply:
        with self._lock:
            self.asked.append(asked)
        override = self.replies.get(f"{asked.verb} {asked.path}")
        if override is not None:
            return override(asked)
        parts = asked.path.strip("/").split("/")
        if asked.verb == "PUT" and asked.path == "/api/v1/functions":
            return self._deploy(asked)
        if asked.path == "/api/v1/server":
            return reply_json({"version": "0.1.0", "functions": len(self.functions)})
        if asked.path == "/api/v1/functions":
            return reply_json({"functions": list(self.functions.values())})
        if asked.path == "/api/v1/instances":
            return reply_json(self.instances)
        name = unquote(parts[1] if parts[0] == "invoke" else parts[3] if len(parts) > 3 else "")
        if name not in self.functions:
            return reply_json({"error": f"no function {name!r}", "code": "not_found"}, 404)
        return self._of_function(asked, name, parts)

    def _of_function(self, asked: Asked, name: str, parts: list[str]) -> Reply:
        function = self.functions[name]
        if parts[0] == "invoke":
            with self._lock:
                function["calls"] += 1
                function["rows"]["1"] = function["rows"].get("1", 0) + 1
            return 200, {**TIMING, "Content-Type": asked.headers["content-type"]}, self.answer(asked.body)
        if asked.verb == "DELETE":
            del self.functions[name]
            return reply_json({"name": name, "removed": True})
        if parts[-1] == "stats":
            calls, inits = function["calls"], function["inits"]
            return reply_json({"calls": calls, "rows_per_call": dict(function["rows"]), "inits": inits,
                               "init_ms": [40.5] * inits, "billed_ms_total": 2.0 * calls})  # fmt: skip
        if parts[-1] == "load":
            function["inits"] += 1
        if parts[-1] in ("load", "unload", "flush"):
            return reply_json({"name": name, "ok": True})
        return reply_json({**function, "spec": {"slo_s": function.get("slo_s")}})

    def _deploy(self, asked: Asked) -> Reply:
        with tarfile.open(fileobj=io.BytesIO(asked.body)) as tar:
            first = tar.next()
            assert first is not None and first.name == "rewarm-deploy.json"
            manifest = json.load(tar.extractfile(first))  # type: ignore[arg-type]
            files = tar.getnames()[1:]
        name = manifest["name"] or manifest["file"].removesuffix(".py")
        self.deploy(name, manifest=manifest, files=files)
        return reply_json({"name": name, "version": 3, "digest": "cd" * 32, "unchanged": False}, 201)


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    server = FakeServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            parts = urlsplit(self.path)
            headers = {key.lower(): value for key, value in self.headers.items()}
            status, found, content = server.handle(
                Asked(self.command, parts.path, parse_qs(parts.query), headers, body)
            )
            self.send_response(status)
            for key, value in found.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_DELETE = answer  # noqa: N815 - the library finds them by these names

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        server.url = f"http://127.0.0.1:{http.server_port}"
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield server
        http.shutdown()
        thread.join()


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs `rewarm …` in this process. No variable of the caller's environment is seen."""
    for name in ("REWARM_URL", "REWARM_HOME", "REWARM_DEBUG"):
        monkeypatch.delenv(name, raising=False)

    def run(*args: str, input: bytes | None = None) -> Result:
        return CliRunner().invoke(rewarm, list(args), input=input)

    return run
