"""What the demo sends and sees: digits, callers, and a watcher of what is alive on the server."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import numpy.typing as npt

from rewarm.bench.api import Api, Timing
from rewarm.errors import RewarmError

NAME = "digits"
RAW = "application/octet-stream"
Floats = npt.NDArray[np.float32]


class DemoFailed(Exception):
    """The demo did not show what it promises; the message says what happened instead."""


@dataclass(frozen=True, slots=True)
class Digits:
    """Test images: `images` uint8 [n, 784], `labels` uint8 [n], `bodies` the same as raw float32, 0 to 1."""

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.uint8]
    bodies: list[bytes]

    @staticmethod
    def read(path: Path) -> Digits:
        with np.load(path) as arrays:
            images, labels = arrays["images"], arrays["labels"]
        scaled = (images / np.float32(255)).astype("<f4")
        return Digits(images, labels, [row.tobytes() for row in scaled])


@dataclass(frozen=True, slots=True)
class Shot:
    """One answered request. `start` is what it found alive: cold (nothing), lang (a zygote) or warm (an instance)."""

    at_s: float  # sent so long after the demo began
    latency_ms: float
    start: str
    batch_size: int
    right: bool


@dataclass(slots=True)
class Record:
    """Everything that was sent, in the order of the answers."""

    began_s: float = field(default_factory=time.monotonic)
    shots: list[Shot] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)

    def now_s(self) -> float:
        return time.monotonic() - self.began_s

    def add(self, sent_s: float, timing: Timing, right: bool) -> Shot:
        latency_ms = (self.now_s() - sent_s) * 1e3
        shot = Shot(sent_s, latency_ms, timing.start, timing.batch_size, right)
        self.shots.append(shot)
        return shot


def call_once(api: Api, digits: Digits, index: int, record: Record) -> tuple[Shot, Floats]:
    """One request on a kept-alive connection → what became of it and the ten probabilities."""
    sent_s = record.now_s()
    try:
        answer = api.invoke(NAME, digits.bodies[index], RAW)
    except RewarmError as error:
        raise DemoFailed(f"the server answered {error.code}: {error.message}") from error
    probabilities: Floats = np.frombuffer(answer.body, "<f4")
    right = int(probabilities.argmax()) == int(digits.labels[index])
    return record.add(sent_s, Timing.of(answer.headers), right), probabilities


async def call_together(
    url: str, digits: Digits, indices: Iterable[int], callers: int, record: Record, step: Callable[[], None]
) -> list[Shot]:
    """`callers` at once, each on a connection of its own, until all of `indices` are answered."""
    todo = iter(indices)
    shots: list[Shot] = []
    connector = aiohttp.TCPConnector(limit=callers)
    timeout = aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:

        async def caller() -> None:
            for index in todo:
                shot = await _post(session, f"{url}/invoke/{NAME}", digits, index, record)
                if shot is not None:
                    shots.append(shot)
                step()

        await asyncio.gather(*(caller() for _ in range(callers)))
    return shots


async def _post(session: aiohttp.ClientSession, url: str, digits: Digits, index: int, record: Record) -> Shot | None:
    sent_s = record.now_s()
    try:
        async with session.post(url, data=digits.bodies[index], headers={"content-type": RAW}) as response:
            body = await response.read()
            if response.status != 200:
                record.errors[f"status {response.status}"] += 1
                return None
            right = int(np.frombuffer(body, "<f4").argmax()) == int(digits.labels[index])
            return record.add(sent_s, Timing.of(response.headers), right)
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        record.errors[type(error).__name__] += 1
        return None


@dataclass(frozen=True, slots=True)
class Moment:
    """What was alive at one moment and the memory it held, as /api/v1/instances tells it."""

    at_s: float
    instances: int
    instance_bytes: int
    zygotes: int
    zygote_bytes: int

    @property
    def at_zero(self) -> bool:
        return self.instances == self.zygotes == self.instance_bytes == self.zygote_bytes == 0


class Watcher:
    """Looks every `every_s` seconds, on a thread and a connection of its own, for the length of a `with` block."""

    def __init__(self, url: str, record: Record, every_s: float = 0.05) -> None:
        self.moments: list[Moment] = []
        self._api = Api(url, timeout_s=10.0)
        self._record = record
        self._every_s = every_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watcher", daemon=True)

    def __enter__(self) -> Watcher:
        self._look()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._api.close()

    def until(self, what: Callable[[Moment], bool], limit_s: float, otherwise: str) -> Iterator[float]:
        """Yields the seconds waited until `what` is true of a moment from now on; DemoFailed after `limit_s`."""
        since_s = self._record.now_s()
        while not (self.moments[-1].at_s >= since_s and what(self.moments[-1])):
            waited_s = self._record.now_s() - since_s
            if waited_s > limit_s:
                raise DemoFailed(f"{otherwise} within {limit_s:.0f} s")
            yield waited_s
            time.sleep(self._every_s / 2)

    def _watch(self) -> None:
        while not self._over.wait(self._every_s):
            try:
                self._look()
            except RewarmError:
                return  # the server is gone; whoever waits for something says so

    def _look(self) -> None:
        alive: dict[str, Any] = self._api.instances()
        instances, zygotes = alive["instances"], alive["langs"]
        self.moments.append(
            Moment(
                self._record.now_s(),
                len(instances),
                sum(entry["resident_bytes"] for entry in instances),
                len(zygotes),
                sum(entry["resident_bytes"] for entry in zygotes),
            )
        )
