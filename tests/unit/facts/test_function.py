from __future__ import annotations

import dataclasses
import json
import math
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import rewarm
from rewarm.errors import BadDefinition
from rewarm.facts.function import (
    DATATYPES,
    DTYPES,
    FunctionSpec,
    LangKey,
    PolicySpec,
    Revision,
    Tensor,
    check_name,
)

PACKAGES = st.lists(st.sampled_from(["numpy", "onnxruntime", "torch", "a.b"]), max_size=4)


def spec(**fields: Any) -> FunctionSpec:
    return FunctionSpec(**{"name": "digits", "kind": "predict", "entry": "app:Digits", **fields})


FULL = spec(
    memory_bytes=256 << 20,
    timeout_s=5.0,
    slo_s=0.2,
    batching=PolicySpec("dynamic", {"max_size": 5, "max_wait_s": 0.3}),
    keepalive=PolicySpec("fixed", {"for_s": 60.0}),
    preload=("numpy", "onnxruntime"),
    weights="digits.onnx",
    inputs=(("image", Tensor("float32", (784,))), ("mask", None)),
    outputs=(("scores", Tensor("float32", (10,))),),
    max_instances=3,
    queue_max=10,
    env=(("A", "1"), ("B", "2")),
)


# ---------------------------------------------------------------- names


@pytest.mark.parametrize("name", ["a", "7", "digits", "my-model_v1.2", "A" * 64])
def test_names(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", "-a", "a-", ".", "..", "a/b", "a b", "ä", "a\n", "a" * 65, None, 3])
def test_names_that_are_not_safe(name: Any) -> None:
    with pytest.raises(BadDefinition, match="is not a function name: use 1 to 64"):
        check_name(name)


# ---------------------------------------------------------------- tensors


def test_a_tensor_is_the_shape_of_one_row() -> None:
    tensor = Tensor("float32", [28, -1])  # type: ignore[arg-type]
    assert tensor.shape == (28, -1)
    assert tensor.datatype == "FP32"
    assert hash(tensor) == hash(Tensor("float32", (28, -1)))
    assert Tensor("bool").shape == ()


def test_datatypes_and_dtypes_are_inverse() -> None:
    assert {DTYPES[dtype]: dtype for dtype in DTYPES} == DATATYPES
    assert [Tensor(dtype).datatype for dtype in DTYPES] == list(DATATYPES)


@pytest.mark.parametrize("dtype", ["", "FP32", "float", "complex64"])
def test_unknown_dtype(dtype: str) -> None:
    with pytest.raises(BadDefinition, match=f"unknown dtype {dtype!r}; use one of bool, uint8"):
        Tensor(dtype)


@pytest.mark.parametrize("shape", [3, None, ["a"], [None], [[1]], [math.nan]])
def test_a_shape_is_a_list_of_numbers(shape: Any) -> None:
    with pytest.raises(BadDefinition, match="a shape is a list of whole numbers"):
        Tensor("float32", shape)


@pytest.mark.parametrize("shape", [(0,), (-2,), (3, 0, 3)])
def test_dimensions_are_positive_or_any(shape: tuple[int, ...]) -> None:
    with pytest.raises(BadDefinition, match="dimensions are positive, or -1"):
        Tensor("float32", shape)


@pytest.mark.parametrize("shape", ["784", [1.5], [math.inf]])
def test_a_shape_is_not_guessed(shape: Any) -> None:
    with pytest.raises(BadDefinition):
        Tensor("float32", shape)


# ---------------------------------------------------------------- lang keys


def test_a_lang_key_is_a_set_with_one_spelling() -> None:
    key = LangKey(("torch", "numpy", "torch"))
    assert key == LangKey(("numpy", "torch"))
    assert str(key) == "python+numpy+torch"
    assert str(LangKey()) == "python"


@given(PACKAGES, PACKAGES)
def test_keys_form_a_tree_by_inclusion(a: list[str], b: list[str]) -> None:
    one, other = LangKey(tuple(a)), LangKey(tuple(b))
    assert LangKey().covers(one)
    assert one.covers(one)
    assert one.covers(LangKey((*a, *b)))
    assert (one.covers(other) and other.covers(one)) == (one == other)


def test_runtimes_do_not_cover_each_other() -> None:
    assert not LangKey((), "python").covers(LangKey((), "nodejs"))


def test_a_runtime_of_nodejs_is_nobodys_ancestor() -> None:
    key = LangKey((), "nodejs")
    assert (str(key), key.forks, key.covers(key)) == ("nodejs", False, False)
    assert LangKey().forks and LangKey(("numpy",)).forks


@pytest.mark.parametrize("package", ["", "1a", "a-b", "a b", "a..b", ".a", "os; rm", 7])
def test_packages_have_names(package: Any) -> None:
    with pytest.raises(BadDefinition, match="in preload is not the name of a package"):
        LangKey((package,))


# ---------------------------------------------------------------- specifications


def test_defaults() -> None:
    made = spec()
    assert (made.memory_bytes, made.timeout_s, made.slo_s) == (1 << 30, 60.0, None)
    assert made.batching == PolicySpec("none")
    assert made.keepalive is None
    assert (made.max_instances, made.queue_max, made.batched) == (2, 1024, False)


def test_functions_on_arrays_have_numpy_in_their_key() -> None:
    assert spec(preload=("onnxruntime",)).lang_key == LangKey(("numpy", "onnxruntime"))
    assert spec(preload=("numpy",)).lang_key == LangKey(("numpy",))
    assert spec(kind="handler").lang_key == LangKey()
    assert spec(kind="handler", preload=("json",)).lang_key == LangKey(("json",))


def test_functions_of_nodejs_have_a_key_of_their_own() -> None:
    assert spec(kind="handler", runtime="nodejs").lang_key == LangKey((), "nodejs")
    assert spec().runtime == "python"


def test_a_specification_that_was_stored_before_there_were_runtimes() -> None:
    data = spec().to_json()
    assert data.pop("runtime") == "python"
    assert FunctionSpec.from_json(data) == spec()
    other = spec(kind="handler", runtime="nodejs")
    assert FunctionSpec.from_json(other.to_json()) == other


def test_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec().name = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    "fields",
    [
        {"memory_bytes": 16 << 20}, {"timeout_s": 0.001}, {"slo_s": 0.001}, {"max_instances": 1},
        {"max_instances": 1000}, {"queue_max": 1}, {"queue_max": 1_000_000},
    ],
)  # fmt: skip
def test_edges(fields: dict[str, Any]) -> None:
    spec(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "a/b"}, "is not a function name"),
        ({"runtime": "ruby"}, "runtime must be 'python' or 'nodejs', not 'ruby'"),
        ({"runtime": "nodejs"}, "a function of the runtime 'nodejs' is a handler, not 'predict'"),
        ({"runtime": "nodejs", "kind": "handler", "preload": ("numpy",)}, "preload names packages of Python"),
        ({"kind": "batch"}, "kind must be 'predict' or 'handler', not 'batch'"),
        ({"entry": "app.Digits"}, "entry must be 'module:Attribute'"),
        ({"entry": "app:Digits:x"}, "entry must be 'module:Attribute'"),
        ({"memory_bytes": (16 << 20) - 1}, "memory must be at least 16MB"),
        ({"timeout_s": 0.0}, "timeout must be more than 0 seconds"),
        ({"timeout_s": math.inf}, "timeout must be more than 0 seconds"),
        ({"slo_s": -1.0}, "slo must be more than 0 seconds"),
        ({"slo_s": math.nan}, "slo must be more than 0 seconds"),
        ({"max_instances": 0}, "max_instances must be 1 to 1000, not 0"),
        ({"max_instances": 1001}, "max_instances must be 1 to 1000, not 1001"),
        ({"queue_max": 0}, "queue_max must be 1 to 1000000, not 0"),
        ({"queue_max": 1_000_001}, "queue_max must be 1 to 1000000"),
        ({"samples": ("a.json",) * 17}, "17 are given and at most 16 are used.*leave out"),
    ],
)
def test_specifications_that_cannot_be_meant(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(BadDefinition, match=message):
        spec(**fields)


# ---------------------------------------------------------------- JSON


def test_policy_json() -> None:
    policy = PolicySpec("dynamic", {"max_size": 5})
    assert policy.to_json() == {"name": "dynamic", "max_size": 5}
    assert PolicySpec.from_json(policy.to_json()) == policy
    assert PolicySpec.from_json({"name": "none"}) == PolicySpec("none")


@pytest.mark.parametrize("made", [spec(), FULL, spec(kind="handler", batched=True)], ids=["least", "full", "handler"])
def test_json_round_trip(made: FunctionSpec) -> None:
    assert FunctionSpec.from_json(json.loads(json.dumps(made.to_json()))) == made


@given(
    memory=st.integers(16 << 20, 1 << 40),
    timeout=st.floats(1e-6, 1e6),
    slo=st.none() | st.floats(1e-6, 1e6),
    preload=PACKAGES,
    env=st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3),
    shape=st.lists(st.integers(1, 1000) | st.just(-1), max_size=3),
)
def test_any_specification_survives_json(
    memory: int, timeout: float, slo: float | None, preload: list[str], env: dict[str, str], shape: list[int]
) -> None:
    made = spec(
        memory_bytes=memory,
        timeout_s=timeout,
        slo_s=slo,
        preload=tuple(preload),
        env=tuple(sorted(env.items())),
        inputs=(("x", Tensor("int64", tuple(shape))),),
    )
    assert FunctionSpec.from_json(json.loads(json.dumps(made.to_json()))) == made


@pytest.mark.parametrize("missing", ["name", "kind", "entry", "batching", "inputs", "env"])
def test_json_with_a_field_missing(missing: str) -> None:
    data = spec().to_json()
    del data[missing]
    with pytest.raises(BadDefinition, match="not a function specification"):
        FunctionSpec.from_json(data)


@pytest.mark.parametrize(
    "change",
    [
        {"surprise": 1},
        {"memory_bytes": "1GB"},
        {"timeout_s": "60s"},
        {"batching": "none"},
        {"batching": {}},
        {"keepalive": 5},
        {"preload": 3},
        {"inputs": [{"dtype": "float32", "shape": []}]},
        {"inputs": [{"name": "x", "dtype": "float32"}]},
        {"inputs": ["x"]},
        {"outputs": None},
        {"env": ["abc"]},
    ],
)
def test_json_of_a_wrong_kind(change: dict[str, Any]) -> None:
    with pytest.raises(BadDefinition, match=r"not a function specification|must be"):
        FunctionSpec.from_json({**spec().to_json(), **change})


def test_json_with_a_bad_value_says_which() -> None:
    with pytest.raises(BadDefinition, match="unknown dtype 'float99'"):
        FunctionSpec.from_json({**spec().to_json(), "inputs": [{"name": "x", "dtype": "float99", "shape": []}]})


@pytest.mark.parametrize(
    "change",
    [{"timeout_s": None}, {"max_instances": 1.5}, {"queue_max": True}, {"entry": ":"}, {"preload": ["no such-name"]}],
)
def test_json_of_a_wrong_kind_that_slips_through(change: dict[str, Any]) -> None:
    with pytest.raises(BadDefinition):
        FunctionSpec.from_json({**spec().to_json(), **change})


# ---------------------------------------------------------------- isolation

MB = 1 << 20


@pytest.mark.parametrize(
    ("memory_mb", "vm_mb"), [(16, 256), (256, 256), (257, 512), (512, 512), (1000, 1024), (1024, 1024), (1025, 2048)]
)
def test_a_micro_vm_has_a_power_of_two(memory_mb: int, vm_mb: int) -> None:
    one = spec(isolation="microvm", memory_bytes=memory_mb * MB)
    assert one.vm_bytes == one.lang_key.vm_bytes == vm_mb * MB
    assert str(one.lang_key) == f"microvm-{vm_mb}mb+{spec().lang_key}"


def test_a_process_has_no_vm() -> None:
    assert spec().isolation == "process" and spec().vm_bytes == spec().lang_key.vm_bytes == 0


def test_isolation_and_samples_in_json() -> None:
    one = spec(isolation="microvm", samples=("a.json", "more/b.json"))
    assert FunctionSpec.from_json(one.to_json()) == one
    older = {key: value for key, value in spec().to_json().items() if key not in ("isolation", "samples")}
    assert FunctionSpec.from_json(older) == spec()


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"isolation": "docker"}, "isolation must be 'process' or 'microvm', not 'docker'"),
        ({"isolation": "microvm", "runtime": "nodejs", "kind": "handler"}, "leave out isolation='microvm'"),
        ({"samples": ("/etc/passwd",)}, "relative to it, not '/etc/passwd'"),
        ({"samples": ("a/../../b.json",)}, "samples are files in the code folder"),
        ({"samples": ("",)}, "samples are files in the code folder"),
        ({"samples": (7,)}, "samples are files in the code folder"),
    ],
)
def test_isolation_that_cannot_be_meant(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(BadDefinition, match=says):
        spec(**fields)


def test_keys_of_micro_vms_are_nobodys_ancestors() -> None:
    small, large = LangKey(("a",), vm_bytes=256 * MB), LangKey(("a", "b"), vm_bytes=256 * MB)
    assert small.covers(LangKey(("a",), vm_bytes=256 * MB))
    assert not small.covers(large) and not LangKey(("a",)).covers(large) and not small.covers(LangKey(("a",)))
    assert small.forks
    assert small != LangKey(("a",)) and small != LangKey(("a",), vm_bytes=512 * MB)
    assert pickle.loads(pickle.dumps(small)) == small
    assert repr(small) == f"LangKey(('a',), 'python', {256 * MB})"


# ---------------------------------------------------------------- revisions


def test_revision() -> None:
    revision = Revision(FULL, "ab" * 32, 3, "code")
    assert revision.name == "digits"
    assert (revision.weights_path, revision.weights_bytes, revision.created_at) == (None, 0, 0.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        revision.version = 4  # type: ignore[misc]


def test_a_key_sent_to_another_process_is_found_there() -> None:
    """Hashes of text differ from process to process: a key must not carry its own along."""
    code = "import pickle, sys; from rewarm.facts.function import LangKey; print(hash(pickle.load(sys.stdin.buffer)))"
    key = LangKey(("numpy",))
    environment = {**os.environ, "PYTHONHASHSEED": "12345", "PYTHONPATH": str(Path(rewarm.__file__).parents[1])}
    hashed = [
        subprocess.run([sys.executable, "-c", script], input=pickle.dumps(key), env=environment, capture_output=True)
        for script in (code, "from rewarm.facts.function import LangKey; print(hash(LangKey(('numpy',))))")
    ]
    assert all(done.returncode == 0 for done in hashed), hashed[0].stderr
    assert hashed[0].stdout == hashed[1].stdout
