"""The short way through a connection: a head seen before, one answer, one write.

Whatever is not exactly that belongs to the protocol behind it (`connection`, `protocol`), which shares this state. It
is a class of its own so that it can be compiled (ADR 8): a subclass of uvicorn's protocol cannot.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from rewarm.errors import RewarmError
from rewarm.facts.function import Revision
from rewarm.pump import Source
from rewarm.serve import answers, invocation
from rewarm.serve.call import Call
from rewarm.serve.plan import Plan

if TYPE_CHECKING:
    from rewarm.serve.connection import Connection
    from rewarm.serve.door import Door

IDLE: Final = 0
HEAD: Final = 1
BODY: Final = 2
WAIT: Final = 3
INF: Final = float("inf")
_READ_BYTES: Final = 1 << 16  # a larger buffer is allocated with mmap, each time


class Lane(Source):
    """What one connection needs for the usual request. `active` is the call whose answer is due."""

    __slots__ = ("active", "deadline_s", "door", "fd", "head", "phase", "plan", "protocol", "special")

    def __init__(self, door: Door, fd: int, protocol: Connection) -> None:
        self.door = door
        self.fd = fd
        self.protocol = protocol
        self.phase: int = IDLE
        self.active: Call | None = None
        self.head = b""  # of the last request that went the short way, and what it means: mostly, the next is the same
        self.plan: Plan | None = None
        # Anything but one request, one answer, an empty buffer; the protocol's `_rest` takes it back.
        self.special = False
        self.deadline_s: float = door.coarse_s + door.limits.header_timeout_s

    def readable(self) -> None:
        """Read once. What is not a request with a head seen before goes to the protocol."""
        try:
            data = os.read(self.fd, _READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self.door.pump.remove(self.fd, self)
            self.protocol.transport.close()
            return
        if self.phase == IDLE and not self.special:
            plan = self.plan
            if plan is not None and data.startswith(self.head):
                head_bytes = len(self.head)
            else:
                head_bytes = data.find(b"\r\n\r\n") + 4
                head = data[:head_bytes]
                plan = self.door.plans.get(head)
                if plan is not None:
                    self.head, self.plan = head, plan
            if plan is not None and len(data) == head_bytes + plan.body_bytes:
                self.phase = WAIT
                self.deadline_s = INF
                self._follow(plan, data[head_bytes:])
                return
        self.protocol.data_received(data)

    def _follow(self, plan: Plan, body: bytes) -> None:
        """A request whose head was seen before: nothing is left to parse."""
        door = self.door
        now = door.clock()
        revision: Revision | None = door.revisions.get(plan.function)
        limit_s = min(plan.timeout_s, revision.spec.timeout_s) if revision is not None else 0.0
        call = Call(plan.function, now, now + limit_s, (plan.kind, plan.meta, body), self, False)
        self.active = call
        if revision is None or plan.version:
            try:
                invocation.find(plan.function, plan.version, revision)
            except RewarmError as error:
                self.finish(call, answers.render_error(call, error, door.date_line))
                return
        door.submit(call)

    def finish(self, call: Call, answer: bytes) -> None:
        """Write the answer of the active call and go on with what is next."""
        if call is not self.active:
            return
        door = self.door
        if self.special or call.close or door.draining:
            self.protocol.finish_carefully(call, answer)
            return
        self.active = None
        # What asyncio's transport would do with an empty buffer, without its bookkeeping.
        try:
            sent = os.write(self.fd, answer)
        except OSError:
            sent = 0
        if sent != len(answer):
            self.protocol.unsent(answer[sent:])
            return
        self.phase = IDLE
        self.deadline_s = door.idle_until_s
