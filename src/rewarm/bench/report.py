"""The batching experiment's files: `batching.json`, `batching.md` and `batching.svg`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rewarm.bench import published
from rewarm.bench.experiment_batching import Result
from rewarm.units import human_bytes


@dataclass(frozen=True, slots=True)
class Verdict:
    """One expectation of the experiment and what came of it."""

    claim: str
    measured: str
    holds: bool


def verdicts(result: Result) -> list[Verdict]:
    static, dynamic = result.row("static", "bursty"), result.row("dynamic", "bursty")
    fast, none = result.row("slo-latency", "bursty"), result.row("none", "bursty")
    cheap = result.row("slo-cost", "bursty")
    within = [row for row in result.rows if row.policy.startswith("slo-")]
    worst = min(row.slo_pct for row in within)
    return [
        _at_most("bursty p99 of dynamic / static", dynamic.p99_ms, static.p99_ms, 0.5),
        _at_most("bursty p99 of slo-latency / dynamic", fast.p99_ms, dynamic.p99_ms, 0.5),
        _at_most("bursty cost of slo-cost / none", cheap.cost_usd, none.cost_usd, 0.6),
        Verdict("both slo modes within the SLO ≥ 99.9 %", f"{worst:.2f} %", worst >= 99.9),
    ]


def to_json(result: Result) -> dict[str, Any]:
    """`rows` has the published keys; what else was seen of each row is in `details`, in the same order."""
    return {
        "experiment": "batching",
        "machine": dict(result.machine),
        "settings": result.settings.to_json(),
        "rows": [row.to_json() for row in result.rows],
        "details": [row.detail() for row in result.rows],
        "verdicts": [asdict(verdict) for verdict in verdicts(result)],
        "published": {"source": published.CITATION, "rows": [asdict(row) for row in published.ROWS]},
    }


def to_markdown(result: Result) -> str:
    settings, machine = result.settings, result.machine
    burst = settings.burst
    lines = [
        "# Batching: the published experiment on rewarm",
        "",
        f"Machine: {machine['cpu']}, {machine['cores']} cores, {human_bytes(machine['memory_bytes'])}, "
        f"{machine['system']} {machine['kernel']}, Python {machine['python']}.",
        "",
        f"Each row: {settings.duration_s:g} s of load on the digits model, one instance at most, "
        f"{settings.memory_mb} MB, timeout {settings.timeout_s:g} s, SLO {settings.slo_s * 1e3:g} ms. "
        f"Uniform: {settings.rate:g} requests/s, evenly spaced. "
        f"Bursty: {burst.on_rate:g}/s for {burst.on_s:g} s, then {burst.off_rate:g}/s for {burst.off_s:g} s, "
        f"Poisson within each phase, {burst.mean_rate:g}/s on average, seed {settings.seed}.",
        "",
        "Latency counts from the intended send time; percentiles are nearest-rank; an error is an SLO miss. Every row "
        "begins without an instance while the Lang layer is alive, and its start is in the figures.",
        "",
        *_measured(result),
        "",
        *_expectations(verdicts(result)),
        "",
        *_paper(),
        "",
        "Cost: " + settings.to_json()["billing"] + ".",
        "",
    ]
    if settings.quick:
        lines.insert(2, "*A `--quick` run: the rows are short, and p99 is their slowest request.*")
        lines.insert(3, "")
    return "\n".join(lines)


def write(result: Result, folder: Path) -> list[Path]:
    """Writes the three files into `folder`, made if need be, and returns their paths."""
    from rewarm.bench.plots import batching_svg

    return write_files(folder, "batching", to_json(result), to_markdown(result), batching_svg(result))


def write_files(folder: Path, name: str, data: Any, markdown: str, svg: str, *, indent: int = 2) -> list[Path]:
    """NAME.json, NAME.md and NAME.svg in `folder`, which is made if need be; their paths."""
    texts = {"json": json.dumps(data, indent=indent, ensure_ascii=False) + "\n", "md": markdown, "svg": svg}
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for kind, text in texts.items():
        paths.append(folder / f"{name}.{kind}")
        paths[-1].write_text(text, encoding="utf-8")
    return paths


def markdown_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The first two columns are words, the others figures."""
    rule = ["---" if column < 2 else "---:" for column in range(len(titles))]
    return ["| " + " | ".join(cells) + " |" for cells in [titles, rule, *rows]]


def _measured(result: Result) -> list[str]:
    titles = ["policy", "workload", "requests", "errors", "mean ms", "p50 ms", "p99 ms", "SLO %", "init ms",
              "mean batch", "cost $", "batches (size×calls)"]  # fmt: skip
    rows = [
        [
            row.policy, row.workload, str(row.requests), str(row.errors), f"{row.mean_ms:.1f}", f"{row.p50_ms:.1f}",
            f"{row.p99_ms:.1f}", f"{row.slo_pct:.2f}", f"{row.init_ms:.0f}", f"{row.mean_batch:.2f}",
            f"{row.cost_usd:.7f}", mix(row.batches),
        ]
        for row in result.rows
    ]  # fmt: skip
    return markdown_table(titles, rows)


def _expectations(found: Sequence[Verdict]) -> list[str]:
    rows = [[verdict.claim, verdict.measured, "yes" if verdict.holds else "**no**"] for verdict in found]
    return markdown_table(["expected", "measured", "holds"], rows)


def _paper() -> list[str]:
    titles = ["policy", "workload", "mean ms", "p50 ms", "p99 ms", "SLO %", "init ms", "cost $"]
    rows = [
        [
            row.policy, row.workload, f"{row.mean_ms:.1f}", f"{row.p50_ms:.1f}", f"{row.p99_ms:.1f}",
            f"{row.slo_pct:g}", f"{row.init_ms:.0f}", f"{row.cost_usd:.6f}",
        ]
        for row in published.ROWS
    ]  # fmt: skip
    return [
        "For comparison, not measured here. " + published.CITATION,
        "Its number of requests is not stated, so compare the shape of its costs and not their size.",
        "",
        *markdown_table(titles, rows),
    ]


def mix(batches: Mapping[int, int]) -> str:
    """{5: 12, 3: 1} → "3×1 5×12"."""
    return " ".join(f"{size}×{count}" for size, count in sorted(batches.items()))


def _at_most(what: str, part: float, whole: float, limit: float) -> Verdict:
    ratio = part / whole if whole else float("inf")
    # JSON knows no infinity, so the ratio travels as text.
    return Verdict(f"{what} ≤ {limit:g}", f"{ratio:.2f}", ratio <= limit)
