"""The planner of pins against brute force: nothing that fits the budget beats it; and a node of packed functions.

Times and sizes are small whole numbers of a power of two, so that sums of floats are exact and equals are equal.
"""

from __future__ import annotations

from itertools import accumulate, chain, combinations, islice, product

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from rewarm.facts import messages as m
from rewarm.facts.pack import LayerFacts, PackFacts
from rewarm.policy.keepalive.base import KeepalivePolicy
from rewarm.policy.keepalive.fixed import FixedKeepalive
from rewarm.policy.keepalive.hazard import Hazard
from rewarm.policy.keepalive.none import NoKeepalive
from rewarm.policy.pinning.greedy import ModelLoad, plan, wanted
from rewarm.policy.pinning.sharing import Held, Spans
from rewarm.policy.pinning.tables import Share, choices
from rewarm.policy.pinning.timeline import bubble_s, loads_s, ttfi_s, ttfi_with_pin_s, zero_bubble_bytes
from rewarm.testing import World

EIGHTH = 0.125
unhurried = settings(deadline=None)
MB = 1 << 20

whole = st.integers(0, 40)
times = whole.map(lambda n: n * EIGHTH)
bandwidths = st.sampled_from([1.0, 2.0, 8.0])


@st.composite
def models(draw: st.DrawFn, most: int = 10, compute: st.SearchStrategy[float] = times) -> list[LayerFacts]:
    pairs = draw(st.lists(st.tuples(whole, compute, st.booleans()), min_size=1, max_size=most))
    return [
        LayerFacts(str(n), size, compute_s, demand and n % 3 == 0) for n, (size, compute_s, demand) in enumerate(pairs)
    ]


@st.composite
def jobs(draw: st.DrawFn) -> tuple[list[float], list[float]]:
    rows = draw(st.lists(st.tuples(times, times), max_size=10))
    return [row[0] for row in rows], [row[1] for row in rows]


def played_s(load_s: list[float], compute_s: list[float], setup_s: float = 0.0) -> float:
    """Layer after layer: it starts when the one before has ended and it is loaded itself."""
    ends_s = setup_s
    for loaded_s, compute in zip(accumulate(load_s), compute_s, strict=True):
        ends_s = max(ends_s, loaded_s) + compute
    return ends_s


def subsets(count: int) -> chain[tuple[int, ...]]:
    return chain.from_iterable(combinations(range(count), k) for k in range(count + 1))


def without(load_s: list[float], pinned: tuple[int, ...]) -> list[float]:
    return [0.0 if k in pinned else load for k, load in enumerate(load_s)]


# ---------------------------------------------------------------- one model


@unhurried
@given(jobs(), times)
def test_the_formula_is_the_play(job: tuple[list[float], list[float]], setup_s: float) -> None:
    load_s, compute_s = job
    assert ttfi_s(load_s, compute_s, setup_s) == played_s(load_s, compute_s, setup_s)
    assert bubble_s(load_s, compute_s, setup_s) == played_s(load_s, compute_s, setup_s) - setup_s - sum(compute_s)


@unhurried
@given(models(), bandwidths, times)
def test_zero_bubble_bytes_are_enough_and_one_less_is_not(
    layers: list[LayerFacts], bandwidth: float, setup_s: float
) -> None:
    need = zero_bubble_bytes(layers, bandwidth, setup_s)
    alone_s = setup_s + sum(layer.compute_s for layer in layers)
    assert 0 <= need <= sum(layer.size_bytes for layer in layers if not layer.on_demand)
    assert ttfi_with_pin_s(layers, bandwidth, need, setup_s) == alone_s
    if need:
        assert ttfi_with_pin_s(layers, bandwidth, need - 1, setup_s) > alone_s


@unhurried
@given(models(), bandwidths, times, st.integers(0, 400))
def test_a_pin_of_so_many_bytes_saves_as_the_closed_form_says(
    layers: list[LayerFacts], bandwidth: float, setup_s: float, pin: int
) -> None:
    """T(B) = max(setup + sum of c, T(0) - B / bandwidth)."""
    alone_s = setup_s + sum(layer.compute_s for layer in layers)
    expected_s = max(alone_s, ttfi_with_pin_s(layers, bandwidth, 0, setup_s) - pin / bandwidth)
    assert ttfi_with_pin_s(layers, bandwidth, pin, setup_s) == expected_s


@unhurried
@given(models(most=8), bandwidths, st.integers(0, 200), st.data())
def test_no_set_of_as_many_bytes_beats_the_front(
    layers: list[LayerFacts], bandwidth: float, budget: int, data: st.DataObject
) -> None:
    """Any bytes of any layers: each is drawn, or all whole layers that fit are tried."""
    front_s = ttfi_with_pin_s(layers, bandwidth, budget)
    load_s, compute_s = loads_s(layers, bandwidth), [layer.compute_s for layer in layers]
    for pinned in subsets(len(layers)):
        if sum(layers[k].size_bytes for k in pinned) <= budget:
            assert front_s <= played_s(without(load_s, pinned), compute_s)
    left, load_s = budget, [0.0] * len(layers)
    for k in data.draw(st.permutations(range(len(layers)))):
        streamed = 0 if layers[k].on_demand else layers[k].size_bytes
        there = data.draw(st.integers(0, min(left, streamed)))
        left -= there
        load_s[k] = (streamed - there) / bandwidth
    assert front_s <= played_s(load_s, compute_s)


# ---------------------------------------------------------------- several models


@unhurried
@given(
    st.lists(st.tuples(models(most=3, compute=whole), bandwidths, whole), min_size=1, max_size=3),
    st.integers(0, 36), st.integers(2, 7),
)  # fmt: skip
def test_no_other_shares_of_the_budget_cost_fewer_seconds(
    drawn: list[tuple[list[LayerFacts], float, int]], budget: int, step: int
) -> None:
    """Compute in whole seconds: else the last byte of a zero-bubble budget saves only a part of what the others do."""
    loads = [ModelLoad(str(n), layers, bandwidth, float(cold)) for n, (layers, bandwidth, cold) in enumerate(drawn)]

    def cost(pins: tuple[int, ...]) -> float:
        """Expected seconds to first inference, each second."""
        pairs = zip(loads, pins, strict=True)
        return sum(
            load.cold_per_s * ttfi_with_pin_s(load.layers, load.bandwidth_bytes_s, pin) for load, pin in pairs
        )  # fmt: skip

    planned = {key: share.size_bytes for key, share in plan(loads, budget).items()}
    assert sum(planned.values()) <= budget
    least = cost(tuple(planned[load.key] for load in loads))
    for shares in product(range(0, budget + 1, step), repeat=len(loads)):
        assert sum(shares) > budget or least <= cost(shares)


# ---------------------------------------------------------------- tables


@st.composite
def with_tables(draw: st.DrawFn, most: int = 6) -> list[LayerFacts]:
    rows = draw(st.lists(st.tuples(whole, times, st.none() | times), min_size=1, max_size=most))
    return [
        LayerFacts(str(n), size + (rows_s is not None), compute_s, rows_s is not None, rows_s or 0.0)
        for n, (size, compute_s, rows_s) in enumerate(rows)
    ]


def tables_of(layers: list[LayerFacts]) -> list[int]:
    return [no for no, layer in enumerate(layers) if layer.on_demand]


def least_s(layers: list[LayerFacts], bandwidth: float, budget: int, setup_s: float) -> float:
    """Brute force: all tables that fit, and what is left for the front; played layer by layer."""
    tables, best_s = tables_of(layers), float("inf")
    for chosen in subsets(len(tables)):
        pinned = {tables[number] for number in chosen}
        left = budget - sum(layers[no].size_bytes for no in pinned)
        if left >= 0:
            waits = [layer.compute_s + layer.rows_s * (no not in pinned) for no, layer in enumerate(layers)]
            best_s = min(best_s, played_s(loads_s(layers, bandwidth, left), waits, setup_s))
    return best_s


@unhurried
@given(with_tables(), bandwidths, st.integers(0, 120), times)
def test_no_other_tables_are_sooner_done(
    layers: list[LayerFacts], bandwidth: float, budget: int, setup_s: float
) -> None:
    expected_s = least_s(layers, bandwidth, budget, setup_s)
    found = choices(layers, bandwidth, setup_s)
    fitting = [one for one in found if one.size_bytes <= budget]
    assert found[0].tables == ()
    assert min(one.ttfi_s(budget - one.size_bytes, bandwidth) for one in fitting) == expected_s
    for asked in ("auto", budget):
        load = ModelLoad("m", layers, bandwidth, 1.0, asked, setup_s)
        share = plan([load], budget)["m"]
        front_bytes = share.size_bytes - sum(layers[no].size_bytes for no in share.tables)
        assert share.size_bytes <= budget
        assert front_bytes >= 0
        assert ttfi_with_pin_s(layers, bandwidth, front_bytes, setup_s, share.tables) == expected_s


@unhurried
@given(st.lists(st.tuples(with_tables(3), bandwidths, whole), min_size=1, max_size=3), st.integers(0, 60))
def test_what_is_lost_among_models_with_tables_is_one_step_at_most(
    drawn: list[tuple[list[LayerFacts], float, int]], budget: int
) -> None:
    """The step that does not fit, of one model: all of it would save no more than its pins save altogether."""
    loads = [ModelLoad(str(n), layers, bandwidth, float(cold)) for n, (layers, bandwidth, cold) in enumerate(drawn)]

    def cost(load: ModelLoad, budget: int) -> float:
        return load.cold_per_s * least_s(list(load.layers), load.bandwidth_bytes_s, budget, 0.0)

    def got(load: ModelLoad, share: Share) -> float:
        front_bytes = share.size_bytes - sum(load.layers[no].size_bytes for no in share.tables)
        assert front_bytes >= 0
        return load.cold_per_s * ttfi_with_pin_s(
            load.layers, load.bandwidth_bytes_s, front_bytes, tables=share.tables
        )  # fmt: skip

    planned = plan(loads, budget)
    assert sum(share.size_bytes for share in planned.values()) <= budget
    paid = sum(got(load, planned[load.key]) for load in loads)
    shares = product(range(0, budget + 1, 6), repeat=len(loads))
    least = min(
        sum(cost(load, share) for load, share in zip(loads, each, strict=True))
        for each in shares
        if sum(each) <= budget
    )
    most_of_one = max(cost(load, 0) - cost(load, 1 << 20) for load in loads)
    assert paid <= least + most_of_one + 1e-9
    if budget >= sum(layer.size_bytes for load in loads for layer in load.layers):
        assert paid <= sum(cost(load, budget) for load in loads) + 1e-9


# ---------------------------------------------------------------- models that have bytes in common

Bytes = set[tuple[str, int]]


@st.composite
def spans(draw: st.DrawFn) -> Spans:
    """Of two short files, each byte at most once."""
    found: list[tuple[str, int, int]] = []
    for file in draw(st.permutations(["a", "b"])):
        cuts = sorted(draw(st.sets(st.integers(0, 12), max_size=6)))
        found += draw(st.permutations([(file, begin, end) for begin, end in zip(cuts[::2], cuts[1::2], strict=False)]))
    return found


def size_of(spans: Spans) -> int:
    return sum(end - begin for _, begin, end in spans)


def front(spans: Spans, size: int) -> Bytes:
    return set(islice(((file, at) for file, begin, end in spans for at in range(begin, end)), size))


@unhurried
@given(st.lists(st.tuples(spans(), st.integers(0, 30)), max_size=4), spans(), st.integers(0, 15), st.integers(0, 8))
def test_what_is_held_is_the_union(fronts: list[tuple[Spans, int]], other: Spans, size: int, number: int) -> None:
    held, there = Held(), Bytes()
    for one, length in fronts:
        held.add(one, length)
        there |= front(one, length)
    size = min(size, size_of(other))

    def new(length: int) -> int:
        return len(front(other, length) - there)

    assert held.lacks_bytes(other, size) == new(size)
    reach = held.reach_bytes(other, size, number)
    assert reach == max(length for length in range(size + 1) if new(length) <= number)
    left = held.without_bytes(other, size, number)
    freeing = [length for length in range(size + 1) if new(size) - new(length) >= number]
    assert left == (max(freeing) if freeing else 0)


def loads_with(drawn: list[tuple[Spans, int]]) -> list[ModelLoad]:
    """Models of one layer without compute: all of it is waited for."""
    return [
        ModelLoad(str(n), [LayerFacts("layer", size_of(found), 0.0)], 1.0, float(cold), spans=found)
        for n, (found, cold) in enumerate(drawn)
    ]


@unhurried
@given(st.lists(st.tuples(spans(), whole), max_size=4), st.integers(0, 30))
def test_what_is_common_is_paid_for_once(drawn: list[tuple[Spans, int]], budget: int) -> None:
    loads = loads_with(drawn)
    planned = {key: share.size_bytes for key, share in plan(loads, budget).items()}
    held = Bytes().union(*(front(load.spans, planned[load.key]) for load in loads))
    assert len(held) <= budget
    for load in loads:
        size = planned[load.key]
        assert size <= wanted(load).size_bytes
        if size < wanted(load).size_bytes:  # then there was room for no more, or those that came later had use for it
            assert len(held | front(load.spans, size + 1)) > len(held)


@unhurried
@given(spans(), st.lists(whole, min_size=1, max_size=4), spans(), whole, st.integers(0, 40))
def test_copies_are_one_model_that_is_started_as_often_as_all(
    common: Spans, colds: list[int], other: Spans, cold: int, budget: int
) -> None:
    alone = [(f"not {file}", begin, end) for file, begin, end in other]
    loads = loads_with([(common, cold) for cold in colds])
    copies = [load._replace(worth_to_others=sum(colds) - load.cold_per_s) for load in loads]
    one, another = loads_with([(common, sum(colds)), (alone, cold)])
    another = another._replace(key="z")  # behind the others, if they are worth the same
    apart, together = plan([*copies, another], budget), plan([one, another], budget)
    assert apart["z"] == together["z"]
    assert {apart[load.key] for load in copies if load.cold_per_s} <= {together[one.key]}


# ---------------------------------------------------------------- a node of packed functions

NAMES = ("f", "g", "h")
TABLE, SIX = LayerFacts("t", 60 * MB, 0.0, True), tuple(LayerFacts(str(n), 30 * MB, 0.01) for n in range(6))
OTHER = LayerFacts("u", 8 * MB, 0.0, True)
PACKS = (
    None,
    PackFacts("small", (LayerFacts("a", 20 * MB, 0.001), LayerFacts("b", 20 * MB, 0.02), OTHER)),
    PackFacts(
        "large", (TABLE, *SIX, OTHER), spans=(("l", 0, 180 * MB),),
        table_spans=((0, "t", 0, 60 * MB), (7, "u", 0, 8 * MB)),
    ),
    PackFacts("variant", SIX, spans=(("l", 0, 60 * MB), ("v", 0, 30 * MB), ("l", 90 * MB, 180 * MB))),
    PackFacts("head", SIX[:2], spans=(("l", 90 * MB, 120 * MB), ("h", 0, 30 * MB))),
    PackFacts("table", (TABLE, *SIX[:1]), spans=(("x", 0, 30 * MB),), table_spans=((0, "t", 0, 60 * MB),)),
)  # fmt: skip
KEYS = ("small", "large", "variant", "head", "table")
ROWS = st.lists(st.tuples(st.sampled_from([0, 2, 7]), st.sampled_from([0.0, 0.002, 0.1, -1.0, 9.0])), max_size=2)
KEEPALIVES: tuple[type[KeepalivePolicy], ...] = (NoKeepalive, FixedKeepalive, Hazard)


class PackedNode(RuleBasedStateMachine):
    """Whatever happens: pins grow only into memory that is free, orders are few, and at the end nothing is held.

    `World` checks the account and the records of models after every event.
    """

    @initialize(keepalive=st.sampled_from(KEEPALIVES), mb=st.sampled_from([64, 100, 200, 1000]))
    def begin(self, keepalive: type[KeepalivePolicy], mb: int) -> None:
        self.lock_bytes = 1 << 40  # what the kernel lets anyone lock
        self.pinned: dict[str, int] = {}
        self.counted_bytes = 0
        self.world = World(mb * MB, keepalive(), pins=self.pins)

    def pins(self, order: m.Pin) -> int:
        pool = self.world.node.pool
        counted_bytes = sum(pool.ledger.of(model.node) for model in pool.models.by_key.values())
        if order.size_bytes > self.pinned.get(order.key, 0) and counted_bytes > self.counted_bytes:
            assert pool.ledger.spare_bytes >= 0, order
        self.counted_bytes = counted_bytes
        self.pinned[order.key] = order.size_bytes
        return min(order.size_bytes, self.lock_bytes)

    @rule(
        name=st.sampled_from(NAMES), pack=st.sampled_from(PACKS),
        pin=st.sampled_from(["auto", "auto", "none", "all", 0, 25 * MB]),
    )  # fmt: skip
    def deploy(self, name: str, pack: PackFacts | None, pin: str | int) -> None:
        self.world.deploy(name, pack=pack, pin=pin)
        self.world.check()

    @rule(name=st.sampled_from(NAMES), order=st.sampled_from([m.Removed, m.Load, m.Unload]))
    def order(self, name: str, order: type[m.Removed] | type[m.Load] | type[m.Unload]) -> None:
        self.world.tell(order(name))

    @rule(name=st.sampled_from(NAMES), count=st.integers(1, 5))
    def arrive(self, name: str, count: int) -> None:
        self.world.burst(name, count)

    @rule(seconds=st.sampled_from([0.0, 0.005, 0.3, 1.0, 7.3, 61.0, 601.0]))
    def wait(self, seconds: float) -> None:
        before = len(self.world.done(m.Pin))
        events = len(self.world.events)
        self.world.run_for(seconds)
        events = len(self.world.events) - events
        assert len(self.world.done(m.Pin)) - before <= 2 * (events + 1)

    @rule(key=st.sampled_from(KEYS), mb=st.integers(0, 100), seconds=st.sampled_from([0.0, 0.01, 1.0]))
    def load(self, key: str, mb: int, seconds: float) -> None:
        self.world.tell(m.Loaded(key, mb * MB, seconds))

    @rule(
        compute_s=st.lists(st.sampled_from([0.0, 0.01, 0.3, -1.0, float("nan"), float("inf")]), max_size=8), rows=ROWS
    )
    def compute(self, compute_s: list[float], rows: list[tuple[int, float]]) -> None:
        for key in KEYS:
            self.world.tell(m.Computed(key, tuple(compute_s), tuple(rows)))

    @rule(rows=ROWS)
    def look_up(self, rows: list[tuple[int, float]]) -> None:
        """A pass of one of the packs, so that what it says of rows is believed."""
        for pack in PACKS[1:]:
            assert pack is not None
            self.world.tell(m.Computed(pack.key, tuple(layer.compute_s for layer in pack.layers), tuple(rows)))

    @rule(mb=st.sampled_from([0, 8, 30, 1 << 20]))
    def locking(self, mb: int) -> None:
        self.lock_bytes = mb * MB

    @rule(key=st.sampled_from(KEYS), mb=st.sampled_from([0, 10, 500]))
    def held(self, key: str, mb: int) -> None:
        """A word about pins that nobody asked for."""
        self.world.tell(m.Pinned(key, mb * MB))

    @precondition(lambda self: self.world.fake.living)
    @rule(data=st.data(), mb=st.sampled_from([0, 1, 30, 90, 2000]))
    def measure(self, data: st.DataObject, mb: int) -> None:
        node = data.draw(st.sampled_from(sorted(self.world.fake.living, key=str)))
        self.world.tell(m.Measured(node, mb * MB))

    @precondition(lambda self: len(self.world.requests) > 10)
    @rule()
    def drain(self) -> None:
        self.world.tell(m.Draining())

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        world = self.world
        world.run_for(1000.0)
        assert all(request in world.answers for request in world.requests)
        for name in list(world.node.functions):
            world.tell(m.Removed(name))
        world.run_for(90_000.0)
        assert not world.fake.living
        assert world.held_bytes == 0
        assert not any(self.pinned.values())
        assert not world.node.pool.models.by_key


PackedNode.TestCase.settings = settings(
    max_examples=200, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestPackedNode = PackedNode.TestCase
