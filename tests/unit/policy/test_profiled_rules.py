"""`batch` and `mbs`: what they answer to a queue, what they promise over many arrivals, and what they refuse."""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from rewarm.errors import BadDefinition
from rewarm.facts.function import FunctionSpec, PolicySpec
from rewarm.facts.profile import Profile
from rewarm.facts.request import Request
from rewarm.policy import registry
from rewarm.policy.batching.base import BatchingPolicy, Decision, Dispatch, Pick, Wait
from rewarm.policy.batching.batch import Batch
from rewarm.policy.batching.mbs import Mbs
from rewarm.testing import check_batching_policy

NOW = 1000.0
SLO_S = 0.2
FUNCTION = FunctionSpec("f", "predict", "app:F", slo_s=SLO_S)
PROFILE = Profile((1, 2, 4, 8, 16), (1000,), ((0.004, 0.005, 0.006, 0.01, 0.018),))
#: Ten times the body takes ten times as long.
BODIES = Profile((1, 16), (1000, 10_000), ((0.002, 0.01), (0.02, 0.1)))


class Sized(Request):
    """A request of so many bytes."""

    def __init__(self, size_bytes: int, arrived_s: float) -> None:
        super().__init__("f", arrived_s, arrived_s + 60.0)
        self._size_bytes = size_bytes

    @property
    def size_bytes(self) -> int:
        return self._size_bytes


def feed(rule: BatchingPolicy, rate: float, count: int = 200, seed: int = 1) -> float:
    """Poisson arrivals up to NOW, each asked about alone; the policy has learnt the rate then."""
    draw = random.Random(seed)
    gaps = [draw.expovariate(rate) for _ in range(count)]
    now = NOW - sum(gaps)
    for gap in gaps:
        now += gap
        rule.on_arrival(now)
        rule.decide([Request("f", now, now + 60.0)], now)
    return now


def serve(
    rule: BatchingPolicy, arrivals: Sequence[Sized], run_s: Callable[[list[Sized]], float]
) -> list[tuple[float, list[Sized]]]:
    """As many instances as it takes (the paper's world): (end, batch) of every batch."""
    done: list[tuple[float, list[Sized]]] = []
    coming, queue = deque(arrivals), deque[Sized]()
    wake_s = float("inf")
    while coming or queue:
        now = min(coming[0].arrived_s if coming else float("inf"), wake_s)
        if coming and coming[0].arrived_s == now:
            queue.append(coming.popleft())
            rule.on_arrival(now)
        wake_s = float("inf")
        while queue:
            answer = rule.decide(queue, now)
            if isinstance(answer, Wait):
                assert answer.until_s is not None and answer.until_s > now
                wake_s = answer.until_s
                break
            places = answer.places if isinstance(answer, Pick) else range(min(answer.size, len(queue)))
            batch = [queue[place] for place in places]
            for place in reversed(places):
                del queue[place]
            done.append((now + run_s(batch), batch))
    return done


@pytest.mark.parametrize("text", ["batch", "batch:max_size=3,quantile=0.5", "mbs", "mbs:buffers=2,max_size=5,slack=0"])
@pytest.mark.parametrize("profile", [PROFILE, BODIES])
def test_the_contract_is_kept(text: str, profile: Profile) -> None:
    spec = registry.parse(text)
    check_batching_policy(lambda: registry.batching(spec, FUNCTION, profile))


@pytest.mark.parametrize("name", ["batch", "mbs"])
@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"max_size": 0}, "max_size must be a whole number"),
        ({"max_size": True}, "max_size must be a whole number"),
        ({"quantile": 1}, "quantile must lie between 0 and 1"),
        ({"quantile": "most"}, "quantile must lie between 0 and 1"),
        ({"slack": "200ms"}, r"slack_s must be from 0 to less than the slo \(0.2 s\)"),
        ({"profile": 3}, "has no parameter 'profile'; its parameters are"),
    ],
)
def test_bad_parameters(name: str, params: dict[str, Any], says: str) -> None:
    with pytest.raises(BadDefinition, match=says):
        registry.batching(PolicySpec(name, params), FUNCTION, PROFILE)


@pytest.mark.parametrize("buffers", [0, 21, 2.5, True])
def test_bad_numbers_of_buffers(buffers: Any) -> None:
    with pytest.raises(BadDefinition, match="buffers must be a whole number from 1 to 20"):
        registry.batching(PolicySpec("mbs", {"buffers": buffers}), FUNCTION, PROFILE)


@pytest.mark.parametrize("name", ["batch", "mbs"])
def test_what_is_missing_is_told_with_its_remedy(name: str) -> None:
    with pytest.raises(BadDefinition, match="run: rewarm profile f, then deploy it with --batching " + name):
        registry.batching(PolicySpec(name), FUNCTION)
    with pytest.raises(BadDefinition, match='needs an objective: add slo="200ms"'):
        registry.batching(PolicySpec(name), FunctionSpec("f", "predict", "app:F"), PROFILE)
    assert registry.plans_with_profile(PolicySpec(name))
    assert not registry.plans_with_profile(PolicySpec("slo"))


def test_batch_waits_for_no_one_until_somebody_follows() -> None:
    rule = Batch(FUNCTION, profile=PROFILE)
    assert rule.decide([Request("f", NOW, NOW + 60.0)], NOW) == Dispatch(1)
    assert rule.figures() == {"rate_per_s": 0.0, "size": 16, "wait_s": 0.0}


def test_batch_leaves_at_the_planned_size_or_wait() -> None:
    rule = Batch(FUNCTION, max_size=8, profile=PROFILE)
    now = feed(rule, 40.0)
    size, wait_s = rule.plan.size, rule.plan.wait_s
    assert size == rule.max_size == 8 and wait_s > 0.05
    queue = [Request("f", now, now + 60.0) for _ in range(12)]
    assert rule.decide(queue[:3], now) == Wait(now + wait_s)
    assert rule.decide(queue[:3], now + wait_s) == Dispatch(3)
    assert rule.decide(queue, now) == Dispatch(8)


def test_the_largest_batch_is_one_that_was_measured() -> None:
    rule = Batch(FUNCTION, max_size=1000, profile=PROFILE)
    assert rule.max_size == 16
    assert [rule.expected_run_s(size) for size in (1, 8, 16, 99)] == [0.004, 0.01, 0.018, 0.018]


@pytest.mark.parametrize("rate", [10.0, 60.0, 250.0])
def test_batch_meets_its_objective_and_costs_less_than_none(rate: float) -> None:
    draw = random.Random(3)
    now, arrivals = NOW, []
    for _ in range(6000):
        now += draw.expovariate(rate)
        arrivals.append(Sized(1000, now))
    curve_s = PROFILE.curve_s()
    done = serve(Batch(FUNCTION, profile=PROFILE), arrivals, lambda batch: curve_s[len(batch) - 1])
    late = sum(end_s - request.arrived_s > SLO_S for end_s, batch in done for request in batch)
    assert late <= 0.05 * len(arrivals)
    assert len(done) < 0.65 * len(arrivals)


def mixed(count: int, rate: float, seed: int = 5) -> list[Sized]:
    """Sizes over two decades, without order."""
    draw, now = random.Random(seed), NOW
    found = []
    for _ in range(count):
        now += draw.expovariate(rate)
        found.append(Sized(int(10 ** draw.uniform(2.0, 4.0)), now))
    return found


def padded_s(batch: list[Sized]) -> float:
    return BODIES.curve_s(max(request.size_bytes for request in batch))[len(batch) - 1]


def padding(done: list[tuple[float, list[Sized]]]) -> float:
    sizes = [[request.size_bytes for request in batch] for _, batch in done]
    return sum(len(each) * max(each) for each in sizes) / sum(map(sum, sizes)) - 1.0


def test_mbs_pads_less_than_one_queue() -> None:
    arrivals = mixed(4000, 120.0)
    one, four = Mbs(FUNCTION, buffers=1, profile=BODIES), Mbs(FUNCTION, buffers=4, profile=BODIES)
    alone, sorted_in = serve(one, arrivals, padded_s), serve(four, arrivals, padded_s)
    assert four.padding_overhead == pytest.approx(padding(sorted_in))
    assert one.padding_overhead == pytest.approx(padding(alone))
    assert four.padding_overhead < 0.4 * one.padding_overhead
    assert four.figures()["padding_overhead"] == four.padding_overhead
    assert four.figures()["buffers"] == 4
    for done in (alone, sorted_in):
        assert sum(len(batch) for _, batch in done) == len(arrivals)
        late = sum(end_s - request.arrived_s > SLO_S for end_s, batch in done for request in batch)
        assert late <= 0.05 * len(arrivals)


def test_mbs_takes_the_fullest_range_and_leaves_the_others_in_their_order() -> None:
    rule = Mbs(FUNCTION, buffers=2, max_size=4, profile=BODIES)
    serve(rule, [Sized(100 if i % 2 else 9000, NOW - 50 + i / 80.0) for i in range(600)], padded_s)
    now = NOW
    queue: list[Request] = [Sized(size, now) for size in (9000, 100, 9000, 100, 100, 9000, 100, 100)]
    assert rule.decide(queue[:6], now) == Wait(pytest.approx(now + 0.1, abs=0.1))
    assert rule.decide(queue, now) == Pick((1, 3, 4, 6))
    late: list[Request] = [Sized(9000, now - SLO_S), *queue]
    assert rule.decide(late, now) == Pick((0, 1, 3, 6)), "who has waited too long goes first"


def test_mbs_of_requests_alike_is_one_queue() -> None:
    rule = Mbs(FUNCTION, profile=PROFILE)
    done = serve(rule, [Sized(0, NOW + i / 200.0) for i in range(500)], lambda batch: 0.01)
    assert rule.figures()["buffers"] == 1
    assert rule.padding_overhead == 0.0
    assert max(len(batch) for _, batch in done) > 4


@pytest.mark.parametrize(("buffers", "large_in_ten", "found"), [(2, 6, 2), (2, 1, 2), (4, 5, 2), (1, 5, 1)])
def test_mbs_parts_sizes_however_many_there_are_of_each(buffers: int, large_in_ten: int, found: int) -> None:
    rule = Mbs(FUNCTION, buffers=buffers, profile=BODIES)
    arrivals = [Sized(9000 if i % 10 < large_in_ten else 100, NOW + i / 80.0) for i in range(400)]
    serve(rule, arrivals, padded_s)
    assert rule.figures()["buffers"] == found
    assert rule.padding_overhead < 0.15 or buffers == 1


def test_mbs_looks_at_no_more_than_it_needs() -> None:
    rule = Mbs(FUNCTION, buffers=2, max_size=2, profile=BODIES)

    class Long(deque[Request]):
        seen = 0

        def __iter__(self) -> Any:
            for request in super().__iter__():
                self.seen += 1
                yield request

    queue = Long(Sized(100, NOW) for _ in range(1000))
    assert rule.decide(queue, NOW) == Dispatch(2)
    assert queue.seen <= 2 * 2 + 1


def a_loop_s() -> float:
    """What a thousand turns of a loop take now, in the processor's time: the machine's speed is not ours to know."""
    began_s = time.process_time()
    total = 0
    for turn in range(200_000):
        total += turn
    return (time.process_time() - began_s) / 200


@pytest.mark.parametrize("make", [Batch, Mbs])
def test_a_request_costs_little(make: Any) -> None:
    """Amortised, a rate that wanders over a decade included: no more than a loop of a thousand turns."""
    rule = make(FUNCTION, profile=BODIES)
    arrivals: list[Sized] = []
    for i in range(40):
        since_s = arrivals[-1].arrived_s - NOW if arrivals else 0.0
        block = mixed(250, 10.0 ** (1 + i % 5 / 4), seed=i)
        arrivals += [Sized(request.size_bytes, request.arrived_s + since_s) for request in block]
    loop_s = a_loop_s()
    spent_s = time.process_time()
    asked: list[Decision] = []
    for start in range(0, len(arrivals), 4):
        queue: list[Request] = []
        for request in arrivals[start : start + 4]:
            rule.on_arrival(request.arrived_s)
            queue.append(request)
            asked.append(rule.decide(queue, request.arrived_s))
    cost_s = (time.process_time() - spent_s) / len(arrivals)
    assert len(asked) == len(arrivals)
    assert cost_s < max(loop_s, a_loop_s())
