"""One budget, several models."""

from __future__ import annotations

from rewarm.facts.pack import LayerFacts
from rewarm.policy.pinning.greedy import ModelLoad
from rewarm.policy.pinning.greedy import plan as shares
from rewarm.policy.pinning.tables import CHOICES_MAX, Share, choices

MB = 1 << 20


def model(key: str, mb: int, cold_per_s: float, bandwidth_mb_s: float = 100.0, **more: object) -> ModelLoad:
    """A model of one layer, so that all of it is waited for."""
    return ModelLoad(key, [LayerFacts("only", mb * MB, 0.1)], bandwidth_mb_s * MB, cold_per_s, **more)  # type: ignore[arg-type]


def plan(models: list[ModelLoad], budget_bytes: int) -> dict[str, int]:
    """Of models without tables."""
    found = shares(models, budget_bytes)
    assert not any(share.tables for share in found.values())
    return {key: share.size_bytes for key, share in found.items()}


def test_the_most_often_started_first_and_the_last_in_part() -> None:
    models = [model("rare", 100, 0.1), model("often", 100, 3.0), model("sometimes", 100, 1.0)]
    assert plan(models, 150 * MB) == {"often": 100 * MB, "sometimes": 50 * MB, "rare": 0}


def test_a_slow_disk_counts_like_many_starts() -> None:
    models = [model("local", 100, 1.0, 1000.0), model("remote", 100, 0.5, 100.0)]
    assert plan(models, 100 * MB) == {"remote": 100 * MB, "local": 0}


def test_nothing_for_what_nobody_starts() -> None:
    assert plan([model("never", 100, 0.0)], 1000 * MB) == {"never": 0}


def test_no_more_than_leaves_no_bubble() -> None:
    layers = [LayerFacts("a", 10 * MB, 0.1), LayerFacts("b", 10 * MB, 0.1)]
    assert plan([ModelLoad("m", layers, 100.0 * MB, 1.0)], 1000 * MB) == {"m": 10 * MB}
    assert plan([ModelLoad("m", layers, 100.0 * MB, 1.0, setup_s=0.05)], 1000 * MB) == {"m": 5 * MB}


def test_what_was_asked_for_comes_before() -> None:
    models = [
        model("auto", 100, 9.0), model("none", 100, 9.0, pin="none"), model("all", 100, 0.0, pin="all"),
        model("some", 100, 0.0, pin=30 * MB),
    ]  # fmt: skip
    assert plan(models, 200 * MB) == {"all": 100 * MB, "some": 30 * MB, "auto": 70 * MB, "none": 0}
    assert plan(models, 110 * MB) == {"all": 100 * MB, "some": 10 * MB, "auto": 0, "none": 0}


def test_no_more_than_there_is() -> None:
    table = LayerFacts("table", 500 * MB, 0.1, on_demand=True)
    layers = [table, LayerFacts("only", 10 * MB, 0.1)]
    assert plan([ModelLoad("m", layers, 100.0 * MB, 0.0, 50 * MB)], 1000 * MB) == {"m": 10 * MB}
    assert plan([ModelLoad("m", layers[1:], 100.0 * MB, 0.0, "all")], 1000 * MB) == {"m": 10 * MB}


def test_all_is_all_tables_among_it() -> None:
    layers = [LayerFacts("table", 500 * MB, 0.1, on_demand=True), LayerFacts("only", 10 * MB, 0.1)]
    load = ModelLoad("m", layers, 100.0 * MB, 0.0, "all")
    assert shares([load], 1000 * MB) == {"m": Share(510 * MB, (0,))}
    assert shares([load], 509 * MB) == {"m": Share(10 * MB)}  # a part of a table saves nothing


def test_a_table_is_pinned_when_its_rows_are_waited_for_longer_than_its_bytes_are_read() -> None:
    """10 MB of the front save 0.1 s, and so does the table's 10 MB if its rows take 0.1 s."""
    for rows_s, first in ((0.2, (0,)), (0.05, ())):
        layers = [LayerFacts("table", 10 * MB, 0.0, True, rows_s), LayerFacts("rest", 100 * MB, 0.1)]
        load = ModelLoad("m", layers, 100.0 * MB, 1.0)
        # While the rows are waited for the stream goes on: the table saves nothing until the stream is short enough.
        assert shares([load], 20 * MB) == {"m": Share(20 * MB)}
        assert shares([load], 1000 * MB) == {"m": Share(110 * MB, (0,))}
        behind = [LayerFacts("front", 100 * MB, 0.1), LayerFacts("table", 10 * MB, 0.0, True, rows_s)]
        got = shares([ModelLoad("m", behind, 100.0 * MB, 1.0)], 20 * MB)["m"]
        assert (got.tables == (1,)) == bool(first)
        assert got.size_bytes == 20 * MB


def test_what_is_pinned_stays_if_the_gain_is_small() -> None:
    tables = [LayerFacts(str(n), 10 * MB, 0.0, True, 0.1 + n / 1000) for n in range(2)]
    layers = [LayerFacts("front", 100 * MB, 0.1), *tables]
    assert shares([ModelLoad("m", layers, 1000.0 * MB, 1.0)], 15 * MB)["m"].tables == (2,)
    assert shares([ModelLoad("m", layers, 1000.0 * MB, 1.0, tables=(1,))], 15 * MB)["m"].tables == (1,)


def test_what_others_are_saved_by_the_front_is_not_the_worth_of_a_table() -> None:
    layers = [LayerFacts("body", 10 * MB, 0.0), LayerFacts("table", 400 * MB, 0.0, True, 0.008)]
    variant = ModelLoad(
        "v", layers, 1000.0 * MB, 1.0, spans=[("body", 0, 10 * MB)], worth_to_others=9.0 / (1000.0 * MB),
        table_spans={1: [("v", 0, 400 * MB)]},
    )  # fmt: skip
    other = ModelLoad("x", [LayerFacts("only", 400 * MB, 0.0)], 1000.0 * MB, 5.0)
    assert shares([variant, other], 410 * MB) == {"v": Share(10 * MB), "x": Share(400 * MB)}


def test_the_planner_is_quick_with_many_tables() -> None:
    """Thirty tables among two thousand layers: the best of a few, not of a billion."""
    layers = [LayerFacts(str(n), MB, 0.0001, n % 66 == 0, 0.001 * (n % 7 + 1) * (n % 66 == 0)) for n in range(2000)]
    found = choices(layers, 1000.0 * MB)
    assert len(found) <= CHOICES_MAX + 1
    assert found[0].tables == ()
    assert max(len(one.tables) for one in found) >= 20


def test_a_table_that_another_has_pinned_costs_nothing() -> None:
    layers = [LayerFacts("front", 10 * MB, 0.0), LayerFacts("table", 50 * MB, 0.0, True, 0.5)]
    table = {1: [("shared", 0, 50 * MB)]}
    models = [
        ModelLoad(key, layers, 100.0 * MB, cold, spans=[(key, 0, 10 * MB)], table_spans=table)
        for key, cold in (("a", 2.0), ("b", 1.0))
    ]
    assert shares(models, 70 * MB) == {"a": Share(60 * MB, (1,)), "b": Share(60 * MB, (1,))}


def test_no_more_than_can_be_held() -> None:
    for pin in ("auto", "all", 50 * MB):
        models = [model("refused", 100, 9.0, pin=pin, limit_bytes=8 * MB), model("other", 100, 1.0)]
        assert plan(models, 80 * MB) == {"refused": 8 * MB, "other": 72 * MB}


def test_no_budget_no_pins() -> None:
    assert plan([model("m", 100, 1.0), model("n", 100, 1.0, pin="all")], -5) == {"m": 0, "n": 0}
    assert plan([], 5) == {}


def test_equals_are_ranked_by_key() -> None:
    models = [model("b", 100, 1.0), model("a", 100, 1.0)]
    assert plan(models, 100 * MB) == plan(models[::-1], 100 * MB) == {"a": 100 * MB, "b": 0}
