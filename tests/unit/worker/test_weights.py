"""What a constructor is given: files with and without a pack."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rewarm
from rewarm.errors import BadDefinition, WeightsCorrupt
from rewarm.facts.function import FunctionSpec
from rewarm.snapshot.holes import drop_cache
from rewarm.weights.writer import LayerIn, TensorIn, write_pack
from rewarm.worker.user import UserError, load_user
from rewarm.worker.weights import Weights

SIZES = [(1800, 600), (600, 2000), (2000, 600), (600, 600)]  # of an embedding and of linear layers
VALUES = np.arange(12, dtype="<f4").reshape(3, 4)


@pytest.fixture
def order(tmp_path: Path) -> dict[str, Any]:
    """The part of a LOAD order that tells of a pack."""
    write_pack(
        tmp_path, tmp_path, [LayerIn("a", (TensorIn("a.weight", "F32", (3, 4), VALUES.tobytes),))],
        key="k", order="registered", source_sha256="", tied={"b.weight": "a.weight"},
    )  # fmt: skip
    return {"folder": str(tmp_path), "tensors_dir": str(tmp_path), "bandwidth_bytes_s": 1e9, "pinned_bytes": 0}


def test_in_a_decorator_it_does_not_touch_the_disk() -> None:
    weights = rewarm.Weights("there/is/no/such.file", pin="256MB")
    assert weights.path == Path("there/is/no/such.file") and weights.pin == "256MB" and "such.file" in repr(weights)
    with pytest.raises(FileNotFoundError):
        _ = weights.size_bytes


def test_arrays_of_a_pack_are_views_of_the_file(order: dict[str, Any], tmp_path: Path) -> None:
    weights = Weights.packed(tmp_path / "w.safetensors", order)
    one, other = weights.arrays(), weights.arrays()
    assert set(one) == {"a.weight", "b.weight"} and np.array_equal(one["a.weight"], VALUES)
    addresses = {array.__array_interface__["data"] for found in (one, other) for array in found.values()}
    assert len(addresses) == 1 and {read_only for _, read_only in addresses} == {True}
    assert weights.report() is None


def test_arrays_of_numpy_files(tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", a=VALUES)
    np.save(tmp_path / "w.npy", VALUES)
    assert np.array_equal(Weights(tmp_path / "w.npz").arrays()["a"], VALUES)
    assert np.array_equal(Weights(tmp_path / "w.npy").arrays()["weights"], VALUES)
    np.save(tmp_path / "evil.npy", np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle"):
        Weights(tmp_path / "evil.npy").arrays()


def test_what_numpy_cannot_hold_is_named(tmp_path: Path) -> None:
    write_pack(
        tmp_path, tmp_path, [LayerIn("a", (TensorIn("a.weight", "BF16", (2,), lambda: bytes(4)),))],
        key="k", order="registered", source_sha256="",
    )  # fmt: skip
    weights = Weights.packed(tmp_path / "w.pt", {"folder": str(tmp_path), "tensors_dir": str(tmp_path)})
    with pytest.raises(BadDefinition, match=r"'a\.weight', which is BF16; use weights\.module"):
        weights.arrays()
    with pytest.raises(BadDefinition, match=r"w\.pt has no arrays"):
        Weights(tmp_path / "w.pt").arrays()


@pytest.mark.parametrize("name", ["index.json", "*.safetensors"])
def test_a_damaged_pack_is_told_before_it_is_mapped(name: str, order: dict[str, Any], tmp_path: Path) -> None:
    (file,) = tmp_path.glob(name)
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(WeightsCorrupt, match="deploy the function again"):
        Weights.packed(tmp_path / "w.pt", order)
    spec = FunctionSpec("f", "predict", "app:F", inputs=(("x", None),), weights="w.pt")
    load = {"spec": spec.to_json(), "code_dir": str(tmp_path), "weights_path": str(tmp_path / "w.pt"), "version": 1}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        patch.setattr("sys.path", [])
        patch.setattr("sys.dont_write_bytecode", True)
        patch.setenv("AWS_LAMBDA_FUNCTION_NAME", "")
        with pytest.raises(UserError) as caught:
            load_user({**load, "pack": order})
    assert caught.value.code == "weights_corrupt" and caught.value.error_type == "WeightsCorrupt"


# ---------------------------------------------------------------- the first pass


@pytest.fixture
def watched(tmp_path: Path, make_pack: Any) -> tuple[Weights, Any, Any]:
    torch = pytest.importorskip("torch")
    from torch import nn

    def net() -> Any:
        return nn.Sequential(nn.Embedding(*SIZES[0]), *(nn.Linear(*sizes) for sizes in SIZES[1:]))

    model, x = net(), torch.tensor([[1, 2]])
    torch.save(model.state_dict(), tmp_path / "w.pt")
    with torch.inference_mode():
        weights = make_pack(tmp_path / "w.pt", model, lambda: model(x), bandwidth_bytes_s=1e9, pinned_bytes=4096)
        return weights, weights.module(net), x


def test_the_first_pass_is_reported(watched: tuple[Weights, Any, Any]) -> None:
    weights, model, x = watched
    assert weights.report() is None
    model(x)
    report = weights.report()
    assert report is not None
    assert report["ttfi_ms"] >= report["bubble_ms"] >= 0.0 and report["pinned_bytes"] == 4096
    assert len(report["compute_s"]) == 4 and all(seconds > 0.0 for seconds in report["compute_s"])
    assert sum(report["compute_s"]) * 1e3 + report["bubble_ms"] <= report["ttfi_ms"]
    # Everything is in the page cache, since it was just written: construction and four layers of 1 ms each.
    assert report["read_bytes"] == 0 and report["predicted_ms"] == pytest.approx(4.0) and "bandwidth_mb_s" not in report
    model(x)
    assert weights.report() == report


def test_rows_that_have_to_be_read_are_a_wait_of_their_own(watched: tuple[Weights, Any, Any]) -> None:
    weights, model, x = watched
    assert weights._pack is not None
    drop_cache(weights._pack.path(0))
    again = Weights.packed(weights.path, {**weights._order, "rows_s": [0.25, 0.0, 0.0, 0.0]})
    fresh = again.module(
        lambda: model.__class__(*(type(part)(*sizes) for part, sizes in zip(model, SIZES, strict=True)))
    )
    fresh(x)
    report = again.report()
    assert report is not None
    if not report["read_bytes"]:
        pytest.skip("this file system keeps its pages")
    ((layer_no, rows_s),) = report["rows_s"]
    assert layer_no == 0
    assert 0.0 < rows_s * 1e3 <= report["bubble_ms"]
    assert report["predicted_ms"] > 250.0, "what rows take by now is expected of the next start"
    model(x)
    warm = weights.report()
    assert warm is not None
    assert warm["rows_s"] == []


def test_only_the_layers_that_are_needed_are_waited_for() -> None:
    torch = pytest.importorskip("torch")
    from torch import nn

    from rewarm.weights.format import LayerEntry
    from rewarm.worker.firstpass import Pass, Watch

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.first, self.second = nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 4)
            self.early, self.late = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4))

        def forward(self, x: Any, fail: bool = False) -> Any:
            h = self.first(self.table(x) * self.early)
            if fail:
                raise ValueError("in the middle")
            return self.second(h) * self.late

    layers = [
        LayerEntry("table", ("table.weight",), True, 0.0), LayerEntry("early", ("early",), False, 0.0),
        LayerEntry("first", ("first.weight", "first.bias"), False, 0.0),
        LayerEntry("second", ("second.weight", "second.bias"), False, 0.0), LayerEntry("late", ("late",), False, 0.0),
    ]  # fmt: skip
    waits: list[int] = []
    passes: list[Pass] = []
    model, x = Net(), torch.tensor([1])

    def wait(layer: int) -> float:
        waits.append(layer)
        return 0.0

    watch = Watch(model, layers, {}, wait, passes.append)
    model(x)
    assert waits == [2, 3]  # not for rows of a table, and not at the beginning for what is needed at the end
    assert len(passes) == 1 and len(passes[0].compute_s) == 5
    with pytest.raises(ValueError, match="in the middle"):
        model(x, fail=True)
    model.first(torch.ones(4))  # a part alone is a pass too
    nn.Linear(2, 2)(torch.ones(2))  # of nobody
    assert len(passes) == 3
    watch.close()
    watch.close()
    model(x)
    assert len(passes) == 3


def test_a_stopwatch_times_the_first_pass_that_succeeds() -> None:
    torch = pytest.importorskip("torch")
    from torch import nn

    from rewarm.weights.format import DataFile, Index, LayerEntry, TensorEntry
    from rewarm.worker.firstpass import Stopwatch

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Any, fail: bool = False) -> Any:
            h = self.first(x)
            if fail:
                raise ValueError("in the middle")
            return self.second(h)

    sha = "0" * 64
    tensors = {name: TensorEntry("U8", (size,), 0, 0, size, sha) for name, size in (("a", 1), ("b", 3), ("t", 9))}
    measured = tuple(LayerEntry(name, (name,), name == "t", s) for name, s in (("t", 0.0), ("a", 0.2), ("b", 0.6)))
    index = Index("k", "tensors", "traced", "", (DataFile(f"{sha}.safetensors", 9, sha),), tensors, measured, {})
    model, x = Net(), torch.ones(1, 4)
    watch = Stopwatch(model, index)
    with pytest.raises(ValueError, match="in the middle"):
        model(x, fail=True)
    assert watch.passed is None
    model(x)
    passed = watch.passed
    assert passed is not None and passed.waited_s == 0.0 < passed.seconds
    assert passed.compute_s == pytest.approx((0.0, passed.seconds / 4, passed.seconds * 3 / 4))
    model(x)
    assert watch.passed is passed and not any(part._forward_hooks for part in model.modules())
    part = Stopwatch(model, index)
    model.second(x)  # called alone
    assert part.passed is not None
    unmeasured = dataclasses.replace(index, layers=tuple(layer._replace(compute_s=0.0) for layer in measured))
    assert unmeasured.shares(8.0) == (0.0, 2.0, 6.0)
    assert Stopwatch.fits(model) and not Stopwatch.fits(nn.MultiheadAttention(4, 2))
    assert not Stopwatch.fits(nn.Sequential(nn.TransformerEncoderLayer(4, 2, 8)))
