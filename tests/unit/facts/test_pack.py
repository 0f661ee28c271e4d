"""What thinking knows of a pack, and what a person says of its pin."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rewarm.errors import BadDefinition
from rewarm.facts.function import FunctionSpec
from rewarm.facts.pack import LayerFacts, PackFacts

PACK = PackFacts(
    "p", (LayerFacts("table", 1000, 0.5, on_demand=True), LayerFacts("a", 10, 0.25), LayerFacts("b", 20, 1.0)), 2.0,
    (("one", 5, 15), ("other", 0, 20)), ((0, "one", 100, 900), (0, "other", 100, 300)),
)  # fmt: skip


def spec(**changes: Any) -> FunctionSpec:
    return FunctionSpec("f", "predict", "app:Model", **changes)


def test_sums() -> None:
    assert (PACK.total_bytes, PACK.streamed_bytes, PACK.compute_s) == (1030, 30, 1.75)
    nothing = PackFacts("p", ())
    assert (nothing.total_bytes, nothing.streamed_bytes, nothing.compute_s) == (0, 0, 0)


def test_json_there_and_back() -> None:
    assert PackFacts.from_json(json.loads(json.dumps(PACK.to_json()))) == PACK


@pytest.mark.parametrize(
    "wrong",
    [
        {"key": ""}, {"key": 7}, {"setup_s": -1}, {"setup_s": float("nan")}, {"setup_s": None}, {"layers": 7},
        {"layers": [["a", 10]]}, {"layers": [["a", -1, 0.0, False]]}, {"layers": [["a", 1.5, 0.0, False]]},
        {"layers": [["a", 1, -0.1, False]]}, {"layers": [["a", 1, "soon", False]]}, {"spans": [["one", 5, 16]]},
        {"spans": [["one", 5, 5], ["one", 0, 30]]}, {"spans": [["one", 0, 30.0]]}, {"spans": [["one", 0]]},
        {"spans": 7}, {"table_spans": []}, {"table_spans": [[0, "one", 0, 999]]}, {"table_spans": [[1, "one", 0, 10]]},
        {"table_spans": [[0, "one", 0]]}, {"table_spans": [[0, "one", 1000, 0]]},
    ],
)  # fmt: skip
def test_json_that_is_not_a_packs(wrong: dict[str, Any]) -> None:
    with pytest.raises(BadDefinition):
        PackFacts.from_json({**PACK.to_json(), **wrong})
    with pytest.raises(BadDefinition, match="deploy the function again"):
        PackFacts.from_json({"key": "p"})


@pytest.mark.parametrize("pin", ["auto", "none", "all", 0, 256 << 20])
def test_pins_that_can_be_asked_for(pin: Any) -> None:
    made = spec(pin=pin)
    assert FunctionSpec.from_json(json.loads(json.dumps(made.to_json()))) == made


@pytest.mark.parametrize("pin", ["256MB", "", -1, 1.5, True, None, ["all"]])
def test_pins_that_can_not(pin: Any) -> None:
    with pytest.raises(BadDefinition, match="pin must be"):
        spec(pin=pin)


def test_what_was_deployed_before_there_were_pins_is_auto() -> None:
    data = spec().to_json()
    del data["pin"]
    assert FunctionSpec.from_json(data).pin == "auto"
