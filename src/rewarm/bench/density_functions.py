"""The functions of the density experiment: three runtimes, each function with memory of its own and a start of its own.

A start waits (as for a database or a download) and then touches the memory that the function holds; a call waits for
the run time of the trace. Both waits leave the processor alone, so that sixty functions fit on a machine of two cores.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from rewarm.bench.shipping import Shipment
from rewarm.errors import SystemFault
from rewarm.worker.node import inspect as node

HELD_MB = (5, 40)  # memory that a function touches, log-uniform
START_S = (0.05, 1.0)  # what its own start waits, lognormal about the median, cut to this
_START_MEDIAN_S, _START_SIGMA = 0.2, 0.6

_HANDLER = Template("""\
import time

time.sleep($start_s)
HELD = bytearray(b"\\x01") * ($held_mb << 20)


def handler(event, context):
    time.sleep($run_s)
    return {"held": len(HELD)}
""")
_PREDICT = Template("""\
import time

import numpy as np

import rewarm


@rewarm.function(preload=["numpy"], inputs={"x": rewarm.Tensor("float32", [2])})
class Held:
    def __init__(self):
        time.sleep($start_s)
        self.held = np.ones($held_mb << 20, dtype=np.uint8)

    def predict(self, x):
        time.sleep($run_s)
        return x * self.held[:2]
""")
_NODE = Template("""\
const wait = (seconds) => new Promise((resolve) => setTimeout(resolve, 1000 * seconds));

await wait($start_s);
const held = Buffer.alloc($held_mb << 20, 1);

export async function handler(event, context) {
  await wait($run_s);
  return { held: held.length };
}
""")


@dataclass(frozen=True, slots=True)
class Runtime:
    """How functions of one runtime are written and called."""

    name: str
    source: Template
    file: str
    handler: str | None
    body: bytes
    preload: tuple[str, ...] = ()


PYTHON = Runtime("python", _HANDLER, "app.py", "app.handler", b"{}")
NUMPY = Runtime("python+numpy", _PREDICT, "app.py", None, b"[1.0, 2.0]")
NODEJS = Runtime("nodejs", _NODE, "app.mjs", "app.handler", b"{}")
ASYNCIO = Runtime("python+asyncio", _HANDLER, "app.py", "app.handler", b"{}", ("asyncio",))


@dataclass(frozen=True, slots=True)
class DensityFunction:
    """One function; seconds are those that it waits."""

    name: str
    runtime: Runtime
    held_mb: int
    start_s: float
    run_s: float

    def shipment(self, folder: Path) -> Shipment:
        """What deploys it; its source is written below `folder`."""
        runtime = self.runtime
        path = folder / self.name / runtime.file
        path.parent.mkdir(parents=True)
        source = runtime.source.substitute(start_s=self.start_s, run_s=self.run_s, held_mb=self.held_mb)
        path.write_text(source, encoding="utf-8")
        overrides: dict[str, Any] = {"max_instances": 1, "memory": "1GB"}
        if runtime.preload:
            overrides["preload"] = list(runtime.preload)
        manifest = {"file": runtime.file, "select": None, "handler": runtime.handler, "name": self.name,
                    "overrides": overrides}  # fmt: skip
        return Shipment({runtime.file: path}, manifest)


def runtimes() -> tuple[tuple[Runtime, ...], str | None]:
    """The three runtimes of this machine, and why Node.js is not among them if it is not."""
    try:
        node.version()
    except SystemFault as error:
        return (PYTHON, NUMPY, ASYNCIO), f"no Node.js here, a third Python runtime instead: {error.message}"
    return (PYTHON, NUMPY, NODEJS), None


def make(runs_s: Sequence[float], kinds: Sequence[Runtime], seed: int) -> list[DensityFunction]:
    """One function for each run time, runtimes in turns; the same for the same seed."""
    draw = random.Random(seed)
    low, high = (math.log(held_mb) for held_mb in HELD_MB)
    made = []
    for index, run_s in enumerate(runs_s):
        runtime = kinds[index % len(kinds)]
        start_s = min(max(draw.lognormvariate(math.log(_START_MEDIAN_S), _START_SIGMA), START_S[0]), START_S[1])
        held_mb = round(math.exp(draw.uniform(low, high)))
        made.append(DensityFunction(f"density-{index:02}", runtime, held_mb, round(start_s, 3), round(run_s, 4)))
    return made
