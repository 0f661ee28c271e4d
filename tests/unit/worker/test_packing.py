"""The process that packs, and the order that it finds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rewarm
from rewarm.facts.function import FunctionSpec, Tensor
from rewarm.weights.format import Index, open_pack
from rewarm.worker.layering import LAYER_BYTES_MIN, groups
from rewarm.worker.packing import example
from rewarm.worker.weights import Weights

NET = """
import numpy as np
import rewarm
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8, 50, bias=False)
        self.first = nn.Linear(8, 8)
        self.never = nn.Linear(8, 8)
        self.table = nn.Embedding(50, 8)
        self.places = nn.Embedding(1 << 17, 8)  # 4 MiB: a smaller table is read whole
        self.norm = nn.BatchNorm1d(8)
        self.head.weight = self.table.weight

    def forward(self, ids):
        print("this goes to the log")
        x = self.table(ids) + self.places(torch.arange(ids.shape[1]))
        return self.head(self.norm(self.first(x).transpose(1, 2)).transpose(1, 2))

@rewarm.function(weights="w.pt", inputs={"ids": rewarm.Tensor("int64", [-1])})
class Net1:
    def __init__(self, weights):
        self.net = weights.module(Net)

    def predict(self, ids):
        with torch.inference_mode():
            return self.net(torch.from_numpy(ids)).numpy()
"""


def deploy(tmp_path: Path, code: str, weights: Path) -> tuple[dict[str, Any], Path]:
    """Packs as the server has it done → report and folder."""
    code_dir, out, tensors = (tmp_path / name for name in ("code", "out", "tensors"))
    for folder in (code_dir, out, tensors):
        folder.mkdir(exist_ok=True)
    (code_dir / "app.py").write_text(code)
    (tmp_path / "known.json").write_text("{}")
    spec = FunctionSpec("net", "predict", "app:Net1", inputs=(("ids", Tensor("int64", (-1,))),), weights=weights.name)
    order = {
        "spec": spec.to_json(), "code_dir": str(code_dir), "weights_path": str(weights), "weights_sha256": "5" * 64,
        "key": "k", "out": str(out), "tensors_dir": str(tensors), "known": str(tmp_path / "known.json"),
    }  # fmt: skip
    (tmp_path / "order.json").write_text(json.dumps(order))
    command = [sys.executable, "-P", "-m", "rewarm.worker.packing", str(tmp_path / "order.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    return json.loads(line), out


def net() -> Any:
    torch = pytest.importorskip("torch")
    module: dict[str, Any] = {}
    exec(compile(NET, "app.py", "exec"), module)
    torch.manual_seed(1)
    return module["Net"]()


def state() -> dict[str, Any]:
    return dict(net().state_dict())


def names(index: Index) -> list[str]:
    return [name for layer in index.layers for name in layer.tensors]


def test_a_module_is_packed_in_the_order_of_its_use(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.save(state(), tmp_path / "w.pt")
    report, out = deploy(tmp_path, NET, tmp_path / "w.pt")
    index = open_pack(out, out).index
    assert report == {
        "ok": True, "packed": True, "order": "traced", "layers": len(index.layers), "bytes": index.facts().total_bytes,
    }  # fmt: skip
    assert set(index.layers[0].tensors) == {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}
    used = ["places.weight", "first.weight", "first.bias", "norm.weight", "norm.bias"]
    # The table is read by row first, but wanted whole by the head that it is tied to.
    assert names(index)[3:] == [*used, "table.weight", "never.weight", "never.bias"]
    assert index.tied == {"head.weight": "table.weight"} and index.order == "traced" and index.key == "k"
    assert [layer.name for layer in index.layers if layer.on_demand] == ["places"]
    assert index.setup_s > 0.0 and index.facts().compute_s > 0.0
    arrays = Weights.packed(tmp_path / "w.pt", {"folder": str(out), "tensors_dir": str(out)}).arrays()
    assert all(np.array_equal(arrays[name], tensor.numpy()) for name, tensor in state().items())
    assert not arrays["first.bias"].flags.writeable


def test_without_an_example_in_the_order_of_registration() -> None:
    pytest.importorskip("torch")
    from rewarm.worker import tracing

    def failing() -> None:
        raise ValueError("not on this example")

    sizes = {name: tensor.nbytes for name, tensor in state().items()}
    for predict in (None, failing, lambda: None):
        plan = tracing.plan(net(), predict, sizes)
        assert plan.order == "registered" and plan.tied == {"head.weight": "table.weight"}
        assert [name for group in plan.groups[1:] for name in group.tensors] == [
            "table.weight", "first.weight", "first.bias", "never.weight", "never.bias", "places.weight", "norm.weight",
            "norm.bias",
        ]  # fmt: skip
        assert [group.name for group in plan.groups if group.on_demand] == ["places"]


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    held = state()
    del held["first.bias"]
    torch.save(held, tmp_path / "w.pt")
    report, out = deploy(tmp_path, NET, tmp_path / "w.pt")
    assert not report["ok"] and report["code"] == "bad_definition" and "the file lacks first.bias" in report["error"]
    assert not list(out.iterdir())


ARRAYS = """
class Net1:
    def __init__(self, weights):
        self.arrays = weights.{method}

    def predict(self, ids):
        raise RuntimeError("not on this example")
"""


def safetensors_file(path: Path) -> Path:
    held = {"b.weight": np.arange(6, dtype="float32").reshape(2, 3), "a.scale": np.ones(3, "float16")}
    pytest.importorskip("safetensors.numpy").save_file(held, path)
    return path


def test_arrays_are_packed_as_they_stand_in_the_file(tmp_path: Path) -> None:
    path = safetensors_file(tmp_path / "w.safetensors")
    report, out = deploy(tmp_path, ARRAYS.replace("{method}", "arrays()"), path)
    assert report["ok"] and report["order"] == "registered"
    weights = Weights.packed(path, {"folder": str(out), "tensors_dir": str(out)})
    packed, plain = weights.arrays(), Weights(path).arrays()
    assert packed.keys() == plain.keys() == {"a.scale", "b.weight"}
    for name, array in plain.items():
        assert np.array_equal(packed[name], array) and packed[name].dtype == array.dtype and not array.flags.writeable


def test_code_that_opens_the_file_itself_has_no_pack(tmp_path: Path) -> None:
    path = safetensors_file(tmp_path / "w.safetensors")
    report, out = deploy(tmp_path, ARRAYS.replace("{method}", "path.read_bytes()"), path)
    assert report["ok"] and not report["packed"] and "weights.module()" in report["why"]
    assert not list(out.iterdir())


def test_a_constructor_that_raises_is_told_with_its_line(tmp_path: Path) -> None:
    path = safetensors_file(tmp_path / "w.safetensors")
    report, _ = deploy(tmp_path, ARRAYS.replace("{method}", "no_such_method()"), path)
    assert not report["ok"] and report["code"] == "start_failed"
    assert "no_such_method" in report["error"] and "app.py line 4" in report["error"]


# ---------------------------------------------------------------- examples and layers


def spec(**inputs: Tensor | None) -> FunctionSpec:
    return FunctionSpec("f", "predict", "app:F", inputs=tuple(inputs.items()))


def test_an_example_is_made_of_ones_as_declared() -> None:
    found = example(object(), spec(a=rewarm.Tensor("float32", [3, -1]), b=rewarm.Tensor("int64")))
    assert found is not None
    args, kwargs = found
    assert args == () and [a.dtype.name for a in kwargs.values()] == ["float32", "int64"]
    assert kwargs["a"].shape == (1, 3, 16) and kwargs["b"].shape == (1,) and bool((kwargs["a"] == 1).all())


@pytest.mark.parametrize("tensor", [None, rewarm.Tensor("object", [2])])
def test_no_example_of_what_is_not_declared_or_no_number(tensor: Tensor | None) -> None:
    assert example(object(), spec(a=rewarm.Tensor("int8"), b=tensor)) is None


@pytest.mark.parametrize(
    ("given", "args", "kwargs"),
    [(5, (5,), {}), ((5, 6), (5, 6), {}), ({"a": 5}, (), {"a": 5}), ([5, 6], ([5, 6],), {})],
)
def test_a_class_may_bring_its_own_example(given: Any, args: Any, kwargs: Any) -> None:
    class Own:
        def example(self) -> Any:
            return given

    assert example(Own(), spec(a=None)) == (args, kwargs)


def layer_names(sizes: dict[str, int], tables: frozenset[str] = frozenset()) -> list[list[str]]:
    return [list(group.tensors) for group in groups(list(sizes), sizes, set(tables))]


def test_small_modules_of_one_block_are_one_layer() -> None:
    small = {f"net.{block}.{part}.weight": 10 for block in (0, 1) for part in ("a.q", "a.k", "norm")}
    assert layer_names(small) == [list(small)[:3], list(small)[3:]]
    assert layer_names({"a.weight": 1, "b.weight": 1, "c": 1}) == [["a.weight", "b.weight", "c"]]


def test_a_module_is_never_cut_and_a_large_one_is_a_layer() -> None:
    large = LAYER_BYTES_MIN
    sizes = {"0.a.weight": large, "0.a.bias": 8, "0.b.weight": 8, "0.b.bias": 8, "0.c.weight": large, "0.c.bias": 8}
    assert layer_names(sizes) == [["0.a.weight", "0.a.bias"], ["0.b.weight", "0.b.bias", "0.c.weight", "0.c.bias"]]


def test_large_tables_are_layers_of_their_own() -> None:
    large = LAYER_BYTES_MIN
    sizes = {"e.words.weight": large, "e.places.weight": large, "e.norm.weight": 8, "e.types.weight": 8}
    tables = frozenset({"e.words.weight", "e.places.weight", "e.types.weight"})
    found = groups(list(sizes), sizes, set(tables))
    assert [(list(group.tensors), group.on_demand) for group in found] == [
        (["e.words.weight"], True), (["e.places.weight"], True), (["e.norm.weight", "e.types.weight"], False),
    ]  # fmt: skip
