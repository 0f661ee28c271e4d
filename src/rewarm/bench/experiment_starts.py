"""What the layers cost on this machine, measured on a real server, as the simulator reads it (`sim.costs`).

Each example function has two servers to itself, one after the other. On the first an idle layer ends at once but for
instances, so that every load begins with nothing: what Bare, Lang, the fork and the User layer (code and weights) took
is the growth of the server's own `rewarm_layer_seconds`. On the second the runtime stays when its instance goes: what
it holds by itself is the Lang layer's memory, and what the two held together beyond that is the User layer's. Memory
is PSS, as the server's ledger counts it. Figures are medians.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from rewarm.bench import machine, shipping
from rewarm.bench.api import Api
from rewarm.bench.local_server import local_server, start_and_unload
from rewarm.control.measure import pss_bytes
from rewarm.errors import SystemFault
from rewarm.facts.function import LangKey
from rewarm.units import MB
from rewarm.worker.node import inspect as node

_APART = ("--keepalive", "fixed:user_s=3600,lang_s=0,bare_s=0")
_KEPT = ("--keepalive", "fixed:user_s=3600,lang_s=3600,bare_s=0")
_WAIT_S = 60.0
_POLL_S = 0.02

Progress = Callable[[int, int, str], None]  # starts done, starts in all, the function under way


@dataclass(frozen=True, slots=True)
class Example:
    """A function to measure: the example's folder, its file, its handler if it is one, and a body that it takes."""

    folder: str
    file: str
    handler: str | None
    body: bytes


EXAMPLES = (
    Example("lambda", "handler.py", "handler.main", b'{"text": "one two"}'),
    Example("digits", "app.py", None, json.dumps([0.0] * 784).encode()),
    Example("nodejs", "app.mjs", "app.handler", b'{"text": "one two"}'),
)


@dataclass(frozen=True, slots=True)
class Costs:
    """Medians for one function and the runtime it needs."""

    function: str
    key: str  # of its Lang layer
    forks: bool
    bare_s: float
    lang_s: float
    fork_s: float
    user_s: float
    lang_bytes: int
    user_bytes: int
    samples: int

    @property
    def runtime(self) -> str:
        """The key as a cost file may name it."""
        return self.key.replace("+", "_").replace(".", "_")

    def to_json(self) -> dict[str, Any]:
        return {
            "function": self.function, "key": self.key, "forks": self.forks, "samples": self.samples,
            "bare": {"startup_s": round(self.bare_s, 6), "resident_mb": 0.0},
            "lang": {
                "startup_s": round(self.lang_s, 6), "fork_s": round(self.fork_s, 6),
                "resident_mb": round(self.lang_bytes / MB, 3),
            },
            "user": {"startup_s": round(self.user_s, 6), "resident_mb": round(self.user_bytes / MB, 3)},
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Result:
    machine: Mapping[str, Any]
    costs: tuple[Costs, ...]
    left_out: Mapping[str, str]  # example → why it was not measured

    def to_json(self) -> dict[str, Any]:
        rows = [one.to_json() for one in self.costs]
        return {"machine": dict(self.machine), "rows": rows, "left_out": dict(self.left_out)}


def run(repeat: int, only: Collection[str], progress: Progress | None = None) -> Result:
    """`repeat` starts from nothing of each example, or of those in `only` if there are some.

    Raises NotFound where the examples are not at hand.
    """
    described = machine.describe()
    wanted = [example for example in EXAMPLES if not only or example.folder in only]
    names = {example.folder for example in wanted}
    left_out = {name: why for name, why in _left_out() if name in names}
    examples = [example for example in wanted if example.folder not in left_out]
    folders = {example.folder: shipping.find_example(example.folder) for example in examples}
    costs = []
    for place, example in enumerate(examples):

        def on_start(done: int, before: int = place * repeat, name: str = example.folder) -> None:
            if progress is not None:
                progress(before + done, len(examples) * repeat, name)

        on_start(0)
        costs.append(_measure(folders[example.folder], example, repeat, on_start))
    return Result(described, tuple(costs), left_out)


def _left_out() -> Iterator[tuple[str, str]]:
    """The examples that need what is not installed here."""
    if machine.package_version("onnxruntime") is None:
        yield "digits", "needs onnxruntime: pip install 'rewarm[onnx]'"
    try:
        node.version()
    except SystemFault as error:
        yield "nodejs", error.message


# ---------------------------------------------------------------- one function


def _measure(folder: Path, example: Example, repeat: int, on_start: Callable[[int], None]) -> Costs:
    target = str(folder / example.file)
    shipment = shipping.of_target(target, shipping.Wish(handler=example.handler, name=f"starts-{example.folder}"))
    seconds: dict[str, list[float]] = {layer: [] for layer in ("bare", "zygote", "lang", "load")}
    together: list[int] = []
    with local_server(_APART) as url, Api(url) as api:
        name = str(shipping.upload(api, shipment)["name"])
        for done in range(repeat):
            before = layer_seconds(api.metrics())
            alive = _load(api, name)
            took = growth(before, layer_seconds(api.metrics()))
            took["load"] = took["user"] + took["ready"]
            api.invoke(name, example.body)  # the first call is part of what a kept instance holds
            for layer, samples in seconds.items():
                samples.append(took[layer])
            together.append(sum(_pss(one) for one in (*alive["instances"], *alive["langs"])))
            api.unload(name)
            _until_gone(api, "langs", "instances")
            on_start(done + 1)
    with local_server(_KEPT) as url, Api(url) as api:
        shipping.upload(api, shipment)
        start_and_unload(api, name)
        (lang,) = _until_one_lang(api)
        lang_bytes = _pss(lang)
    forks = LangKey(runtime=str(lang["key"]).partition("+")[0]).forks
    return Costs(
        function=example.folder, key=str(lang["key"]), forks=forks, samples=repeat, lang_bytes=lang_bytes,
        bare_s=statistics.median(seconds["bare"]), lang_s=statistics.median(seconds["zygote"]),
        fork_s=statistics.median(seconds["lang"]), user_s=statistics.median(seconds["load"]),
        user_bytes=max(0, round(statistics.median(together)) - lang_bytes),
    )  # fmt: skip


def _load(api: Api, name: str) -> dict[str, Any]:
    """Start one instance from nothing; what is alive then."""
    api.load(name)
    return _until(
        api,
        lambda alive: [one["state"] for one in alive["instances"]] == ["ready"],
        f"{name} did not start",
    )


def _until_gone(api: Api, *what: str) -> None:
    _until(api, lambda alive: not any(alive[kind] for kind in what), "an idle server keeps layers that it should not")


def _until_one_lang(api: Api) -> list[dict[str, Any]]:
    alive = _until(
        api, lambda alive: [one["state"] for one in alive["langs"]] == ["alive"], "the runtime did not stay alive"
    )
    return list(alive["langs"])


def _until(api: Api, holds: Callable[[Mapping[str, Any]], bool], complaint: str) -> dict[str, Any]:
    until_s = time.monotonic() + _WAIT_S
    while not holds(alive := api.instances()):
        if time.monotonic() > until_s:
            raise SystemFault(f"within {_WAIT_S:g} s: {complaint}")
        time.sleep(_POLL_S)
    return alive


def _pss(entry: Mapping[str, Any]) -> int:
    held = pss_bytes(int(entry["pid"]))
    if held is None:
        raise SystemFault(f"the memory of process {entry['pid']} cannot be read; it ended, or is another user's")
    return held


def layer_seconds(page: str) -> dict[str, tuple[float, float]]:
    """Sum and count of `rewarm_layer_seconds` by layer, from a page of metrics."""
    found: dict[str, dict[str, float]] = {}
    for family in text_string_to_metric_families(page):
        if family.name == "rewarm_layer_seconds":
            for sample in family.samples:
                found.setdefault(sample.labels["layer"], {})[sample.name.rpartition("_")[2]] = sample.value
    return {layer: (values["sum"], values["count"]) for layer, values in found.items()}


def growth(before: Mapping[str, tuple[float, float]], after: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """Mean seconds of what was raised between two pages. Raises SystemFault if some layer was not."""
    took = {}
    for layer in ("bare", "zygote", "lang", "user", "ready"):
        sum_s, count = (b - a for a, b in zip(before.get(layer, (0.0, 0.0)), after.get(layer, (0.0, 0.0)), strict=True))
        if count < 1:
            raise SystemFault(
                f"a start from nothing raised no {layer} layer; its server's figures are not to be trusted"
            )
        took[layer] = sum_s / count
    return took


# ---------------------------------------------------------------- for the simulator


def to_toml(result: Result) -> str:
    """A file for `rewarm sim --layers`: every runtime has an equal share of the functions."""
    where = result.machine
    lines = [
        f"# Measured by rewarm experiment starts: {where['cpu']}, {where['cores']} cores, Python {where['python']}.",
        f"# Medians of {result.costs[0].samples} starts from nothing; memory is PSS, MB is 2^20 bytes.",
        "", "[bare]",
        f"startup_s = {statistics.median(one.bare_s for one in result.costs):.6f}",
        "resident_mb = 0.0",
    ]  # fmt: skip
    for one in result.costs:
        lines += [
            "", f"[lang.{one.runtime}]", f"share = {1 / len(result.costs):.4f}", f"startup_s = {one.lang_s:.6f}",
            f"resident_mb = {one.lang_bytes / MB:.3f}", f"fork_s = {one.fork_s:.6f}",
            f"forks = {str(one.forks).lower()}",
        ]  # fmt: skip
    for one in result.costs:
        lines += [
            "", f"[user.{one.runtime}]  # examples/{one.function}", f"startup_s = {one.user_s:.6f}",
            f"resident_mb = {one.user_bytes / MB:.3f}",
        ]  # fmt: skip
    return "\n".join(lines) + "\n"
