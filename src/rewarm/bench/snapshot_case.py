"""`python -m rewarm.bench.snapshot_case STORAGE`: starts the micro-VMs of experiment `snapshot`.

Whoever is slowed down by a cgroup has to be in it, so this is a process of its own, and all that a start needs are its
children: QEMU, the pager, what reads ahead. Orders and outcomes are lines of JSON on standard input and output. An
order that fails says {"error": …}; when it is over, well or not, no machine of it is left.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import time
from collections.abc import Coroutine, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, NamedTuple

from rewarm import wire
from rewarm.bench.snapshot_rows import Sample
from rewarm.control.measure import pss_bytes
from rewarm.errors import SystemFault
from rewarm.snapshot.holes import drop_cache
from rewarm.snapshot.loading import write_loading_set
from rewarm.snapshot.manifest import Snapshot, open_snapshot, write_manifest
from rewarm.snapshot.pager_client import PagerClient
from rewarm.snapshot.record import touched_pages
from rewarm.snapshot.restore import plan
from rewarm.units import MB
from rewarm.vmm.monitor import Monitor
from rewarm.vmm.site import Images, Site, survey
from rewarm.vmm.talk import Talk

_BOOT_S_MAX = 90.0
_RESTORE_S_MAX = 40.0
_RUN_S_MAX = 20.0

Order = Mapping[str, Any]


class Answered(NamedTuple):
    """A machine that has given its first answer."""

    machine: Monitor
    talk: Talk
    answer: bytes
    first_response_ms: float
    major_faults: int
    read_bytes: int


class Bench:
    """What the orders need, once it is open."""

    def __init__(self, site: Site, order: Order) -> None:
        self.site = site
        self.pager: PagerClient | None = None
        self.images = Images(Path(order["packages"]), Path(order["function"]), order["memory_bytes"])
        self.platform = site.platform(self.images)
        self.load = order["load"]
        self.stages: dict[str, str] = {}  # instance → how far it has come

    async def open_pager(self) -> None:
        if self.site.means.userfaultfd and self.site.means.shim:
            self.pager = PagerClient(lambda: None)
            self.pager.start()

    async def close(self) -> None:
        if self.pager is not None:
            await self.pager.close()

    async def do(self, order: Order) -> dict[str, Any]:
        self.stages.clear()
        match order["do"]:
            case "boot":
                return await self._boot(order)
            case "restore":
                return await self._restore(order)
            case "record":
                return await self._record(order)
        raise SystemFault(f"the experiment knows no order {order['do']!r}")

    async def _boot(self, order: Order) -> dict[str, Any]:
        """From nothing to the first answer."""
        memory = Path(order["scratch"], "memory")
        async with AsyncExitStack() as stack, asyncio.timeout(_BOOT_S_MAX):
            stack.callback(memory.unlink, missing_ok=True)
            since_s = time.perf_counter()
            machine = self.site.boot(self.images, memory)
            stack.push_async_callback(machine.close)  # it ends with the stack, whatever happens
            talk = stack.enter_context(Talk(machine))
            self.stages["boot"] = "boots"
            await talk.hello()
            self.stages["boot"] = "said hello"
            await talk.send_resume("boot")
            await talk.resumed()
            self.stages["boot"] = "was resumed"
            await talk.load(self.load)
            self.stages["boot"] = "was loaded"
            found = await _answered(machine, talk, order["body"], since_s)
            return _outcome([found], found.read_bytes)

    async def _restore(self, order: Order) -> dict[str, Any]:
        """One machine from each of the snapshots named, all at once; `calls` more answers of each, one by one."""
        snapshots = [open_snapshot(Path(folder), self.platform) for folder in order["snapshots"]]
        async with AsyncExitStack() as stack, asyncio.timeout(_RESTORE_S_MAX):
            before_bytes = self._shared_read_bytes()
            starts = [
                self._start(stack, snapshot, order, f"clone-{number}") for number, snapshot in enumerate(snapshots)
            ]
            clones = await _all_of(starts)
            read_bytes = sum(clone.read_bytes for clone in clones) + self._shared_read_bytes() - before_bytes
            found = _outcome(clones, read_bytes)
            found["pss_mb"] = sum(pss_bytes(clone.machine.pid) or 0 for clone in clones) / MB
            found["calls"] = [await _call(clone, order["body"]) for clone in clones for _ in range(order["calls"])]
            return found

    async def _start(self, stack: AsyncExitStack, snapshot: Snapshot, order: Order, instance: str) -> Answered:
        since_s = time.perf_counter()
        ways = plan(snapshot, order["policy"], self.site.means, self.pager)
        if ways.policy != order["policy"]:
            raise SystemFault(f"{order['policy']} came down to {ways.policy}")
        ways.begin()
        try:
            machine = self.site.restore(self.images, snapshot, ways)
        finally:
            ways.end()
        stack.push_async_callback(machine.close)
        talk = stack.enter_context(Talk(machine))
        self.stages[instance] = "was started"
        await machine.running(_RESTORE_S_MAX)
        self.stages[instance] = "runs"
        await talk.send_resume(instance)  # now, as a server does, for it tells the time
        await talk.resumed()
        self.stages[instance] = "was resumed"
        found = await _answered(machine, talk, order["body"], since_s)
        self.stages[instance] = "answered"
        return found

    async def _record(self, order: Order) -> dict[str, Any]:
        """Make the loading set of a snapshot anew, as publishing does, at the speed that reads have here."""
        folder = Path(order["snapshots"][0])
        snapshot = open_snapshot(folder, self.platform)
        touched: set[int] = set()
        for number, body in enumerate(order["bodies"]):
            async with AsyncExitStack() as stack, asyncio.timeout(_RESTORE_S_MAX):
                drop_cache(snapshot.memory)  # else a fault maps the neighbours that another has fetched
                one = {"policy": "lazy-4k", "body": body}
                found = await self._start(stack, snapshot, one, f"record-{number}")
                touched |= touched_pages(found.machine.pid, snapshot.memory)
        loading = write_loading_set(folder, touched)
        write_manifest(folder, snapshot.manifest.with_loading(folder, loading))
        return {}

    def _shared_read_bytes(self) -> int:
        """What this process and the pager have read: what reads ahead of the guests."""
        pids = [os.getpid(), *([self.pager.pid] if self.pager is not None and self.pager.pid is not None else [])]
        return sum(map(_read_bytes, pids))


async def _all_of(starts: list[Coroutine[Any, Any, Answered]]) -> list[Answered]:
    """All are waited for before the first that failed is told, so that none starts while the others are ended."""
    found: list[Answered] = []
    for one in await asyncio.gather(*starts, return_exceptions=True):
        if isinstance(one, BaseException):
            raise one
        found.append(one)
    return found


async def _answered(machine: Monitor, talk: Talk, body: str, since_s: float) -> Answered:
    answer = await _ask(talk, body)
    took_ms = (time.perf_counter() - since_s) * 1e3
    return Answered(machine, talk, answer, took_ms, _major_faults(machine.pid), _read_bytes(machine.pid))


async def _ask(talk: Talk, body: str) -> bytes:
    ((status, _, _, _, answer),) = await talk.run([(wire.KIND_JSON, b"", body.encode())], _RUN_S_MAX)
    if status != 200:
        raise SystemFault(f"the function answers {status}: {answer[:200]!r}")
    return answer


async def _call(clone: Answered, body: str) -> Sample:
    """One more answer of a machine that is warm."""
    pid = clone.machine.pid
    faults, read = _major_faults(pid), _read_bytes(pid)
    since_s = time.perf_counter()
    await _ask(clone.talk, body)
    took_ms = (time.perf_counter() - since_s) * 1e3
    return Sample(took_ms, _major_faults(pid) - faults, (_read_bytes(pid) - read) / MB)


def _outcome(clones: list[Answered], read_bytes: int) -> dict[str, Any]:
    """`read_bytes`: of all together, since what reads ahead does so for all."""
    read_mb = read_bytes / len(clones) / MB
    return {
        "samples": [Sample(one.first_response_ms, one.major_faults, read_mb) for one in clones],
        "answers": [one.answer.decode() for one in clones],
    }


def _read_bytes(pid: int) -> int:
    """What a process has had read from disks."""
    lines = Path(f"/proc/{pid}/io").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes:"))


def _major_faults(pid: int) -> int:
    """Field majflt of proc_pid_stat(5); what stands in brackets before may hold anything."""
    return int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[9])


def _opened(order: Order) -> Site:
    """Into the cgroup first: what is started from here on is in it, too."""
    if order["procs"] is not None:
        Path(order["procs"]).write_text(str(os.getpid()), encoding="ascii")
    return survey(Path(order["home"]), vmm="qemu")


def main() -> int:
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not be taken for outcomes

    def say(outcome: Mapping[str, Any]) -> None:
        out.write(json.dumps(outcome) + "\n")
        out.flush()

    bench: Bench | None = None
    with asyncio.Runner() as runner:
        say({"ready": True})
        for line in sys.stdin:
            order = json.loads(line)
            try:
                if bench is None:
                    bench = Bench(_opened(order), order)
                    runner.run(bench.open_pager())
                    gc.freeze()
                    say({"open": True})
                else:
                    say(runner.run(bench.do(order)))
            except TimeoutError:
                stages = bench.stages if bench is not None else {}
                how_far = ", ".join(f"{instance} {stage}" for instance, stage in stages.items())
                say({"error": f"killed, since it did not answer in time ({how_far})"})
            except Exception as error:  # told to whoever ordered
                say({"error": f"{type(error).__name__}: {error}"})
        if bench is not None:
            runner.run(bench.close())
    return 0


if __name__ == "__main__":
    sys.exit(main())
