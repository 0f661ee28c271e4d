"""How fast the simulator is: calls per second and core for every keep-alive policy, and all of them at once.

    python benchmarks/simulator.py                 a table
    python benchmarks/simulator.py --json          {"invocations_per_s": of the costliest policy, …}
    python benchmarks/simulator.py --quick         a quarter of the day, one round

rewarm is the build that a release has, its hot path compiled (`make compiled`), or with --interpreted the sources as
they stand.

The load is the shipped Azure trace without its 20 busiest functions: a day, 380 functions, 141,693 calls, with a budget
of 8 GB so that layers are also freed for want of memory. First each policy alone, one after the other, in this process,
from reading the trace to the report, and that five times over, of which the median counts; then all at a time, one
process per core, as `rewarm sim` does it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import time
from typing import Any

from _common import run_compiled

from rewarm.policy import registry
from rewarm.sim.run import Settings, simulate, simulate_all
from rewarm.sim.traces.base import Options

BUDGET_BYTES = 8 << 30


def policies() -> list[str]:
    """Everything on the menu with its default parameters, and one more of the first kind to make ten."""
    return [*registry.keepalive_names(), "fixed:ttl=1min"]


def measure(quick: bool, rounds: int) -> dict[str, Any]:
    options = Options(drop_busiest=20, hours=(0.0, 6.0) if quick else (0.0, 24.0))
    settings = Settings("azure-2019", options, budget_bytes=BUDGET_BYTES)
    specs = [registry.parse(text) for text in policies()]
    found: dict[str, list[float]] = {text: [] for text in policies()}
    calls = 0
    for _ in range(rounds):
        for text, spec in zip(policies(), specs, strict=True):
            report = simulate(settings, spec)
            calls = report.invocations
            found[text].append(report.invocations_per_s)
    rates = {text: statistics.median(some) for text, some in found.items()}
    for text, some in found.items():
        print(f"{text:<24} {rates[text]:>10,.0f} calls/s ({min(some):,.0f} to {max(some):,.0f})", file=sys.stderr)
    began_s = time.perf_counter()
    simulate_all(settings, specs)
    all_s = time.perf_counter() - began_s
    costliest = min(rates, key=lambda text: rates[text])
    return {
        "invocations_per_s": round(rates[costliest]),
        "costliest": costliest,
        "by_policy": {text: round(rate) for text, rate in rates.items()},
        "rounds": rounds,
        "invocations": calls,
        "all_policies_s": round(all_s, 2),
        "cores": len(os.sched_getaffinity(0)),
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON on standard output")
    parser.add_argument("--quick", action="store_true", help="six hours of the day, one round")
    parser.add_argument("--interpreted", action="store_true", help="rewarm as it stands in src, nothing compiled")
    parser.add_argument("--rounds", type=int, help="how often each policy runs; default 5, with --quick 1")
    args = parser.parse_args()
    rounds = args.rounds if args.rounds is not None else 1 if args.quick else 5
    if rounds < 1:
        parser.error("--rounds must be at least 1")
    if not args.interpreted:
        run_compiled()
    result = {**measure(args.quick, rounds), "compiled": not args.interpreted}
    if args.json:
        print(json.dumps(result, indent=2))
        return
    rate, wall_s, count = result["invocations_per_s"], result["all_policies_s"], len(result["by_policy"])
    print(f"{result['invocations']:,} calls; the costliest policy is {result['costliest']} with {rate:,} calls/s")
    print(f"all {count} policies on {result['cores']} cores: {wall_s} s; at most {result['peak_rss_mb']} MB")


if __name__ == "__main__":
    main()
