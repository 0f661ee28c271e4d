"""Whom the admin application answers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from rewarm.control.http import make_application


async def request(bound: str, *hosts: str, method: str = "GET", path: str = "/") -> tuple[int, dict[bytes, bytes], Any]:
    """Status, headers and body of a request with these Host headers to a server bound to `bound`."""
    config = SimpleNamespace(host=bound)
    executor = SimpleNamespace(layers={})
    plane: Any = SimpleNamespace(config=config, executor=executor, stats={}, gauges=lambda: iter(()), version="1")
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
        "path": path, "raw_path": path.encode(), "root_path": "", "query_string": b"", "client": None, "server": None,
        "headers": [(b"host", host.encode("latin-1")) for host in hosts],
    }  # fmt: skip
    await make_application(plane)(scope, receive, send)
    said = orjson.loads(b"".join(message.get("body", b"") for message in sent[1:]))
    return sent[0]["status"], dict(sent[0]["headers"]), said


async def ask(bound: str, *hosts: str) -> tuple[int, Any]:
    status, _, said = await request(bound, *hosts)
    return status, said


@pytest.mark.parametrize("bound", ["127.0.0.1", "127.0.0.9", "::1", "localhost", "LocalHost"])
async def test_a_loopback_server_answers_local_names_only(bound: str) -> None:
    for host in ("localhost", "LOCALHOST:80", "127.0.0.1", "127.0.0.9:8000", "[::1]", "[::1]:8000"):
        assert (await ask(bound, host))[0] == 200
    for host in ("evil.example", "localhost.evil.example", "127.0.0.1.evil.example:80", "localhost:80@evil", "", "é"):
        status, said = await ask(bound, host)
        assert (status, said["code"]) == (403, "forbidden_host")
        assert repr(host) in said["error"]
    assert (await ask(bound, "localhost", "evil.example"))[0] == 403
    assert (await ask(bound))[0] == 200, "no browser leaves the header out"


@pytest.mark.parametrize("bound", ["0.0.0.0", "::", "192.0.2.7", "gpu7.example"])
async def test_any_other_server_may_have_any_name(bound: str) -> None:
    assert (await ask(bound, "gpu7.example"))[0] == 200


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PATCH", "/api/v1/functions/hello", b"DELETE, GET, HEAD"),
        ("POST", "/api/v1/functions", b"GET, HEAD, PUT"),
        ("GET", "/api/v1/functions/hello/profile/twin", b"DELETE, POST"),
        ("DELETE", "/metrics", b"GET, HEAD"),
        ("OPTIONS", "/invoke/hello", b"POST"),
    ],
)
async def test_a_wrong_verb_is_told_every_right_one(method: str, path: str, allowed: bytes) -> None:
    status, headers, said = await request("127.0.0.1", method=method, path=path)
    assert (status, said["code"], headers[b"allow"]) == (405, "method_not_allowed", allowed)
