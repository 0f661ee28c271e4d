"""Packing ONNX models: order, alignment, answers, and what cannot be packed. Small models, real onnxruntime."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rewarm.errors import BadDefinition, SystemFault
from rewarm.weights.format import ALIGN_BYTES, Index, Pack, open_pack, verify
from rewarm.worker.sessions_packing import NotPacked, pack_onnx

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # as every process has it that imports onnxruntime
onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from rewarm.worker.sessions import open_session  # noqa: E402

WIDTH = 32  # 32 × 32 floats: 4 KiB
RANDOM = np.random.default_rng(7)


def weight(name: str, *shape: int) -> Any:
    return numpy_helper.from_array(RANDOM.standard_normal(shape, dtype=np.float32), name)


def value(name: str, shape: Sequence[int | str] | None, kind: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def save(path: Path, nodes: list[Any], inputs: list[Any], outputs: list[Any], weights: list[Any], ir: int = 9) -> Path:
    graph = helper.make_graph(nodes, "test", inputs, outputs, weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=ir), path)
    return path


def chain(path: Path, depth: int = 4, width: int = WIDTH) -> Path:
    """x → MatMul → Relu → MatMul …; the file has the weights in the reverse of the order in which they are used."""
    nodes, name = [], "x"
    for number in range(depth):
        nodes.append(helper.make_node("MatMul", [name, f"w{number}"], [f"m{number}"]))
        name = f"r{number}" if number < depth - 1 else "y"
        nodes.append(helper.make_node("Relu", [f"m{number}"], [name]))
    weights = [weight(f"w{number}", width, width) for number in reversed(range(depth))]
    return save(path, nodes, [value("x", ["batch", width])], [value("y", ["batch", width])], weights)


def run(path: Path, feeds: dict[str, Any]) -> list[Any]:
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    return list(onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"]).run(None, feeds))


@pytest.fixture
def packed(tmp_path: Path) -> Callable[[Path], Pack]:
    """Packs a file, checks the pack as an instance would find it, and opens it."""

    def pack(source: Path) -> Pack:
        out = tmp_path / f"pack of {source.name}"
        out.mkdir()
        index = pack_onnx(source, out, key="k1", source_sha256="0" * 64)
        found = open_pack(out, tmp_path)
        verify(found)
        assert found.index == index
        return found

    return pack


def names_in_file(index: Index) -> list[str]:
    return sorted(index.tensors, key=lambda name: index.tensors[name].begin)


def same_answers(source: Path, pack: Pack, feeds: dict[str, Any]) -> None:
    """The pack's graph is a whole model by itself; anything may open it."""
    ours, theirs = run(pack.folder / "model.onnx", feeds), run(source, feeds)
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_weights_lie_in_the_order_of_their_use_each_on_its_own_page(
    tmp_path: Path, packed: Callable[[Path], Pack]
) -> None:
    source = chain(tmp_path / "chain.onnx")
    pack = packed(source)
    index = pack.index
    assert names_in_file(index) == ["w0", "w1", "w2", "w3"]
    assert all(entry.begin % ALIGN_BYTES == 0 for entry in index.tensors.values())
    assert index.layers[0].tensors == ("w0", "w1", "w2", "w3")  # 16 KiB are one layer
    assert sorted(path.name for path in pack.folder.iterdir()) == ["index.json", "model.onnx", "weights.data"]
    data = pack.path(0).read_bytes()
    originals = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(source).graph.initializer}
    for name, entry in index.tensors.items():
        assert data[entry.begin : entry.end] == originals[name].tobytes()
    same_answers(source, pack, {"x": RANDOM.standard_normal((3, WIDTH), dtype=np.float32)})


def test_compute_is_measured_and_layers_are_of_four_mebibytes(tmp_path: Path, packed: Callable[[Path], Pack]) -> None:
    index = packed(chain(tmp_path / "wide.onnx", depth=4, width=768)).index  # 2.25 MiB each
    assert [layer.tensors for layer in index.layers] == [("w0", "w1"), ("w2", "w3")]
    assert all(layer.compute_s > 0 for layer in index.layers)
    assert index.setup_s > 0


def test_the_same_file_makes_the_same_data(tmp_path: Path, packed: Callable[[Path], Pack]) -> None:
    one = packed(chain(tmp_path / "one.onnx")).index
    (tmp_path / "two.onnx").write_bytes((tmp_path / "one.onnx").read_bytes())
    two = packed(tmp_path / "two.onnx").index
    assert (one.files, one.graph) == (two.files, two.graph)


def test_branches_with_weights_of_one_name(tmp_path: Path, packed: Callable[[Path], Pack]) -> None:
    def branch(name: str) -> Any:
        nodes = [helper.make_node("MatMul", ["x", "w"], [name])]
        return helper.make_graph(nodes, name, [], [value(name, None)], [weight("w", WIDTH, WIDTH)])

    nodes = [
        helper.make_node("If", ["which"], ["z"], then_branch=branch("a"), else_branch=branch("b")),
        helper.make_node("MatMul", ["z", "last"], ["y"]),
    ]
    inputs = [value("x", ["n", WIDTH]), value("which", [], TensorProto.BOOL)]
    source = save(tmp_path / "if.onnx", nodes, inputs, [value("y", ["n", WIDTH])], [weight("last", WIDTH, WIDTH)])
    pack = packed(source)
    assert names_in_file(pack.index) == ["w.1", "w.2", "last"]
    x = RANDOM.standard_normal((2, WIDTH), dtype=np.float32)
    for which in (True, False):
        same_answers(source, pack, {"x": x, "which": np.array(which)})


def test_what_callers_may_feed_or_are_given_stays_in_the_graph(tmp_path: Path, packed: Callable[[Path], Pack]) -> None:
    square = [WIDTH, WIDTH]
    nodes = [helper.make_node("MatMul", ["x", "default"], ["m"]), helper.make_node("MatMul", ["m", "w"], ["y"])]
    source = save(
        tmp_path / "told.onnx", nodes,
        [value("x", ["n", WIDTH]), value("default", square)],
        [value("y", ["n", WIDTH]), value("constant", square)],
        [weight("default", *square), weight("w", *square), weight("constant", *square)],
    )  # fmt: skip
    pack = packed(source)
    assert list(pack.index.tensors) == ["w"]
    x = RANDOM.standard_normal((2, WIDTH), dtype=np.float32)
    same_answers(source, pack, {"x": x})
    same_answers(source, pack, {"x": x, "default": np.eye(WIDTH, dtype=np.float32)})
    session = open_session(source, {}, pack=pack)
    for answer in session.run(None, {"x": x}):
        answer.fill(0)  # our mapping could not be written to


def test_an_old_model_that_lists_its_weights_as_inputs(tmp_path: Path, packed: Callable[[Path], Pack]) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    inputs = [value("x", ["n", WIDTH]), value("w", [WIDTH, WIDTH])]
    source = save(tmp_path / "old.onnx", nodes, inputs, [value("y", ["n", WIDTH])], [weight("w", WIDTH, WIDTH)], ir=3)
    pack = packed(source)
    assert list(pack.index.tensors) == ["w"]
    same_answers(source, pack, {"x": np.ones((2, WIDTH), np.float32)})


def test_a_table_that_is_read_by_row_is_on_demand_and_last(tmp_path: Path, packed: Callable[[Path], Pack]) -> None:
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("MatMul", ["rows", "w"], ["m"]),
        helper.make_node("MatMul", ["m", "other"], ["y"]),
        helper.make_node("ReduceSum", ["other"], ["all"], keepdims=0),
        helper.make_node("Gather", ["other", "ids"], ["picked"]),
    ]
    outputs = [value("y", None), value("all", None), value("picked", None)]
    weights = [weight("other", 512, 2100), weight("table", 2100, 512), weight("w", 512, 512)]
    source = save(tmp_path / "table.onnx", nodes, [value("ids", ["n"], TensorProto.INT64)], outputs, weights)
    pack = packed(source)
    index = pack.index
    assert (index.layers[0].tensors, index.layers[0].on_demand) == (("table",), True)
    assert not any(layer.on_demand for layer in index.layers[1:])  # "other" is read whole too
    assert names_in_file(index)[-1] == "table"
    assert index.streamed_spans()[0].begin == 0 and len(index.streamed_spans()) == 1
    same_answers(source, pack, {"ids": np.array([0, 5, 7])})


@pytest.mark.parametrize("kind", ["FLOAT16", "BFLOAT16", "INT8", "UINT8", "BOOL", "DOUBLE"])
def test_dtypes(tmp_path: Path, packed: Callable[[Path], Pack], kind: str) -> None:
    element = getattr(TensorProto, kind)
    values = RANDOM.integers(0, 2, (64, 64)).astype(np.float32)
    table = helper.make_tensor("table", element, [64, 64], values.ravel())
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("Cast", ["rows"], ["y"], to=TensorProto.FLOAT),
    ]
    ids = value("ids", ["n"], TensorProto.INT64)
    source = save(tmp_path / "dtype.onnx", nodes, [ids], [value("y", ["n", 64])], [table])
    pack = packed(source)
    assert list(pack.index.tensors) == ["table"]
    same_answers(source, pack, {"ids": np.array([3, 0])})


def test_a_model_with_small_weights_only_has_no_data_file(tmp_path: Path, packed: Callable[[Path], Pack]) -> None:
    source = save(
        tmp_path / "small.onnx", [helper.make_node("Add", ["x", "b"], ["y"])],
        [value("x", ["n", 4])], [value("y", ["n", 4])], [weight("b", 4)],
    )  # fmt: skip
    pack = packed(source)
    assert (pack.index.files, len(pack.index.layers)) == ((), 1)
    assert not (pack.folder / "weights.data").exists()
    same_answers(source, pack, {"x": np.ones((2, 4), np.float32)})


def test_a_model_that_does_not_run_on_made_up_inputs(tmp_path: Path, packed: Callable[[Path], Pack]) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    source = save(tmp_path / "odd.onnx", nodes, [value("x", ["n", "m"])], [value("y", None)], [weight("w", 37, 37)])
    pack = packed(source)
    assert [layer.compute_s for layer in pack.index.layers] == [0.0]
    same_answers(source, pack, {"x": np.ones((2, 37), np.float32)})


def test_files_that_are_no_models(tmp_path: Path) -> None:
    whole = chain(tmp_path / "whole.onnx").read_bytes()
    for number, (data, says) in enumerate(
        [(b"", "without nodes"), (b"nonsense" * 9, "cut short"), (whole[:-5], "cut short")]
    ):
        path = tmp_path / f"{number}.onnx"
        path.write_bytes(data)
        with pytest.raises(BadDefinition, match=says):
            pack_onnx(path, tmp_path, key="k", source_sha256="0" * 64)


def test_an_operator_that_there_is_not(tmp_path: Path) -> None:
    nodes = [helper.make_node("NoSuchThing", ["x"], ["y"])]
    source = save(tmp_path / "op.onnx", nodes, [value("x", [1])], [value("y", [1])], [])
    with pytest.raises(BadDefinition, match="NoSuchThing"):
        pack_onnx(source, tmp_path, key="k", source_sha256="0" * 64)


def test_a_format_from_the_future(tmp_path: Path) -> None:
    source = chain(tmp_path / "future.onnx")
    model = onnx.load(source)
    model.ir_version = 99
    onnx.save(model, source)
    with pytest.raises(BadDefinition, match=r"onnxruntime cannot open future\.onnx"):
        pack_onnx(source, tmp_path, key="k", source_sha256="0" * 64)


def test_weights_in_another_file_are_refused_with_the_remedy(tmp_path: Path) -> None:
    source = chain(tmp_path / "model.onnx")
    onnx.save(onnx.load(source), source, save_as_external_data=True, location="model.bin", size_threshold=0)
    with pytest.raises(BadDefinition, match=r"model\.bin.*save it as one file"):
        pack_onnx(source, tmp_path, key="k", source_sha256="0" * 64)


def test_a_folder_that_cannot_be_written_is_no_fault_of_the_model(tmp_path: Path) -> None:
    source = chain(tmp_path / "chain.onnx")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "weights.data").mkdir()
    with pytest.raises(SystemFault, match="cannot pack the model"):
        pack_onnx(source, tmp_path / "out", key="k", source_sha256="0" * 64)


def test_without_the_package_onnx_nothing_is_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = chain(tmp_path / "chain.onnx")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(NotPacked, match="onnx is not installed"):
        pack_onnx(source, tmp_path, key="k", source_sha256="0" * 64)


def test_equal_shapes_and_equal_reshapes_are_there_once(tmp_path: Path) -> None:
    """Also where a branch reads them; but not what is an answer, or random."""
    from rewarm.worker.sessions_graph import merge_equal

    node = helper.make_node
    branch = helper.make_graph(
        [node("Reshape", ["x", "s3"], ["inner"]), node("Add", ["inner", "b"], ["branch"])],
        "branch", [], [value("branch", None)],
    )  # fmt: skip
    nodes = [
        node("Reshape", ["x", "s1"], ["a"]), node("Reshape", ["x", "s2"], ["b"]), node("Reshape", ["x", "s3"], ["y"]),
        node("RandomUniform", [], ["r1"], shape=[1]), node("RandomUniform", [], ["r2"], shape=[1]),
        node("Transpose", ["a"], ["t1"], perm=[0, 1]), node("Transpose", ["b"], ["t2"], perm=[1, 0]),
        node("Transpose", ["b"], ["t3"], perm=[1, 0]),
        node("If", ["c"], ["i"], then_branch=branch, else_branch=branch),
        node("Sum", ["t1", "t3", "i", "b"], ["z"]), node("Sub", ["r1", "r2"], ["q"]),
    ]  # fmt: skip
    shapes = [numpy_helper.from_array(np.array([2, 2]), f"s{number}") for number in (1, 2, 3)]
    other = numpy_helper.from_array(np.array([4, 1]), "s4")
    inputs = [value("x", [4]), value("c", [], TensorProto.BOOL)]
    path = save(tmp_path / "m.onnx", nodes, inputs, [value(n, None) for n in "yzq"], [*shapes, other])
    model = onnx.load(path)
    merge_equal(model.graph)
    assert [tensor.name for tensor in model.graph.initializer] == ["s1", "s4"]
    assert [n.output[0] for n in model.graph.node] == ["a", "y", "r1", "r2", "t1", "t2", "i", "z", "q"]
    merged = tmp_path / "merged.onnx"
    onnx.save(model, merged)
    feeds = {"x": np.arange(4, dtype=np.float32), "c": np.array(True)}
    for one, other in zip(run(path, feeds)[:2], run(merged, feeds)[:2], strict=True):
        assert np.array_equal(one, other)
    assert run(merged, feeds)[2] != 0.0


def test_models_of_more_than_two_gigabytes_are_refused_unread(tmp_path: Path) -> None:
    """In one file there are none, and those that keep their weights aside say where; here both files are holes."""
    out = tmp_path / "out"
    out.mkdir()
    huge = tmp_path / "huge.onnx"
    with huge.open("wb") as file:
        file.truncate((1 << 31) + 1)
    with pytest.raises(BadDefinition, match=r"huge\.onnx is larger than 2 GB"):
        pack_onnx(huge, out, key="k", source_sha256="")
    tensor = TensorProto(name="w0", data_type=TensorProto.FLOAT, dims=[1 << 15, 3 << 14])
    tensor.data_location = TensorProto.EXTERNAL
    for key, text in (("location", "huge.data"), ("offset", "0"), ("length", str(6 << 30))):
        tensor.external_data.add(key=key, value=text)
    path = save(
        tmp_path / "m.onnx", [helper.make_node("MatMul", ["x", "w0"], ["y"])],
        [value("x", ["batch", 1 << 15])], [value("y", ["batch", 3 << 14])], [tensor],
    )  # fmt: skip
    with (tmp_path / "huge.data").open("wb") as file:
        file.truncate(6 << 30)
    with pytest.raises(BadDefinition, match=r"m\.onnx keeps its weights in another file \(huge\.data\)"):
        pack_onnx(path, out, key="k", source_sha256="")
    assert list(out.iterdir()) == []
