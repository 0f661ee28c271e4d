"""The streaming experiment's parts that need no engine: its cases, its pages, what it predicts, compares and writes."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from click.testing import CliRunner

from rewarm.bench import streaming_files as files
from rewarm.bench import streaming_report
from rewarm.bench.experiment_streaming import LOADERS, plan
from rewarm.bench.streaming_answers import Answers
from rewarm.bench.streaming_files import ModelFiles
from rewarm.bench.streaming_predict import Learnt
from rewarm.bench.streaming_rows import QUICK, Case, ModelFacts, Result, Row, Settings, Timeline
from rewarm.bench.streaming_runtime import CaseFailed, Runtime
from rewarm.cli.main import rewarm
from rewarm.errors import SystemFault
from rewarm.units import MB
from rewarm.weights.format import Index, Pack, Span, open_pack
from rewarm.weights.writer import LayerIn, TensorIn, write_pack

MODES = {"read-all", "on-demand", "streamed", "streamed-suffix", "warm"}
KEYS = ["model", "engine", "mode", "cache", "pinned_pct", "ttfi_ms", "bubble_ms", "predicted_ms", "private_mb",
        "read_mb"]  # fmt: skip
BERT = replace(QUICK, models=("bert-base",))


def make_pack(folder: Path, sizes_mb: list[int], on_demand: tuple[int, ...] = ()) -> Pack:
    """Layers `0`, `1`, … of so many MB each; those in `on_demand` are tables."""
    layers = []
    for number, size_mb in enumerate(sizes_mb):
        data = bytes([number + 1]) * (size_mb * MB)
        tensor = TensorIn(f"{number}.weight", "U8", (len(data),), lambda data=data: data)  # type: ignore[misc]
        layers.append(LayerIn(str(number), (tensor,), number in on_demand, 0.01))
    folder.mkdir(exist_ok=True)
    write_pack(folder, folder, layers, key="tiny", order="traced", source_sha256="")
    return open_pack(folder, folder)


def row(mode: str, cache: str, ttfi_ms: float, pinned_pct: int = 0, engine: str = "torch", model: str = "bert-base",
        predicted_ms: float | None = None, load_ms: float = 20.0) -> Row:  # fmt: skip
    case = Case(model, engine, mode, cache, pinned_pct)
    return Row(case, ttfi_ms, load_ms, 1.0, predicted_ms, 12.0, 300.0, (ttfi_ms,))


def result(*rows: Row, settings: Settings = BERT) -> Result:
    described = {"cpu": "A", "cores": 2, "memory_bytes": 1 << 34, "system": "Linux", "kernel": "6", "python": "3.11",
                 "load_average_1min": 0.5}  # fmt: skip
    facts = dict.fromkeys(settings.models, ModelFacts(417.0, 327.0, 2000.0, 75.0, 20.0, 140.0))
    timelines = [
        Timeline(model, pct, ("a", "b"), ((0.0, 30.0), (30.0, 90.0)), ((35.0, 40.0), (90.0, 120.0)), 121.0)
        for model in settings.models
        for pct in (0, 50)
    ]
    return Result(settings, described, rows, facts, timelines, {"tensorizer": "not installed"})


GOOD = (
    row("read-all", "cold", 400.0, predicted_ms=390.0), row("on-demand", "cold", 230.0),
    row("streamed", "cold", 150.0, predicted_ms=140.0), row("streamed", "cold", 120.0, 25, predicted_ms=110.0),
    row("streamed", "cold", 100.0, 50, predicted_ms=95.0),
    row("streamed-suffix", "cold", 140.0, 50, predicted_ms=135.0),
    row("warm", "warm", 95.0, predicted_ms=95.0), row("streamed", "warm", 96.0, predicted_ms=95.0),
    row("safetensors", "cold", 180.0), row("safetensors", "warm", 110.0), row("torch.load", "cold", 380.0),
    row("read-all", "cold", 700.0, engine="onnxruntime"), row("on-demand", "cold", 200.0, engine="onnxruntime"),
    row("streamed", "cold", 150.0, engine="onnxruntime"),
)  # fmt: skip


# ---------------------------------------------------------------- cases


def test_every_way_is_measured_cold_and_the_loaders_warm_as_well() -> None:
    cases = plan("bert-base", [*LOADERS, "tensorizer"], onnx=True)
    assert len(cases) == len(set(cases))
    torch = {case[2:] for case in cases if case.engine == "torch"}
    for way in [("read-all", 0), ("on-demand", 0), ("streamed", 0), ("streamed", 25), ("streamed", 50),
                ("streamed-suffix", 50)]:  # fmt: skip
        assert (way[0], "cold", way[1]) in torch
    for loader in (*LOADERS, "tensorizer", "read-all", "streamed"):
        assert {(loader, "cold", 0), (loader, "warm", 0)} <= torch
    assert ("warm", "warm", 0) in torch
    onnx = [case for case in cases if case.engine == "onnxruntime"]
    assert {case.mode for case in onnx} <= MODES
    assert [case.pinned_pct for case in onnx if case.mode == "streamed"] == [0, 25, 50]
    assert not [case for case in plan("minilm", LOADERS, onnx=False) if case.engine == "onnxruntime"]


def test_quick_keeps_two_models_and_enough_repeats() -> None:
    assert QUICK.models == ("bert-base", "minilm") and QUICK.repeats >= 5
    assert Settings().models == ("bert-base", "llama-1b", "resnet-50", "minilm") and Settings().repeats >= 5


def test_a_case_reads_its_own_form_of_the_model(tmp_path: Path) -> None:
    pack = make_pack(tmp_path / "pack", [1])
    own = ModelFiles(Path("w"), Path("p"), pack, Path("t"), Path("o"))
    modes = ("read-all", "torch.load", "tensorizer", "safetensors", "streamed", "warm")
    read = {mode: own.of(Case("minilm", "torch", mode, "cold")) for mode in modes}
    assert (read["read-all"], read["safetensors"]) == ([Path("w")], [Path("w")])
    assert (read["torch.load"], read["tensorizer"]) == ([Path("p")], [Path("t")])
    assert read["streamed"] == read["warm"] == [pack.path(0)]
    assert own.of(Case("minilm", "onnxruntime", "read-all", "cold")) == [Path("o")]


# ---------------------------------------------------------------- pages


@pytest.mark.parametrize(
    ("size_bytes", "last", "wanted"),
    [
        (0, False, []),
        (6, False, [Span(0, 0, 6)]),
        (10, False, [Span(0, 0, 10)]),
        (13, False, [Span(0, 0, 10), Span(1, 5, 8)]),
        (99, False, [Span(0, 0, 10), Span(1, 5, 9)]),
        (3, True, [Span(1, 6, 9)]),
        (7, True, [Span(1, 5, 9), Span(0, 7, 10)]),
    ],
)
def test_a_part_is_the_first_or_the_last_of_what_is_streamed(size_bytes: int, last: bool, wanted: list[Span]) -> None:
    assert files.part([Span(0, 0, 10), Span(1, 5, 9)], size_bytes, last=last) == wanted


def test_what_is_locked_stays_and_the_rest_goes(tmp_path: Path) -> None:
    pack = make_pack(tmp_path / "pack", [8, 8, 8, 8])
    path, size_bytes = pack.path(0), pack.index.files[0].size_bytes
    with path.open("rb") as file:
        os.fsync(file.fileno())
    try:
        files.evict([path])
    except SystemFault as error:
        pytest.skip(f"the temporary folder is in memory: {error}")
    streamed = pack.index.streamed_spans()
    half = files.part(streamed, 16 * MB)
    try:
        with files.locked(pack, half):
            files.read_in([path])
            assert files.resident_bytes(path, size_bytes) >= size_bytes
            files.evict([path], kept=16 * MB)
            assert 16 * MB <= files.resident_bytes(path, size_bytes) < 20 * MB
    except SystemFault as error:
        pytest.skip(str(error))
    files.evict([path])
    assert files.bandwidth_bytes_s(pack) > 0
    assert files.resident_bytes(path, size_bytes) >= 32 * MB


def test_what_cannot_be_dropped_is_told(tmp_path: Path) -> None:
    pack = make_pack(tmp_path / "pack", [4])
    try:
        with files.locked(pack, pack.index.streamed_spans()):  # noqa: SIM117 - what is refused here is another thing
            with pytest.raises(SystemFault, match="stay in the page cache"):
                files.evict([pack.path(0)])
    except SystemFault as error:
        pytest.skip(str(error))


# ---------------------------------------------------------------- predictions


def learnt(
    index: Index,
    bandwidth_mb_s: float,
    compute_s: list[float],
    setup_s: float,
    caches: Sequence[str] = ("warm", "cold"),
) -> Learnt:
    found = Learnt(index)
    for factor in (0.5, 1.0, 7.0):  # medians: an outlier says nothing
        found.bandwidth(bandwidth_mb_s * MB * factor)
        for cache in caches:
            found.passed(Case("m", "torch", "streamed", cache), {"compute_s": [s * factor for s in compute_s]},
                         setup_s * 1e3 * factor)  # fmt: skip
    found.passed(Case("m", "torch", "streamed-suffix", "cold", 50), {"compute_s": [9.0] * len(compute_s)}, 9e3)
    found.passed(Case("m", "torch", "safetensors", "warm"), {}, 9e3)
    return found


def test_predictions_follow_the_closed_form(tmp_path: Path) -> None:
    index = make_pack(tmp_path / "pack", [2, 4, 4], on_demand=(0,)).index
    known = learnt(index, 100.0, [0.001, 0.01, 0.02], 0.005)

    def ms(mode: str, cache: str = "cold", pinned_pct: int = 0) -> float | None:
        return known.predicted_ms(Case("m", "torch", mode, cache, pinned_pct))

    rest_ms = 5 + 1 + 10 + 20
    assert ms("warm", "warm") == ms("streamed", "warm") == pytest.approx(rest_ms)
    assert ms("read-all") == pytest.approx(100 + rest_ms, rel=1e-3)  # 10 MB at 100 MB/s, then everything else
    assert ms("streamed") == pytest.approx(40 + 40 + 20, rel=1e-3)  # the second layer is there after 80 ms
    assert ms("streamed", pinned_pct=50) == pytest.approx(40 + 20, rel=1e-3)
    assert ms("streamed-suffix", pinned_pct=50) == pytest.approx(40 + 10 + 20, rel=1e-3)
    assert ms("on-demand") is ms("safetensors") is ms("safetensors", "warm") is ms("read-all", "warm") is None


def test_predictions_of_streamed_starts_count_on_those_that_were(tmp_path: Path) -> None:
    """Slower beside a reader, and with rows of the table to be read."""
    index = make_pack(tmp_path / "pack", [2, 4, 4], on_demand=(0,)).index
    known = learnt(index, 1e6, [0.001, 0.01, 0.02], 0.005, ["warm"])
    cold = Case("m", "torch", "streamed", "cold", 50)
    for rows_s in (0.007, 0.009, 0.5):
        other = cold._replace(pinned_pct=25)
        known.passed(other, {"compute_s": [0.002, 0.01, 0.03], "rows_s": [[0, rows_s]]}, 6.0)
        known.passed(cold, {"compute_s": [9.0, 9.0, 9.0]}, 9e3)  # no case is predicted from its own starts
    assert known.predicted_ms(cold) == pytest.approx(6 + 2 + 9 + 10 + 30, rel=1e-3)
    assert known.predicted_ms(Case("m", "torch", "streamed", "warm", 0)) == pytest.approx(5 + 1 + 10 + 20)


def test_the_limit_is_computing_or_reading(tmp_path: Path) -> None:
    index = make_pack(tmp_path / "pack", [4, 4]).index
    slow_disk, slow_cpu = (learnt(index, mb_s, [0.01, 0.02], 0.005).facts() for mb_s in (100.0, 1e6))
    assert slow_disk.limit_ms == pytest.approx(80 + 20, rel=1e-3)
    assert slow_cpu.limit_ms == pytest.approx(5 + 30)
    assert (slow_cpu.total_mb, slow_cpu.streamed_mb) == (pytest.approx(8), pytest.approx(8))


# ---------------------------------------------------------------- answers


def test_torch_answers_bit_for_bit_and_onnxruntime_nearly(tmp_path: Path) -> None:
    path, answers = tmp_path / "answer", Answers("m")

    def check(engine: str, mode: str, values: list[float]) -> None:
        path.write_bytes(np.array(values, np.float32).tobytes())
        answers.check(engine, mode, str(values), path)

    check("torch", "read-all", [1.0, 2.0])
    check("torch", "streamed", [1.0, 2.0])
    with pytest.raises(SystemFault, match=r"m on torch: streamed answers otherwise than read-all; there is no report"):
        check("torch", "streamed", [1.0, 2.000001])
    check("onnxruntime", "read-all", [1.0, -200.0])
    check("onnxruntime", "streamed", [1.01, -200.01])
    for wrong in ([1.1, -200.0], [1.0], [float("nan"), -200.0]):
        with pytest.raises(SystemFault, match="on onnxruntime: streamed answers otherwise"):
            check("onnxruntime", "streamed", wrong)


# ---------------------------------------------------------------- what is written


def test_rows_have_the_published_keys_in_order() -> None:
    told = streaming_report.to_json(result(*GOOD))
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    for one in told["rows"]:
        assert list(one) == KEYS
    assert {one["mode"] for one in told["rows"]} <= {*MODES, *LOADERS}
    assert [one["mode"] for one in told["details"]] == [one["mode"] for one in told["rows"]]


def test_goals_are_ratios_of_the_table() -> None:
    found = {verdict.claim: verdict for verdict in streaming_report.verdicts(result(*GOOD))}
    measured = {claim: verdict.measured for claim, verdict in found.items()}
    assert measured == {
        "bert-base, cold: streamed / read-all ≤ 0.5": "0.38",
        "bert-base: streamed with 50 % pinned / warm ≤ 1.15": "1.05",
        "bert-base, cold: streamed / the fastest other loader (safetensors) ≤ 1": "0.83",
        "bert-base, warm: streamed / the fastest other loader (safetensors) ≤ 1": "0.87",
        "bert-base, cold: streamed / limit ≤ 1.2": "1.07",
        "bert-base: predictions of streamed starts within 20%": "8% (streamed, cold, 25 %)",
        "bert-base: private memory of a streamed start ≤ 40 MB": "12 MB",
        "bert-base on onnxruntime, cold: session ready within 30 ms": "20 ms",
        "bert-base on onnxruntime, cold: streamed / default session ≤ 0.25": "0.21",
    }
    assert all(verdict.holds for verdict in found.values())


@pytest.mark.parametrize(
    ("worse", "claim"),
    [
        (row("streamed", "cold", 201.0), "streamed / read-all"),
        (row("streamed", "cold", 110.0, 50), "50 % pinned / warm"),
        (row("safetensors", "cold", 149.0), "cold: streamed / the fastest"),
        (row("safetensors", "warm", 95.0), "warm: streamed / the fastest"),
        (row("streamed", "cold", 169.0), "streamed / limit"),
        (row("streamed", "cold", 100.0, 25, predicted_ms=121.0), "predictions"),
        (row("on-demand", "cold", 200.0, engine="onnxruntime", load_ms=31.0), "session ready"),
        (row("streamed", "cold", 176.0, engine="onnxruntime"), "default session"),
    ],
)
def test_a_goal_that_is_missed_is_told(worse: Row, claim: str) -> None:
    rows = [worse if one.case == worse.case else one for one in GOOD]
    failed = [verdict.claim for verdict in streaming_report.verdicts(result(*rows)) if not verdict.holds]
    assert any(claim in one for one in failed), failed


def test_without_onnxruntime_and_other_loaders_there_are_no_goals_for_them() -> None:
    rows = [one for one in GOOD if one.case.engine == "torch" and one.case.mode in MODES]
    claims = " ".join(verdict.claim for verdict in streaming_report.verdicts(result(*rows)))
    assert "onnxruntime" not in claims and "loader" not in claims and "read-all" in claims


def test_the_files(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    paths = streaming_report.write(result(*GOOD), tmp_path / "out")
    assert [path.name for path in paths] == ["streaming.json", "streaming.md", "streaming.svg"]
    assert ElementTree.parse(paths[2]).getroot().tag == "{http://www.w3.org/2000/svg}svg"
    page = paths[1].read_text()
    assert "| bert-base | torch streamed | cold | 50 | 100 |" in page
    assert "Left out: tensorizer: not installed." in page and "--quick" in page
    written = [path.read_bytes() for path in paths]
    assert [path.read_bytes() for path in streaming_report.write(result(*GOOD), tmp_path / "again")] == written


# ---------------------------------------------------------------- processes


def test_a_runtime_that_cannot_start_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CaseFailed, match="the paper-tape runtime of the experiment ended"), Runtime("paper-tape"):
        pass
    assert "paper-tape" in capfd.readouterr().err


def test_help_says_what_it_takes() -> None:
    said = CliRunner().invoke(rewarm, ["experiment", "streaming", "--help"])
    assert said.exit_code == 0
    for word in ("--quick", "--models", "four minutes", "ulimit -l"):
        assert word in " ".join(said.output.split()), said.output
