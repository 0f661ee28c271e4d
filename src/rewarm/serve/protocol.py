"""The front door: uvicorn's httptools protocol, with invocations answered by ourselves.

uvicorn's path costs an ASGI scope, a task and several awaits per request. Invocations need none of that: their
headers are read here, the body goes to the core as bytes, and the answer is one write. All other routes go through
uvicorn unchanged (ADR 3).

A connection is in one phase at a time:  IDLE → HEAD → BODY → WAIT → IDLE. Each phase but WAIT has a deadline, kept by
the door's sweeper, so a slow client costs a connection for a bounded time. Requests that a client pipelines are
answered in order: invocations among themselves queue up here; bytes that arrive while an answer is due are kept
(bounded) and parsed after it.
"""

from __future__ import annotations

import os
from collections import deque
from typing import Any, ClassVar

import httptools
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from rewarm import wire
from rewarm.errors import (
    BadRequest,
    BodyTooLarge,
    HeadersTooLarge,
    NotFound,
    NotImplementedYet,
    RequestTimeout,
    RewarmError,
    Unavailable,
)  # fmt: skip
from rewarm.serve import answers
from rewarm.serve.call import Call
from rewarm.serve.door import Door, Plan, lambda_meta
from rewarm.serve.pump import PumpedReading
from rewarm.serve.router import Target

IDLE, HEAD, BODY, WAIT = range(4)
_INF = float("inf")
_STASH_BYTES_MAX = 256 << 10
_PIPELINE_MAX = 16
_LINGER_S = 5.0
_INTERESTING = frozenset({
    b"content-type", b"content-length", b"content-encoding", b"expect", b"inference-header-content-length",
    b"rewarm-timeout-ms", b"x-amz-invocation-type",
})  # fmt: skip


class FrontDoor(HttpToolsProtocol):
    """One connection. `door` is bound by a subclass (see `bind`)."""

    door: ClassVar[Door]

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        door = self.door
        self._phase = IDLE
        self._head_bytes = 0
        self._target: Target | None = None
        self._error: RewarmError | None = None
        self._chunks: list[bytes] = []
        self._body_bytes = 0
        self._found: dict[bytes, bytes] = {}
        self._active: Call | None = None
        self._backlog: deque[Call] = deque()
        self._stash = bytearray()
        self._fd = transport.get_extra_info("socket").fileno()
        transport.pause_reading()
        self.flow = FlowControl(PumpedReading(door.pump, self._fd))  # type: ignore[arg-type]
        door.pump.add(self._fd, self)
        self._fresh = b""  # the chunk that began the present request, if it was the first thing in it
        self._ending = False  # nothing more is parsed: an answer that closes the connection is written or due
        self._last: bytes | None = None  # that answer, while those before it are due
        self._special = False  # anything but one request, one answer, an empty buffer; `_rest` takes it back
        self.deadline_s = door.coarse_s + door.limits.header_timeout_s
        door.connections.add(self)
        if len(door.connections) > door.limits.connections_max:
            self._end(Unavailable("too many connections; try again in a moment"), linger=False)

    def connection_lost(self, exc: Exception | None) -> None:
        self.door.connections.discard(self)
        self.door.pump.remove(self._fd, self)
        for call in (self._active, *self._backlog):
            if call is not None:
                call.connection = None
                self.door.backend.cancel(call)
        self._active = None
        self._backlog.clear()
        super().connection_lost(exc)

    # ------------------------------------------------------------ bytes in

    def data_received(self, data: bytes) -> None:
        if self._ending:
            return
        self._fresh = b""
        if self.timeout_keep_alive_task is not None:
            self._unset_keepalive_if_required()
        if self._phase == IDLE and not self._stash:
            head_bytes = data.find(b"\r\n\r\n") + 4
            plan = self.door.plans.get(data[:head_bytes])
            if plan is not None and len(data) == head_bytes + plan.body_bytes:
                self._phase = WAIT
                self.deadline_s = _INF
                self._follow(plan, data[head_bytes:])
                return
            self._fresh = data
        elif self._stash or (self._phase == WAIT and self._busy()):
            self._keep(data)
            return
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            if not self._ending:
                self._end(BadRequest("this is not HTTP/1.1: the request could not be parsed"))
            return
        except httptools.HttpParserUpgrade:
            self._end(BadRequest("protocol upgrades are not supported"))
            return
        if self._phase == HEAD:
            self._head_bytes += len(data)
            if self._head_bytes > self.door.limits.header_bytes_max + (64 << 10):  # one endless line
                self._end(self._head_too_large())

    def _busy(self) -> bool:
        """An answer is due, or the client has yet to read what was written."""
        return (
            self._active is not None or self.flow.write_paused
            or (self.cycle is not None and not self.cycle.response_complete)
        )  # fmt: skip

    def _keep(self, data: bytes) -> None:
        """Pipelined bytes: parsed once the present answer is written."""
        self._special = True
        self._stash += data
        if len(self._stash) > _STASH_BYTES_MAX:
            self._end(BadRequest("too much was sent before the answer to the first request"))

    def _resume(self) -> None:
        if self._stash and not self._busy() and not self.transport.is_closing():
            data, self._stash = bytes(self._stash), bytearray()
            self._phase = IDLE
            self.data_received(data)

    # ------------------------------------------------------------ parser callbacks

    def on_message_begin(self) -> None:
        self.url = b""
        self.headers = []
        self.expect_100_continue = False
        self._target = None
        self._error = None
        self._head_bytes = 0
        if self._ending:
            return
        if self._active is not None:
            self._special = True
        self._phase = HEAD
        self.deadline_s = self.door.coarse_s + self.door.limits.header_timeout_s

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))
        self._head_bytes += len(name) + len(value) + 4

    def on_headers_complete(self) -> None:
        if self._ending:
            return
        door = self.door
        if self._head_bytes + len(self.url) > door.limits.header_bytes_max:
            self._end(self._head_too_large())
            return
        self._phase = BODY
        self.deadline_s = door.coarse_s + door.limits.body_timeout_s
        target = door.router.match(self.url) if self.parser.get_method() == b"POST" else None
        if target is None:
            self._to_application()
            return
        self._target = target
        if self.cycle is not None and not self.cycle.response_complete:
            self._end(BadRequest("do not pipeline an invocation behind another kind of request"))
            return
        self._chunks = []
        self._body_bytes = 0
        found = self._found = {name: value for name, value in self.headers if name in _INTERESTING}
        length = found.get(b"content-length")
        if length is not None and int(length) > door.limits.body_bytes_max:  # llhttp has checked that it is a number
            self._end(self._body_too_large())
        elif found.get(b"expect", b"").lower() == b"100-continue":
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _to_application(self) -> None:
        """Not an invocation: have uvicorn build its scope and run the ASGI application."""
        if self._active is not None:
            self._phase = HEAD  # this request is not the application's
            self._end(BadRequest("do not pipeline another kind of request behind an invocation"))
            return
        self._special = True
        url, headers = self.url, self.headers
        super().on_message_begin()
        self.url = url
        self.headers.extend(headers)  # the scope holds this very list
        self.expect_100_continue = (b"expect", b"100-continue") in headers
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if self._target is None:
            if not self._ending:
                super().on_body(body)
                if not self.cycle.response_complete:  # an upload may take long, as long as it goes on
                    self.deadline_s = self.door.coarse_s + self.door.limits.body_timeout_s
            return
        self._body_bytes += len(body)
        if self._body_bytes > self.door.limits.body_bytes_max:
            self._end(self._body_too_large())
        elif not self._ending:
            self._chunks.append(body)

    def on_message_complete(self) -> None:
        if self._ending:
            return
        self._phase = WAIT
        self.deadline_s = _INF
        if self._target is None:
            super().on_message_complete()
            if not self._busy():
                self._rest()  # it was answered before its end
            return
        chunks = self._chunks
        body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        self._chunks = []
        self._invoke(self._target, body)

    # ------------------------------------------------------------ invocations

    def _follow(self, plan: Plan, body: bytes) -> None:
        """A request whose head was seen before: nothing is left to parse."""
        door = self.door
        name, kind, meta, version, _, limit_s = plan
        now = door.clock()
        revision = door.revisions.get(name)
        timeout_s = revision.spec.timeout_s if revision is not None else 0.0
        call = Call(name, now, now + (timeout_s if timeout_s < limit_s else limit_s), (kind, meta, body), self, False)
        self._active = call
        if revision is None or (version and version != str(revision.version)):
            error = NotFound(_unknown(name, version if revision is not None else ""))
            self.finish(call, answers.render_error(call, error, door.date_line))
            return
        door.submit(call)

    def _remember(self, call: Call, target: Target, limit_s: float) -> None:
        """If the whole request came as one chunk and nothing about it is special, its head is worth keeping."""
        data, body = self._fresh, call.payload[2]
        head = data[: len(data) - len(body)]
        if call.close or not head.endswith(b"\r\n\r\n") or data.find(b"\r\n\r\n") + 4 != len(head):
            return
        if b"content-length" in self._found and b"expect" not in self._found:
            plan = Plan(target.function, call.payload[0], call.payload[1], target.version, len(body), limit_s)
            self.door.remember(head, plan)

    def _invoke(self, target: Target, body: bytes) -> None:
        door, found = self.door, self._found
        close = not self.parser.should_keep_alive()
        now = door.clock()
        name, kind, version = target
        revision = door.revisions.get(name)
        timeout_s = revision.spec.timeout_s if revision is not None else 0.0
        meta = b""
        call = Call(name, now, now + timeout_s, wire.Item(kind, meta, body), self, close)
        try:
            if revision is None or (version and version != str(revision.version)):
                raise NotFound(_unknown(name, version if revision is not None else ""))
            if kind == wire.KIND_JSON:
                if found.get(b"content-type", b"").startswith(b"application/octet-stream"):
                    call.payload = wire.Item(wire.KIND_RAW, meta, body)
            elif kind == wire.KIND_V2:
                meta = found.get(b"inference-header-content-length", b"")
                if meta:
                    call.payload = wire.Item(kind, meta[: wire.META_BYTES_MAX], body)
            else:
                meta = lambda_meta(call, self.headers)
                call.version = str(revision.version)
                call.payload = wire.Item(kind, meta, body)
                if not self._lambda_runs(call):
                    return
            limit_s = _timeout_s(found[b"rewarm-timeout-ms"]) if b"rewarm-timeout-ms" in found else _INF
            call.deadline_s = min(call.deadline_s, now + limit_s)
            if found.get(b"content-encoding", b"identity") != b"identity":
                raise BadRequest("compressed bodies are not supported; send it uncompressed")
        except RewarmError as error:
            if kind == wire.KIND_LAMBDA and not call.lambda_id:
                lambda_meta(call, self.headers)
            self._hold(call, answers.render_error(call, error, door.date_line))
            return
        if self._active is not None:
            self._queue(call)
        else:
            if self._fresh and kind != wire.KIND_LAMBDA:
                self._remember(call, target, limit_s)
            self._active = call
            door.submit(call)

    def _lambda_runs(self, call: Call) -> bool:
        """False if the call was answered without running the function."""
        how = self._found.get(b"x-amz-invocation-type", b"RequestResponse")
        if how == b"RequestResponse":
            return True
        if how == b"DryRun":
            head = b"%s%sx-amzn-requestid: %s\r\ncontent-length: 0\r\n%s\r\n" % (
                answers.STATUS_LINES[204], self.door.date_line, call.lambda_id.encode(), answers.timing(call, 0, 0),
            )  # fmt: skip
            self._hold(call, head)
            return False
        if how == b"Event":
            raise NotImplementedYet("asynchronous invocation (Event) is not there yet; use RequestResponse")
        raise BadRequest(f"X-Amz-Invocation-Type {how.decode('latin-1')!r}: use RequestResponse, DryRun or Event")

    def _hold(self, call: Call, answer: bytes) -> None:
        """An answer that needs no core; behind others it must wait for its turn."""
        if self._active is None:
            self._active = call
            self.finish(call, answer)
        else:
            call.payload = answer  # bytes instead of an Item: already answered
            self._queue(call)

    def _queue(self, call: Call) -> None:
        if len(self._backlog) >= _PIPELINE_MAX:
            self._end(BadRequest(f"more than {_PIPELINE_MAX} requests were pipelined"))
        else:
            self._special = True
            self._backlog.append(call)

    def finish(self, call: Call, answer: bytes) -> None:
        """Write the answer of the active call and go on with what is next."""
        if call is not self._active:
            return
        door = self.door
        if self._special or call.close or door.draining:
            self._finish_carefully(call, answer)
            return
        self._active = None
        # What asyncio's transport would do with an empty buffer, without its bookkeeping.
        try:
            sent = os.write(self._fd, answer)
        except OSError:
            sent = 0
        if sent != len(answer):
            self._special = True
            self.transport.write(answer[sent:])
            self._rest()
            return
        self._phase = IDLE
        self.deadline_s = door.idle_until_s

    def _finish_carefully(self, call: Call, answer: bytes) -> None:
        """The same on a connection where more is going on than one request and its answer."""
        self._active = None
        call.connection = None
        transport = self.transport
        if transport.is_closing():
            return
        transport.write(answer)
        if call.close or (self.door.draining and not self._backlog):
            self._close_soon()
        else:
            self._rest()

    def _rest(self) -> None:
        """Answers are written: go on with what waits for that. A request that is half read keeps its phase."""
        if self.flow.write_paused:
            self.deadline_s = min(self.deadline_s, self.door.coarse_s + self.door.limits.write_timeout_s)
            return  # a client that does not read gets no more to read; resume_writing comes back here
        if self._phase == WAIT:
            self._phase = IDLE
            self.deadline_s = self.door.coarse_s + self.door.limits.keepalive_timeout_s
        if self._backlog:
            self._next()
        elif self._last is not None:
            self._say_last(self._last)
        elif self._stash:
            self.loop.call_soon(self._resume)
        elif self._phase == IDLE and not self.transport.get_write_buffer_size():
            self._special = self._ending

    def _next(self) -> None:
        call = self._backlog.popleft()
        self._active = call
        if self._phase == IDLE:
            self._phase = WAIT
            self.deadline_s = _INF
        if isinstance(call.payload, bytes):
            self.finish(call, call.payload)
        else:
            self.door.submit(call)

    # ------------------------------------------------------------ ends

    def on_response_complete(self) -> None:
        """uvicorn finished an ASGI answer."""
        super().on_response_complete()
        if not self._busy() and not self.transport.is_closing():
            self._rest()

    def shutdown(self) -> None:
        """Graceful: an idle connection closes now, others with their answer."""
        if self._active is not None or self._backlog:
            return  # `finish` closes, because the door is draining
        super().shutdown()

    def too_slow(self) -> None:
        """The sweeper: the deadline of the present phase passed."""
        if self._ending:
            self.transport.abort()
        elif self._phase in (HEAD, BODY):
            what = "headers" if self._phase == HEAD else "body"
            self._end(RequestTimeout(f"the {what} of the request did not arrive in time"))
        else:
            self.transport.close()
            self.deadline_s = self.door.coarse_s + self.door.limits.write_timeout_s
            self._ending = self._special = True

    def pause_writing(self) -> None:
        """The client does not read its answers: it has `write_timeout_s` to begin."""
        self._special = True
        super().pause_writing()
        self.deadline_s = self.door.coarse_s + self.door.limits.write_timeout_s

    def resume_writing(self) -> None:
        super().resume_writing()
        self.deadline_s = _INF
        if not self._busy() and not self.transport.is_closing():
            self._rest()

    def _end(self, error: RewarmError, *, linger: bool = True) -> None:
        """Answer with an error, after the answers due before it, and close: what else is sent has no meaning."""
        if self._ending or self.transport.is_closing():
            return
        aws = self._target is not None and self._target.kind == wire.KIND_LAMBDA
        answer = answers.error_answer(error, self.door.date_line, close=True, aws=aws)
        self._ending = self._special = True
        if self._phase == BODY and self._target is None and self.cycle is not None:  # the application's own request
            if not self.cycle.response_started:
                self.transport.write(answer)
            self._close_soon()
        elif self._busy():
            self._last = answer
            if not self.flow.write_paused:
                self.deadline_s = _INF
        elif linger:
            self._say_last(answer)
        else:
            self.transport.write(answer)
            self._close_soon()

    def _say_last(self, answer: bytes) -> None:
        """Close in a way that lets a client that is still sending read the answer: a reset would destroy it."""
        self._last = None
        self.transport.write(answer)
        try:
            self.transport.write_eof()
        except OSError:  # the client has reset the connection meanwhile
            self.transport.abort()
            return
        self.flow.resume_reading()  # what comes is dropped by data_received
        self.deadline_s = self.door.coarse_s + _LINGER_S

    def _close_soon(self) -> None:
        self._ending = self._special = True
        self.deadline_s = self.door.coarse_s + self.door.limits.write_timeout_s
        self.transport.close()

    def _head_too_large(self) -> HeadersTooLarge:
        return HeadersTooLarge(f"the headers are larger than {self.door.limits.header_bytes_max} bytes")

    def _body_too_large(self) -> BodyTooLarge:
        limit = self.door.limits.body_bytes_max
        return BodyTooLarge(f"the body is larger than {limit} bytes; start the server with a larger --body-limit")


def bind(door: Door) -> type[FrontDoor]:
    """The protocol class for one server (uvicorn makes the instances)."""
    return type("BoundFrontDoor", (FrontDoor,), {"door": door})


def _unknown(name: str, version: str) -> str:
    what = f"version {version!r} of {name!r}" if version else f"function {name!r}"
    return f"there is no {what}; deploy it, or see what there is with: rewarm ls"


def _timeout_s(value: bytes) -> float:
    try:
        timeout_ms = float(value)
    except ValueError:
        timeout_ms = -1.0
    if not 0 < timeout_ms < 1e9:
        raise BadRequest(f"Rewarm-Timeout-Ms must be a number of milliseconds above 0, not {value.decode('latin-1')!r}")
    return timeout_ms * 1e-3
