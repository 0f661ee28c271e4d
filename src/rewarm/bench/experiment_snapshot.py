"""The snapshot experiment: from starting QEMU to the first answer of a function that slept on disk.

The function is published once, as a deploy does it, through vmm.publishing. Every start is a new QEMU, in a child of a
process that is in the cgroup of its storage; before it the files are dropped from the page cache, or read into it.
Within a round each case runs once, in an order that turns from round to round; figures are medians over the rounds. A
start that does not answer in time is killed, counted and done again. All answers to one input must be the same, or
there is no report.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rewarm.bench import machine
from rewarm.bench.snapshot_prepare import BODIES, FIRST, UNSEEN, Prepared, facts, prepare, require_room, variants
from rewarm.bench.snapshot_rows import CASES, NATIVE, THROTTLED, Case, Result, Row, Sample, Settings, plan
from rewarm.bench.snapshot_throttle import Throttle
from rewarm.bench.streaming_files import evict, read_in
from rewarm.bench.streaming_runtime import CaseFailed, Runtime
from rewarm.errors import SystemFault
from rewarm.vmm.qemu import CPU
from rewarm.vmm.site import Site, survey

Progress = Callable[[int, int, str], None]  # cases done, cases in all, what is running

_TRIES = 3
_LEFT_SHARE_MAX = 0.001  # of a file that was dropped from the page cache: 512 KB of the largest
#: What a way of restoring cannot do without.
_NEEDS = {
    "lazy": (), "read-all": (), "cached": (), "prefetch": (), "lazy-4k": ("shim",), "layered": ("shim",),
    "uffd": ("shim", "userfaultfd"),
}  # fmt: skip


class Runner(Runtime):
    """One `rewarm.bench.snapshot_case`, for one storage."""

    module = "rewarm.bench.snapshot_case"


def run(home: Path, settings: Settings, progress: Progress | None = None) -> Result:
    """Everything is made below `home`/microvm, where a guest must have been built, and goes when it is over.

    Raises MicrovmUnavailable, SystemFault if answers differ, the disk is full or is memory; what publishing raises.
    """
    described = machine.describe()
    site = survey(home, vmm="qemu")  # which has all policies; what is missing is told before the home is touched
    with _scratch(home / "microvm") as scratch, contextlib.ExitStack() as stack:
        left_out: dict[str, str] = {}
        tell = _Teller(progress)
        made = prepare(home, site, scratch, settings.clones, tell.step)
        bench = _Bench(home, settings, site, made, scratch, tell, left_out)
        bench.open_storages(stack)
        cases = plan(settings, list(bench.runners), _policies(site, left_out))
        tell.total = len(cases) * settings.repeats
        bench.measure(cases)
        return Result(
            settings, described, _guest(site), bench.rows(), bench.density,
            {storage: facts(folders[0]) for storage, folders in bench.folders.items()}, made.publish_s,
            bench.failures, left_out,
        )  # fmt: skip


@contextlib.contextmanager
def _scratch(place: Path) -> Iterator[Path]:
    """On the disk of the home: that is the one whose speed counts."""
    require_room(place)
    with tempfile.TemporaryDirectory(prefix="experiment-", dir=place) as scratch:
        yield Path(scratch)


def _policies(site: Site, left_out: dict[str, str]) -> list[str]:
    """The ways of restoring that this machine has the means for."""
    missing = {name: site.means.why.get(name, "is not there") for name in ("shim", "userfaultfd")
               if not getattr(site.means, name)}  # fmt: skip
    for policy, needs in _NEEDS.items():
        if lacking := [name for name in needs if name in missing]:
            left_out[policy] = f"{lacking[0]}: {missing[lacking[0]]}"
    return [policy for policy in _NEEDS if policy not in left_out]


def _guest(site: Site) -> dict[str, str]:
    return {"accel": site.accel.name, "why": site.accel.why, "qemu": site.vmm.version_text, "cpu": CPU,
            "kernel": site.guest.kernel_version}  # fmt: skip


class _Teller:
    """Cases done, of all there are."""

    def __init__(self, progress: Progress | None) -> None:
        self.total = 0
        self._done = 0
        self._progress = progress

    def step(self, what: str, done: int = 0) -> None:
        self._done += done
        if self._progress is not None:
            self._progress(self._done, self.total, what)


@dataclass
class _Bench:
    """The storages and what was measured on them."""

    home: Path
    settings: Settings
    site: Site
    made: Prepared
    scratch: Path
    tell: _Teller
    left_out: dict[str, str]
    folders: dict[str, list[Path]] = field(default_factory=dict)  # by storage: a snapshot for each clone
    runners: dict[str, Runner] = field(default_factory=dict)
    samples: dict[Case, list[Sample]] = field(default_factory=dict)
    density: dict[str, list[float]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    answers: dict[str, str] = field(default_factory=dict)  # to each input, the first that was given

    def open_storages(self, stack: contextlib.ExitStack) -> None:
        self.runners[NATIVE] = self._runner(stack, NATIVE, None)
        self.folders[NATIVE] = self.made.native
        try:
            throttle = stack.enter_context(Throttle(self.scratch))
        except OSError as error:
            self.left_out[THROTTLED] = f"reads cannot be slowed down here: {error}"
            return
        runner = self.runners[THROTTLED] = self._runner(stack, THROTTLED, throttle.procs)

        def record(folder: Path) -> None:
            if self.site.means.shim is not None:
                self.tell.step("recording, throttled")
                runner.order({"do": "record", "snapshots": [str(folder)], "bodies": BODIES})

        self.folders[THROTTLED] = variants(self.made.native, THROTTLED, self.settings.clones, record)

    def _runner(self, stack: contextlib.ExitStack, storage: str, procs: Path | None) -> Runner:
        runner = Runner(storage)
        stack.enter_context(runner)
        images = self.made.images
        runner.order({
            "home": str(self.home), "procs": procs and str(procs), "load": self.made.load,
            "packages": str(images.packages), "function": str(images.function), "memory_bytes": images.memory_bytes,
        })  # fmt: skip
        return runner

    def measure(self, cases: Sequence[Case]) -> None:
        repeats = self.settings.repeats
        for number in range(repeats):
            turn = number * len(cases) // repeats
            for case in (*cases[turn:], *cases[:turn]):
                self.tell.step(f"{case.storage}: {case.name}")
                if _name(case) not in self.left_out:
                    self._measured(case)
                self.tell.step(f"{case.storage}: {case.name}", 1)

    def _measured(self, case: Case) -> None:
        for _ in range(_TRIES):
            try:
                found = self._once(case)
            except CaseFailed as error:
                self.failures.append(f"{_name(case)}: {error.message}")
                continue
            self._keep(case, found)
            return
        self.left_out[_name(case)] = f"failed {_TRIES} times in a row: {self.failures[-1]}"

    def _once(self, case: Case) -> dict[str, Any]:
        runner, folders = self.runners[case.storage], self.folders[case.storage]
        starts = self.settings.clones if case.name in ("burst-same", "burst-different", "density") else 1
        chosen = folders[:starts] if case.name == "burst-different" else [folders[0]] * starts
        self._drop(chosen)
        if case.policy is None:
            return runner.order({"do": "boot", "scratch": str(self.scratch), "body": FIRST})
        if case.policy == "cached":
            read_in(path for path in folders[0].iterdir())
        return runner.order({
            "do": "restore", "policy": case.policy, "snapshots": [str(folder) for folder in chosen],
            "body": UNSEEN if case.name == "other-input" else FIRST,
            "calls": self.settings.warm_calls if case.name == "warm" else 0,
        })  # fmt: skip

    def _drop(self, folders: Sequence[Path]) -> None:
        """All files of the snapshots and the guest's drives leave the page cache."""
        evict([path for folder in set(folders) for path in folder.iterdir()], left_share=_LEFT_SHARE_MAX)
        for drive in self.made.drives(self.site):
            file = os.open(drive, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)  # too large to look at every page, all but holes
            finally:
                os.close(file)

    def _keep(self, case: Case, found: Mapping[str, Any]) -> None:
        self._check(case, found["answers"])
        if case.name == "density" or (case.name == "burst-same" and case.storage == NATIVE):
            self.density.setdefault(str(case.policy), []).append(found["pss_mb"])
        if case.published:
            told = found["calls"] if case.name == "warm" else found["samples"]
            self.samples.setdefault(case, []).extend(Sample(*one) for one in told)

    def _check(self, case: Case, answers: Sequence[str]) -> None:
        body = UNSEEN if case.name == "other-input" else FIRST
        for answer in answers:
            if answer != self.answers.setdefault(body, answer):
                raise SystemFault(f"{_name(case)} answers otherwise than the first start; there is no report")

    def rows(self) -> list[Row]:
        """In the order of the table, whatever came first."""
        return [Row(case, tuple(found)) for case, found in sorted(self.samples.items(), key=lambda one: _place(one[0]))]


def _name(case: Case) -> str:
    return f"{case.name} on {case.storage}"


def _place(case: Case) -> tuple[int, int]:
    return (NATIVE, THROTTLED).index(case.storage), list(CASES).index(case.name)
