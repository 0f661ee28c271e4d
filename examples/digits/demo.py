"""Real digits through a real server: from zero, alone, in a crowd, and back to zero.

    make demo                                     (or: python examples/digits/demo.py [--quick] [--out DIR])

Starts `rewarm serve` on a free port in a temporary home, deploys `app.py` with the command line, and measures from the
outside what a caller sees. Writes DIR/demo.svg. Exit code 0 if everything held; 1 with one line that says what did not.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

HERE = Path(__file__).resolve().parent

try:
    import demo_plot
    import demo_show as show
    from demo_traffic import DemoFailed, Digits, Moment, Record, Shot, Watcher, call_once, call_together
    from rich.console import Console

    from rewarm.bench.api import Api
    from rewarm.bench.local_server import local_server
    from rewarm.errors import RewarmError
except ImportError as missing:
    sys.exit(f"the demo needs {missing.name}; run it with: make demo, or first: pip install '.[onnx,bench]'")

ACCURACY_MIN = 0.95
CALLERS = 32
BURST = 64


@dataclass(frozen=True, slots=True)
class Pace:
    """How long everything takes. `user_s` and `lang_s` are how long idle layers may live."""

    user_s: float = 3.0
    lang_s: float = 6.0
    lone: int = 200
    bursts: int = 6
    burst_gap_s: float = 0.25
    pause_s: float = 0.6  # between acts, so that the picture can tell them apart


QUICK = Pace(user_s=1.0, lang_s=2.0, lone=60, bursts=3, burst_gap_s=0.1, pause_s=0.2)


class Demo:
    """The acts of the demo, in order; each prints what it measured and raises DemoFailed if it should not be so."""

    def __init__(self, url: str, pace: Pace, console: Console) -> None:
        self.url = url
        self.pace = pace
        self.console = console
        self.digits = Digits.read(HERE / "test_digits.npz")
        self.record = Record()
        self.marks: list[tuple[float, str]] = []
        self.rungs: list[tuple[str, float, int]] = []
        self.crowd: list[Shot] = []
        self.summary = ""

    def play(self, out: Path) -> None:
        self.command("deploy", str(HERE / "app.py"))
        self.command("ps")
        self.record = Record()
        with Api(self.url, timeout_s=30.0) as api, Watcher(self.url, self.record) as watcher:
            time.sleep(self.pace.pause_s)
            cold = self.first_digit(api)
            time.sleep(self.pace.pause_s)
            warm = self.lone_caller(api)
            time.sleep(self.pace.pause_s)
            self.bursts()
            self.all_digits()
            lang = self.second_start(api, watcher)
            self.back_to_zero(watcher)
        for kind, shots in (("cold", [cold]), ("lang", [lang]), ("warm", warm)):
            self.rungs.append((kind, statistics.median(shot.latency_ms for shot in shots), len(shots)))
        self.console.print()
        show.ladder(self.console, self.rungs)
        picture = out / "demo.svg"
        run = demo_plot.Run(self.record.shots, self.crowd, watcher.moments, self.rungs, self.marks, self.summary)
        demo_plot.draw(run, picture)
        self.say(f"the picture of this run: [bold]{picture}[/]")

    # ------------------------------------------------------------ acts

    def first_digit(self, api: Api) -> Shot:
        self.act("The first digit, from nothing")
        self.mark("first digit")
        shot, probabilities = call_once(api, self.digits, 0, self.record)
        show.answer(self.console, self.digits.images[0], probabilities)
        self.expect_start(shot, "cold")
        found = int(probabilities.argmax())
        self.say(f"it is a {found}, answered after [bold]{shot.latency_ms:.0f} ms[/]: a zygote started and was forked")
        if not shot.right:
            raise DemoFailed(f"the first digit is a {self.digits.labels[0]} and was not recognised")
        return shot

    def lone_caller(self, api: Api) -> list[Shot]:
        self.act("A lone caller, one digit after another")
        self.mark("lone caller")
        shots = []
        with show.bar(self.console, "asking", self.pace.lone) as (progress, task):
            for index in range(self.pace.lone):
                shots.append(call_once(api, self.digits, index % len(self.digits.labels), self.record)[0])
                progress.advance(task)
        ordered = sorted(shot.latency_ms for shot in shots)
        self.say(
            f"{len(shots)} answers, median [bold]{statistics.median(ordered):.2f} ms[/], "
            f"p99 {ordered[int(0.99 * (len(ordered) - 1))]:.2f} ms, client included"
        )
        for shot in shots:
            self.expect_start(shot, "warm")
        return shots

    def bursts(self) -> None:
        self.act(f"A crowd: {self.pace.bursts} bursts of {BURST} callers at once")
        self.mark("bursts")
        shots: list[Shot] = []
        with show.bar(self.console, "bursts", self.pace.bursts * BURST) as (progress, task):
            for number in range(self.pace.bursts):
                indices = range(number * BURST, (number + 1) * BURST)
                wanted = (index % len(self.digits.labels) for index in indices)
                shots += self.together(wanted, BURST, lambda: progress.advance(task))
                time.sleep(self.pace.burst_gap_s)
        self.no_errors()
        show.batch_sizes(self.console, shots)
        calls = sum(1 / shot.batch_size for shot in shots)
        slowest_ms = max(shot.latency_ms for shot in shots)
        self.say(f"{len(shots)} requests became {calls:.0f} calls; the slowest answer took {slowest_ms:.0f} ms")

    def all_digits(self) -> None:
        total = len(self.digits.labels)
        self.act(f"All {total} test digits, {CALLERS} callers at a time")
        self.mark(f"all {total} digits")
        since_s = time.monotonic()
        with show.bar(self.console, "digits", total) as (progress, task):
            shots = self.together(range(total), CALLERS, lambda: progress.advance(task))
        took_s = time.monotonic() - since_s
        right = sum(shot.right for shot in shots)
        errors = self.record.errors.total()
        self.summary = f"{right} of {total} digits right, {total / took_s:,.0f} requests/s, {errors} errors"
        self.say(
            f"[bold]{right} of {total}[/] right ({right / total:.1%}), [bold]{total / took_s:,.0f} requests/s[/] "
            f"(one Python client), {errors} errors"
        )
        self.no_errors()
        if right < ACCURACY_MIN * total:
            raise DemoFailed(f"accuracy {right / total:.1%} is under {ACCURACY_MIN:.0%}")

    def second_start(self, api: Api, watcher: Watcher) -> Shot:
        self.act("Idle: instances go first, the zygote stays a little longer")
        limit_s = self.pace.user_s + 10
        self.wait(watcher, lambda m: m.instances == 0, self.pace.user_s, limit_s, "the instances were not let go")
        self.mark("instances let go")
        self.say(f"after {self.pace.user_s:g} s: {show.alive(watcher.moments[-1])}")
        if watcher.moments[-1].zygotes != 1:
            raise DemoFailed("the zygote did not outlive its instances")
        time.sleep(0.25 * self.pace.lang_s)
        self.mark("next digit")
        shot, _ = call_once(api, self.digits, 1, self.record)
        self.expect_start(shot, "lang")
        self.say(f"the next digit forks it: answered after [bold]{shot.latency_ms:.0f} ms[/] from a living Lang layer")
        return shot

    def back_to_zero(self, watcher: Watcher) -> None:
        self.act("Nobody asks any more: back to zero")
        usual_s = self.pace.user_s + self.pace.lang_s
        self.wait(watcher, lambda m: m.at_zero, usual_s, usual_s + 15, "the server was not back at zero")
        self.mark("back at zero")
        self.say(f"after {usual_s:g} s: {show.alive(watcher.moments[-1])}")
        time.sleep(self.pace.pause_s)

    # ------------------------------------------------------------ what the acts share

    def act(self, title: str) -> None:
        self.console.print()
        self.console.rule(f"[bold]{title}", align="left", style="dim")

    def say(self, text: str) -> None:
        self.console.print(f"  {text}", highlight=False)

    def mark(self, text: str) -> None:
        self.marks.append((self.record.now_s(), text))

    def command(self, *words: str) -> None:
        """Runs the command line as a person would and shows both."""
        shown = " ".join(word.replace(f"{HERE}", "examples/digits") for word in words)
        self.console.print(f"[bold]$ rewarm {shown}[/]", highlight=False)
        done = subprocess.run(
            [sys.executable, "-m", "rewarm", *words, "--url", self.url], capture_output=True, text=True, timeout=120,
            stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
        if done.returncode:
            raise DemoFailed(f"rewarm {words[0]} ended with {done.returncode}: {' '.join(done.stderr.split())}")
        for line in done.stdout.splitlines():
            if not line.startswith("next: "):
                self.console.print(f"  {line}", markup=False, highlight=False)

    def together(self, indices: Iterable[int], callers: int, step: Callable[[], None]) -> list[Shot]:
        shots = asyncio.run(call_together(self.url, self.digits, indices, callers, self.record, step))
        self.crowd += shots
        return shots

    def wait(
        self, watcher: Watcher, what: Callable[[Moment], bool], usual_s: float, limit_s: float, otherwise: str
    ) -> None:
        with show.bar(self.console, "waiting", usual_s) as (progress, task):
            for waited_s in watcher.until(what, limit_s, otherwise):
                progress.update(task, completed=min(waited_s, usual_s))

    def expect_start(self, shot: Shot, kind: str) -> None:
        if shot.start != kind:
            raise DemoFailed(f"expected a {kind} start, the server says it was {shot.start or 'unknown'}")

    def no_errors(self) -> None:
        if self.record.errors:
            listed = ", ".join(f"{count} x {what}" for what, count in self.record.errors.most_common())
            raise DemoFailed(f"there were errors: {listed}")


def _stop(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt  # so that a SIGTERM, too, ends the server on its way out


def main() -> int:
    parser = argparse.ArgumentParser(description="Real digits through a real server, from zero and back to zero.")
    parser.add_argument("--quick", action="store_true", help="shorter waits and fewer requests: well under 20 s")
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder for demo.svg, default: %(default)s")
    arguments = parser.parse_args()
    pace = QUICK if arguments.quick else Pace()
    console = Console(highlight=False)
    signal.signal(signal.SIGTERM, _stop)
    gc.collect()
    gc.freeze()  # else one collection over all of matplotlib stops this client for 0.1 s, and looks like a slow server
    since_s = time.monotonic()
    keepalive = f"fixed:user_s={pace.user_s:g},lang_s={pace.lang_s:g}"
    try:
        arguments.out.mkdir(parents=True, exist_ok=True)
        console.print(f"[bold]$ rewarm serve --keepalive {keepalive}[/]", highlight=False)
        with local_server(["--keepalive", keepalive]) as url:
            Demo(url, pace, console).play(arguments.out)
    except (DemoFailed, RewarmError, OSError, subprocess.SubprocessError) as error:
        Console(stderr=True).print(f"demo failed: {error}", style="bold red", markup=False, highlight=False)
        return 1
    except KeyboardInterrupt:
        return 130
    console.print(f"  done in {time.monotonic() - since_s:.0f} s; the server and its home are gone", highlight=False)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
