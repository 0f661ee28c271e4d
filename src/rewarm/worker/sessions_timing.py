"""In which order onnxruntime runs the nodes of a graph, and how long each computes: measured with made-up inputs."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime

from rewarm.worker.sessions import PROVIDERS, lean

#: How many runs are measured, unless that takes too long.
RUNS, RUNS_S = 3, 10.0
#: What stands for a dimension that the model leaves open and that is not its first (the batch, of 1): tried in turn.
OPEN_DIMENSIONS = (16, 1, 224)

_NAMED_NAME, _PROFILE_PREFIX = "named.onnx", "profile"
_NODE_NAME, _EVENT_SUFFIX = "rewarm:", "_kernel_time"

#: Type of an input in onnxruntime's words → dtype of numpy.
_INPUTS = {
    "tensor(float)": "f4", "tensor(double)": "f8", "tensor(float16)": "f2", "tensor(bool)": "?", "tensor(int8)": "i1",
    "tensor(int16)": "i2", "tensor(int32)": "i4", "tensor(int64)": "i8", "tensor(uint8)": "u1", "tensor(uint16)": "u2",
    "tensor(uint32)": "u4", "tensor(uint64)": "u8",
}  # fmt: skip


class Timing(NamedTuple):
    """One pass: places of the main graph's nodes in the order they ran, and the seconds of each, in that order."""

    order: tuple[int, ...]
    node_s: tuple[float, ...]


def measure(onnx: Any, model: Any, folder: Path) -> Timing | None:
    """Run `model` as an instance would run it first, and take the nodes' shares from onnxruntime's profile.

    Together they take the median run. None if the model does not run on inputs of ones. `onnx` is the package; external
    data and scratch files are in `folder`.
    """
    named = onnx.ModelProto()
    named.CopyFrom(model)
    for place, node in enumerate(named.graph.node):
        node.name = f"{_NODE_NAME}{place}"  # names may be missing, or there twice
    path = folder / _NAMED_NAME
    onnx.save(named, path)
    try:
        feeds = inputs_of_ones(onnxruntime.InferenceSession(str(path), lean({}), providers=PROVIDERS))
        if feeds is None:
            return None
        made = lean({"enable_profiling": True, "profile_file_prefix": str(folder / _PROFILE_PREFIX)})
        session = onnxruntime.InferenceSession(str(path), made, providers=PROVIDERS)
        session.run(None, feeds)
        runs_s = _timed(lambda: session.run(None, feeds))
        events = json.loads(Path(session.end_profiling()).read_bytes())
    finally:
        path.unlink()
        for profile in folder.glob(f"{_PROFILE_PREFIX}*"):
            profile.unlink()
    return _timing(events, len(model.graph.node), statistics.median(runs_s))


def inputs_of_ones(session: Any) -> dict[str, Any] | None:
    """Inputs with which the session runs, or None if none were found."""
    inputs = session.get_inputs()
    if any(value.type not in _INPUTS for value in inputs):
        return None
    for size in OPEN_DIMENSIONS:
        feeds = {value.name: np.ones(_shape(value.shape, size), _INPUTS[value.type]) for value in inputs}
        try:
            session.run(None, feeds)
        except Exception:  # the model's own condition on its inputs; onnxruntime's exceptions have no common class
            continue
        return feeds
    return None


def _shape(declared: Sequence[int | str | None], size: int) -> tuple[int, ...]:
    return tuple(known if isinstance(known, int) else 1 if place == 0 else size for place, known in enumerate(declared))


def _timed(run: Callable[[], object]) -> list[float]:
    """Seconds of each of RUNS runs; of fewer if they are long."""
    runs_s: list[float] = []
    while len(runs_s) < RUNS and sum(runs_s) < RUNS_S:
        since_s = time.perf_counter()
        run()
        runs_s.append(time.perf_counter() - since_s)
    return runs_s


def _timing(events: Iterable[Mapping[str, Any]], node_count: int, run_s: float) -> Timing | None:
    """From the events of all runs: the order of the first, and each node's share of all. None if a node is missing."""
    first_us: dict[int, float] = {}
    sum_us = [0.0] * node_count
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.startswith(_NODE_NAME) and name.endswith(_EVENT_SUFFIX):
            place = int(name.removeprefix(_NODE_NAME).removesuffix(_EVENT_SUFFIX))
            first_us.setdefault(place, float(event["ts"]))
            sum_us[place] += float(event["dur"])
    if len(first_us) < node_count:
        return None
    order = tuple(sorted(first_us, key=lambda place: first_us[place]))
    scale = run_s / max(sum(sum_us), 1.0)
    return Timing(order, tuple(sum_us[place] * scale for place in order))
