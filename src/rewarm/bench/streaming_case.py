"""`python -m rewarm.bench.streaming_case ENGINE`: a runtime that forks the cases of experiment `streaming`.

It imports the engine once, as a Lang layer does, and runs no operation itself. Orders and outcomes are lines of JSON on
standard input and output. A child's clock starts after the fork, with its input made and its imports done, and stops
when the first answer is there; what it read and holds is counted after that. A child that fails says {"error": …}.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import importlib
import json
import os
import sys
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from rewarm.kernel import die_with, thread_count
from rewarm.units import MB

#: engine → the module that knows its ways of loading, which has `open_case` and `make`.
ENGINES = {"torch": "rewarm.bench.streaming_torch", "onnxruntime": "rewarm.bench.streaming_onnx"}


class Case(Protocol):
    """One way of loading a model, in a process of its own. What its constructor does is not timed."""

    def load(self) -> None:
        """Until the model can be called."""

    def first_pass(self) -> None:
        """The first inference."""

    def answer(self) -> bytes:
        """What it answered, whole, as float32."""

    def report(self) -> Mapping[str, Any]:
        """What the product itself says of this start: {} for ways that are not the product's."""


def main() -> int:
    engine = importlib.import_module(ENGINES[sys.argv[1]])
    gc.freeze()
    with os.fdopen(os.dup(1), "w") as out:
        os.dup2(2, 1)  # libraries that print must not be taken for outcomes
        out.write(json.dumps({"ready": True}) + "\n")
        out.flush()
        for line in sys.stdin:
            if thread_count() != 1:
                raise RuntimeError("the engine started a thread when it was imported; it must not fork")
            parent = os.getpid()
            child = os.fork()
            if child == 0:
                die_with(parent)
                out.write(json.dumps(_outcome(engine, json.loads(line))) + "\n")
                out.flush()
                os._exit(0)  # threads that libraries left behind are not waited for
            _, status = os.waitpid(child, 0)
            if status:
                out.write(json.dumps({"error": f"the case ended with status {status}"}) + "\n")
                out.flush()
    return 0


def _outcome(engine: Any, order: Mapping[str, Any]) -> dict[str, Any]:
    warnings.simplefilter("ignore")  # of exporters and loaders, about themselves
    try:
        if "make" in order:
            return dict(engine.make(order))
        return _measured(engine.open_case(order), order)
    except Exception as error:  # of any library: told to whoever ordered
        return {"error": f"{type(error).__name__}: {error}"}


def _measured(case: Case, order: Mapping[str, Any]) -> dict[str, Any]:
    before_bytes = _read_bytes()
    start_s = time.perf_counter()
    case.load()
    loaded_s = time.perf_counter()
    case.first_pass()
    end_s = time.perf_counter()
    report = dict(case.report())
    found = {
        "start_s": start_s,  # the clock of this machine, for what the report tells in it
        "load_ms": (loaded_s - start_s) * 1e3, "ttfi_ms": (end_s - start_s) * 1e3,
        "read_mb": (_read_bytes() - before_bytes) / MB, "private_mb": _private_bytes() / MB,
    }  # fmt: skip
    answer = case.answer()
    if order.get("answer"):
        Path(order["answer"]).write_bytes(answer)
    return {**found, "sha256": hashlib.sha256(answer).hexdigest(), "report": report}


def _read_bytes() -> int:
    """What this process had read from disks, page faults and read-ahead among it: proc(5), io."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["read_bytes"])


def _private_bytes() -> int:
    """What this process has written to and shares with nobody."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Private_Dirty:"))


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
