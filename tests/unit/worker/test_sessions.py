"""Sessions on packs: the same answers as on the file, no copy of the weights, and the change to the full session."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rewarm
from rewarm.errors import WeightsCorrupt
from rewarm.kernel import SINGLE_THREADED_ENV
from rewarm.snapshot.holes import drop_cache
from rewarm.weights.format import Pack, open_pack
from rewarm.weights.pages import PAGE_BYTES, Mapped
from rewarm.worker.weights import Weights

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # as every process has it that imports onnxruntime
onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from rewarm.worker.sessions import PackedSession, Swap, open_session  # noqa: E402
from rewarm.worker.sessions_packing import pack_onnx  # noqa: E402

WIDTH = 64
RANDOM = np.random.default_rng(3)
X = RANDOM.standard_normal((5, WIDTH), dtype=np.float32)


def save_model(path: Path) -> Path:
    """x → rows of a bfloat16 table, added → MatMul → Relu → MatMul: y."""
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("Cast", ["rows"], ["looked_up"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["x", "looked_up"], ["a"]),
        helper.make_node("MatMul", ["a", "w1"], ["m"]),
        helper.make_node("Relu", ["m"], ["r"]),
        helper.make_node("MatMul", ["r", "w2"], ["y"]),
    ]
    table = RANDOM.integers(-3, 3, (64, WIDTH)).astype(np.float32)
    weights = [
        numpy_helper.from_array(RANDOM.standard_normal((WIDTH, WIDTH), dtype=np.float32), name) for name in ("w2", "w1")
    ]
    weights.append(helper.make_tensor("table", TensorProto.BFLOAT16, table.shape, table.ravel()))
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", WIDTH]),
        helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch"]),
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", WIDTH])]
    graph = helper.make_graph(nodes, "test", inputs, outputs, weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


FEEDS = {"x": X, "ids": np.arange(5)}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save_model(tmp_path / "model.onnx")


@pytest.fixture
def pack(source: Path, tmp_path: Path) -> Pack:
    out = tmp_path / "pack"
    out.mkdir()
    pack_onnx(source, out, key="k1", source_sha256="0" * 64)
    return open_pack(out, tmp_path)


def answer(session: Any) -> Any:
    return session.run(None, FEEDS)[0]


def test_a_file_without_a_pack(source: Path) -> None:
    session = open_session(source, {"intra_op_num_threads": 2})
    assert type(session) is onnxruntime.InferenceSession
    assert session.get_session_options().intra_op_num_threads == 2
    assert session.get_providers() == ["CPUExecutionProvider"]


def run_program(program: str, source: Path) -> str:
    """What it prints, in a process of its own."""
    environment = os.environ | SINGLE_THREADED_ENV | {"PYTHONPATH": str(Path(rewarm.__file__).parents[1])}
    command = [sys.executable, "-c", textwrap.dedent(program), str(source)]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.mark.parametrize("packed", [True, False])
def test_an_option_that_there_is_not(source: Path, pack: Pack, packed: bool) -> None:
    with pytest.raises(AttributeError, match="no option 'threads'"):
        open_session(source, {"threads": 2}, pack=pack if packed else None)


def test_a_packed_session_is_a_session_and_answers_the_same(source: Path, pack: Pack) -> None:
    plain, session = open_session(source, {}), open_session(source, {}, pack=pack)
    assert isinstance(session, PackedSession) and isinstance(session, onnxruntime.InferenceSession)
    assert [value.name for value in session.get_inputs()] == ["x", "ids"]
    assert [value.shape for value in session.get_outputs()] == [["batch", WIDTH]]
    np.testing.assert_allclose(answer(session), answer(plain), rtol=1e-5, atol=1e-5)


def test_the_first_run_is_measured(source: Path, pack: Pack) -> None:
    session = open_session(source, {}, pack=pack)
    assert session.passed is None
    answer(session)
    first = session.passed
    answer(session)
    assert session.passed is first
    assert 0 <= first.waited_s <= first.seconds
    assert len(first.compute_s) == len(pack.index.layers)
    assert first.waited_s + sum(first.compute_s) == pytest.approx(first.seconds)


def test_rows_are_asked_for_before_they_are_looked_up(tmp_path: Path) -> None:
    """Those of any whole numbers, and once: "more" numbers no rows in truth, so that nothing but asking reads them."""
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("Cast", ["more"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["rows", "numbers"], ["y"]),
    ]
    width, count = 1024, 2000  # a row is a page, the table 8 MB
    weights = [numpy_helper.from_array(RANDOM.standard_normal((count, width), dtype=np.float32), "table")]
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, [1]) for name in ("ids", "more")]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, width])]
    graph = helper.make_graph(nodes, "test", inputs, outputs, weights)
    source, out = tmp_path / "rows.onnx", tmp_path / "pack"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), source)
    out.mkdir()
    pack_onnx(source, out, key="k1", source_sha256="0" * 64)
    drop_cache(out / "weights.data")
    session = Weights.packed(source, {"folder": out, "tensors_dir": out}).session()
    mapped = Mapped(out / "weights.data", count * width * 4)

    def there(row: int) -> bool:
        return mapped.resident_bytes(row * PAGE_BYTES, (row + 1) * PAGE_BYTES) > 0

    if there(1000):
        pytest.skip("this file system keeps all in memory")
    session.run(None, {"ids": np.array([10]), "more": np.array([1000])})
    until_s = time.monotonic() + 10.0
    while not there(1000) and time.monotonic() < until_s:
        time.sleep(0.01)
    assert there(10) and there(1000) and not there(500)
    assert session.passed is not None
    assert 0.0 < session.passed.rows_s[0] <= session.passed.seconds
    session.run(None, {"ids": np.array([11]), "more": np.array([1500])})
    time.sleep(0.1)
    assert there(11) and not there(1500)


def test_the_other_ways_to_run(source: Path, pack: Pack) -> None:
    session = open_session(source, {}, pack=pack)
    expected = answer(session)
    binding = session.io_binding()
    for name, array in FEEDS.items():
        binding.bind_cpu_input(name, array)
    binding.bind_output("y")
    session.run_with_iobinding(binding)
    np.testing.assert_array_equal(binding.copy_outputs_to_cpu()[0], expected)
    values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in FEEDS.items()}
    np.testing.assert_array_equal(session.run_with_ort_values(["y"], values)[0].numpy(), expected)


def test_options_hold_for_the_packed_session(source: Path, pack: Pack) -> None:
    session = open_session(source, {"intra_op_num_threads": 2}, pack=pack)
    assert isinstance(session, PackedSession)
    assert session.get_session_options().intra_op_num_threads == 2


def test_who_wants_another_optimisation_gets_the_original(source: Path, pack: Pack) -> None:
    level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    assert type(open_session(source, {"graph_optimization_level": level}, pack=pack)) is onnxruntime.InferenceSession


def test_a_graph_that_cannot_be_opened_gives_way_to_the_original(
    source: Path, pack: Pack, capsys: pytest.CaptureFixture[str]
) -> None:
    (pack.folder / "model.onnx").write_bytes(b"of another version")
    session = open_session(source, {}, pack=pack)
    assert type(session) is onnxruntime.InferenceSession
    assert "the packed model cannot be used" in capsys.readouterr().err


def test_a_data_file_that_was_cut_is_an_error_and_not_a_signal(source: Path, pack: Pack) -> None:
    os.truncate(pack.path(0), 4096)
    with pytest.raises(WeightsCorrupt, match="has 4096 bytes"):
        open_session(source, {}, pack=pack)


def test_weights_are_read_where_they_are_mapped(source: Path, pack: Pack) -> None:
    mapped = Mapped(pack.path(0), pack.index.files[0].size_bytes)
    session = open_session(source, {}, pack=pack, mapped=mapped)
    with pytest.raises(BufferError):  # the session's views hold it
        mapped.close()
    lines = [line for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(str(pack.path(0)))]
    assert [line.split()[1] for line in lines] == ["r--s"]  # and onnxruntime has made none of its own
    answer(session)


def test_a_model_larger_than_the_memory_of_its_function(tmp_path: Path) -> None:
    """RLIMIT_DATA is what an instance may use; a mapping by onnxruntime itself would count."""
    weights = [numpy_helper.from_array(np.ones((2048, 2048), np.float32), f"w{number}") for number in range(6)]
    names = ["x", *(f"m{number}" for number in range(5)), "y"]
    nodes = [helper.make_node("MatMul", [names[n], f"w{n}"], [names[n + 1]]) for n in range(6)]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2048]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "large", ends[:1], ends[1:], weights)  # 96 MiB
    source = tmp_path / "large.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), source)
    (tmp_path / "pack").mkdir()
    pack_onnx(source, tmp_path / "pack", key="k1", source_sha256="0" * 64)
    program = """
        import re, resource, sys, pathlib
        import numpy as np
        from rewarm.weights.format import open_pack
        from rewarm.worker.sessions import has_room, open_session

        source = pathlib.Path(sys.argv[1])
        used = 1024 * int(re.search(r"VmData:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1])
        resource.setrlimit(resource.RLIMIT_DATA, (used + (48 << 20), used + (48 << 20)))
        session = open_session(source, {}, pack=open_pack(source.parent / "pack", source.parent))
        x = np.zeros((1, 2048), np.float32)
        for _ in range(40):
            assert session.run(None, {"x": x})[0].sum() == 0
        session.swap.thread.join()
        print(session.swap.full, has_room(96 << 20), has_room(1 << 20))
    """
    assert run_program(program, source).split() == ["None", "False", "True"]


def test_a_warmed_up_runtime_forks(source: Path, pack: Pack) -> None:
    program = """
        import os, sys, pathlib
        import numpy as np
        from rewarm import kernel
        from rewarm.weights.format import open_pack
        from rewarm.worker.sessions import open_session, warm_up

        warm_up()
        assert kernel.thread_count() == 1, kernel.thread_count()
        for _ in range(2):
            child = os.fork()
            if child == 0:
                source = pathlib.Path(sys.argv[1])
                session = open_session(source, {}, pack=open_pack(source.parent / "pack", source.parent))
                session.run(None, {"x": np.ones((5, 64), np.float32), "ids": np.arange(5)})
                os._exit(7)
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    assert run_program(program, source).split() == ["7", "7"]


def test_after_enough_runs_a_full_session_takes_over(source: Path, pack: Pack) -> None:
    session = PackedSession(pack, None, {})
    expected = answer(session)
    assert session.swap.thread is None
    for _ in range(31):
        answer(session)
    assert session.swap.thread is not None
    session.swap.thread.join()
    assert session.swap.full is not None and session.swap.full.get_inputs()[0].name == "x"
    np.testing.assert_allclose(answer(session), expected, rtol=1e-5, atol=1e-5)
    values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in FEEDS.items()}
    np.testing.assert_allclose(session.run_with_ort_values(["y"], values)[0].numpy(), expected, rtol=1e-5, atol=1e-5)


def test_runs_in_many_threads_while_it_takes_over(source: Path, pack: Pack) -> None:
    session = PackedSession(pack, None, {})
    expected, wrong = answer(session), []

    def work() -> None:
        for _ in range(100):
            if not np.allclose(answer(session), expected, rtol=1e-5, atol=1e-5):
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert session.swap.thread is not None
    session.swap.thread.join()
    assert session.swap.full is not None


def test_repack_false_keeps_the_mapped_session(source: Path, pack: Pack) -> None:
    session = open_session(source, {"repack": False}, pack=pack)
    assert isinstance(session, PackedSession)
    for _ in range(40):
        answer(session)
    assert (session.swap.thread, session.swap.full) == (None, None)
    answer(open_session(source, {"repack": False}))  # without a pack it has nothing to say


def run_times(swap: Swap, count: int) -> list[Any]:
    seen = []
    for _ in range(count):
        with swap as full:
            seen.append(full)
    return seen


def test_swap_builds_once_after_its_runs() -> None:
    built: list[str] = []

    def build() -> str:
        built.append("full")
        return "full"

    swap = Swap(build, runs=3, idle_runs=2, idle_s=3600.0)
    run_times(swap, 2)
    assert swap.thread is not None and swap.thread.is_alive() and not built
    run_times(swap, 1)
    swap.thread.join()
    assert run_times(swap, 5) == ["full"] * 5
    assert built == ["full"]


def test_swap_builds_in_an_idle_moment_and_not_while_a_run_lasts() -> None:
    swap = Swap(lambda: "full", runs=1000, idle_runs=2, idle_s=0.0)
    with swap:  # lasts
        run_times(swap, 2)
        assert swap.thread is not None
        assert swap.full is None
    swap.thread.join()
    assert run_times(swap, 1) == ["full"]


def test_swap_that_cannot_build_leaves_everything_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    def build() -> object:
        raise RuntimeError("std::bad_alloc")

    for builder in (build, lambda: None):
        swap = Swap(builder, runs=1)
        run_times(swap, 1)
        assert swap.thread is not None
        swap.thread.join()
        thread = swap.thread
        assert run_times(swap, 50) == [None] * 50
        assert swap.thread is thread
    assert "std::bad_alloc" in capsys.readouterr().err
