"""Reads what every sandbox and zygote really holds (PSS) and tells the core."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from rewarm.facts import messages as m
from rewarm.sandbox.port import Node, SandboxDriver

log = logging.getLogger("rewarm.control")


def pss_bytes(pid: int) -> int | None:
    """Proportional set size: private pages, plus shared pages divided by how many share them. None if it is gone."""
    try:
        with open(f"/proc/{pid}/smaps_rollup") as file:
            for line in file:
                if line.startswith("Pss:"):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        return None
    return None


def _measure(pids: dict[Node, int]) -> dict[Node, int]:
    found = {node: pss_bytes(pid) for node, pid in pids.items()}
    return {node: resident for node, resident in found.items() if resident is not None}


async def measure_forever(driver: SandboxDriver, post: Callable[[m.Event], None], every_s: float) -> None:
    """One round every `every_s` seconds; the reading itself happens in a thread (the kernel walks page tables)."""
    while True:
        await asyncio.sleep(every_s)
        try:
            pids = driver.pids()
            if pids:
                for node, resident_bytes in (await asyncio.to_thread(_measure, pids)).items():
                    post(m.Measured(node, resident_bytes))
        except Exception:
            log.exception("measuring failed; trying again")
