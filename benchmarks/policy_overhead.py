"""What a keep-alive policy costs per request as more functions are deployed.

    python benchmarks/policy_overhead.py                 a table, and results/policy_overhead.svg
    python benchmarks/policy_overhead.py --json          the same, as the last line of standard output
    python benchmarks/policy_overhead.py --quick         10 to 1,000 functions

rewarm is the build that a release has, its hot path compiled (`make compiled`), or with --interpreted the sources as
they stand.

The real core in this process, driven as the executor drives it, in virtual time: a request comes, its Run is carried
out by a RunDone 0.1 ms later, the instance is idle again, timers ring. As in the traces, few functions have most of the
calls: the r-th of them has a share of 1/r. Two loads, at random times:

- *busy*: once a second per function on average, so that its instance is there. The overhead of a policy is the
  CPU time of core and policy per request, less the same with `keep`, a rule that holds everything for ever.
- *sparse*: once a minute per function, so that layers are dropped and raised again. The core's work for a start is
  nobody's overhead, so here the clock runs in the policy's own methods only (and counts itself, about 1 µs a call).

`none` is left out: with it no request finds an instance, and there is no rule to time.
"""

from __future__ import annotations

import argparse
import gc
import heapq
import random
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from _common import finish, machine, median, print_table, run_compiled, say

from rewarm.bench.plots import require_matplotlib
from rewarm.core import node as core
from rewarm.core.meter import Meter
from rewarm.core.node import Node
from rewarm.facts import messages as m
from rewarm.facts.function import FunctionSpec, LangKey, Revision
from rewarm.facts.request import Request
from rewarm.facts.sandbox import SandboxState as State
from rewarm.facts.sandbox import StartKind
from rewarm.policy import registry
from rewarm.policy.keepalive.base import Keep, KeepaliveDecision, KeepalivePolicy, LayerView, Prewarm

COUNTS = (10, 100, 1_000, 10_000)
GOAL_US, GOAL_COUNT = 20.0, 1_000
BUSY_GAP_S, SPARSE_GAP_S = 1.0, 60.0  # between two calls of a function, on average
RUN_S = 0.0001  # short, so that one instance keeps up with the busiest of ten thousand functions
BARE_S, LANG_S, FORK_S, USER_S = 0.001, 0.2, 0.005, 2.0
MB = 1 << 20
NEVER_S = 1e12
ROUNDS = 9
CALLS_BEFORE = 20  # of each function, before the clock runs
LOADS = ("busy", "sparse")

Call = tuple[str, float]  # function, when


class KeepAll:
    """The floor: no rule at all."""

    name = "keep"
    watches_arrivals = False

    def on_arrival(self, function: str, key: LangKey, now: float) -> Prewarm | None:
        return None

    def on_idle(self, layer: LayerView, now: float) -> KeepaliveDecision:
        return Keep(None)

    def priority(self, layer: LayerView, now: float) -> float:
        return 0.0


class Timed:
    """Another policy, and the seconds that its methods took."""

    def __init__(self, inner: KeepalivePolicy) -> None:
        self.name = inner.name
        self.took_s = 0.0
        for flag in ("watches_arrivals", "watches_runs", "watches_ends", "watches_deploys", "worth_holds"):
            if hasattr(inner, flag):
                setattr(self, flag, getattr(inner, flag))
        for method in ("on_arrival", "on_idle", "priority", "on_run", "on_gone", "on_deployed"):
            if hasattr(inner, method):
                setattr(self, method, self._timed(getattr(inner, method)))

    def _timed(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            began_s = time.process_time()
            answer = method(*args)
            self.took_s += time.process_time() - began_s
            return answer

        return call


class Driver:
    """Carries effects out in virtual time, like the executor: the meter hears of everything."""

    def __init__(self, keepalive: KeepalivePolicy, functions: int) -> None:
        self.node = Node(1 << 50, keepalive)
        self.meter = Meter()
        self.names = [f"f{number}" for number in range(functions)]
        self._later: list[tuple[float, int, m.Event]] = []
        self._sequence = 0
        for name in self.names:
            spec = FunctionSpec(name, "handler", "app:main", max_instances=1, queue_max=1_000_000)
            self.node.handle(m.Deployed(Revision(spec, name, 1, "")), 0.0)

    def call(self, name: str, now: float) -> None:
        """Everything until `now`, then a request."""
        self._advance(now)
        effects: list[m.Effect] = []
        self.node.arrive(Request(name, now, NEVER_S), now, effects)
        self._carry_out(effects, now)

    @property
    def waited(self) -> int:
        """Requests that found no instance."""
        starts = self.meter.starts
        return sum(starts.values()) - starts[StartKind.WARM]

    def _advance(self, until_s: float) -> None:
        heap, timers = self._later, self.node.timers.heap
        while True:
            event_s = heap[0][0] if heap else NEVER_S
            timer_s = timers[0][0] if timers else NEVER_S
            if min(event_s, timer_s) > until_s:
                return
            if event_s <= timer_s:
                self._post(heapq.heappop(heap)[2], event_s)
            else:
                self._post(m.Tick(), timer_s)

    def _post(self, event: m.Event, now: float) -> None:
        self.meter.event(event, now)
        self._carry_out(self.node.handle(event, now), now)

    def _in(self, delay_s: float, event: m.Event, now: float) -> None:
        self._sequence += 1
        heapq.heappush(self._later, (now + delay_s, self._sequence, event))

    def _carry_out(self, effects: list[m.Effect], now: float) -> None:
        for effect in effects:
            self.meter.effect(effect, now)
            if isinstance(effect, m.Run):
                self._in(RUN_S, m.RunDone(effect.sandbox_id, RUN_S), now)
            elif isinstance(effect, m.RaiseBare):
                self._in(BARE_S, m.Raised(effect.sandbox_id, State.BARE, BARE_S), now)
            elif isinstance(effect, m.RaiseLang):
                self._in(LANG_S, m.LangRaised(effect.key, LANG_S), now)
                self._in(LANG_S, m.Measured(effect.key, 25 * MB), now)
            elif isinstance(effect, m.Fork):
                self._in(FORK_S, m.Raised(effect.sandbox_id, State.LANG, FORK_S), now)
            elif isinstance(effect, m.LoadUser):
                self._in(USER_S, m.Raised(effect.sandbox_id, State.USER, USER_S), now)
                self._in(USER_S, m.Measured(effect.sandbox_id, 55 * MB), now)
                self._in(USER_S, m.Raised(effect.sandbox_id, State.READY, 0.0), now)
            elif isinstance(effect, m.Destroy):
                self._in(BARE_S, m.Exited(effect.sandbox_id), now)
            elif isinstance(effect, m.DropLang):
                self._in(BARE_S, m.LangExited(effect.key), now)
            else:
                raise AssertionError(f"nothing is refused here: {effect}")


def busy_us(text: str, functions: int, requests: int) -> tuple[float, float]:
    """Microseconds of CPU per request with `keep`, and how many more with the policy: medians of alternating rounds."""
    floor = Driver(KeepAll(), functions)
    mine = Driver(registry.keepalive(registry.parse(text)), functions)
    rounds = [
        [_timed(driver, calls, time.process_time) for driver in (floor, mine)]
        for calls in _rounds((floor, mine), BUSY_GAP_S, requests)
    ]
    floor_s, more_s = median([pair[0] for pair in rounds]), median([pair[1] - pair[0] for pair in rounds])
    return floor_s / requests * 1e6, more_s / requests * 1e6


def sparse_us(text: str, functions: int, requests: int) -> tuple[float, float]:
    """Microseconds per request inside the policy, and the share of requests that had to wait for a start."""
    keepalive: Any = Timed(registry.keepalive(registry.parse(text)))
    driver = Driver(keepalive, functions)
    took_s = [_timed(driver, calls, lambda: keepalive.took_s) for calls in _rounds((driver,), SPARSE_GAP_S, requests)]
    return median(took_s) / requests * 1e6, driver.waited / sum(driver.meter.starts.values())


def _rounds(drivers: Sequence[Driver], gap_s: float, requests: int) -> Iterator[list[Call]]:
    """The calls of each round, after enough of them for every policy to have something to go by."""
    draw, names, now = random.Random(1), drivers[0].names, 1_000.0
    weights = list(accumulate(1.0 / rank for rank in range(1, len(names) + 1)))

    def calls(count: int) -> list[Call]:
        nonlocal now
        found = []
        for name in draw.choices(names, cum_weights=weights, k=count):
            now += draw.expovariate(len(names) / gap_s)
            found.append((name, now))
        return found

    before = calls(CALLS_BEFORE * len(names))
    for driver in drivers:
        _timed(driver, before, time.process_time)
    gc.collect()
    gc.freeze()  # as the server does
    for _ in range(ROUNDS):
        yield calls(requests)


def _timed(driver: Driver, calls: Sequence[Call], clock: Callable[[], float]) -> float:
    began_s = clock()
    for name, at_s in calls:
        driver.call(name, at_s)
    return clock() - began_s


def run(counts: Sequence[int], requests: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for count in counts:
        for text in registry.keepalive_names():
            if text == "none":
                continue
            floor_us, more_us = busy_us(text, count, requests)
            sparse, starts = sparse_us(text, count, requests)
            rows.append({
                "policy": text, "functions": count, "core_us": round(floor_us, 2), "busy_us": round(more_us, 2),
                "sparse_us": round(sparse, 2), "sparse_start_pct": round(100 * starts, 1),
            })  # fmt: skip
            say(f"{count:>6} functions, {text:<12} busy {more_us:+6.1f} µs, sparse {sparse:+6.1f} µs")
    return rows


def draw_svg(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Overhead per request against the number of functions, one line a policy, one panel a load."""
    import matplotlib

    figure = require_matplotlib()(figsize=(11, 4.6), layout="constrained")
    for axes, load in zip(figure.subplots(1, 2, sharey=True), LOADS, strict=True):
        for policy in dict.fromkeys(row["policy"] for row in rows):
            mine = [row for row in rows if row["policy"] == policy]
            axes.plot([row["functions"] for row in mine], [row[f"{load}_us"] for row in mine], marker="o", markersize=4,
                      label=policy)  # fmt: skip
        axes.axhline(GOAL_US, color="black", linestyle="--", linewidth=1, label=f"goal with {GOAL_COUNT:,} functions")
        axes.set_xscale("log")
        axes.set_xlabel("deployed functions")
        axes.set_title(load)
    axes.legend(fontsize=8, ncols=2)
    figure.supylabel("overhead per request, µs")
    # A fixed salt and no date: the same figures give the same file.
    with matplotlib.rc_context({"svg.hashsalt": "rewarm", "svg.fonttype": "path"}):
        figure.savefig(path, format="svg", metadata={"Date": None})


def show(rows: Sequence[dict[str, Any]], counts: Sequence[int], worst: dict[str, Any]) -> None:
    cells = {(row["policy"], row["functions"]): row for row in rows}
    policies = list(dict.fromkeys(row["policy"] for row in rows))
    for load in LOADS:
        table = [[policy, *(cells[policy, count][f"{load}_us"] for count in counts)] for policy in policies]
        print_table(f"Overhead per request, µs, {load}", ["policy", *(f"{c:,} functions" for c in counts)], table)
    core_us = [median([cells[policy, count]["core_us"] for policy in policies]) for count in counts]
    print_table("Core without a rule, µs", ["", *(f"{c:,} functions" for c in counts)], [["busy", *core_us]])
    print(f"\ncostliest with {GOAL_COUNT:,} functions: {worst['policy']}, {_worst_us(worst)} µs (goal <= {GOAL_US:g})")


def _worst_us(row: dict[str, Any]) -> float:
    return float(max(row[f"{load}_us"] for load in LOADS))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="up to 1,000 functions, fewer requests")
    parser.add_argument("--json", action="store_true", help="print one JSON object last")
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder for policy_overhead.svg")
    parser.add_argument("--interpreted", action="store_true", help="rewarm as it stands in src, nothing compiled")
    options = parser.parse_args()
    if not options.interpreted:
        run_compiled()
    counts, requests = (COUNTS[:3], 1_000) if options.quick else (COUNTS, 3_000)
    options.out.mkdir(parents=True, exist_ok=True)
    rows = run(counts, requests)
    draw_svg(rows, options.out / "policy_overhead.svg")
    worst = max((row for row in rows if row["functions"] == GOAL_COUNT), key=_worst_us)
    show(rows, counts, worst)
    compiled = Path(core.__file__).suffix == ".so"
    result = {"rows": rows, "worst_us_at_1000": _worst_us(worst), "compiled": compiled, "machine": machine()}
    finish(result, options.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
