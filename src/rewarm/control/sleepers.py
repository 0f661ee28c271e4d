"""Functions that sleep on disk, on the live server: proved at deploy, swept when nobody uses them, counted.

Whether a function's snapshot is worth its disk is the core's to decide; the driver makes, finds and deletes them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Iterator
from typing import Any

from rewarm.errors import MicrovmUnavailable, RewarmError, Unavailable
from rewarm.facts.function import Revision
from rewarm.facts.snapshot import SnapshotFacts
from rewarm.sandbox.library import Library, Recipe
from rewarm.store.store import Candidate

log = logging.getLogger("rewarm.control")

Gauge = tuple[str, str, dict[str, str], float]


class SleepDesk:
    """One per server."""

    def __init__(self, library: Library) -> None:
        self._library = library

    def prove_from_thread(self, candidate: Candidate, loop: asyncio.AbstractEventLoop) -> SnapshotFacts | None:
        """`prove`, called by a thread that may wait. None for a function that does not sleep on disk."""
        if candidate.spec.isolation != "microvm":
            return None
        return asyncio.run_coroutine_threadsafe(self.prove(candidate), loop).result()

    async def prove(self, candidate: Candidate) -> SnapshotFacts:
        """Make the snapshot of what is about to be deployed: if its code does not come up, the deploy fails with that.

        Raises what user code raised (StartFailed, FunctionError …), MicrovmUnavailable, SnapshotFailed, SandboxFailed.
        """
        try:
            return await self._library.publish(Recipe(*candidate))
        except asyncio.CancelledError:
            raise Unavailable(f"the deploy of {candidate.spec.name!r} was given up; deploy it again") from None

    async def sweep(self, revisions: Iterable[Revision]) -> None:
        """Delete what none of these sleeps in or wakes from. What resists is for the next time."""
        wanted = [Recipe.of(revision) for revision in revisions if revision.spec.isolation == "microvm"]
        try:
            await self._library.sweep(wanted)
        except RewarmError as error:
            log.warning("%s", error.message)

    async def tell_langs(self, revisions: Iterable[Revision]) -> None:
        """Have the Lang layers that an earlier server left on disk counted."""
        keys = {revision.spec.lang_key for revision in revisions if revision.spec.isolation == "microvm"}
        await self._library.tell_langs(keys)

    async def check(self, revisions: Iterable[Revision]) -> None:
        """Say in the log, once at the start, why functions that need micro-VMs cannot be served, if so."""
        names = sorted(revision.name for revision in revisions if revision.spec.isolation == "microvm")
        if names:
            try:
                await self._library.site()
            except MicrovmUnavailable as error:
                log.error("%s cannot be served: %s", ", ".join(names), error.message)

    def told(self) -> dict[str, Any]:
        """For `rewarm ps`: how machines fared since the server started."""
        counts, site = self._library.counts, self._library.known
        return {
            "accelerator": site.accel.name if site is not None else None, "boots": counts.boots,
            "restores": counts.restores, "retries": counts.retries, "hung": counts.hung,
            "published": counts.published, "lost": counts.lost, "policies": dict(counts.policies),
        }  # fmt: skip

    def gauges(self) -> Iterator[Gauge]:
        """For /metrics."""
        counts = self._library.counts
        if not (counts.boots or counts.restores):
            return
        yield "rewarm_microvm_boots_total", "Guests that were booted.", {}, float(counts.boots)
        for policy, count in sorted(counts.policies.items()):
            labels = {"policy": policy}
            yield "rewarm_microvm_restores_total", "Guests restored, by how memory came.", labels, float(count)
        yield "rewarm_microvm_retries_total", "Boots and restores tried again.", {}, float(counts.retries)
        yield "rewarm_microvm_hung_total", "Guests killed because they did not come up.", {}, float(counts.hung)
        yield "rewarm_snapshots_published_total", "Snapshots made.", {}, float(counts.published)
        yield "rewarm_snapshots_lost_total", "Snapshots found unusable.", {}, float(counts.lost)
