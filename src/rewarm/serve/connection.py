"""One connection, from the side of what goes out: answers in their order, and the ways in which it ends.

What comes in (heads, bodies, calls) is the subclass's business (`protocol`). A connection is in one phase at a time:

    IDLE → HEAD → BODY → WAIT → IDLE

Each phase but WAIT has a deadline, kept by the door's sweeper, so a slow client costs a connection for a bounded time.
Requests that a client pipelines are answered in order: invocations among themselves queue up in the backlog; bytes
that arrive while an answer is due are kept (bounded) and parsed after it.
"""

from __future__ import annotations

from collections import deque
from typing import Any, ClassVar

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from rewarm import wire
from rewarm.errors import BadRequest, RequestTimeout, RewarmError
from rewarm.pump import PumpedReading
from rewarm.serve import answers
from rewarm.serve.call import Call
from rewarm.serve.door import Door
from rewarm.serve.lane import BODY, HEAD, IDLE, INF, WAIT, Lane
from rewarm.serve.router import Target

_PIPELINE_MAX = 16
_LINGER_S = 5.0


class Connection(HttpToolsProtocol):
    """The answering half of a FrontDoor."""

    door: ClassVar[Door]
    _target: Target | None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        door = self.door
        self._backlog: deque[Call] = deque()
        self._stash = bytearray()
        self._ending = False  # nothing more is parsed: an answer that closes the connection is written or due
        self._last: bytes | None = None  # that answer, while those before it are due
        fd = transport.get_extra_info("socket").fileno()
        self.lane = Lane(door, fd, self)
        transport.pause_reading()
        self.flow = FlowControl(PumpedReading(door.pump, fd))  # type: ignore[arg-type]
        door.pump.add(fd, self.lane)
        door.lanes.add(self.lane)

    def connection_lost(self, exc: Exception | None) -> None:
        self.door.lanes.discard(self.lane)
        self.door.pump.remove(self.lane.fd, self.lane)
        for call in (self.lane.active, *self._backlog):
            if call is not None:
                call.lane = None
                self.door.backend.cancel(call)
        self.lane.active = None
        self._backlog.clear()
        super().connection_lost(exc)

    def _busy(self) -> bool:
        """An answer is due, or the client has yet to read what was written."""
        return (
            self.lane.active is not None or self.flow.write_paused
            or (self.cycle is not None and not self.cycle.response_complete)
        )  # fmt: skip

    @property
    def nothing_behind(self) -> bool:
        """No further call of this connection waits for its turn."""
        return not self._backlog

    def _resume(self) -> None:
        """Parse what was kept; the subclass knows how."""
        raise NotImplementedError

    # ------------------------------------------------------------ answers in order

    def _hold(self, call: Call, answer: bytes) -> None:
        """An answer that needs no core; behind others it must wait for its turn."""
        if self.lane.active is None:
            self.lane.active = call
            self.lane.finish(call, answer)
        else:
            call.payload = answer  # bytes instead of an Item: already answered
            self._queue(call)

    def _queue(self, call: Call) -> None:
        if len(self._backlog) >= _PIPELINE_MAX:
            self._end(BadRequest(f"more than {_PIPELINE_MAX} requests were pipelined"))
        else:
            self.lane.special = True
            self._backlog.append(call)

    def unsent(self, rest: bytes) -> None:
        """The socket did not take the whole answer: the transport has the rest."""
        self.lane.special = True
        self.transport.write(rest)
        self._rest()

    def finish_carefully(self, call: Call, answer: bytes) -> None:
        """Answer the active call of a connection where more is going on than one request and its answer."""
        self.lane.active = None
        call.lane = None
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
            self.lane.deadline_s = min(self.lane.deadline_s, self.door.coarse_s + self.door.limits.write_timeout_s)
            return  # a client that does not read gets no more to read; resume_writing comes back here
        if self.lane.phase == WAIT:
            self.lane.phase = IDLE
            self.lane.deadline_s = self.door.idle_until_s
        if self._backlog:
            self._next()
        elif self._last is not None:
            self._say_last(self._last)
        elif self._stash:
            self.loop.call_soon(self._resume)
        elif self.lane.phase == IDLE and not self.transport.get_write_buffer_size():
            self.lane.special = self._ending or self.timeout_keep_alive_task is not None

    def _next(self) -> None:
        call = self._backlog.popleft()
        self.lane.active = call
        if self.lane.phase == IDLE:
            self.lane.phase = WAIT
            self.lane.deadline_s = INF
        if isinstance(call.payload, bytes):
            self.lane.finish(call, call.payload)
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
        if self.lane.active is not None or self._backlog:
            return  # `finish` closes, because the door is draining
        super().shutdown()

    def too_slow(self) -> None:
        """The sweeper: the deadline of the present phase passed."""
        if self._ending:
            self.transport.abort()
        elif self.lane.phase in (HEAD, BODY):
            what = "headers" if self.lane.phase == HEAD else "body"
            self._end(RequestTimeout(f"the {what} of the request did not arrive in time"))
        else:
            self.transport.close()
            self.lane.deadline_s = self.door.coarse_s + self.door.limits.write_timeout_s
            self._ending = self.lane.special = True

    def pause_writing(self) -> None:
        """The client does not read its answers: it has `write_timeout_s` to begin."""
        self.lane.special = True
        super().pause_writing()
        self.lane.deadline_s = self.door.coarse_s + self.door.limits.write_timeout_s

    def resume_writing(self) -> None:
        super().resume_writing()
        self.lane.deadline_s = INF
        if not self._busy() and not self.transport.is_closing():
            self._rest()

    def _end(self, error: RewarmError, *, linger: bool = True) -> None:
        """Answer with an error, after the answers due before it, and close: what else is sent has no meaning."""
        if self._ending or self.transport.is_closing():
            return
        aws = self._target is not None and self._target.kind == wire.KIND_LAMBDA
        answer = answers.error_answer(error, self.door.date_line, close=True, aws=aws)
        self._ending = self.lane.special = True
        if self.lane.phase == BODY and self._target is None and self.cycle is not None:  # the application's own request
            if not self.cycle.response_started:
                self.transport.write(answer)
            self._close_soon()
        elif self._busy():
            self._last = answer
            if not self.flow.write_paused:
                self.lane.deadline_s = INF
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
        self.lane.deadline_s = self.door.coarse_s + _LINGER_S

    def _close_soon(self) -> None:
        self._ending = self.lane.special = True
        self.lane.deadline_s = self.door.coarse_s + self.door.limits.write_timeout_s
        self.transport.close()
