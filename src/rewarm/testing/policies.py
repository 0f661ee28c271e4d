"""What every policy must keep to, as suites that anyone can run on their own.

    check_policy(lambda: MyRule(function))     # batching: as check_batching_policy
    check_policy(lambda: MyRule())             # keep-alive: as check_keepalive_policy

They raise AssertionError with what was expected. Inputs are made here from fixed seeds, so a failure repeats.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Generator, Iterator
from typing import cast

from rewarm.facts.function import FunctionSpec, LangKey
from rewarm.facts.request import Request
from rewarm.facts.sandbox import Layer
from rewarm.policy.batching.base import BatchingPolicy, Decision, Dispatch, Pick, Wait
from rewarm.policy.keepalive.base import (
    Drop,
    Keep,
    KeepalivePolicy,
    LayerView,
    Prewarm,
    WatchesDeploys,
    WatchesEnds,
    WatchesRuns,
)

_START_S = 86_400.0  # clocks do not begin at zero
_ARRIVALS = 400
_BODY_BYTES = (0, 11, 900, 40_000)
_GAPS_S: dict[str, Callable[[random.Random], float]] = {
    "uniform": lambda rng: 1 / 12,
    "poisson": lambda rng: rng.expovariate(12.0),
    "bursts": lambda rng: 2.0 if rng.random() < 0.1 else 0.005,
    "flood": lambda rng: 1e-5,
    "at once": lambda rng: 0.0,
    "rare": lambda rng: 300.0,
}


class _Sized(Request):
    """A request of so many bytes."""

    @property
    def size_bytes(self) -> int:
        return int(self.payload)


def check_policy(factory: Callable[[], BatchingPolicy] | Callable[[], KeepalivePolicy]) -> None:
    """The suite of its kind: `check_batching_policy` for what decides about queues, else `check_keepalive_policy`."""
    if hasattr(factory(), "decide"):
        check_batching_policy(cast(Callable[[], BatchingPolicy], factory))
    else:
        check_keepalive_policy(cast(Callable[[], KeepalivePolicy], factory))


def check_batching_policy(factory: Callable[[], BatchingPolicy]) -> None:
    """Runs fresh policies from `factory` through six kinds of load on one instance and checks every answer."""
    policy = factory()
    assert isinstance(policy.name, str) and policy.name, "name must be a word"
    assert type(policy.max_size) is int and policy.max_size >= 1, f"max_size must be 1 or more: {policy.max_size!r}"
    _check_expected(policy)
    for load in _GAPS_S:
        policy = factory()
        trace = _batching_trace(policy, load)
        _check_expected(policy)
        assert trace == _batching_trace(factory(), load), f"the same inputs must give the same answers ({load})"


def _batching_trace(policy: BatchingPolicy, load: str) -> list[Decision]:
    """One instance, virtual time: the decisions of `policy`, each checked."""
    rng = random.Random(load)
    answers: list[Decision] = []
    queue: deque[Request] = deque()
    arrivals, arrival_s = 0, _START_S
    end_s = wake_s = math.inf
    size, run_s = 0, 0.0
    while (now := min(arrival_s, end_s, wake_s)) < math.inf:
        if now == end_s:
            end_s = math.inf
            policy.on_run(size, run_s, now)
        elif now == arrival_s:
            queue.append(_Sized("check", now, now + 60.0, rng.choice(_BODY_BYTES)))
            policy.on_arrival(now)
            arrivals += 1
            arrival_s = now + _GAPS_S[load](rng) if arrivals < _ARRIVALS else math.inf
        wake_s = math.inf
        if not queue or end_s < math.inf:
            continue
        answer = _ask(policy, queue, now)
        answers.append(answer)
        if isinstance(answer, Wait):
            wake_s = math.inf if answer.until_s is None else answer.until_s
            continue
        places = answer.places if isinstance(answer, Pick) else range(min(answer.size, len(queue)))
        size = len(places)
        for place in reversed(places):
            del queue[place]
        run_s = (0.004 + 0.0005 * size) * (10.0 if rng.random() < 0.02 else rng.uniform(0.9, 1.2))
        end_s = now + run_s
    return answers


def _ask(policy: BatchingPolicy, queue: deque[Request], now: float) -> Decision:
    before = list(queue)
    answer = policy.decide(queue, now)
    assert list(queue) == before, "decide must not change the queue"
    oldest = queue[0]
    if isinstance(answer, Pick):
        places = list(answer.places)
        assert 1 <= len(places) <= policy.max_size, f"{answer!r} is outside 1 to max_size {policy.max_size}"
        assert places == sorted(set(places)), f"places rise, each only once: {answer!r}"
        assert places[0] >= 0 and places[-1] < len(queue), f"{answer!r} is outside a queue of {len(queue)}"
        return answer
    if isinstance(answer, Dispatch):
        assert type(answer.size) is int, f"a size is a whole number: {answer!r}"
        assert 1 <= answer.size <= policy.max_size, f"{answer!r} is outside 1 to max_size {policy.max_size}"
        return answer
    assert isinstance(answer, Wait), f"decide must answer Dispatch, Pick or Wait, not {answer!r}"
    assert answer.until_s is None or now < answer.until_s < math.inf, f"{answer!r} does not lie after {now!r}"
    slo_s = getattr(policy, "slo_s", None)
    if slo_s is not None:
        assert answer.until_s is not None, "a policy with an objective must not wait without a limit"
        assert answer.until_s <= oldest.arrived_s + slo_s, f"{answer!r} is after the oldest deadline"
    return answer


def _check_expected(policy: BatchingPolicy) -> None:
    for size in (1, 2, policy.max_size):
        expected_s = policy.expected_run_s(size)
        assert expected_s is None or 0 <= expected_s < math.inf, f"expected_run_s({size}) is {expected_s!r}"


_WATCHES = {
    "watches_arrivals": "on_arrival", "watches_runs": "on_run", "watches_ends": "on_gone",
    "watches_deploys": "on_deployed",
}  # fmt: skip


def check_keepalive_policy(factory: Callable[[], KeepalivePolicy]) -> None:
    """Feeds fresh policies from `factory` seeded arrivals, runs, idle layers and ends, and checks every answer."""
    policy = factory()
    assert isinstance(policy.name, str) and policy.name, "name must be a word"
    for flag, method in _WATCHES.items():
        wants = getattr(policy, flag, flag == "watches_arrivals")
        assert isinstance(wants, bool), f"{flag} must be True or False, not {wants!r}"
        assert not wants or callable(getattr(policy, method, None)), f"{flag} is True, so {method} must be a method"
    for seed in range(20):
        trace = list(_keepalive_trace(factory(), seed))
        assert trace == list(_keepalive_trace(factory(), seed)), f"the same inputs must give the same answers ({seed})"


def _keepalive_trace(policy: KeepalivePolicy, seed: int) -> Iterator[object]:
    """Some requests of three functions and what became of their layers, never back in time."""
    rng = random.Random(seed)
    now = _START_S
    if getattr(policy, "watches_deploys", False):
        for name in "abc":
            spec = FunctionSpec(name, "handler", "app:f", preload=("json",) * (name == "a"))
            expected = LayerView(Layer.USER, name, spec.lang_key, 0.1, 32 << 20, now, now, 0)
            yield _checked_prewarm(cast(WatchesDeploys, policy).on_deployed(expected, now))
    for _ in range(60):
        now += rng.choice((0.0, 0.01, 1.0, 60.0, 3600.0)) * rng.random()
        name = rng.choice("abc")
        spec = FunctionSpec(name, "handler", "app:f", slo_s=rng.choice((None, 0.2)), preload=("json",) * (name == "a"))
        if getattr(policy, "watches_arrivals", True):
            yield _checked_prewarm(policy.on_arrival(name, spec.lang_key, now))
        if getattr(policy, "watches_runs", False):
            now += 0.05
            cast(WatchesRuns, policy).on_run(spec, rng.randint(1, 8), rng.choice((0.001, 0.05)), now)
        layer = _layer(rng, name, spec.lang_key, now)
        worth = policy.priority(layer, now)
        assert math.isfinite(worth), f"priority is {worth!r}"
        yield worth
        fate = rng.choice(("used", "evicted", "over"))
        windows = _windows(policy, layer)
        if fate == "over":
            now = yield from windows
        else:
            yield next(windows)
        if fate != "used" and getattr(policy, "watches_ends", False):
            cast(WatchesEnds, policy).on_gone(layer, fate == "evicted", now)


def _checked_prewarm(prewarm: object) -> object:
    assert prewarm is None or isinstance(prewarm, Prewarm), f"expected Prewarm or None, not {prewarm!r}"
    if prewarm is not None:
        assert 0 <= prewarm.after_s < math.inf, f"{prewarm!r} is not a time ahead"
        assert type(prewarm.instances) is int and prewarm.instances >= 1, f"{prewarm!r} asks for no instance"
    return prewarm


def _windows(policy: KeepalivePolicy, layer: LayerView) -> Generator[object, None, float]:
    """Every window in turn until the layer is dropped, has no limit, or a day has passed. Returns when that was."""
    now = layer.idle_since_s
    for _ in range(10_000):
        answer = policy.on_idle(layer, now)
        assert isinstance(answer, Keep | Drop), f"on_idle must answer Keep or Drop, not {answer!r}"
        if isinstance(answer, Drop):
            after_s = answer.prewarm_after_s
            assert after_s is None or 0 <= after_s < math.inf, f"{answer!r} is not a time ahead"
        elif answer.for_s is not None:
            assert 0 < answer.for_s < math.inf, f"{answer!r} is not a time ahead"
        yield answer
        if isinstance(answer, Drop) or answer.for_s is None:
            return now
        now += answer.for_s
        if now - layer.idle_since_s > 86_400.0:
            return now
    raise AssertionError("ten thousand windows in less than a day: windows must be worth the asking")


def _layer(rng: random.Random, name: str, key: LangKey, now: float) -> LayerView:
    layer = rng.choice(list(Layer))
    return LayerView(
        layer=layer,
        function=name if layer >= Layer.USER or layer is Layer.ASLEEP else None,
        key=key,
        startup_s=rng.choice((0.0, 0.001, 0.3, 8.0)),
        resident_bytes=rng.choice((0, 4096, 50 << 20, 2 << 30)),
        idle_since_s=now,
        last_used_s=now - rng.choice((0.0, 5.0)),
        uses=rng.choice((0, 1, 30)),
        others=rng.randrange(3) if layer >= Layer.LANG else 0,
    )
