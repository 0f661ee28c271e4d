"""An event loop whose waiting is the pump's: what the pump reads costs asyncio no handle, no key and no context."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Mapping
from typing import Any

from rewarm.pump import Pump


class PumpSelector(selectors.BaseSelector):
    """asyncio's descriptors stay in a selector of their own, which is one descriptor of the pump."""

    def __init__(self, pump: Pump) -> None:
        self._pump = pump
        self._others = selectors.EpollSelector()
        pump.watch_other(self._others.fileno())

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if self._pump.turn(-1.0 if timeout is None else max(timeout, 0.0)):
            return self._others.select(0)
        return []

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._others.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._others.unregister(fileobj)

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._others.modify(fileobj, events, data)

    def get_key(self, fileobj: Any) -> selectors.SelectorKey:
        return self._others.get_key(fileobj)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._others.get_map()

    def close(self) -> None:
        self._pump.close()
        self._others.close()


def make_loop(pump: Pump) -> asyncio.AbstractEventLoop:
    """An event loop that waits in `pump`, and closes it in the end."""
    return asyncio.SelectorEventLoop(PumpSelector(pump))
