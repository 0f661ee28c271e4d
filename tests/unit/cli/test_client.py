"""The API client against a real HTTP server."""

from __future__ import annotations

import io
import socket
import threading
from typing import Any

import pytest

from rewarm.bench.api import DEFAULT_URL, Api, Timing, default_url
from rewarm.errors import (
    BadDefinition,
    BodyTooLarge,
    Busy,
    FunctionError,
    InstanceDied,
    NotFound,
    RewarmError,
    SystemFault,
)


@pytest.fixture
def api(fake: Any) -> Any:
    with Api(fake.url) as client:
        yield client


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [(404, "not_found", NotFound), (429, "queue_full", Busy), (502, "instance_died", InstanceDied)],
)
def test_errors_come_back_as_the_type_they_left_as(
    api: Api, fake: Any, status: int, code: str, kind: type[RewarmError]
) -> None:
    fake.fail("POST /invoke/f", status, code, "message", retry_after_s=7, error_type="ValueError")
    with pytest.raises(RewarmError, match="message") as caught:
        api.invoke("f", b"{}")
    assert type(caught.value) is kind
    assert caught.value.retry_after_s == 7
    if isinstance(caught.value, FunctionError):
        assert caught.value.error_type == "ValueError"


def test_names_are_quoted_in_paths(api: Api, fake: Any) -> None:
    with pytest.raises(NotFound):
        api.function("a/b c")
    assert fake.asked[-1].path == "/api/v1/functions/a%2Fb%20c"


def test_one_connection_serves_many_calls_and_a_closed_one_is_replaced(api: Api, fake: Any) -> None:
    fake.deploy("f")
    api.server()
    first = api._connection.sock
    api.invoke("f", b"1")
    assert api._connection.sock is first
    assert first is not None
    first.shutdown(socket.SHUT_RDWR)
    assert api.server()["functions"] == 1


def test_an_invocation_is_never_sent_twice(api: Api, fake: Any) -> None:
    fake.deploy("f")
    api.server()
    assert api._connection.sock is not None
    api._connection.sock.shutdown(socket.SHUT_RDWR)
    with pytest.raises(SystemFault, match="closed the connection"):
        api.invoke("f", b"1")
    assert [asked.verb for asked in fake.asked] == ["GET"]
    assert api.invoke("f", b"1").body == b"1"


def test_timing_headers_are_read_and_their_absence_is_zero(api: Api, fake: Any) -> None:
    fake.deploy("f")
    assert Timing.of(api.invoke("f", b"1").headers) == Timing("warm", 0.5, 0.0, 1.25, 1)
    assert Timing.of({}) == Timing("", 0.0, 0.0, 0.0, 0)
    assert Timing.of({"rewarm-run-ms": "soon"}).run_ms == 0.0


def test_a_timeout_travels_as_a_header(api: Api, fake: Any) -> None:
    fake.deploy("f")
    api.invoke("f", b"1", timeout_s=1.5)
    assert fake.asked[-1].headers["rewarm-timeout-ms"] == "1500"


def test_an_upload_is_streamed_and_counted(api: Api, fake: Any) -> None:
    content = bytes(1 << 20)
    fake.replies["PUT /api/v1/functions"] = lambda asked: (201, {}, b'{"size": %d}' % len(asked.body))
    sent: list[int] = []
    assert api.deploy(io.BytesIO(content), len(content), sent.append) == {"size": len(content)}
    assert sum(sent) == len(content)
    assert len(sent) > 2


def test_a_refusal_in_the_middle_of_an_upload_is_read() -> None:
    """The server answers 413 after the headers and closes: the client must tell that, not a broken pipe."""
    body = b'{"error": "too large", "code": "body_too_large"}'
    head = b"HTTP/1.1 413 X\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def refuse() -> None:
            connection, _ = listener.accept()
            with connection:
                seen = b""
                while b"\r\n\r\n" not in seen:
                    seen += connection.recv(4096)
                connection.sendall(head + body)
                connection.shutdown(socket.SHUT_WR)
                # What was already on the way is taken, so that the kernel sends no reset ahead of the answer.
                connection.settimeout(0.3)
                try:
                    for _ in range(20):
                        connection.recv(1 << 16)
                except TimeoutError:
                    pass

        thread = threading.Thread(target=refuse)
        thread.start()
        with (
            Api(f"http://127.0.0.1:{listener.getsockname()[1]}") as api,
            pytest.raises(BodyTooLarge, match="too large"),
        ):
            api.deploy(io.BytesIO(bytes(16 << 20)), 16 << 20)
        thread.join()


def test_a_silent_server_is_given_up_on() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with Api(url, timeout_s=0.05) as api, pytest.raises(SystemFault, match=r"did not answer within 0\.05 s"):
            api.server()


def test_an_address_that_does_not_exist() -> None:
    with Api("http://no-such-host.invalid") as api, pytest.raises(SystemFault, match="cannot talk to"):
        api.server()


def test_urls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REWARM_URL", raising=False)
    assert default_url() == DEFAULT_URL
    monkeypatch.setenv("REWARM_URL", "http://elsewhere:1/")
    assert Api().url == "http://elsewhere:1"
    assert Api("elsewhere:1").url == "http://elsewhere:1"
    assert Api("https://elsewhere/below/").url == "https://elsewhere/below"
    for bad in ("ftp://x", "http://", "http://x:99999"):
        with pytest.raises(BadDefinition, match="not a URL"):
            Api(bad)
