"""The server's side of the keeper: orders without waiting, reports to a callback, on the event loop's thread.

The process starts when it is first needed. If it ends it is started again, a few times, and gets the wanted pins once
more; while there is none, starts read their weights by themselves, and nothing is pinned.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from rewarm.clock import Clock, system_clock
from rewarm.errors import SystemFault, Unavailable, WeightsCorrupt
from rewarm.helper import Helper
from rewarm.kernel import PACKET_BYTES_MAX
from rewarm.weights.bandwidth import SAMPLE_BYTES_MIN, Bandwidth

log = logging.getLogger("rewarm.weights")

_RESTARTS_MAX = 5
_BACKOFF_S = 0.2  # doubles with each restart
_STEADY_S = 60.0  # who lived so long has earned all its restarts again
_REPORTS_AT_ONCE = 64
_OUTBOX_MAX = 1000
_GONE = "the keeper of weights has ended"


class PackAt(NamedTuple):
    """A pack and where it is."""

    key: str
    folder: Path
    tensors_dir: Path


class Pinned(NamedTuple):
    """The first `size_bytes` of what was to be pinned are in memory now; not locked, but touched, for a reason.

    `soon`: the keeper ended, and the next one will hold what was wanted.
    """

    key: str
    size_bytes: int
    locked: bool
    why: str
    soon: bool = False


class Loaded(NamedTuple):
    """A prefetch is over. `bandwidth_bytes_s`: None if too little came from the disk to tell."""

    key: str
    device: int
    read_bytes: int
    seconds: float
    bandwidth_bytes_s: float | None


class Failed(NamedTuple):
    """The order `what` ("prefetch", "pin") came to nothing; a pin of it is gone. `corrupt`: the pack is no good."""

    key: str
    what: str
    corrupt: bool
    error: str


Report = Pinned | Loaded | Failed


class Status(NamedTuple):
    """What the process holds: locked by all packs (shared pages count for each), and in its memory altogether."""

    locked_bytes: int
    resident_bytes: int
    verified_files: int


class KeeperClient:
    """`heard` gets every report. Nothing here waits but `verify`, `status` and `close`; of one event loop."""

    def __init__(
        self, heard: Callable[[Report], None], clock: Clock = system_clock, backoff_s: float = _BACKOFF_S
    ) -> None:
        self.bandwidth = Bandwidth()
        self._heard = heard
        self._clock = clock
        self._backoff_s = backoff_s
        self._wanted: dict[str, tuple[PackAt, int, tuple[int, ...]]] = {}
        self._loading: set[str] = set()
        self._asked: dict[int, tuple[dict[str, Any], asyncio.Future[dict[str, Any]]]] = {}
        self._last_id = 0
        self._process = Helper("rewarm.weights.keeper", self._readable)
        self._outbox: deque[bytes] = deque()
        self._since_s = 0.0
        self._restarts = 0
        self._restart: asyncio.TimerHandle | None = None
        self._over = False  # closed, or given up

    @property
    def pid(self) -> int | None:
        """Of the process, if there is one."""
        return self._process.pid

    @property
    def available(self) -> bool:
        """False once it has ended too often, and after `close`: no order will be carried out."""
        return not self._over

    # ------------------------------------------------------------ orders

    def start(self) -> None:
        """Have a process from now on. Every order does that too; the first would wait for it to come up."""
        if self._process.pid is None and self._restart is None and not self._over:
            self._spawn()

    async def verify(self, pack: PackAt) -> None:
        """Read the pack's files against their digests, unless that was done since they were last changed.

        Raises WeightsCorrupt; SystemFault if the disk fails; Unavailable if there is no keeper any more.
        """
        answer = await self._ask({"op": "verify", **_place(pack)})
        if answer["error"] is not None:
            raise WeightsCorrupt(answer["error"]) if answer["corrupt"] else SystemFault(answer["error"])

    async def status(self) -> Status:
        """Raises Unavailable if there is no keeper any more."""
        answer = await self._ask({"op": "status"})
        return Status(answer["locked_bytes"], answer["resident_bytes"], answer["verified_files"])

    def prefetch(self, pack: PackAt) -> None:
        """Read in what the pack streams, unless that is under way → Loaded or Failed; neither if the keeper ends."""
        if pack.key not in self._loading:
            self.start()
            if self._send({"op": "prefetch", **_place(pack)}):
                self._loading.add(pack.key)

    def pin(self, pack: PackAt, size_bytes: int, tables: tuple[int, ...] = ()) -> None:
        """Hold the first `size_bytes` of `tables` and of what is streamed, no more and no less → Pinned or Failed."""
        if size_bytes:
            self.start()
            self._wanted[pack.key] = pack, size_bytes, tables
        else:
            self._wanted.pop(pack.key, None)
        self._send({"op": "pin", **_place(pack), "bytes": size_bytes, "tables": tables})

    def forget(self, pack: PackAt) -> None:
        """Nothing of the pack is needed any more."""
        self._wanted.pop(pack.key, None)
        self._loading.discard(pack.key)
        self._send({"op": "forget", **_place(pack)})

    def _ask(self, order: dict[str, Any]) -> asyncio.Future[dict[str, Any]]:
        """The answer, from the next process if this one ends before."""
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        if self._over:
            answer.set_exception(Unavailable(f"{_GONE}; restart the server"))
            return answer
        self.start()
        self._last_id += 1
        order["id"] = self._last_id
        self._asked[self._last_id] = order, answer
        self._send(order)
        return answer

    def _send(self, order: dict[str, Any]) -> bool:
        """False if there is no process at the moment, or one that does not listen any more."""
        if self._process.control is None:
            return False
        if len(self._outbox) >= _OUTBOX_MAX:
            self._process.kill()  # `_readable` hears of it
            return False
        self._outbox.append(json.dumps(order).encode())
        self._flush()
        return True

    def _flush(self) -> None:
        control = self._process.control
        assert control is not None
        try:
            while self._outbox:
                control.send(self._outbox[0])
                self._outbox.popleft()
        except BlockingIOError:
            self._loop.add_writer(control.fileno(), self._flush)
            return
        except OSError:
            self._outbox.clear()  # it has ended: `_readable` is about to hear of it
        self._loop.remove_writer(control.fileno())

    # ------------------------------------------------------------ the process

    def _spawn(self) -> None:
        self._restart = None
        self._loop = asyncio.get_running_loop()
        self._since_s = self._clock()
        try:
            self._process.start()
        except OSError as error:
            self._ended(f"it cannot be started: {error}")
            return
        for pack, size_bytes, tables in self._wanted.values():
            self._send({"op": "pin", **_place(pack), "bytes": size_bytes, "tables": tables})
        for order, _ in self._asked.values():
            self._send(order)

    def _readable(self) -> None:
        control = self._process.control
        for _ in range(_REPORTS_AT_ONCE):
            if control is None or control is not self._process.control:
                return  # closed by whoever heard the report before
            try:
                packet = control.recv(PACKET_BYTES_MAX)
            except BlockingIOError:
                return
            except OSError:
                packet = b""
            if not packet:
                self._stop()
                self._ended("its process is gone")
                return
            self._hear(json.loads(packet))

    def _hear(self, report: dict[str, Any]) -> None:
        op = report["op"]
        if op in ("verified", "status"):
            _, answer = self._asked.pop(report["id"])
            if not answer.done():  # whoever asked may have given up
                answer.set_result(report)
        elif op == "pinned":
            self._heard(Pinned(report["key"], report["bytes"], report["locked"], report["why"]))
        elif op == "loaded":
            self._heard(self._loaded(report))
        else:
            key, what = report["key"], report["what"]
            if what == "prefetch":
                self._loading.discard(key)
            elif what == "pin":
                self._wanted.pop(key, None)
            self._heard(Failed(key, what, op == "corrupt", report["error"]))

    def _loaded(self, report: dict[str, Any]) -> Loaded:
        key, device, read_bytes, seconds = (report[name] for name in ("key", "device", "bytes_read", "seconds"))
        self._loading.discard(key)
        self.bandwidth.add(device, read_bytes, seconds)
        told = read_bytes >= SAMPLE_BYTES_MIN and seconds > 0.0
        return Loaded(key, device, read_bytes, seconds, read_bytes / seconds if told else None)

    def _stop(self) -> None:
        """End the process, if there is one; what it holds is released by that."""
        self._process.stop()
        self._outbox.clear()
        self._loading.clear()

    def _ended(self, why: str) -> None:
        """It was not we who ended it: try again, later each time."""
        if self._clock() - self._since_s >= _STEADY_S:
            self._restarts = 0
        again = self._restarts < _RESTARTS_MAX
        log.log(
            logging.WARNING if again else logging.ERROR, "%s: %s%s", _GONE, why,
            "" if again else f", for the {self._restarts + 1}th time: weights are neither fetched ahead nor pinned "
            "any more; restart the server",
        )  # fmt: skip
        if again:
            self._restart = self._loop.call_later(self._backoff_s * 2**self._restarts, self._spawn)
            self._restarts += 1
        else:
            self._give_up()
        for key in list(self._wanted):
            self._heard(Pinned(key, 0, False, _GONE, soon=again))

    def _give_up(self) -> None:
        self._over = True
        for _, answer in self._asked.values():
            if not answer.done():
                answer.set_exception(Unavailable(f"{_GONE}; restart the server"))
        self._asked.clear()

    async def close(self) -> None:
        """End the process and wait until it is gone. Harmless a second time."""
        if self._restart is not None:
            self._restart.cancel()
            self._restart = None
        self._stop()
        self._give_up()
        await self._process.close()


def _place(pack: PackAt) -> dict[str, str]:
    return {"key": pack.key, "folder": str(pack.folder), "tensors_dir": str(pack.tensors_dir)}
