"""Definitions as people write them; the policies named in them are built by the registry."""

from __future__ import annotations

from typing import Any

import pytest

import rewarm
from rewarm.define import check_spec, default_batching
from rewarm.errors import BadDefinition
from rewarm.facts.function import FunctionSpec, PolicySpec, Tensor


class Doubler:
    def predict(self, x: Any) -> Any:
        return x


def handler(event: Any, context: Any) -> Any:
    return event


def fresh_class() -> Any:
    return type("Doubler", (Doubler,), {})


def spec_of(thing: Any) -> FunctionSpec:
    found = thing.__rewarm__
    assert isinstance(found, FunctionSpec)
    return found


def define(**arguments: Any) -> FunctionSpec:
    return spec_of(rewarm.function(**arguments)(fresh_class()))


def define_handler(**arguments: Any) -> FunctionSpec:
    def handle(event: Any, context: Any) -> Any:
        return event

    return spec_of(rewarm.function(**arguments)(handle))


# ---------------------------------------------------------------- what the decorator makes


def test_a_class_with_nothing_said() -> None:
    cls = rewarm.function(fresh_class())
    spec = spec_of(cls)
    assert isinstance(cls, type)
    assert (spec.name, spec.kind, spec.entry) == ("doubler", "predict", f"{__name__}:Doubler")
    assert (spec.memory_bytes, spec.timeout_s, spec.slo_s) == (1 << 30, 60.0, None)
    assert spec.batching == default_batching(True)
    assert spec.keepalive is None
    assert spec.inputs == (("x", None),)
    assert spec.outputs == ()


def test_a_handler_with_nothing_said() -> None:
    decorated = rewarm.function(handler)
    assert decorated is handler
    spec = spec_of(handler)
    assert (spec.name, spec.kind, spec.entry) == ("handler", "handler", f"{__name__}:handler")
    assert spec.batching == PolicySpec("none")
    assert (spec.inputs, spec.batched) == ((), False)
    assert handler(1, None) == 1


def test_everything_said() -> None:
    spec = define(
        name="digits",
        memory="512MB",
        timeout="5s",
        slo="200ms",
        batching=rewarm.Dynamic(max_size=5, max_wait="300ms"),
        keepalive="none",
        preload=["numpy", "onnxruntime"],
        weights="digits.onnx",
        inputs={"x": Tensor("float32", (784,))},
        outputs={"scores": Tensor("float32", (10,))},
        max_instances=4,
        queue_max=9,
        env={"B": "2", "A": "1"},
        isolation="microvm",
        samples=["samples/one.json"],
    )
    assert (spec.isolation, spec.samples) == ("microvm", ("samples/one.json",))
    assert (spec.name, spec.memory_bytes, spec.timeout_s, spec.slo_s) == ("digits", 512 << 20, 5.0, 0.2)
    assert spec.batching == PolicySpec("dynamic", {"max_size": 5, "max_wait_s": 0.3})
    assert spec.keepalive == PolicySpec("none")
    assert (spec.preload, spec.weights) == (("numpy", "onnxruntime"), "digits.onnx")
    assert spec.inputs == (("x", Tensor("float32", (784,))),)
    assert spec.outputs == (("scores", Tensor("float32", (10,))),)
    assert (spec.max_instances, spec.queue_max, spec.env) == (4, 9, (("A", "1"), ("B", "2")))


def test_inputs_are_the_parameters_of_predict_in_order() -> None:
    class Two:
        def predict(self, left: Any, right: Any, *rest: Any, scale: Any = 1, **more: Any) -> Any:
            return left

    spec = spec_of(rewarm.function(inputs={"right": Tensor("int8")})(Two))
    assert spec.inputs == (("left", None), ("right", Tensor("int8")), ("scale", None))


def test_a_batched_handler() -> None:
    assert define_handler(batched=True).batching == default_batching(True)
    assert define_handler(batched=True).batched


def test_a_lone_caller_never_waits_by_default() -> None:
    assert default_batching(True) == PolicySpec("dynamic", {"max_size": 16, "max_wait_s": 0.0})
    assert default_batching(False) == PolicySpec("none")


# ---------------------------------------------------------------- policy words


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        (rewarm.NoBatching(), {"name": "none"}),
        (rewarm.Static(5), {"name": "static", "size": 5}),
        (rewarm.Dynamic(), {"name": "dynamic", "max_size": 16, "max_wait_s": 0.005}),
        (rewarm.Dynamic(5, "300ms"), {"name": "dynamic", "max_size": 5, "max_wait_s": 0.3}),
        (rewarm.Aimd(), {"name": "aimd", "max_size": 64, "step": 1, "backoff": 0.9}),
        (rewarm.Slo(), {"name": "slo", "mode": "latency", "max_size": 64, "slack_s": 0.005}),
        (rewarm.Slo("cost", 8, 0.01), {"name": "slo", "mode": "cost", "max_size": 8, "slack_s": 0.01}),
    ],
)
def test_words(word: PolicySpec, expected: dict[str, Any]) -> None:
    assert word.to_json() == expected


@pytest.mark.parametrize(
    "batching",
    [rewarm.NoBatching(), rewarm.Static(5), rewarm.Dynamic(), rewarm.Aimd(), rewarm.Slo(), rewarm.Slo("cost")],
    ids=lambda word: str(word.to_json()),
)
def test_every_word_builds(batching: PolicySpec) -> None:
    assert define(batching=batching, slo="200ms").batching == batching


def test_a_policy_by_name() -> None:
    assert define(batching="none").batching == PolicySpec("none")
    assert define(keepalive="fixed").keepalive == PolicySpec("fixed")


@pytest.mark.parametrize("word", [lambda: rewarm.Dynamic(5, "soon"), lambda: rewarm.Slo(slack="5 lightyears")])
def test_a_word_with_a_bad_duration(word: Any) -> None:
    with pytest.raises(BadDefinition, match="duration"):
        word()


# ---------------------------------------------------------------- what cannot be meant


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "a/b"}, "is not a function name"),
        ({"memory": "lots"}, "is not a size"),
        ({"memory": "1MB"}, "memory must be at least 16MB"),
        ({"timeout": "5 parsecs"}, "unknown unit 'parsecs'"),
        ({"timeout": 0}, "timeout must be more than 0"),
        ({"slo": "0ms"}, "slo must be more than 0"),
        ({"max_instances": 0}, "max_instances must be"),
        ({"queue_max": 0}, "queue_max must be"),
        ({"batched": True}, "batched=True is for handlers"),
        ({"isolation": "docker"}, "isolation must be 'process' or 'microvm'"),
        ({"samples": "one.json"}, r"write samples=\['one.json'\]"),
        ({"batching": 5}, "a policy is a name or one of rewarm's policy words"),
        ({"keepalive": ["fixed"]}, "a policy is a name"),
        ({"inputs": {"y": Tensor("int8")}}, r"inputs names \['y'\], but predict takes \['x'\]"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(BadDefinition, match=message):
        define(**arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {"batching": "dynamite"},
        {"batching": PolicySpec("dynamic", {"maxsize": 5})},
        {"batching": rewarm.Static(0)},
        {"batching": rewarm.Dynamic(max_size=0)},
        {"batching": rewarm.Aimd(backoff=1.5), "slo": "1s"},
        {"batching": rewarm.Slo(mode="luck"), "slo": "1s"},
        {"keepalive": "for-ever-and-ever"},
        {"keepalive": PolicySpec("none", {"surprise": 1})},
    ],
    ids=str,
)
def test_policies_that_cannot_be_built(arguments: dict[str, Any]) -> None:
    with pytest.raises(BadDefinition):
        define(**arguments)


@pytest.mark.parametrize("arguments", [{"weights": "a.onnx"}, {"inputs": {"x": None}}, {"outputs": {"x": None}}])
def test_handlers_have_no_tensors(arguments: dict[str, Any]) -> None:
    with pytest.raises(BadDefinition, match="are for classes with predict"):
        define_handler(**arguments)


def test_a_handler_of_one_event_takes_no_batches() -> None:
    with pytest.raises(BadDefinition, match=r"batching='dynamic' needs a handler with batched=True"):
        define_handler(batching=rewarm.Dynamic(5))
    assert define_handler(batching="none").batching.name == "none"


def test_a_class_needs_predict() -> None:
    with pytest.raises(BadDefinition, match="class Empty has no method predict"):
        rewarm.function(type("Empty", (), {}))
    with pytest.raises(BadDefinition, match="class Empty has no method predict"):
        rewarm.function(type("Empty", (), {"predict": 3}))


def test_predict_needs_an_input() -> None:
    class Alone:
        def predict(self) -> Any:
            return None

    with pytest.raises(BadDefinition, match="takes no input; write predict"):
        rewarm.function(Alone)


def test_nothing_is_left_on_a_class_that_was_refused() -> None:
    cls = fresh_class()
    with pytest.raises(BadDefinition):
        rewarm.function(timeout="never")(cls)
    assert not hasattr(cls, "__rewarm__")


def test_check_spec_serves_files_and_overrides_too() -> None:
    check_spec(FunctionSpec("f", "handler", "m:f"))
    with pytest.raises(BadDefinition):
        check_spec(FunctionSpec("f", "handler", "m:f", keepalive=PolicySpec("nonsense")))


@pytest.mark.parametrize("preload", [["not a package"], "numpy"])
def test_preload_is_a_list_of_packages(preload: Any) -> None:
    with pytest.raises(BadDefinition, match="preload"):
        define(preload=preload)


def test_a_misspelt_word_is_told_with_the_one_that_was_meant() -> None:
    with pytest.raises(BadDefinition, match=r"no argument 'memmory' \(did you mean 'memory'\?\)$"):
        define(memmory="1GB")
    with pytest.raises(BadDefinition, match=r"no argument 'colour'$"):
        define_handler(colour="red")
