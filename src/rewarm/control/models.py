"""Packed weights on the live server: what was deployed, whether it is still whole, and the keeper that reads and pins.

The core decides how much of each pack is pinned and when one is about to be needed; this desk tells the keeper, and
tells the driver what an instance has to know of its pack. Everything runs on the event loop's thread.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any, Final

from rewarm.clock import Clock, system_clock
from rewarm.control import cold_starts
from rewarm.core.models import Models
from rewarm.errors import RewarmError, Unavailable
from rewarm.facts import messages as m
from rewarm.facts.function import Revision
from rewarm.facts.pack import PackFacts
from rewarm.store.store import Store
from rewarm.store.verified import identity
from rewarm.weights.format import Pack, verify
from rewarm.weights.keeper_client import Failed, KeeperClient, Loaded, PackAt, Pinned, Report

log = logging.getLogger("rewarm.control")


SAVE_S: Final = 5.0  # from a cold start until its file tells of it: what a crash may lose


class ModelDesk:
    """One per server."""

    def __init__(self, store: Store, clock: Clock = system_clock, wall_clock: Clock = time.time) -> None:
        self.pinned: dict[str, Pinned] = {}  # by key of the pack: what the keeper said last
        self.loads: dict[str, Loaded] = {}  # likewise, of reading ahead
        self._ahead: dict[str, int] = {}  # bytes that the keeper read for the last start
        self._store = store
        self._packs: dict[str, Pack] = {}
        self._keeper = KeeperClient(self._heard)
        self._post: Callable[[m.Event], None] = lambda event: None
        self._checks: dict[str, asyncio.Task[RewarmError | None]] = {}
        self._clock, self._wall_clock = clock, wall_clock  # the core's, and seconds since the epoch
        self._models: Models | None = None
        self._saving: asyncio.Task[None] | None = None

    def start(self, post: Callable[[m.Event], None], models: Models) -> None:
        """`post` takes events for the core, whose models are `models`: they are told what an earlier server learned."""
        self._post = post
        self._models = models
        per_s, at_s = cold_starts.load(self._store.home.path)
        models.remember(per_s, max(0.0, self._wall_clock() - at_s))

    async def close(self) -> None:
        for check in list(self._checks.values()):
            check.cancel()
        if self._saving is not None:  # what is not saved yet is saved now
            self._saving.cancel()
            self._save()
        await self._keeper.close()

    async def _save_soon(self) -> None:
        await asyncio.sleep(SAVE_S)
        self._save()
        self._saving = None

    def _save(self) -> None:
        assert self._models is not None
        cold_starts.save(self._store.home.path, self._models.cold_per_s(self._clock()), self._wall_clock())

    @property
    def pid(self) -> int | None:
        """The keeper's process, if there is one."""
        return self._keeper.pid

    # ------------------------------------------------------------ deploys

    def adopt(self, revision: Revision) -> PackFacts | None:
        """What the core should know of the revision's pack; None if there is none, or it cannot be used."""
        try:
            pack = self._store.pack(revision)
        except RewarmError as error:
            log.error("the weights of %s are read the slow way: %s", revision.name, error.message)
            return None
        if pack is None:
            return None
        self._packs[pack.index.key] = pack
        self._keeper.start()
        return pack.index.facts()

    # ------------------------------------------------------------ what the core decides

    def prefetch(self, key: str) -> None:
        """An instance that needs the pack is about to start: read it, whoever is first."""
        if self._saving is None:
            self._saving = asyncio.get_running_loop().create_task(self._save_soon())
        self._ahead.pop(key, None)
        pack = self._packs.get(key)
        if pack is not None and self._store.verified.holds(pack):
            self._keeper.prefetch(_place(pack))

    def pin(self, order: m.Pin) -> None:
        pack = self._packs.get(order.key)
        if pack is None:
            self._post(m.Pinned(order.key, 0))
        else:
            self._keeper.pin(_place(pack), order.size_bytes, order.tables)

    def told(self, key: str) -> dict[str, Any]:
        """What the keeper said of the pack last, for `rewarm ps`."""
        pinned, load = self.pinned.get(key), self.loads.get(key)
        return {
            "held_bytes": pinned.size_bytes if pinned is not None else 0,
            "locked": pinned.locked if pinned is not None else False,
            "read_bytes": load.read_bytes if load is not None else None,
        }

    def read_ahead(self, key: str) -> int | None:
        """Bytes that the keeper read for the start that has just ended; None if it was not asked to, or still reads.

        Told once: of several instances that start together, the first.
        """
        return self._ahead.pop(key, None)

    # ------------------------------------------------------------ what an instance is told

    def order(self, revision: Revision) -> dict[str, Any] | None:
        """For its LOAD order: where its pack is, what is pinned of it, and how fast the storage is."""
        pack = self._packs.get(revision.pack.key) if revision.pack is not None else None
        if pack is None:
            return None
        pinned, load = self.pinned.get(pack.index.key), self.loads.get(pack.index.key)
        model = self._models.by_key.get(pack.index.key) if self._models is not None else None
        return {
            "compute_s": [layer.compute_s for layer in model.layers] if model is not None else None,
            "rows_s": model.rows_s if model is not None else None,
            "setup_s": model.setup_s if model is not None else None,
            "folder": str(pack.folder), "tensors_dir": str(pack.tensors_dir),
            "pinned_bytes": pinned.size_bytes if pinned is not None else 0,
            "bandwidth_bytes_s": self._keeper.bandwidth.bytes_s(load.device) if load is not None else None,
        }  # fmt: skip

    def check(self, revision: Revision, then: Callable[[RewarmError | None], None]) -> None:
        """Call `then` with None once the pack is known to be whole, else with what is wrong.

        At once unless a file changed since it was read last; it is read anew then.
        """
        pack = self._packs.get(revision.pack.key) if revision.pack is not None else None
        if pack is None or self._store.verified.holds(pack):
            then(None)
            return
        key = pack.index.key
        check = self._checks.get(key)
        if check is None:
            check = self._checks[key] = asyncio.get_running_loop().create_task(self._check(pack))
            check.add_done_callback(lambda _: self._checks.pop(key, None))
        check.add_done_callback(lambda done: None if done.cancelled() else then(done.result()))

    async def _check(self, pack: Pack) -> RewarmError | None:
        seen = identity(pack)
        try:
            try:
                await self._keeper.verify(_place(pack))
            except Unavailable:
                await asyncio.to_thread(verify, pack)
        except RewarmError as error:
            log.error("pack %s: %s", pack.index.key[:12], error.message)
            return error
        self._store.verified.note(pack, seen)
        return None

    # ------------------------------------------------------------ what the keeper reports

    def _heard(self, report: Report) -> None:
        if isinstance(report, Loaded):
            self.loads[report.key] = report
            self._ahead[report.key] = report.read_bytes
            if report.bandwidth_bytes_s is not None:
                self._post(m.Loaded(report.key, report.read_bytes, report.seconds))
        elif isinstance(report, Pinned):
            self.pinned[report.key] = report
            if report.why and not report.soon:
                log.warning("pack %s is kept in memory without a lock: %s", report.key[:12], report.why)
            if not report.soon:  # else it stays on the ledger: nobody else may have that memory meanwhile
                self._post(m.Pinned(report.key, report.size_bytes))
        else:
            self._failed(report)

    def _failed(self, report: Failed) -> None:
        log.error("pack %s: %s failed: %s", report.key[:12], report.what, report.error)
        if report.what == "pin":
            self.pinned.pop(report.key, None)
            self._post(m.Pinned(report.key, 0))


def _place(pack: Pack) -> PackAt:
    return PackAt(pack.index.key, pack.folder, pack.tensors_dir)
