"""How snapshots are made: of a guest with packages imported (Lang), and of an initialised instance (User).

    Lang   boot ─▶ HELLO ─▶ snapshot ─▶ holes punched ─▶ manifest
    User   a copy of the Lang snapshot, restored ─▶ RESUME ─▶ LOAD ─▶ warm-up calls ─▶ FREEZE ─▶ snapshot ─▶ holes
           punched ─▶ restored once for each sample under 4 KiB faults ─▶ union of the pages touched: loading set,
           layout ─▶ restored once as it will be, and timed ─▶ manifest

Both leave finished files in a folder of the caller's, who places it. Every wait has a deadline; a machine that has not
come up by then is killed and tried again, at most `RETRIES` times (2 of 35 boots under TCG hang), and both are counted.

QEMU writes the guest's memory through a shared mapping, so where the disk is full it ends by SIGBUS, whatever it does.
Firecracker writes it when it takes the snapshot, zeros and all, and says so. Its faults cannot be made 4 KiB without
the shim; then more pages count as touched than were, never fewer: a wake reads more than it has to.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import orjson

from rewarm import wire
from rewarm.errors import FunctionError, FunctionTimeout, SandboxFailed, SnapshotFailed
from rewarm.facts.function import FunctionSpec
from rewarm.snapshot import holes, loading, manifest, record, restore
from rewarm.snapshot.manifest import Snapshot
from rewarm.vmm.monitor import Monitor, quoted
from rewarm.vmm.site import Images, Site
from rewarm.vmm.talk import Talk

T = TypeVar("T")

RETRIES = 2
BOOT_CPU_S = 60.0  # a boot takes 7 to 15 s of a core under TCG; one that hangs spins
BOOT_DEADLINE_S = 150.0  # however busy the machine is; two of them fit into what the core gives a start (core.state)
RESTORE_DEADLINE_S = 20.0
LOAD_DEADLINE_S = 120.0  # user code imports and constructs what it needs
CALL_DEADLINE_S = 30.0  # beside the function's own timeout
_CPU_POLL_S = 1.0
_BOOT_BYTES = 512 << 20  # what a guest has written to when its packages are imported, large ones included
_END_WAIT_S = 1.0  # its sockets close before it is reaped


@dataclass(frozen=True, slots=True)
class UserOrder:
    """What the guest is told to load, and the calls that warm it up and are recorded."""

    spec: FunctionSpec
    load: dict[str, Any]  # the body of LOAD
    samples: Sequence[wire.AnyItem] = ()


class Published(NamedTuple):
    """A finished snapshot where it was made, and what it saves."""

    snapshot: Snapshot
    restore_s: float  # from before the machine is spawned until RESUMED
    cold_s: float  # what the same takes without it: by way of Lang, or from nothing for a Lang itself


def load_order(spec: FunctionSpec, version: int, weights: str | None) -> dict[str, Any]:
    """The body of LOAD for a guest; `weights` is the name of the weights' file."""
    return {
        "spec": spec.to_json(), "code_dir": "/fn/code", "version": version, "pack": None,
        "weights_path": None if weights is None else f"/fn/weights/{weights}",
    }  # fmt: skip


async def publish_lang(site: Site, subject: str, images: Images, folder: Path) -> Published:
    """Boot a guest, wait until the packages of its drive are imported, and keep that in `folder`, which is empty.

    Raises StartFailed (a package does not import), SnapshotFailed, or SandboxFailed: it never came up.
    """
    since_s = time.monotonic()
    memory = folder / manifest.MEMORY_NAME
    check_room(folder, _room_bytes(site, images, _BOOT_BYTES))

    async def boot() -> float:
        memory.unlink(missing_ok=True)
        site.counts.boots += 1
        machine = site.boot(images, memory)
        try:
            async with _in_room(machine, memory):
                with Talk(machine) as talk:
                    async with asyncio.timeout(BOOT_DEADLINE_S) as deadline, _spinning(machine.pid, deadline):
                        await talk.hello()
                    booted_s = time.monotonic() - since_s
                    await machine.snapshot(folder / manifest.STATE_NAME)
                return booted_s
        finally:
            await machine.close()

    cold_s = await _tried(site, f"the guest of {subject}", boot)
    await in_thread(holes.punch_zero_pages, memory)
    seconds = {"publish": time.monotonic() - since_s, "cold": cold_s}
    told = await in_thread(manifest.describe, folder, "lang", subject, site.platform(images), seconds)
    snapshot = await in_thread(manifest.write_manifest, folder, told)
    site.counts.published += 1
    return Published(snapshot, 0.0, cold_s)


async def publish_user(
    site: Site, lang: Snapshot, subject: str, images: Images, order: UserOrder, folder: Path
) -> Published:  # fmt: skip
    """Initialise `order` in a guest made from `lang`, warm it up, and keep that in `folder`, which is empty.

    Raises what became of the user's code (StartFailed, FunctionError …), SnapshotFailed, SandboxFailed.
    """
    since_s = time.monotonic()
    memory = folder / manifest.MEMORY_NAME
    check_room(folder, _room_bytes(site, images, lang.disk_bytes))
    async with restored(site, lang, images, "publishing", "lazy", memory=memory) as (machine, talk):
        async with _limit(LOAD_DEADLINE_S, f"{order.spec.name!r} was not loaded"):
            await talk.load(order.load)
        cold_s = time.monotonic() - machine.since_s
        for sample in order.samples:
            await _call(talk, order.spec, sample)
        async with _limit(LOAD_DEADLINE_S, f"the before_snapshot hooks of {order.spec.name!r} were not done"):
            await talk.freeze()
        await machine.snapshot(folder / manifest.STATE_NAME)
    await in_thread(holes.punch_zero_pages, memory)
    told = await in_thread(manifest.describe, folder, "user", subject, site.platform(images), {"cold": cold_s})
    snapshot = await in_thread(manifest.write_manifest, folder, told)
    touched = await _recorded(site, snapshot, images, order)
    told = told.with_loading(folder, await in_thread(loading.write_loading_set, folder, touched))
    snapshot = await in_thread(manifest.write_manifest, folder, told)
    restore_s = await _timed(site, snapshot, images, order)
    seconds = {**told.seconds, "restore": restore_s, "publish": time.monotonic() - since_s}
    snapshot = await in_thread(manifest.write_manifest, folder, replace(told, seconds=seconds))
    site.counts.published += 1
    return Published(snapshot, restore_s, cold_s)


async def _recorded(site: Site, snapshot: Snapshot, images: Images, order: UserOrder) -> set[int]:
    """The pages that a wake and a call touch, whichever of the samples it is called with."""
    touched: set[int] = set()
    for sample in order.samples or (None,):
        await in_thread(holes.drop_cache, snapshot.memory)
        async with restored(site, snapshot, images, "recording", "lazy-4k") as (machine, talk):
            if sample is not None:
                await _call(talk, order.spec, sample)
            touched |= await in_thread(record.touched_pages, machine.pid, snapshot.memory)
    return touched


async def _timed(site: Site, snapshot: Snapshot, images: Images, order: UserOrder) -> float:
    """What a wake takes once it is no longer in the page cache. It answers, or it is no snapshot to keep."""
    for path, _ in snapshot.files():
        await in_thread(holes.drop_cache, path)
    since_s = time.monotonic()
    async with restored(site, snapshot, images, "timing", site.policy) as (_, talk):
        restore_s = time.monotonic() - since_s
        for sample in order.samples[:1]:
            await _call(talk, order.spec, sample)
    return restore_s


@asynccontextmanager
async def restored(
    site: Site, snapshot: Snapshot, images: Images, instance: str, policy: str, *, memory: Path | None = None
) -> AsyncIterator[tuple[Monitor, Talk]]:  # fmt: skip
    """A guest from `snapshot` that was RESUMED as `instance`; it is killed at the end.

    With `memory`, the file where its own will be, it can be made a snapshot of in turn.
    """

    async def up() -> tuple[Monitor, Talk]:
        if memory is not None and site.lives_in_file:
            await in_thread(copy_sparse, snapshot.memory, memory)  # each time: one that was killed has written to it
        plan = restore.plan(snapshot, policy, site.means, site.pager)
        plan.begin()
        try:
            machine = site.restore(images, snapshot, plan, memory)
        finally:
            plan.end()
        site.counts.restores += 1
        site.counts.policies[plan.policy] += 1
        talk = Talk(machine)
        try:
            async with _in_room(machine, memory), asyncio.timeout(RESTORE_DEADLINE_S):
                await machine.running(2 * RESTORE_DEADLINE_S)
                await talk.send_resume(instance)  # now, for it tells the time
                await talk.resumed()
        except BaseException:
            talk.close()
            await machine.close()
            raise
        return machine, talk

    machine, talk = await _tried(site, f"a machine restored from {snapshot.folder.name}", up)
    try:
        async with _in_room(machine, memory):
            yield machine, talk
    finally:
        talk.close()
        await machine.close()


def _room_bytes(site: Site, images: Images, written_bytes: int) -> int:
    """What a memory file takes at first, of a guest that has written so much."""
    return min(written_bytes, images.memory_bytes) if site.lives_in_file else images.memory_bytes


def check_room(folder: Path, need_bytes: int) -> None:
    """Raises SnapshotFailed if the disk of `folder` has not even so much left."""
    try:
        disk = os.statvfs(folder)
    except OSError as error:
        raise SnapshotFailed(f"no snapshot could be made: {error}") from error
    free_bytes = disk.f_bavail * disk.f_frsize
    if free_bytes < need_bytes:
        figures = f"{need_bytes >> 20} MB are needed and {free_bytes >> 20} MB are free"
        raise SnapshotFailed(f"no space for a snapshot in {folder}: {figures}; make room or lower --disk")


@asynccontextmanager
async def _in_room(machine: Monitor, memory: Path | None) -> AsyncIterator[None]:
    """Says SnapshotFailed of a machine that ended because there was no room in the file `memory`."""
    try:
        yield
    except (SandboxFailed, SnapshotFailed) as error:
        if memory is None:
            raise
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(machine.wait(), _END_WAIT_S)
        if machine.status is None or not os.WIFSIGNALED(machine.status) or os.WTERMSIG(machine.status) != signal.SIGBUS:
            raise
        raise SnapshotFailed(
            f"no space for the memory of a micro-VM in {memory.parent}: make room or lower --disk"
        ) from error


@asynccontextmanager
async def _spinning(pid: int, deadline: asyncio.Timeout) -> AsyncIterator[None]:
    """Ends `deadline` early if the process has used `BOOT_CPU_S`: wall time alone tells little on a busy machine."""

    async def watch() -> None:
        while _cpu_s(pid) < BOOT_CPU_S:
            await asyncio.sleep(_CPU_POLL_S)
        deadline.reschedule(0.0)

    watching = asyncio.create_task(watch())
    try:
        yield
    finally:
        watching.cancel()


def _cpu_s(pid: int) -> float:
    """What a process has used so far; 0.0 once it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def _tried(site: Site, what: str, attempt: Callable[[], Awaitable[T]]) -> T:
    """`attempt`, again if it does not come up in time."""
    for tries in range(1, RETRIES + 2):
        try:
            return await attempt()
        except TimeoutError:
            site.counts.hung += 1
            if tries <= RETRIES:
                site.counts.retries += 1
    raise SandboxFailed(f"{what} did not come up in time, {RETRIES + 1} times; is the machine busy?")


async def _call(talk: Talk, spec: FunctionSpec, sample: wire.AnyItem) -> None:
    """One warm-up call, which has to work. Raises FunctionError with what the function said."""
    async with _limit(spec.timeout_s + CALL_DEADLINE_S, f"a sample call of {spec.name!r} was not answered"):
        ((status, _, _, _, body),) = await talk.run([sample], spec.timeout_s)
    if status >= 400:
        try:
            said = quoted(str(orjson.loads(body)["error"]))
        except (KeyError, TypeError, ValueError):
            said = f"status {status}"
        hint = "mend the sample" if spec.samples else "give one that works: --sample FILE, or samples=[…]"
        raise FunctionError(f"a sample call of {spec.name!r} failed: {said}; {hint}")


@asynccontextmanager
async def _limit(seconds: float, what: str) -> AsyncIterator[None]:
    """User code has so long. Raises FunctionTimeout."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise FunctionTimeout(f"{what} within {seconds:.0f} s") from None


async def in_thread(work: Callable[..., T], *arguments: Any) -> T:
    """What reads or writes whole files; whoever is cancelled waits for its end, since it cannot be.

    Raises SnapshotFailed for what the disk says.
    """
    working = asyncio.ensure_future(asyncio.to_thread(work, *arguments))
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        await asyncio.wait({working})
        raise
    except OSError as error:
        raise SnapshotFailed(f"no snapshot could be made: {error}; is there space on the disk?") from error


def copy_sparse(source: Path, target: Path) -> None:
    """A copy with the same holes, in the place of what is there. Raises OSError."""
    target.unlink(missing_ok=True)
    with source.open("rb") as reader, target.open("xb") as writer:
        end = reader.seek(0, os.SEEK_END)
        writer.truncate(end)
        at = 0
        while at < end:
            try:
                at = os.lseek(reader.fileno(), at, os.SEEK_DATA)
            except OSError:  # ENXIO: nothing but a hole from here on
                return
            hole = os.lseek(reader.fileno(), at, os.SEEK_HOLE)
            while at < hole:
                copied = os.copy_file_range(reader.fileno(), writer.fileno(), hole - at, at, at)
                if copied == 0:
                    return
                at += copied
