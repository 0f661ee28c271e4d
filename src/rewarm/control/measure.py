"""Reads what every sandbox and zygote really holds (PSS) and tells the core."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from rewarm.facts import messages as m
from rewarm.sandbox.port import Node, SandboxDriver

log = logging.getLogger("rewarm.control")


def pss_bytes(pid: int, files: bool = True) -> int | None:
    """Proportional set size: private pages, plus shared pages divided by how many share them. None if it is gone.

    Without `files`: less the pages of mapped files, which are page cache that the kernel takes back when it needs to.
    """
    found = {"Pss": None, "Pss_File": 0}
    try:
        with open(f"/proc/{pid}/smaps_rollup") as file:
            for line in file:
                name, _, value = line.partition(":")
                if name in found:
                    found[name] = int(value.split()[0]) * 1024
    except (OSError, ValueError, IndexError):
        return None
    if found["Pss"] is None or files:
        return found["Pss"]
    return found["Pss"] - (found["Pss_File"] or 0)


def _measure(pids: dict[Node, int], mapping: frozenset[Node]) -> dict[Node, int]:
    found = {node: pss_bytes(pid, node not in mapping) for node, pid in pids.items()}
    return {node: resident for node, resident in found.items() if resident is not None}


async def measure_forever(
    driver: SandboxDriver, post: Callable[[m.Event], None], every_s: float,
    mapping: Callable[[], frozenset[Node]] = frozenset,
) -> None:  # fmt: skip
    """One round every `every_s` seconds; the reading itself happens in a thread (the kernel walks page tables).

    `mapping` names the sandboxes that map packed weights. Of those no file counts: what is pinned of the weights is on
    the ledger by itself, and the rest costs nobody anything.
    """
    while True:
        await asyncio.sleep(every_s)
        try:
            pids = driver.pids()
            if pids:
                for node, resident_bytes in (await asyncio.to_thread(_measure, pids, mapping())).items():
                    post(m.Measured(node, resident_bytes))
        except Exception:
            log.exception("measuring failed; trying again")
