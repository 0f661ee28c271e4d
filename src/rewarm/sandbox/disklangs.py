"""The Lang layers of micro-VMs: snapshots on disk, which no process stands for. The core hears of each that is there.

One that was made by the way, for a function's own snapshot, or lay there when the server started, is told with
`LangFound`: it takes as much disk as one that was raised, and is dropped as one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine
from typing import Any

from rewarm.clock import Clock
from rewarm.errors import RewarmError, SandboxFailed
from rewarm.facts import messages as m
from rewarm.facts.function import LangKey
from rewarm.sandbox.library import Library, lang_name
from rewarm.sandbox.port import Sink
from rewarm.sandbox.waking import told


class DiskLangs:
    """Those that one driver answers for. `forget` deletes a snapshot by its name."""

    def __init__(self, library: Library, clock: Clock, sink: Sink, forget: Callable[[str], None]) -> None:
        self._library = library
        self._clock = clock
        self._sink = sink
        self._forget = forget
        self._loop = asyncio.get_running_loop()
        self._there: dict[LangKey, bool] = {}  # False: being made
        library.lang_there = self.found
        library.langs_gone = self.gone

    def __contains__(self, key: LangKey) -> bool:
        """It is there."""
        return self._there.get(key, False)

    def raise_(self, key: LangKey) -> Coroutine[Any, Any, None]:
        """See to it that it is there, and answer. From now on it can be dropped."""
        self._there[key] = False
        return self._raised(key, self._clock())

    async def _raised(self, key: LangKey, since_s: float) -> None:
        error: RewarmError | None = None
        disk_bytes = 0
        try:
            if not key.vm_bytes:
                raise SandboxFailed(f"runtime {key} is not one of a micro-VM")
            disk_bytes = (await self._library.lang(key)).snapshot.disk_bytes
        except Exception as failure:
            error = told(failure, f"runtime {key} could not be made")
        if self._there.get(key) is not False:  # it was dropped meanwhile, and nobody waits
            if error is None:
                self.found(key, disk_bytes)
        elif error is None:
            self._there[key] = True
            self._sink.post(m.LangRaised(key, self._clock() - since_s))
            self._sink.post(m.Measured(key, disk_bytes))
        else:
            del self._there[key]
            self._sink.post(m.LangExited(key, error))

    def found(self, key: LangKey, disk_bytes: int) -> None:
        """It is on disk, and nobody may have asked for it."""
        if self._there.setdefault(key, True):
            self._post_soon(m.LangFound(key, disk_bytes))  # after the end of one before it, which may be on its way

    def gone(self, names: Collection[str]) -> None:
        """These snapshots were deleted since no function needs them."""
        for key in [key for key, there in self._there.items() if there and lang_name(key) in names]:
            del self._there[key]
            self._post_soon(m.LangExited(key))

    def drop(self, key: LangKey) -> None:
        """Its bytes are wanted back: there is no process to end, but a file to delete."""
        if self._there.pop(key, None) is not None:
            self._forget(lang_name(key))
            self._post_soon(m.LangExited(key))

    def leave(self) -> None:
        """The server ends; what is on disk is for the next one."""
        for key in self._there:
            self._post_soon(m.LangExited(key))
        self._there.clear()

    def _post_soon(self, event: m.Event) -> None:
        self._loop.call_soon(self._sink.post, event)
