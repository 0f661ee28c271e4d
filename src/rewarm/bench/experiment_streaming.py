"""The streaming experiment: time to the first inference of a model whose weights are not in memory.

A case is one way of loading one model, in a process forked from one that has the engine imported. The model's files
alone are dropped from the page cache before a cold case, and read into it before a warm one; pins are ranges of the
pack that this process locks before it drops the rest. Within a round each case of a model runs once, in an order that
turns from round to round; figures are medians over the rounds. All ways must give the same answer, or there is no
report.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rewarm.bench import machine
from rewarm.bench import streaming_files as files
from rewarm.bench.streaming_answers import Answers
from rewarm.bench.streaming_files import ModelFiles
from rewarm.bench.streaming_predict import Learnt
from rewarm.bench.streaming_prepare import prepare
from rewarm.bench.streaming_rows import ON_ONNX, Case, ModelFacts, Result, Row, Settings, Timeline
from rewarm.bench.streaming_runtime import CaseFailed, Runtime
from rewarm.errors import SystemFault
from rewarm.weights.format import Pack

Progress = Callable[[int, int, str], None]  # cases done, cases in all, what is running

PINNED_PCTS = (25, 50)
#: Loaders that are always there, by their names in the table; and those that may be: name → module.
LOADERS = ("torch.load", "torch.load-mmap", "safetensors")
OPTIONAL_LOADERS = {
    "runai-model-streamer": "runai_model_streamer",
    "fastsafetensors": "fastsafetensors",
    "tensorizer": "tensorizer",
}


def require_engines() -> None:
    """Raises SystemFault if what cannot be left out is not there."""
    for name in ("torch", "safetensors"):
        if find_spec(name) is None:
            raise SystemFault(f"the experiment needs {name}; get it with: pip install 'rewarm[torch]'")


def plan(model: str, loaders: Sequence[str], onnx: bool) -> list[Case]:
    """All cases of a model; `onnx`: with onnxruntime's."""
    cold = [("read-all", 0), ("on-demand", 0), ("streamed", 0), *(("streamed", pct) for pct in PINNED_PCTS)]
    cases = [Case(model, "torch", mode, "cold", pct) for mode, pct in cold]
    cases.append(Case(model, "torch", "streamed-suffix", "cold", PINNED_PCTS[-1]))
    cases += [Case(model, "torch", mode, "warm") for mode in ("warm", "streamed", "read-all")]
    cases += [Case(model, "torch", loader, cache) for loader in loaders for cache in ("cold", "warm")]
    if onnx:
        cases += [Case(model, "onnxruntime", mode, "cold", pct) for mode, pct in cold]
        cases += [Case(model, "onnxruntime", mode, "warm") for mode in ("warm", "read-all")]
    return cases


def run(folder: Path, settings: Settings, progress: Progress | None = None) -> Result:
    """Models are written to `folder`, if they are not there, and stay; packs and the like go when it is over.

    Raises SystemFault if answers differ, memory cannot be locked, or the folder's disk is full or none.
    """
    described = machine.describe()
    left_out = {name: "not installed" for name, module in OPTIONAL_LOADERS.items() if find_spec(module) is None}
    loaders = [*LOADERS, *(name for name in OPTIONAL_LOADERS if name not in left_out)]
    rows: list[Row] = []
    facts: dict[str, ModelFacts] = {}
    timelines: list[Timeline] = []
    tell = _Teller(settings, progress, loaders)
    with contextlib.ExitStack() as stack:
        runtimes = {engine: stack.enter_context(Runtime(engine)) for engine in _engines(left_out)}
        for model in settings.models:
            with _scratch(folder) as scratch:
                tell(model, "is being prepared", 0)
                found = prepare(model, folder, scratch, settings.seed, runtimes, loaders, left_out)
                bench = _Bench(model, found, settings, runtimes, scratch, left_out, tell)
                rows += bench.rows(plan(model, loaders, found.onnx_pack is not None))
                facts[model] = bench.learnt.facts()
                timelines += bench.timelines()
    return Result(settings, described, rows, facts, timelines, left_out)


def _engines(left_out: dict[str, str]) -> list[str]:
    missing = [name for name in ("onnxruntime", "onnx") if find_spec(name) is None]
    if missing:
        left_out["onnxruntime"] = f"needs {' and '.join(missing)}: pip install {' '.join(missing)}"
    return ["torch"] if missing else ["torch", "onnxruntime"]


@contextlib.contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """On the same disk as the models, so that all read from the same."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="streaming-", dir=folder) as scratch:
        yield Path(scratch)


class _Teller:
    """Cases done, of all there are."""

    def __init__(self, settings: Settings, progress: Progress | None, loaders: Sequence[str]) -> None:
        self._total = sum(len(plan(model, loaders, model in ON_ONNX)) for model in settings.models) * settings.repeats
        self._done = 0
        self._progress = progress

    def __call__(self, model: str, what: str, done: int = 1) -> None:
        self._done += done
        if self._progress is not None:
            self._progress(min(self._done, self._total), self._total, f"{model}: {what}")


@dataclass
class _Bench:
    """The cases of one model."""

    model: str
    files: ModelFiles
    settings: Settings
    runtimes: Mapping[str, Runtime]
    scratch: Path
    left_out: dict[str, str]
    tell: _Teller
    learnt: Learnt = field(init=False)

    def __post_init__(self) -> None:
        self.learnt = Learnt(self.files.pack.index)
        self.answers = Answers(self.model)

    def rows(self, cases: Sequence[Case]) -> list[Row]:
        seen: dict[Case, list[dict[str, Any]]] = {case: [] for case in cases}
        for number in range(self.settings.repeats):
            self.learnt.bandwidth(files.bandwidth_bytes_s(self.files.pack))
            turn = number * len(cases) // self.settings.repeats
            for case in (*cases[turn:], *cases[:turn]):
                if case in seen:
                    self.tell(case.model, f"{case.engine} {case.mode} {case.cache}")
                    self._one(case, seen)
        return [self._row(case, found, seen) for case, found in seen.items()]

    def _one(self, case: Case, seen: dict[Case, list[dict[str, Any]]]) -> None:
        try:
            found = self._measured(case)
        except CaseFailed as error:
            if case.mode not in OPTIONAL_LOADERS:
                raise
            self.left_out[case.mode] = str(error)
            for other in [other for other in seen if other.mode == case.mode]:
                del seen[other]
            return
        self.answers.check(case.engine, case.mode, found["sha256"], self.scratch / "answer")
        self.learnt.passed(case, found["report"], found["load_ms"])
        seen[case].append(found)

    def _measured(self, case: Case, **more: Any) -> dict[str, Any]:
        paths, pack = self.files.of(case), self.files.pack_of(case)
        streamed = pack.index.streamed_spans()
        pinned_bytes = sum(span.end - span.begin for span in streamed) * case.pinned_pct // 100
        order = {**self._order(case, pack), "pinned_bytes": pinned_bytes, **more}
        if case.cache == "warm":
            files.read_in(paths)
            return self.runtimes[case.engine].order(order)
        with files.locked(pack, files.part(streamed, pinned_bytes, last=case.mode == "streamed-suffix")):
            files.evict(paths, pinned_bytes)
            return self.runtimes[case.engine].order(order)

    def _order(self, case: Case, pack: Pack) -> dict[str, Any]:
        own = self.files
        paths = {
            "weights": own.weights, "pt": own.pt, "tensors": own.tensors, "onnx": own.onnx, "input": own.input,
            "pack": pack.folder, "answer": self.scratch / "answer",
        }  # fmt: skip
        return {
            "model": case.model, "mode": case.mode, "seed": self.settings.seed,
            "bandwidth_bytes_s": self.learnt.bandwidth_bytes_s,
            **{name: str(path) for name, path in paths.items() if path is not None},
        }  # fmt: skip

    def _row(self, case: Case, found: Sequence[Mapping[str, Any]], seen: Mapping[Case, Any]) -> Row:
        def median(key: str, of: Sequence[Mapping[str, Any]] = found) -> float:
            return float(statistics.median(one[key] for one in of))

        if case.engine == "torch" and case.mode.startswith("streamed"):
            bubble_ms = statistics.median(one["report"]["bubble_ms"] for one in found)
        else:
            warm = seen[Case(case.model, case.engine, "warm", "warm")]
            bubble_ms = max(0.0, median("ttfi_ms") - median("ttfi_ms", warm))
        predicted_ms = self.learnt.predicted_ms(case) if case.engine == "torch" else None
        samples_ms = tuple(one["ttfi_ms"] for one in found)
        return Row(case, median("ttfi_ms"), median("load_ms"), bubble_ms, predicted_ms, median("private_mb"),
                   median("read_mb"), samples_ms)  # fmt: skip

    def timelines(self) -> Iterator[Timeline]:
        """One more start each, watched layer by layer, without pins and with the most."""
        for pinned_pct in (0, PINNED_PCTS[-1]):
            case = Case(self.model, "torch", "streamed", "cold", pinned_pct)
            found = self._measured(case, timeline=True)
            told = found["report"]
            yield Timeline(
                self.model, pinned_pct, tuple(layer.name for layer in self.files.pack.index.layers),
                tuple((begin, end) for begin, end in told["loads_ms"]),
                tuple((begin, end) for begin, end in told["computes_ms"]), found["ttfi_ms"],
            )  # fmt: skip
