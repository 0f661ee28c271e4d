"""What every policy must keep to, as suites that anyone can run on their own.

    check_batching_policy(lambda: MyRule(function))
    check_keepalive_policy(lambda: MyRule())

They raise AssertionError with what was expected. Inputs are made here from fixed seeds, so a failure repeats.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Iterator

from rewarm.facts.function import LangKey
from rewarm.facts.request import Request
from rewarm.facts.sandbox import Layer
from rewarm.policy.batching.base import BatchingPolicy, Decision, Dispatch, Wait
from rewarm.policy.keepalive.base import Drop, Keep, KeepalivePolicy, LayerView, Prewarm

_START_S = 86_400.0  # clocks do not begin at zero
_ARRIVALS = 400
_GAPS_S: dict[str, Callable[[random.Random], float]] = {
    "uniform": lambda rng: 1 / 12,
    "poisson": lambda rng: rng.expovariate(12.0),
    "bursts": lambda rng: 2.0 if rng.random() < 0.1 else 0.005,
    "flood": lambda rng: 1e-5,
    "at once": lambda rng: 0.0,
    "rare": lambda rng: 300.0,
}


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
            queue.append(Request("check", now, now + 60.0))
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
        size = min(answer.size, len(queue))
        for _ in range(size):
            queue.popleft()
        run_s = (0.004 + 0.0005 * size) * (10.0 if rng.random() < 0.02 else rng.uniform(0.9, 1.2))
        end_s = now + run_s
    return answers


def _ask(policy: BatchingPolicy, queue: deque[Request], now: float) -> Decision:
    before = list(queue)
    answer = policy.decide(queue, now)
    assert list(queue) == before, "decide must not change the queue"
    oldest = queue[0]
    if isinstance(answer, Dispatch):
        assert type(answer.size) is int, f"a size is a whole number: {answer!r}"
        assert 1 <= answer.size <= policy.max_size, f"{answer!r} is outside 1 to max_size {policy.max_size}"
        return answer
    assert isinstance(answer, Wait), f"decide must answer Dispatch or Wait, not {answer!r}"
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


def check_keepalive_policy(factory: Callable[[], KeepalivePolicy]) -> None:
    """Feeds fresh policies from `factory` seeded layers and arrivals and checks every answer."""
    policy = factory()
    assert isinstance(policy.name, str) and policy.name, "name must be a word"
    for seed in range(20):
        trace = list(_keepalive_trace(factory(), seed))
        assert trace == list(_keepalive_trace(factory(), seed)), f"the same inputs must give the same answers ({seed})"


def _keepalive_trace(policy: KeepalivePolicy, seed: int) -> Iterator[object]:
    rng = random.Random(seed)
    now = _START_S
    for _ in range(60):
        now += rng.choice((0.0, 0.01, 1.0, 60.0, 3600.0)) * rng.random()
        key = LangKey(("numpy",) if rng.random() < 0.5 else ())
        name = rng.choice("abc")
        prewarm = policy.on_arrival(name, key, now)
        assert prewarm is None or isinstance(prewarm, Prewarm), f"on_arrival answers Prewarm or None, not {prewarm!r}"
        assert prewarm is None or 0 <= prewarm.after_s < math.inf, f"{prewarm!r} is not a time ahead"
        yield prewarm
        layer = _layer(rng, name, key, now)
        worth = policy.priority(layer, now)
        assert math.isfinite(worth), f"priority is {worth!r}"
        yield worth
        yield from _windows(policy, layer)


def _windows(policy: KeepalivePolicy, layer: LayerView) -> Iterator[Keep | Drop]:
    """Every window in turn until the layer is dropped, has no limit, or a day has passed."""
    now = layer.idle_since_s
    for _ in range(10_000):
        answer = policy.on_idle(layer, now)
        assert isinstance(answer, Keep | Drop), f"on_idle must answer Keep or Drop, not {answer!r}"
        yield answer
        if isinstance(answer, Drop):
            after_s = answer.prewarm_after_s
            assert after_s is None or 0 <= after_s < math.inf, f"{answer!r} is not a time ahead"
            return
        if answer.for_s is None:
            return
        assert 0 < answer.for_s < math.inf, f"{answer!r} is not a time ahead"
        now += answer.for_s
        if now - layer.idle_since_s > 86_400.0:
            return
    raise AssertionError("ten thousand windows in less than a day: windows must be worth the asking")


def _layer(rng: random.Random, name: str, key: LangKey, now: float) -> LayerView:
    layer = rng.choice(list(Layer))
    return LayerView(
        layer=layer,
        function=name if layer >= Layer.USER else None,
        key=key,
        startup_s=rng.choice((0.0, 0.001, 0.3, 8.0)),
        resident_bytes=rng.choice((0, 4096, 50 << 20, 2 << 30)),
        idle_since_s=now,
        last_used_s=now - rng.choice((0.0, 5.0)),
        uses=rng.randrange(100),
    )
