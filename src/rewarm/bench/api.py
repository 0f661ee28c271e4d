"""The client of rewarm's HTTP API: one persistent connection, standard library only.

Error answers come back as the typed errors they left the server as, by their `code`. Not for threads to share.
"""

from __future__ import annotations

import http.client
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import IO, Any
from urllib.parse import quote, urlencode, urlsplit

from rewarm.config import DEFAULT_HOST, DEFAULT_PORT
from rewarm.errors import BadDefinition, NoServer, RewarmError, SystemFault, from_code

DEFAULT_URL = f"http://{DEFAULT_HOST}:{DEFAULT_PORT}"
_ADMIN = "/api/v1"
_STALE_S = 5.0  # a connection idle for longer is not trusted with a call that must not be sent twice
_CHUNK_BYTES = 1 << 18
JSON_TYPE = "application/json"

Progress = Callable[[int], None]  # bytes sent since the last call


@dataclass(frozen=True, slots=True)
class Timing:
    """The timing headers of an answer. "" and zeros where the server sent none."""

    start: str
    queue_ms: float
    init_ms: float
    run_ms: float
    batch_size: int

    @staticmethod
    def of(headers: Mapping[str, str]) -> Timing:
        """From headers that answer to lower-case names."""

        def number(name: str) -> float:
            try:
                return float(headers.get(name, 0))
            except ValueError:
                return 0.0

        return Timing(
            start=headers.get("rewarm-start", ""),
            queue_ms=number("rewarm-queue-ms"),
            init_ms=number("rewarm-init-ms"),
            run_ms=number("rewarm-run-ms"),
            batch_size=int(number("rewarm-batch-size")),
        )


@dataclass(frozen=True, slots=True)
class Answer:
    """A good answer: header names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


def default_url() -> str:
    """REWARM_URL, else the address a server listens on by default."""
    return os.environ.get("REWARM_URL") or DEFAULT_URL


class Api:
    """A server at `url`. Every method raises the RewarmError that the server answered, or SystemFault."""

    def __init__(self, url: str | None = None, *, timeout_s: float = 120.0) -> None:
        given = url or default_url()
        parts = urlsplit(given if "://" in given else f"http://{given}")
        try:
            port = parts.port
        except ValueError:
            port = -1
        if parts.scheme not in ("http", "https") or not parts.hostname or port == -1:
            raise BadDefinition(f"{given!r} is not a URL of a server; write for example {DEFAULT_URL}")
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._connection = kind(parts.hostname, port, timeout=timeout_s)
        self._prefix = parts.path.rstrip("/")
        self.url = f"{parts.scheme}://{parts.netloc}{self._prefix}"
        self._timeout_s = timeout_s
        self._used_s = 0.0

    def __enter__(self) -> Api:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._connection.close()

    # ------------------------------------------------------------ what the server can do

    def server(self) -> dict[str, Any]:
        return self._json("GET", f"{_ADMIN}/server")

    def functions(self) -> list[dict[str, Any]]:
        return list(self._json("GET", f"{_ADMIN}/functions")["functions"])

    def function(self, name: str) -> dict[str, Any]:
        return self._json("GET", self._of(name))

    def remove(self, name: str) -> dict[str, Any]:
        return self._json("DELETE", self._of(name))

    def versions(self, name: str) -> dict[str, Any]:
        return self._json("GET", self._of(name, "/versions"))

    def rollback(self, name: str, version: int | None = None) -> dict[str, Any]:
        query = "" if version is None else f"?version={version}"
        return self._json("POST", self._of(name, "/rollback") + query)

    def flush(self, name: str) -> dict[str, Any]:
        return self._json("POST", self._of(name, "/flush"))

    def load(self, name: str) -> dict[str, Any]:
        return self._json("POST", self._of(name, "/load"))

    def unload(self, name: str) -> dict[str, Any]:
        return self._json("POST", self._of(name, "/unload"))

    def stats(self, name: str) -> dict[str, Any]:
        return self._json("GET", self._of(name, "/stats"))

    def profile(self, name: str) -> dict[str, Any]:
        return self._json("GET", self._of(name, "/profile"))

    def put_profile(self, name: str, profile: Mapping[str, Any]) -> dict[str, Any]:
        return self._json("PUT", self._of(name, "/profile"), profile)

    def remove_profile(self, name: str) -> dict[str, Any]:
        return self._json("DELETE", self._of(name, "/profile"))

    def begin_twin(self, name: str, max_size: int) -> dict[str, Any]:
        """An instance to measure on, under the name that is answered as `twin`."""
        return self._json("POST", self._of(name, "/profile/twin"), {"max_size": max_size})

    def end_twin(self, name: str) -> dict[str, Any]:
        return self._json("DELETE", self._of(name, "/profile/twin"))

    def instances(self) -> dict[str, Any]:
        return self._json("GET", f"{_ADMIN}/instances")

    def ps(self) -> dict[str, Any]:
        """`instances` and more: every layer with its parent, the ledger by layer, what idle memory was good for."""
        return self._json("GET", f"{_ADMIN}/ps")

    def metrics(self) -> str:
        """The Prometheus page."""
        return self.request("GET", "/metrics").body.decode()

    def logs(self, name: str, *, tail: int = 100, instance: int | None = None) -> list[dict[str, Any]]:
        query = {"tail": tail} | ({} if instance is None else {"instance": instance})
        return list(self._json("GET", f"{self._of(name, '/logs')}?{urlencode(query)}")["lines"])

    def deploy(self, archive: IO[bytes], size_bytes: int, progress: Progress | None = None) -> dict[str, Any]:
        """Uploads a deploy archive, read in pieces: it may be larger than memory."""
        headers = {"content-type": "application/x-tar", "content-length": str(size_bytes)}
        body = _Reader(archive, progress or (lambda _: None))
        return _object(self.request("PUT", f"{_ADMIN}/functions", body, headers), self.url)

    def invoke(self, name: str, body: bytes, content_type: str = JSON_TYPE, timeout_s: float | None = None) -> Answer:
        """`timeout_s`: after that long the server does not start the request any more."""
        headers = {"content-type": content_type}
        if timeout_s is not None:
            headers["rewarm-timeout-ms"] = f"{timeout_s * 1000:.0f}"
        return self.request("POST", f"/invoke/{quote(name, safe='')}", body, headers)

    # ------------------------------------------------------------ how it is asked

    def request(
        self, verb: str, path: str, body: bytes | _Reader | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """One call. A GET whose connection the server had closed meanwhile is sent once more, nothing else is."""
        if time.monotonic() - self._used_s > _STALE_S:
            self._connection.close()
        reused = self._connection.sock is not None
        try:
            answer = self._once(verb, path, body, headers or {})
        except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError) as error:
            if verb != "GET" or not reused:
                raise SystemFault(f"{self.url} closed the connection without an answer ({error})") from error
            answer = self._once(verb, path, body, headers or {})
        self._used_s = time.monotonic()
        if answer.status >= 400:
            raise _error_of(answer, f"{self.url}{path}")
        return answer

    def _once(self, verb: str, path: str, body: bytes | _Reader | None, headers: Mapping[str, str]) -> Answer:
        connection = self._connection
        done = False
        try:
            try:
                connection.request(verb, self._prefix + path, body, dict(headers))
            except (BrokenPipeError, ConnectionResetError):
                if not isinstance(body, _Reader):
                    raise
                # The server may have refused an upload before its end: its answer says why.
            response = connection.getresponse()
            found = {name.lower(): value for name, value in response.getheaders()}
            answer = Answer(response.status, found, response.read())
            done = True
            return answer
        except ConnectionRefusedError as error:
            raise NoServer(f"no rewarm server answers at {self.url}; start one with: rewarm serve") from error
        except TimeoutError as error:
            raise SystemFault(f"{self.url} did not answer within {self._timeout_s:g} s") from error
        except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
            raise
        except (OSError, http.client.HTTPException) as error:
            raise NoServer(f"cannot talk to {self.url}: {error or type(error).__name__}") from error
        finally:
            if not done:
                connection.close()

    def _json(self, verb: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        if body is None:
            return _object(self.request(verb, path), self.url)
        content = json.dumps(body).encode()
        return _object(self.request(verb, path, content, {"content-type": JSON_TYPE}), self.url)

    @staticmethod
    def _of(name: str, rest: str = "") -> str:
        return f"{_ADMIN}/functions/{quote(name, safe='')}{rest}"


class _Reader:
    """A file read in larger pieces than http.client's own, counting what went out."""

    def __init__(self, source: IO[bytes], progress: Progress) -> None:
        self._source = source
        self._progress = progress

    def read(self, _size: int = -1) -> bytes:
        chunk = self._source.read(_CHUNK_BYTES)
        self._progress(len(chunk))
        return chunk


def _object(answer: Answer, url: str) -> dict[str, Any]:
    try:
        found = answer.json()
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise SystemFault(f"what answers at {url} is not a rewarm server")
    return found


def _error_of(answer: Answer, where: str) -> RewarmError:
    try:
        body = answer.json()
        code, message = str(body["code"]), str(body["error"])
    except (ValueError, KeyError, TypeError):
        return SystemFault(f"{where} answered {answer.status} in no form that rewarm uses; is it a rewarm server?")
    error = from_code(code, message, str(body.get("error_type", "Error")))
    wait_s = body.get("retry_after_s")
    if isinstance(wait_s, int | float):
        error.retry_after_s = float(wait_s)
    return error
