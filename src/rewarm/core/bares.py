"""Bares: scratch directories with their sockets, made before anyone needs them.

A used scratch directory is never given to another function. When an instance is peeled, or a Bare was taken, the
server's policy is asked whether a fresh one is worth keeping; if so it is raised, and idles under that policy like
every layer.
"""

from __future__ import annotations

from rewarm.core.state import START_TIMEOUT_S_MIN, Bare, Ground, LayerState, Mean
from rewarm.facts.function import LangKey
from rewarm.facts.messages import Destroy, Effect, RaiseBare
from rewarm.policy.keepalive.base import BARE, Keep, LayerView

IDLE_MAX = 8  # Bares at a time: a burst takes no more from them, and each holds five descriptors

_NOBODY = LangKey()


class Bares:
    """Every Bare of one node that is nobody's yet."""

    def __init__(self, ground: Ground) -> None:
        self.layers: dict[int, Bare] = {}
        self.seconds = Mean(0.0)
        self.bytes = Mean(0.0)  # an empty directory and empty sockets: nothing, unless a driver measures more
        self.taken = 0
        self._ground = ground

    @property
    def idle(self) -> list[Bare]:
        """Longest idle first."""
        return [bare for bare in self.layers.values() if bare.state is LayerState.ALIVE]

    def take(self) -> Bare | None:
        """An idle one for a sandbox, which has its id from here on; the others are left to run out."""
        idle = self.idle
        if not idle:
            return None
        self.taken += 1
        return self.layers.pop(idle[-1].id)

    def consider(self, now: float, out: list[Effect]) -> None:
        """Ask the policy whether one more is worth having, and raise it if so and if there is room."""
        ground = self._ground
        size = int(self.bytes.value)
        if ground.draining or len(self.layers) >= IDLE_MAX or ground.ledger.short_bytes(size):
            return
        view = LayerView(BARE, None, _NOBODY, self.seconds.value, size, now, now, 0)
        if isinstance(ground.keepalive.on_idle(view, now), Keep):
            bare = Bare(ground.new_id(), now)
            self.layers[bare.id] = bare
            ground.ledger.enter(bare.id, size)
            ground.timers.arm(bare, now + START_TIMEOUT_S_MIN)
            out.append(RaiseBare(bare.id))

    def raised(self, bare: Bare, seconds: float, now: float, out: list[Effect]) -> None:
        if bare.state is LayerState.RISING:
            self.seconds.add(seconds)
            bare.state = LayerState.ALIVE
            bare.idle_since_s = bare.last_used_s = now
            self._ask(bare, now, out)

    def exited(self, bare: Bare) -> None:
        del self.layers[bare.id]
        self._ground.ledger.leave(bare.id)

    def wake(self, bare: Bare, now: float, out: list[Effect]) -> None:
        """A timer of this Bare rang."""
        if self.layers.get(bare.id) is not bare or bare.state is LayerState.DYING:
            return
        if bare.state is LayerState.RISING:
            self._end(bare, "start timeout", out)
        elif now < bare.expires_s:
            self._ground.timers.arm(bare, bare.expires_s)
        else:
            self._ask(bare, now, out)

    def _ask(self, bare: Bare, now: float, out: list[Effect]) -> None:
        decision = self._ground.keepalive.on_idle(self.view(bare), now)
        if isinstance(decision, Keep):
            self._ground.keep(bare, decision.for_s, now)
        else:
            self.drop(bare, "keepalive", now, out)

    def drop(self, bare: Bare, reason: str, now: float, out: list[Effect]) -> None:
        """End an idle one, because its window is over ("keepalive") or memory is short ("memory")."""
        if self._ground.on_gone is not None:
            self._ground.on_gone(self.view(bare), reason == "memory", now)
        self._end(bare, reason, out)

    def end_all(self, out: list[Effect]) -> None:
        for bare in self.layers.values():
            if bare.state is not LayerState.DYING:
                self._end(bare, "shutdown", out)

    def _end(self, bare: Bare, reason: str, out: list[Effect]) -> None:
        bare.state = LayerState.DYING
        self._ground.ledger.told_to_end(bare.id)
        out.append(Destroy(bare.id, reason))

    def measured(self, bare: Bare, resident_bytes: int) -> None:
        self._ground.ledger.enter(bare.id, resident_bytes)
        self.bytes.add(resident_bytes)

    def view(self, bare: Bare) -> LayerView:
        held = self._ground.ledger.of(bare.id)
        return LayerView(
            BARE, None, _NOBODY, self.seconds.value, held, bare.idle_since_s, bare.last_used_s, 0
        )  # fmt: skip
