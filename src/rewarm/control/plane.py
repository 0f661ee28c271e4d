"""The control plane: everything an operator can ask or order, on top of store, core and driver."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rewarm.config import ServerConfig
from rewarm.control import alive
from rewarm.control.deploy import deploy, deploy_again
from rewarm.control.executor import Executor
from rewarm.control.models import ModelDesk
from rewarm.control.profiles import ProfileDesk
from rewarm.control.sleepers import SleepDesk
from rewarm.core.state import FunctionState, LangLayer, Sandbox, SnapshotState
from rewarm.errors import NotFound, RewarmError
from rewarm.facts import messages as m
from rewarm.facts.function import Revision
from rewarm.facts.profile import Profile
from rewarm.facts.request import Request
from rewarm.facts.sandbox import Layer, SandboxState
from rewarm.facts.snapshot import SnapshotFacts
from rewarm.obs.logs import LogStore
from rewarm.obs.stats import FunctionStats
from rewarm.policy import registry
from rewarm.policy.batching.base import BatchingPolicy
from rewarm.sandbox.port import Node
from rewarm.store.store import Candidate, Store

log = logging.getLogger("rewarm.control")

#: Of `control.deploy`, told what proves the new revision.
_Publish = Callable[[Callable[[Candidate], object]], tuple[Revision, bool, dict[str, Any]]]


class ControlPlane:
    """One per server; lives on the event loop's thread, sends blocking work to threads."""

    def __init__(
        self, config: ServerConfig, store: Store, executor: Executor, models: ModelDesk, sleepers: SleepDesk,
        version: str,
    ) -> None:  # fmt: skip
        self.config = config
        self.version = version
        self.store = store
        self.executor = executor
        self.models = models
        self.sleepers = sleepers
        self.submit = executor.submit
        self.node = executor.node
        self.stats: dict[str, FunctionStats] = executor.stats
        self.logs: LogStore = executor.logs
        self.revisions: dict[str, Revision] = {}  # what the front door may route to
        self.profiles = ProfileDesk(self)
        self._deploying = asyncio.Lock()
        self._sweeping: asyncio.Task[None] | None = None  # the last one: a task that nobody refers to may vanish
        self._started_s = time.monotonic()

    def restore(self) -> None:
        """Bring back what was deployed before the server started."""
        for revision in self.store.revisions():
            self._announce(revision, self.store.profile(revision))
        for broken in self.store.broken():
            log.error("%s version %s cannot be served: %s; deploy it again", broken.name, broken.version, broken.reason)

    async def settle(self) -> None:
        """What `restore` need not wait for: remove what a killed server left of micro-VMs, and say what they lack."""
        await self._sweep_in_turn()
        revisions = list(self.revisions.values())
        await self.sleepers.tell_langs(revisions)
        await self.sleepers.check(revisions)

    # ------------------------------------------------------------ the front door's backend

    def cancel(self, request: Request) -> None:
        self.executor.post(m.Cancelled(request))

    def revision(self, function: str) -> Revision | None:
        return self.revisions.get(function)

    def drain_logs(self, function: str) -> None:
        fn = self.node.functions.get(function)
        for sandbox_id in list(fn.sandboxes) if fn is not None else ():
            self.executor.driver.drain_log(sandbox_id)

    # ------------------------------------------------------------ orders

    async def deploy(self, upload: Path) -> dict[str, Any]:
        """Publish an uploaded archive and serve it from now on."""
        return await self._publish(functools.partial(deploy, self.store, upload))

    async def rollback(self, name: str, version: int | None) -> dict[str, Any]:
        """Serve a version that is kept from now on, under a new number; None: the one before the current one.

        Raises NotFound, BadRequest, and what a deploy raises.
        """
        return await self._publish(functools.partial(deploy_again, self.store, name, version))

    async def _publish(self, publish: _Publish) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        proved: list[SnapshotFacts | None] = []

        def prove(candidate: Candidate) -> None:
            proved.append(self.sleepers.prove_from_thread(candidate, loop))

        async with self._deploying:
            try:
                revision, unchanged, packed = await asyncio.to_thread(publish, prove)
            except Exception:
                await self._sweep()  # the drive that it was proved with
                raise
            self._announce(revision, await asyncio.to_thread(self.store.profile, revision))
            await self._collect()
        told = "unchanged: %s is version %d (%s)" if unchanged else "deployed %s version %d (%s)"
        log.info(told, revision.name, revision.version, revision.digest[:12])
        return {
            "name": revision.name, "version": revision.version, "digest": revision.digest, "unchanged": unchanged,
            "weights": packed or None, "asleep": dataclasses.asdict(proved[0]) if proved and proved[0] else None,
        }  # fmt: skip

    def _announce(self, revision: Revision, profile: Profile | None) -> None:
        if revision.weights_path is not None and revision.spec.isolation == "process":
            revision = dataclasses.replace(revision, pack=self.models.adopt(revision))
        try:
            plans = registry.plans_with_profile(revision.spec.batching)
            self.executor.post(m.Deployed(revision, profile if plans else None))
        except RewarmError as error:  # a third party's policy that is not installed any more, a profile that is gone
            log.error("%s cannot be served: %s", revision.name, error.message)
            return
        known = self.revisions.get(revision.name)
        self.revisions[revision.name] = revision
        if known is None or known.digest != revision.digest:
            self.stats[revision.name] = FunctionStats(revision.spec.memory_bytes, revision.spec.slo_s)

    async def _collect(self) -> None:
        """Remove what no function uses any more."""
        await asyncio.to_thread(self.store.collect, self._in_use())
        await self._sweep()

    async def _sweep(self) -> None:
        await self.sleepers.sweep(list(self.revisions.values()))

    async def _sweep_in_turn(self) -> None:
        async with self._deploying:
            await self._sweep()

    def sweep_soon(self) -> None:
        """Something that may have had a drive in a micro-VM is gone."""
        self._sweeping = asyncio.get_running_loop().create_task(self._sweep_in_turn())

    def _in_use(self) -> set[str]:
        """Code, weights, pack of every living instance, those among them that finish a call of an older revision."""
        alive = [sandbox.revision for sandbox in self.node.pool.sandboxes.values()]
        in_use = {revision.code_dir for revision in alive}
        in_use |= {revision.weights_path for revision in alive if revision.weights_path is not None}
        return in_use | {str(self.store.home.pack_dir(r.pack.key)) for r in alive if r.pack is not None}

    async def versions(self, name: str) -> dict[str, Any]:
        """What is kept of a function, the newest first. Raises NotFound."""
        kept = await asyncio.to_thread(self.store.history, name)
        return {
            "name": name,
            "versions": [
                {
                    "version": revision.version, "digest": revision.digest, "created_at": revision.created_at,
                    "weights_bytes": revision.weights_bytes, "current": revision is kept[0],
                }
                for revision in kept
            ],
        }  # fmt: skip

    async def remove(self, name: str) -> dict[str, Any]:
        """Forget a function, one that cannot be served included. Raises NotFound."""
        async with self._deploying:
            await asyncio.to_thread(self.store.remove, name)
            self.forget(name)
            self.profiles.end(name)
            await self._collect()
        return {"name": name, "removed": True}

    def forget(self, name: str) -> None:
        """Serve it no longer: what is queued is refused, instances end, figures and log go."""
        self.revisions.pop(name, None)
        self.executor.post(m.Removed(name))
        self.stats.pop(name, None)
        self.logs.forget(name)

    def order(self, name: str, verb: str) -> dict[str, Any]:
        """flush, load or unload."""
        self._known(name)
        events: dict[str, type[m.Flush | m.Load | m.Unload]] = {"flush": m.Flush, "load": m.Load, "unload": m.Unload}
        self.executor.post(events[verb](name))
        return {"name": name, "ok": True}

    # ------------------------------------------------------------ questions

    def _known(self, name: str) -> FunctionState:
        fn = self.node.functions.get(name)
        if fn is None:
            raise NotFound(f"there is no function {name!r}; see what there is with: rewarm ls")
        return fn

    def server(self) -> dict[str, Any]:
        return {
            "version": self.version, "pid": os.getpid(), "home": str(self.config.home),
            "uptime_s": time.monotonic() - self._started_s, "memory_bytes": self.config.memory_bytes,
            "held_bytes": self.node.pool.ledger.held_bytes, "keepalive": self.config.keepalive,
            "draining": self.node.draining, "functions": len(self.node.functions),
            "sandbox_driver": self.executor.driver.name,
        }  # fmt: skip

    def functions(self) -> list[dict[str, Any]]:
        """What is deployed; not the twin of a function that is being measured."""
        twins = self.profiles.twins
        return [self._describe(fn) for name, fn in sorted(self.node.functions.items()) if name not in twins]

    def function(self, name: str) -> dict[str, Any]:
        fn = self._known(name)
        return {**self._describe(fn), "spec": fn.revision.spec.to_json()}

    def ready(self, name: str) -> bool:
        """Deployed, and its last start (if any) did not fail: readiness of the model, not of the port."""
        return self._known(name).last_error is None and not self.node.draining

    def _describe(self, fn: FunctionState) -> dict[str, Any]:
        revision, spec = fn.revision, fn.revision.spec
        return {
            "name": fn.name, "version": revision.version, "digest": revision.digest, "kind": spec.kind,
            "runtime": spec.runtime,
            "batching": spec.batching.to_json(), "keepalive": spec.keepalive.to_json() if spec.keepalive else None,
            "memory_bytes": spec.memory_bytes, "max_instances": spec.max_instances, "slo_s": spec.slo_s,
            "timeout_s": spec.timeout_s, "instances": len(fn.sandboxes), "queued": len(fn.queue),
            "created_at": revision.created_at, "weights_bytes": revision.weights_bytes,
            "ready": fn.last_error is None, "last_error": fn.last_error.message if fn.last_error else None,
        }  # fmt: skip

    def stats_of(self, name: str) -> dict[str, Any]:
        function = self._known(name)  # raises NotFound
        return {**self.stats[name].to_json(name), "batching": _figures(function.batching)}

    def log_lines(self, name: str, tail: int, instance: int | None) -> list[dict[str, Any]]:
        self._known(name)
        self.drain_logs(name)
        return [line._asdict() for line in self.logs.of(name).tail(tail, instance)]

    def mapping(self) -> frozenset[Node]:
        """The instances that map packed weights."""
        return frozenset(s.id for s in self.node.pool.sandboxes.values() if s.revision.pack is not None)

    def ps(self) -> dict[str, Any]:
        """What `rewarm ps` shows: `instances`, and every layer in its place with what it cost and saved."""
        now = time.monotonic()
        nodes = alive.nodes(self.node, self.executor.driver.pids(), now)
        return {
            "nodes": nodes, **self.instances(), "ledger": alive.ledger(self.node, nodes),
            "meter": alive.metered(self.executor.meter, now), "microvms": self.sleepers.told(),
            "models": alive.models(self.node, self.models, self.stats, now),
        }  # fmt: skip

    def instances(self) -> dict[str, Any]:
        """The living processes, without their relations."""
        now, pids, pool = time.monotonic(), self.executor.driver.pids(), self.node.pool
        return {
            "instances": [self._sandbox(s, pids.get(s.id), now) for _, s in sorted(pool.sandboxes.items())],
            "langs": [self._lang(lang, pids.get(key), now) for key, lang in pool.langs.items()],
            "ledger": {"budget_bytes": pool.ledger.budget_bytes, "held_bytes": pool.ledger.held_bytes},
        }

    def _sandbox(self, sandbox: Sandbox, pid: int | None, now: float) -> dict[str, Any]:
        ready = sandbox.state is SandboxState.READY
        return {
            "id": sandbox.id, "function": sandbox.function.name, "version": sandbox.revision.version,
            "state": sandbox.state.value, "pid": pid, "age_s": now - sandbox.created_s, "lang": str(sandbox.key),
            "idle_s": now - sandbox.idle_since_s if ready else None, "runs": sandbox.uses,
            "resident_bytes": self.node.pool.ledger.of(sandbox.id), "start": sandbox.found.value,
            "expires_in_s": _left(sandbox.expires_s, now) if ready else None,
        }  # fmt: skip

    def _lang(self, lang: LangLayer, pid: int | None, now: float) -> dict[str, Any]:
        children = self.node.pool.runtimes.of(lang.key).holders
        return {
            "key": str(lang.key), "pid": pid, "state": lang.state.value, "age_s": now - lang.created_s,
            "resident_bytes": self.node.pool.ledger.of(lang.key), "children": children, "forks": lang.uses,
            "expires_in_s": None if children else _left(lang.expires_s, now),
        }  # fmt: skip

    def gauges(self) -> Iterator[tuple[str, str, dict[str, str], float]]:
        """For /metrics."""
        pool, meter = self.node.pool, self.executor.meter
        yield "rewarm_memory_budget_bytes", "Budget of the memory ledger.", {}, float(pool.ledger.budget_bytes)
        yield "rewarm_memory_held_bytes", "Bytes on the memory ledger.", {}, float(pool.ledger.held_bytes)
        yield "rewarm_evictions_total", "Layers freed because memory was short.", {}, float(meter.evictions)
        for end, by_layer in (("used", meter.used_byte_s), ("wasted", meter.wasted_byte_s)):
            for layer in (Layer.BARE, Layer.LANG, Layer.USER):
                labels = {"layer": layer.name.lower(), "end": end}
                yield "rewarm_idle_byte_seconds_total", "Idle memory by what ended it.", labels, by_layer[layer]
        zygotes = sum(not key.vm_bytes for key in pool.langs)  # those of micro-VMs are files
        yield "rewarm_runtimes", "Living zygotes.", {}, float(zygotes)
        yield from self._model_gauges()
        yield from self.sleepers.gauges()
        yield from self._disk_gauges()
        for name, fn in self.node.functions.items():
            yield "rewarm_queue_length", "Requests waiting.", {"function": name}, float(len(fn.queue))
            for figure, value in _figures(fn.batching).items():
                labels = {"function": name, "figure": figure}
                yield "rewarm_batching", "What the batching policy goes by.", labels, float(value)
            states = [sandbox.state.value for sandbox in fn.sandboxes.values()]
            for state in ("rising", "ready", "busy", "dying"):
                count = sum(s == state or (state == "rising" and s in _RISING) for s in states)
                yield "rewarm_instances", "Instances.", {"function": name, "state": state}, float(count)

    def _disk_gauges(self) -> Iterator[tuple[str, str, dict[str, str], float]]:
        pool = self.node.pool
        disk, runtimes = pool.ground.disk, sum(key.vm_bytes > 0 for key in pool.langs)
        snapshots = [fn.snapshot for fn in self.node.functions.values() if fn.snapshot is not None]
        there = [snapshot for snapshot in snapshots if snapshot.state is SnapshotState.THERE]
        if not snapshots and not runtimes:
            return  # nothing here has to do with micro-VMs
        yield "rewarm_disk_budget_bytes", "Budget of snapshots on disk.", {}, float(disk.budget_bytes)
        yield "rewarm_disk_held_bytes", "Bytes of snapshots on disk.", {}, float(disk.held_bytes)
        yield "rewarm_snapshots", "Snapshots on disk.", {"kind": "function"}, float(len(there))
        yield "rewarm_snapshots", "Snapshots on disk.", {"kind": "runtime"}, float(runtimes)
        for snapshot in there:
            labels = {"function": snapshot.function.name}
            yield "rewarm_restore_seconds", "What waking takes, on average.", labels, snapshot.restore_s.value

    def _model_gauges(self) -> Iterator[tuple[str, str, dict[str, str], float]]:
        for key, model in self.node.pool.models.by_key.items():
            labels = {"pack": key[:12], "functions": ",".join(sorted(model.wishes))}
            yield "rewarm_weights_pinned_bytes", "Weights that are pinned.", labels, float(model.pinned_bytes)
            yield (
                "rewarm_weights_bandwidth_bytes",
                "Bytes a second that a load can count on.",
                labels,
                (model.bandwidth_bytes_s),
            )
        for name, stats in self.stats.items():
            if stats.loads:
                yield "rewarm_weights_loads_total", "Cold loads of weights.", {"function": name}, float(stats.loads)
                for figure, value in stats.loadings[-1].items():
                    labels = {"function": name, "figure": figure}
                    yield "rewarm_weights_last_load", "How the last load of weights went.", labels, value


_RISING = ("absent", "bare", "lang", "user")


def _figures(policy: BatchingPolicy) -> dict[str, float]:
    """Optional for a policy."""
    figures = getattr(policy, "figures", None)
    return figures() if figures is not None else {}


def _left(expires_s: float, now: float) -> float | None:
    return None if expires_s == float("inf") else max(0.0, expires_s - now)
