"""Throughput of rewarm and mosec, side by side in one run: `python benchmarks/throughput.py [--quick] [--json]`.

rewarm is the build that a release has, its hot path compiled (`make compiled`), or with --interpreted the sources as
they stand. Same model, one worker each, batches of up to 16, 64 connections of `wrk`. For each case both servers are
started once and stay up; windows alternate A/B/A/B, and the one that is not measured is idle. Figures are medians over
the rounds, ratios medians of the rounds' ratios. Before that, callers of all three kinds at once check every answer
against numpy's own.

The JSON: {"json784", "json4", "raw": rewarm's requests/s over mosec's, "errors": failed answers, socket errors and
wrong answers over everything, "lone_p50_ms" (784 floats as JSON), "ready_s", "idle_pss_mb", "loaded_pss_mb": {"rewarm",
"mosec"}, "rps", "cpu_us" (server CPU per request), "machine", "settings"}.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import _systems
from _common import (
    BenchmarkError,
    cpu_s,
    exit_on_sigterm,
    finish,
    machine,
    median,
    print_table,
    pss_mb,
    say,
)
from _mlp import CASES, Case, check_mixed, encode, rows
from _systems import MOSEC_WAIT_MS, PEERS, Running, System
from _wrk import Window, drive

CONNECTIONS = 64
WARM_UP_S = 1


@dataclass(frozen=True)
class Plan:
    """How long and how often."""

    window_s: int
    rounds: int
    lone_s: int
    lone_rounds: int
    checks: int  # requests of each checking thread
    threads_each: int = 3
    script: str = "post.lua"  # in benchmarks/wrk


QUICK = Plan(window_s=1, rounds=2, lone_s=1, lone_rounds=1, checks=60)
FULL = Plan(window_s=2, rounds=11, lone_s=1, lone_rounds=3, checks=400)


@dataclass
class Figures:
    """Everything measured of one system in one case."""

    loaded: list[Window] = field(default_factory=list)
    lone: list[Window] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)  # server CPU per request under load
    ready_s: float = float("nan")
    idle_pss_mb: float = float("nan")
    loaded_pss_mb: float = float("nan")

    def of(self, name: str, lone: bool = False) -> float:
        return median([float(getattr(window, name)) for window in (self.lone if lone else self.loaded)])


@dataclass
class Results:
    """All figures by (system, case), and every error."""

    figures: dict[tuple[str, str], Figures] = field(default_factory=dict)
    errors: int = 0
    answers: int = 0

    def at(self, system: str, case: str) -> Figures:
        """To write to."""
        return self.figures.setdefault((system, case), Figures())

    def of(self, system: str, case: str) -> Figures:
        """To read; empty if it was not measured."""
        return self.figures.get((system, case), Figures())

    def over_mosec(self, system: str, case: str) -> float | None:
        """Median of the ratios round by round: neighbours in time share whatever else the machine was doing."""
        pairs = zip(self.of(system, case).loaded, self.of("mosec", case).loaded, strict=False)
        ratios = [ours.rps / theirs.rps for ours, theirs in pairs if theirs.rps]
        return round(median(ratios), 3) if ratios else None

    def over_cases(self, system: str, name: str) -> float | None:
        values = [getattr(f, name) for (who, _), f in self.figures.items() if who == system]
        return round(median(values), 3) if values else None


def check(systems: Sequence[System], plan: Plan, folder: Path, results: Results) -> None:
    """All the kinds that a system takes, at once, from several threads; one system after the other."""
    for system in systems:
        groups = [system.cases] if system.name in ("rewarm", "mosec") else [[case] for case in system.cases]
        for cases in groups:
            with system.launch(cases, _own(folder, system)) as running:
                found = check_mixed(
                    running.server.port,
                    running.paths,
                    threads_each=plan.threads_each,
                    requests=plan.checks,
                    nested=running.nested,
                )
            results.answers += found.answers
            results.errors += len(found.wrong)
            say(f"{system.name} {'+'.join(cases)}: {found.answers} right answers, {len(found.wrong)} wrong")
            for line in found.wrong[:3]:
                say(f"  {line[:300]}")


def measure(case: Case, systems: Sequence[System], plan: Plan, folder: Path, results: Results) -> None:
    """One case: every system started once, then A/B/A/B windows of load, then of a lone caller."""
    row = rows(case, 1)[0]
    bodies = {nested: folder / f"{case.name}-{nested}.body" for nested in (False, True)}
    for nested, body in bodies.items():
        body.write_bytes(encode(case, row, nested))
    with contextlib.ExitStack() as stack:
        running = {
            system.name: stack.enter_context(system.launch([case.name], _own(folder, system)))
            for system in systems
            if case.name in system.cases
        }
        for name, one in running.items():
            figures = results.at(name, case.name)
            figures.ready_s, figures.idle_pss_mb = one.server.ready_s, one.idle_pss_mb
            results.errors += _window(one, case, bodies, CONNECTIONS, WARM_UP_S, plan.script).errors
        for turn in range(plan.rounds):
            for name, one in running.items():
                before = cpu_s(one.server.process.pid)
                window = _window(one, case, bodies, CONNECTIONS, plan.window_s, plan.script)
                spent = cpu_s(one.server.process.pid) - before
                results.at(name, case.name).loaded.append(window)
                results.at(name, case.name).cpu_us.append(1e6 * spent / max(window.requests, 1))
                say(f"{case.name} round {turn + 1} {name}: {window.rps:,.0f} req/s, {window.errors} errors")
        for _ in range(plan.lone_rounds):
            for name, one in running.items():
                results.at(name, case.name).lone.append(_window(one, case, bodies, 1, plan.lone_s, plan.script))
        for name, one in running.items():
            figures = results.at(name, case.name)
            figures.loaded_pss_mb = pss_mb(one.server.process.pid)
            results.errors += sum(window.errors for window in (*figures.loaded, *figures.lone))


def _window(
    one: Running, case: Case, bodies: Mapping[bool, Path], connections: int, seconds: int, script: str
) -> Window:
    url = one.server.url + one.paths[case.name]
    body = bodies[one.nested]
    return drive(url, body, case.content_type, connections=connections, seconds=seconds, script=script)


def _own(folder: Path, system: System) -> Path:
    own = folder / system.name
    own.mkdir(exist_ok=True)
    return own


def show(cases: Sequence[Case], systems: Sequence[System], results: Results) -> None:
    for case in cases:
        table = []
        for system in systems:
            if (found := results.figures.get((system.name, case.name))) is None:
                continue
            rps = found.of("rps")
            over = results.over_mosec(system.name, case.name)
            errors = sum(window.errors for window in (*found.loaded, *found.lone))
            lone = found.of("p50_ms", lone=True)
            figures = (found.of("p50_ms"), found.of("p99_ms"), median(found.cpu_us), lone)
            table.append([system.name, rps, *figures, errors, over])
        header = ["server", "req/s", "p50 ms", "p99 ms", "cpu us/req", "lone p50 ms", "errors", "x mosec"]
        print_table(f"{case.title}, {CONNECTIONS} connections (goal {case.goal} x mosec)", header, table)
    fields = ("ready_s", "idle_pss_mb", "loaded_pss_mb")
    size = [[system.name, *(results.over_cases(system.name, name) for name in fields)] for system in systems]
    header = ["server", "ready s", "idle PSS MB", "after load PSS MB"]
    print_table("Start and size (rewarm idle: nothing deployed, no zygote; others: worker loaded)", header, size)
    print("\n" + ", ".join(f"{key} {value}" for key, value in machine().items()))
    print(f"{results.answers} answers compared with numpy; {results.errors} errors in all")


def summary(cases: Sequence[Case], plan: Plan, options: argparse.Namespace, results: Results) -> dict[str, Any]:
    two = ("rewarm", "mosec")
    systems = {system for system, _ in results.figures}
    rps = {
        case: {s: round(results.of(s, case).of("rps")) for s in systems if (s, case) in results.figures}
        for case in CASES
    }
    ratios = {case: results.over_mosec("rewarm", case) for case in CASES}
    lone = cases[0].name
    return {
        **ratios,
        "errors": results.errors,
        "lone_p50_ms": {
            s: round(results.of(s, lone).of("p50_ms", lone=True), 3) if (s, lone) in results.figures else None
            for s in two
        },
        **{name: {s: results.over_cases(s, name) for s in two} for name in ("ready_s", "idle_pss_mb", "loaded_pss_mb")},
        "rps": rps,
        "cpu_us": {case: {s: round(median(results.of(s, case).cpu_us), 1) for s in rps[case]} for case in rps},
        "machine": machine(),
        "settings": {
            **vars(plan),
            "connections": CONNECTIONS,
            "batch_max": 16,
            "mosec_wait_ms": options.mosec_wait_ms,
            "compiled": not options.interpreted,
        },
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="1 s windows, 2 rounds")
    parser.add_argument("--json", action="store_true", help="print one JSON object last")
    parser.add_argument("--vary-heads", action="store_true", help="a request id in each head: no two heads are alike")
    parser.add_argument("--interpreted", action="store_true", help="rewarm as it stands in src, nothing compiled")
    parser.add_argument("--cases", default=",".join(CASES), help="some of %(default)s")
    parser.add_argument("--systems", default="rewarm,mosec", help="some of %(default)s")
    parser.add_argument("--peers", default="", help=f"optional rows: some of {','.join(PEERS)}")
    parser.add_argument("--bench-env", type=Path, help="mosec's environment (default .bench/mosec)")
    parser.add_argument("--mosec-wait-ms", type=int, default=MOSEC_WAIT_MS, help="default %(default)s, the best here")
    return parser.parse_args()


def chosen(options: argparse.Namespace) -> list[System]:
    """What can run here; a missing optional row is said and skipped, a missing main one is an error."""
    known = {
        "rewarm": _systems.rewarm(options.interpreted),
        "mosec": _systems.mosec(options.bench_env, options.mosec_wait_ms),
    }
    main = [name for name in options.systems.split(",") if name]
    if unknown := set(main) - set(known):
        raise BenchmarkError(f"unknown system {', '.join(sorted(unknown))}; choose from {', '.join(known)}")
    systems = [known[name] for name in main]
    for system in systems:
        if system.missing:
            raise BenchmarkError(system.missing)
    for name in filter(None, options.peers.split(",")):
        system = _systems.peer(name)
        if system.missing:
            say(f"skipped: {system.missing}")
        else:
            systems.append(system)
    return systems


def main() -> int:
    options = arguments()
    exit_on_sigterm()
    plan = QUICK if options.quick else FULL
    if options.vary_heads:
        plan = replace(plan, script="vary.lua")
    try:
        if unknown := set(options.cases.split(",")) - set(CASES):
            raise BenchmarkError(f"unknown case {', '.join(sorted(unknown))}; choose from {', '.join(CASES)}")
        cases = [CASES[name] for name in options.cases.split(",")]
        systems, results = chosen(options), Results()
        with tempfile.TemporaryDirectory(prefix="rewarm-bench-") as temporary:
            folder = Path(temporary)
            check(systems, plan, folder, results)
            for case in cases:
                measure(case, systems, plan, folder, results)
    except BenchmarkError as error:
        say(f"throughput: {error}")
        return 2
    show(cases, systems, results)
    finish(summary(cases, plan, options, results), options.json)
    return 1 if results.errors else 0


if __name__ == "__main__":
    raise SystemExit(main())
