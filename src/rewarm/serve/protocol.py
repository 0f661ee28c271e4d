"""The front door: uvicorn's httptools protocol, with invocations answered by ourselves.

uvicorn's path costs an ASGI scope, a task and several awaits per request. Invocations need none of that: their
headers are read here, the body goes to the core as bytes, and the answer is one write. All other routes go through
uvicorn unchanged (ADR 3).
"""

from __future__ import annotations

from typing import Any

import httptools

from rewarm import wire
from rewarm.errors import BadRequest, BodyTooLarge, HeadersTooLarge, RewarmError, Unavailable
from rewarm.serve import answers, invocation
from rewarm.serve.call import Call
from rewarm.serve.connection import Connection
from rewarm.serve.door import Door
from rewarm.serve.lane import BODY, HEAD, IDLE, INF, WAIT
from rewarm.serve.plan import Plan
from rewarm.serve.router import Target

_STASH_BYTES_MAX = 256 << 10


class FrontDoor(Connection):
    """One connection, from the side of what comes in. `door` is bound by a subclass (see `bind`)."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._head_bytes = 0
        self._target: Target | None = None
        self._chunks: list[bytes] = []
        self._body_bytes = 0
        self._found: dict[bytes, bytes] = {}
        self._fresh = b""  # the chunk that began the present request, if it was the first thing in it
        self._last_head = b""
        if len(self.door.lanes) > self.door.limits.connections_max:
            self._end(Unavailable("too many connections; try again in a moment"), linger=False)

    # ------------------------------------------------------------ bytes in

    def data_received(self, data: bytes) -> None:
        if self._ending:
            return
        self._fresh = b""
        if self.timeout_keep_alive_task is not None:
            self._unset_keepalive_if_required()
        if self.lane.phase == IDLE and not self._stash:
            self._fresh = data
        elif self._stash or (self.lane.phase == WAIT and self._busy()):
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
        if self.lane.phase == HEAD:
            self._head_bytes += len(data)
            if self._head_bytes > self.door.limits.header_bytes_max + (64 << 10):  # one endless line
                self._end(self._head_too_large())

    def _keep(self, data: bytes) -> None:
        """Pipelined bytes: parsed once the present answer is written."""
        self.lane.special = True
        self._stash += data
        if len(self._stash) > _STASH_BYTES_MAX:
            self._end(BadRequest("too much was sent before the answer to the first request"))

    def _resume(self) -> None:
        if self._stash and not self._busy() and not self.transport.is_closing():
            data, self._stash = bytes(self._stash), bytearray()
            self.lane.phase = IDLE
            self.data_received(data)

    # ------------------------------------------------------------ parser callbacks

    def on_message_begin(self) -> None:
        self.url = b""
        self.headers = []
        self.expect_100_continue = False
        self._target = None
        self._head_bytes = 0
        if self._ending:
            return
        if self.lane.active is not None:
            self.lane.special = True
        self.lane.phase = HEAD
        self.lane.deadline_s = self.door.coarse_s + self.door.limits.header_timeout_s

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
        self.lane.phase = BODY
        self.lane.deadline_s = door.coarse_s + door.limits.body_timeout_s
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
        found = self._found = {name: value for name, value in self.headers if name in invocation.INTERESTING}
        length = found.get(b"content-length")
        if length is not None and int(length) > door.limits.body_bytes_max:  # llhttp has checked that it is a number
            self._end(self._body_too_large())
        elif found.get(b"expect", b"").lower() == b"100-continue":
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _to_application(self) -> None:
        """Not an invocation: have uvicorn build its scope and run the ASGI application."""
        if self.lane.active is not None:
            self.lane.phase = HEAD  # this request is not the application's
            self._end(BadRequest("do not pipeline another kind of request behind an invocation"))
            return
        self.lane.special = True
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
                    self.lane.deadline_s = self.door.coarse_s + self.door.limits.body_timeout_s
            return
        self._body_bytes += len(body)
        if self._body_bytes > self.door.limits.body_bytes_max:
            self._end(self._body_too_large())
        elif not self._ending:
            self._chunks.append(body)

    def on_message_complete(self) -> None:
        if self._ending:
            return
        self.lane.phase = WAIT
        self.lane.deadline_s = INF
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

    def _remember(self, call: Call, target: Target, limit_s: float) -> None:
        """If the whole request came as one chunk and nothing about it is special, its head is worth keeping.

        Only the second time in a row: a client whose heads all differ must not push out those of the others.
        """
        data, body = self._fresh, call.payload[2]
        head = data[: len(data) - len(body)]
        if head != self._last_head:
            self._last_head = head
            return
        if call.close or not head.endswith(b"\r\n\r\n") or data.find(b"\r\n\r\n") + 4 != len(head):
            return
        if b"content-length" in self._found and b"expect" not in self._found:
            plan = Plan(target.function, call.payload[0], call.payload[1], target.version, len(body), limit_s)
            self.door.remember(head, plan)

    def _invoke(self, target: Target, body: bytes) -> None:
        door, found = self.door, self._found
        now = door.clock()
        revision = door.revisions.get(target.function)
        timeout_s = revision.spec.timeout_s if revision is not None else 0.0
        close = not self.parser.should_keep_alive()
        call = Call(target.function, now, now + timeout_s, (target.kind, b"", body), self.lane, close)
        try:
            limit_s = invocation.complete(call, target, found, revision)
        except RewarmError as error:
            self._hold(call, answers.render_error(call, error, door.date_line))
            return
        if invocation.is_dry_run(target, found):
            self._hold(call, invocation.dry_run_answer(call, door.date_line))
        elif self.lane.active is not None:
            self._queue(call)
        else:
            if self._fresh and target.kind != wire.KIND_LAMBDA:
                self._remember(call, target, limit_s)
            self.lane.active = call
            door.submit(call)

    def _head_too_large(self) -> HeadersTooLarge:
        return HeadersTooLarge(f"the headers are larger than {self.door.limits.header_bytes_max} bytes")

    def _body_too_large(self) -> BodyTooLarge:
        limit = self.door.limits.body_bytes_max
        return BodyTooLarge(f"the body is larger than {limit} bytes; start the server with a larger --body-limit")


def bind(door: Door) -> type[FrontDoor]:
    """The protocol class for one server (uvicorn makes the instances)."""
    return type("BoundFrontDoor", (FrontDoor,), {"door": door})
