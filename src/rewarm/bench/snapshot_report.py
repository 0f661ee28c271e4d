"""The snapshot experiment's files: `snapshot.json`, `snapshot.md` and `snapshot.svg`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rewarm.bench.report import Verdict, markdown_table, write_files
from rewarm.bench.snapshot_rows import NATIVE, THROTTLED, Result, Row
from rewarm.bench.snapshot_throttle import BYTES_S, IOPS
from rewarm.units import human_bytes

TITLES = ("case", "storage", "first response ms", "min ms", "max ms", "major faults", "read MB", "runs")

#: The two that the goals are about, and what their time may be at most: (of which case, on which storage, what part).
_FAST = ("layered", "uffd")
_GOALS = (
    ("lazy-4k", THROTTLED, 1 / 7), ("lazy", THROTTLED, 1 / 15), ("cached", THROTTLED, 1.25), ("cached", NATIVE, 1.2),
)  # fmt: skip
_OF_COLD_BOOT_MAX = 1 / 40  # without KVM, where booting is emulated
_LOADING_SHARE_MAX = 0.1
_MAJOR_FAULTS_MAX = 20
_OF_PLAIN_PSS_MAX = 0.95

_METHOD = """\
A function with numpy, three dense layers and a table of 64 MB in a guest of {memory} MB. Every start is a new QEMU.
Before each the files of the snapshot, which mincore(2) saw gone, and the guest's images were dropped from the page
cache, and nothing else: QEMU itself stays cached. Within a round every case runs once, in an order that turns from
round to round; figures are medians, of {repeats} rounds. All answers to the same input were equal.

`cold-boot` boots, imports, constructs and answers. `lazy` maps the memory file and lets page faults read; `lazy-4k` is
the same without readahead and huge pages; `read-all` reads the whole file first; `prefetch` reads ahead, beside an
unmodified QEMU, what the record says; `layered` maps the loading set over it and reads that beside the running guest;
`uffd` has a pager copy it; `cached` is `lazy` with everything in the page cache. `other-input` is `layered` with an
input that was not recorded. `burst-same`: {clones} starts at once from one snapshot; `burst-different`: from {clones}
copies of it, which share nothing in the page cache; their figures are those of each clone. Throttled: {iops} reads and
{mb_s:.0f} MB (10**6) a second for all processes of a start, by a cgroup: it limits the rate, lets some through at once,
and adds no latency. MB are 2**20 bytes."""


def verdicts(result: Result) -> list[Verdict]:
    """The goals as ratios of this run's medians, as far as this run can judge them."""
    return [*_times(result), *_sizes(result)]


def _times(result: Result) -> Iterator[Verdict]:
    for name, storage, limit in _GOALS:
        whole = result.row(name, storage)
        for policy in _FAST:
            part = result.row(policy, storage)
            if part is not None and whole is not None:
                yield _at_most(f"{storage}: {policy} / {name}", part, whole, limit)
    cold = result.row("cold-boot", NATIVE)
    for policy in _FAST:
        part = result.row(policy, NATIVE)
        if part is not None and cold is not None and result.guest["accel"] == "tcg":
            yield _at_most(f"{NATIVE}: {policy} / cold-boot", part, cold, _OF_COLD_BOOT_MAX)


def _sizes(result: Result) -> Iterator[Verdict]:
    for storage, facts in result.snapshots.items():
        share = facts.loading_share
        yield Verdict(f"{storage}: loading set / memory that is not zero ≤ {_LOADING_SHARE_MAX:.0%}", f"{share:.1%}",
                      share <= _LOADING_SHARE_MAX)  # fmt: skip
    for policy in _FAST:
        found = [row for row in result.rows if row.case.name == policy]
        if found:
            worst = max(row.major_faults for row in found)
            yield Verdict(f"{policy}: major faults per restore ≤ {_MAJOR_FAULTS_MAX}", f"{worst:g}",
                          worst <= _MAJOR_FAULTS_MAX)  # fmt: skip
    layered_mb, plain_mb = result.pss_mb("layered"), result.pss_mb("lazy")
    if layered_mb is not None and plain_mb is not None:
        ratio = layered_mb / plain_mb
        yield Verdict(f"PSS of {result.settings.clones} clones: layered / plain mapping ≤ {_OF_PLAIN_PSS_MAX:g}",
                      f"{ratio:.3f}", ratio <= _OF_PLAIN_PSS_MAX)  # fmt: skip


def _at_most(what: str, part: Row, whole: Row, limit: float) -> Verdict:
    ratio = part.first_response_ms / whole.first_response_ms
    if limit < 1:
        return Verdict(f"{what} ≤ 1/{1 / limit:.0f}", f"1/{1 / ratio:.1f}", ratio <= limit)
    return Verdict(f"{what} ≤ {limit:g}", f"{ratio:.2f}", ratio <= limit)


def cells(row: Row) -> list[str]:
    """The row as TITLES names its columns."""
    min_ms, max_ms = row.span_ms
    return [
        row.case.name, row.case.storage, f"{row.first_response_ms:.0f}", f"{min_ms:.0f}", f"{max_ms:.0f}",
        f"{row.major_faults:g}", f"{row.read_mb:.1f}", str(len(row.samples)),
    ]  # fmt: skip


def density_lines(result: Result) -> list[str]:
    """A line for each way of restoring: what the clones hold together."""
    return [
        f"{policy}: {result.pss_mb(policy):.0f} MB (PSS of {result.settings.clones} clones together, median of "
        f"{len(found)})"
        for policy, found in result.density.items()
    ]


def to_json(result: Result) -> dict[str, Any]:
    """`rows` has the published keys; what else was seen of each is in `details`, in the same order."""
    density = {
        policy: {"clones": result.settings.clones, "pss_mb": round(result.pss_mb(policy) or 0.0, 3),
                 "samples_mb": [round(one, 3) for one in found]}
        for policy, found in result.density.items()
    }  # fmt: skip
    snapshots = {
        storage: {**asdict(facts), "loading_share": round(facts.loading_share, 4)}
        for storage, facts in result.snapshots.items()
    }
    return {
        "experiment": "snapshot", "machine": dict(result.machine), "guest": dict(result.guest),
        "settings": result.settings.to_json(), "left_out": dict(result.left_out),
        "rows": [row.to_json() for row in result.rows], "details": [row.detail() for row in result.rows],
        "density": density, "snapshots": snapshots, "publish_s": round(result.publish_s, 3),
        "failures": list(result.failures), "verdicts": [asdict(verdict) for verdict in verdicts(result)],
    }  # fmt: skip


def to_markdown(result: Result) -> str:
    machine, settings, guest = result.machine, result.settings, result.guest
    method = _METHOD.format(
        memory=f"{next(iter(result.snapshots.values())).memory_mb:.0f}", repeats=settings.repeats,
        clones=settings.clones, iops=IOPS, mb_s=BYTES_S / 1e6,
    )  # fmt: skip
    lines = [
        "# Snapshots: functions that wake from disk", "",
        f"Machine: {machine['cpu']}, {machine['cores']} cores, {human_bytes(machine['memory_bytes'])}, "
        f"{machine['system']} {machine['kernel']}, Python {machine['python']}; load average before it "
        f"{machine['load_average_1min']:g}. QEMU {guest['qemu']}, accelerator {guest['accel']} ({guest['why']}), "
        f"processor {guest['cpu']}, guest kernel {guest['kernel']}.", "",
        *([f"*A `--quick` run: {settings.repeats} rounds, and fewer cases where reads are throttled.*", ""]
          if settings.quick else []),
        *method.splitlines(), "",
        *markdown_table(
            ["expected", "measured", "holds"],
            [[one.claim, one.measured, "yes" if one.holds else "**no**"] for one in verdicts(result)],
        ), "",
        *markdown_table(list(TITLES), [cells(row) for row in result.rows]), "",
        *_snapshots(result), "",
        *density_lines(result), "",
        _failures(result), "",
        *(f"Left out: {what}: {why}." for what, why in result.left_out.items()),
        *([""] if result.left_out else []),
        "![First responses by way of restoring](snapshot.svg)", "",
    ]  # fmt: skip
    return "\n".join(lines)


def _snapshots(result: Result) -> Sequence[str]:
    titles = ["loading set for", "gap pages", "regions", "loading MB", "not zero MB", "share", "on disk MB"]
    rows = [
        [storage, str(facts.gap_pages), str(facts.regions), f"{facts.loading_mb:.1f}", f"{facts.nonzero_mb:.0f}",
         f"{facts.loading_share:.1%}", f"{facts.disk_mb:.0f}"]
        for storage, facts in result.snapshots.items()
    ]  # fmt: skip
    return [*markdown_table(titles, rows), "", f"Publishing took {result.publish_s:.1f} s."]


def _failures(result: Result) -> str:
    if not result.failures:
        return "No start hung or broke off."
    return f"{len(result.failures)} starts hung or broke off and were done again: " + "; ".join(result.failures) + "."


def write(result: Result, folder: Path) -> list[Path]:
    """Writes the three files into `folder`, made if need be, and returns their paths."""
    from rewarm.bench.snapshot_plot import snapshot_svg

    return write_files(folder, "snapshot", to_json(result), to_markdown(result), snapshot_svg(result))
