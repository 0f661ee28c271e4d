"""Profiles on the server: kept by the store, handed to the batching policy, measured on a twin.

A twin is a function that only the core and the front door know: the code, weights and memory of another one in an
instance of its own, whose queue waits until it is told to leave (`flush`). So batches of a chosen size can be run
beside the callers of the real function, whatever its policy. It is forgotten at the end, or after an hour at most.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rewarm.errors import BadDefinition, NotFound
from rewarm.facts import messages as m
from rewarm.facts.function import PolicySpec, Revision
from rewarm.facts.profile import SIZE_MAX, Profile
from rewarm.obs.stats import FunctionStats
from rewarm.policy import registry
from rewarm.store.profiles import StoredProfile, digest_of

if TYPE_CHECKING:
    from rewarm.control.plane import ControlPlane

_TWIN_S = 3600.0
_TWIN_IDLE_S = 60.0  # its instance does not outlive a caller who is gone for long
_NAME_MAX = 54  # what of a name fits before the twin's ending


class ProfileDesk:
    """What an operator can ask and order about profiles. Lives on the event loop's thread."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane
        self._store = plane.store.profiles
        self._twins: dict[str, asyncio.TimerHandle] = {}
        self._numbers = itertools.count(1)

    # ------------------------------------------------------------ what is kept

    async def get(self, name: str) -> dict[str, Any]:
        """The profile of what is deployed, else the newest of what was (`stale`). Raises NotFound."""
        revision = self._revision(name)
        digest = digest_of(revision)
        found = await asyncio.to_thread(lambda: self._store.get(name, digest) or self._store.newest(name))
        if found is None:
            raise NotFound(f"there is no profile of {name!r}; measure one with: rewarm profile {name}")
        return {"name": name, "stale": found.digest != digest, **found.to_json()}

    async def put(self, name: str, data: Any) -> dict[str, Any]:
        """Keep what was measured and have the policy plan with it. Raises NotFound, BadDefinition."""
        revision = self._revision(name)
        profile = Profile.from_json(data)
        digest = digest_of(revision)
        if data.get("digest") != digest:
            raise BadDefinition(f"this profile is not of what {name!r} runs now; measure again: rewarm profile {name}")
        stored = StoredProfile(profile, digest, revision.version, time.time())
        await asyncio.to_thread(self._store.put, name, stored)
        if self._plane.revision(name) is revision and registry.plans_with_profile(revision.spec.batching):
            self._plane.executor.post(m.Deployed(revision, profile))
        return await self.get(name)

    async def remove(self, name: str) -> dict[str, Any]:
        """Forget all profiles of a function. Raises NotFound, and BadDefinition while its policy needs one."""
        revision = self._revision(name)
        batching = revision.spec.batching
        if registry.plans_with_profile(batching):
            raise BadDefinition(
                f"{name!r} batches with its profile ({batching.name}); deploy it with another policy first"
            )
        if not await asyncio.to_thread(self._store.remove, name):
            raise NotFound(f"there is no profile of {name!r}")
        return {"name": name, "removed": True}

    # ------------------------------------------------------------ measuring

    @property
    def twins(self) -> set[str]:
        """The names of the twins that there are now."""
        return {_twin_of(name) for name in self._twins}

    def begin(self, name: str, data: Any) -> dict[str, Any]:
        """Make the twin of a function; `data`: {"max_size": n}, the most of its requests that leave together.

        A twin that is there already is replaced. Raises NotFound; BadDefinition if it cannot take batches.
        """
        revision = self._revision(name)
        size = data.get("max_size") if isinstance(data, Mapping) else None
        if type(size) is not int or not 1 <= size <= SIZE_MAX:
            raise BadDefinition(f"max_size must be a whole number from 1 to {SIZE_MAX}, not {size!r}")
        if size > 1 and revision.spec.kind == "handler" and not revision.spec.batched:
            raise BadDefinition(
                f"{name!r} takes one event at a time; measure size 1 only, or define it with batched=True"
            )
        if name in self._twins:
            self.end(name)
        twin = self._twin(revision, size)
        if self._plane.revision(twin.name) is not None:
            raise BadDefinition(f"{name!r} is measured as {twin.name!r}, which is there already; remove that first")
        self._plane.revisions[twin.name] = twin
        self._plane.stats[twin.name] = FunctionStats(twin.spec.memory_bytes, None)
        self._plane.executor.post(m.Deployed(twin))
        self._twins[name] = asyncio.get_running_loop().call_later(_TWIN_S, self.end, name)
        return {"name": name, "twin": twin.name, "version": revision.version, "digest": digest_of(revision)}

    def _twin(self, revision: Revision, size: int) -> Revision:
        spec = dataclasses.replace(
            revision.spec, name=_twin_of(revision.name), slo_s=None, max_instances=1,
            queue_max=max(size, revision.spec.queue_max), batching=PolicySpec("static", {"size": size}),
            keepalive=PolicySpec("fixed", {"ttl_s": _TWIN_IDLE_S, "asleep_s": 0.0}),
        )  # fmt: skip
        return dataclasses.replace(revision, spec=spec, digest=f"twin {next(self._numbers)} of {revision.digest}")

    def end(self, name: str) -> dict[str, Any]:
        """Forget the twin of a function, if there is one; the function itself may be gone by now."""
        timer = self._twins.pop(name, None)
        if timer is not None:
            timer.cancel()
            self._plane.forget(_twin_of(name))
            self._plane.sweep_soon()
        return {"name": name, "ended": timer is not None}

    def _revision(self, name: str) -> Revision:
        revision = self._plane.revision(name)
        if revision is None:
            raise NotFound(f"there is no function {name!r}; see what there is with: rewarm ls")
        return revision


def _twin_of(name: str) -> str:
    return f"{name[:_NAME_MAX]}.profiling"
