"""The streaming experiment's files: `streaming.json`, `streaming.md` and `streaming.svg`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any

from rewarm.bench.report import Verdict, markdown_table, write_files
from rewarm.bench.streaming_rows import OURS, Result, Row
from rewarm.bench.zoo import CATALOGUE
from rewarm.units import human_bytes

TITLES = ("model", "engine and mode", "cache", "pinned %", "first answer ms", "bubble ms", "predicted ms", "private MB",
          "read MB")  # fmt: skip

#: model → limits of streamed / read-all, and of streamed with half of it pinned / warm.
_GOALS = {"bert-base": (0.5, 1.15), "llama-1b": (0.35, 1.5)}
_ABOVE_LIMIT_MAX = 1.2
_MISPREDICTED_MAX = 0.2
_PRIVATE_MB_MAX = 40.0
_SESSION_MS_MAX, _OF_DEFAULT_MAX = 30.0, 0.25

_METHOD = """\
Each figure is the median of {repeats} starts. A start is a process forked from one that has the engine imported, with
one compute thread, until its first answer; building the module is in it. Cold: the model's files, and nothing else,
were dropped from the page cache; warm: they are in it. Within a round every case of a model runs once. Random weights
(seed {seed}), one input; the answers of all ways to load a model were compared, whole tensors: bit for bit on torch,
within 1e-4 of the largest value on onnxruntime.

`read-all` reads the file into memory of its own, then runs (onnxruntime: the default session); `on-demand` maps it
and lets page faults read (onnxruntime: the product's session without its loader); `streamed` is the product, with the
first so many percent of what it streams pinned; `streamed-suffix` has the last ones pinned, as a control; `warm` is
`on-demand` with all in memory. All loaders on torch fill a module that was built without values, as the product
builds it. Bubble: what the hooks of a streamed start waited; for the others, what the answer came later than warm.
Predicted: the closed form with this run's bandwidth and, of a start that streams, the
computing times of the others that stream, with more or less pinned, and their waits for rows of tables. MB are
2**20 bytes."""


def verdicts(result: Result) -> list[Verdict]:
    """The goals of the Model layer that this experiment can judge, as ratios of this run's medians."""
    found: list[Verdict | None] = []
    for model in result.settings.models:
        found += _of_torch(result, model)
    found += _of_onnxruntime(result)
    return [verdict for verdict in found if verdict is not None]


def _of_torch(result: Result, model: str) -> Iterator[Verdict | None]:
    cold, warm_cache, warm = (
        result.row(model, "torch", *case) for case in (("streamed", "cold"), ("streamed", "warm"), ("warm", "warm"))
    )
    half = result.row(model, "torch", "streamed", "cold", 50)
    if model in _GOALS:
        of_read_all, of_warm = _GOALS[model]
        read_all = result.row(model, "torch", "read-all", "cold")
        yield _ratio(f"{model}, cold: streamed / read-all", cold, read_all, of_read_all)
        yield _ratio(f"{model}: streamed with 50 % pinned / warm", half, warm, of_warm)
    for cache, ours in (("cold", cold), ("warm", warm_cache)):
        other = _fastest(result, model, cache)
        yield _ratio(f"{model}, {cache}: streamed / the fastest other loader", ours, other, 1.0)
    if cold is not None:
        limit_ms = result.models[model].limit_ms
        yield _at_most(f"{model}, cold: streamed / limit", cold.ttfi_ms / limit_ms, _ABOVE_LIMIT_MAX)
    off = [
        (abs(row.predicted_ms / row.ttfi_ms - 1), row.case)
        for row in result.rows
        if row.case.model == model and row.case.mode in OURS and row.predicted_ms is not None
    ]
    if off:
        share, case = max(off)
        told = f"{share:.0%} ({case.mode}, {case.cache}, {case.pinned_pct} %)"
        yield Verdict(f"{model}: predictions of streamed starts within {_MISPREDICTED_MAX:.0%}", told,
                      share <= _MISPREDICTED_MAX)  # fmt: skip
    if model == "bert-base" and cold is not None:
        yield Verdict(f"{model}: private memory of a streamed start ≤ {_PRIVATE_MB_MAX:g} MB",
                      f"{cold.private_mb:.0f} MB", cold.private_mb <= _PRIVATE_MB_MAX)  # fmt: skip


def _of_onnxruntime(result: Result) -> Iterator[Verdict | None]:
    model = "bert-base"
    default, mapped, streamed = (
        result.row(model, "onnxruntime", mode, "cold") for mode in ("read-all", "on-demand", "streamed")
    )
    if mapped is not None:
        yield Verdict(f"{model} on onnxruntime, cold: session ready within {_SESSION_MS_MAX:g} ms",
                      f"{mapped.load_ms:.0f} ms", mapped.load_ms <= _SESSION_MS_MAX)  # fmt: skip
    yield _ratio(f"{model} on onnxruntime, cold: streamed / default session", streamed, default, _OF_DEFAULT_MAX)


def _fastest(result: Result, model: str, cache: str) -> Row | None:
    """Of the loaders that are not ours."""
    ours = {*OURS, "read-all", "on-demand", "warm"}
    others = [
        row for row in result.rows
        if row.case[:2] == (model, "torch") and row.case.cache == cache and row.case.mode not in ours
    ]  # fmt: skip
    return min(others, key=lambda row: row.ttfi_ms, default=None)


def _ratio(what: str, part: Row | None, whole: Row | None, limit: float) -> Verdict | None:
    if part is None or whole is None:
        return None
    names = f" ({whole.case.mode})" if "loader" in what else ""
    return _at_most(what + names, part.ttfi_ms / whole.ttfi_ms, limit)


def _at_most(what: str, ratio: float, limit: float) -> Verdict:
    return Verdict(f"{what} ≤ {limit:g}", f"{ratio:.2f}", ratio <= limit)


def cells(row: Row) -> list[str]:
    """The row as TITLES names its columns."""
    case = row.case
    return [
        case.model, f"{case.engine} {case.mode}", case.cache, str(case.pinned_pct), f"{row.ttfi_ms:.0f}",
        f"{row.bubble_ms:.0f}", "" if row.predicted_ms is None else f"{row.predicted_ms:.0f}",
        f"{row.private_mb:.0f}", f"{row.read_mb:.0f}",
    ]  # fmt: skip


def to_json(result: Result) -> dict[str, Any]:
    """`rows` has the published keys; what else was seen of each is in `details`, in the same order."""
    return {
        "experiment": "streaming", "machine": dict(result.machine), "settings": result.settings.to_json(),
        "left_out": dict(result.left_out), "rows": [row.to_json() for row in result.rows],
        "details": [row.detail() for row in result.rows],
        "models": {name: asdict(facts) for name, facts in result.models.items()},
        "timelines": [timeline.to_json() for timeline in result.timelines],
        "verdicts": [asdict(verdict) for verdict in verdicts(result)],
    }  # fmt: skip


def to_markdown(result: Result) -> str:
    machine, settings = result.machine, result.settings
    lines = [
        "# Streaming: answers while the model is still loading", "",
        f"Machine: {machine['cpu']}, {machine['cores']} cores, {human_bytes(machine['memory_bytes'])}, "
        f"{machine['system']} {machine['kernel']}, Python {machine['python']}; load average before it "
        f"{machine['load_average_1min']:g}.", "",
        *(["*A `--quick` run: two of the four models.*", ""] if settings.quick else []),
        *_METHOD.format(repeats=settings.repeats, seed=settings.seed).splitlines(), "",
        *markdown_table(
            ["expected", "measured", "holds"],
            [[one.claim, one.measured, "yes" if one.holds else "**no**"] for one in verdicts(result)],
        ), "",
        *_models(result), "",
        *markdown_table(list(TITLES), [cells(row) for row in result.rows]), "",
        *(f"Left out: {what}: {why}." for what, why in result.left_out.items()),
        *([""] if result.left_out else []),
        "![First answers, and two starts layer by layer](streaming.svg)", "",
    ]  # fmt: skip
    return "\n".join(lines)


def _models(result: Result) -> Sequence[str]:
    titles = ["model", "shape", "weights MB", "streamed MB", "MB/s", "computing ms", "building ms", "limit ms"]
    rows = []
    for name, facts in result.models.items():
        rows.append([name, CATALOGUE[name].text, *(f"{figure:.0f}" for figure in astuple(facts))])
    return [
        *markdown_table(titles, rows), "",
        "Limit: max(building + all computing, reading what is streamed + computing the last layer); no order of "
        "loading beats it.",
    ]  # fmt: skip


def write(result: Result, folder: Path) -> list[Path]:
    """Writes the three files into `folder`, made if need be, and returns their paths."""
    from rewarm.bench.streaming_plot import streaming_svg

    return write_files(folder, "streaming", to_json(result), to_markdown(result), streaming_svg(result))
