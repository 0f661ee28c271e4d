"""`rewarm sim`: its words, its table and its JSON."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from rewarm.cli.main import rewarm
from rewarm.cli.sim import policies

TRACE = "t_s,function,duration_s\n0,a,1\n30,a,1\n60,b,1\n3600,a,1\n"


@pytest.fixture
def trace(tmp_path: Path) -> str:
    path = tmp_path / "calls.csv"
    path.write_text(TRACE, "utf-8")
    return str(path)


def sim(*args: str) -> Result:
    return CliRunner().invoke(rewarm, ["sim", *args])


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (["none"], ["none"]),
        (["none, lru"], ["none", "lru"]),
        (["fixed:user_s=1,lang_s=2,none", "lru"], ["fixed:user_s=1,lang_s=2", "none", "lru"]),
        (["fixed:ttl=1,fixed:ttl=2"], ["fixed:ttl=1", "fixed:ttl=2"]),
        (["a:path=x:y,b=2"], ["a:path=x:y,b=2"]),
    ],
)
def test_policies_in_one_word(given: list[str], found: list[str]) -> None:
    assert policies(given) == found


def test_json(trace: str) -> None:
    done = sim(trace, "--policy", "none,fixed:ttl=10min", "--json", "--jobs", "1")
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert (said["trace"], said["seed"]) == (trace, 1)
    none, fixed = said["policies"]
    assert (none["policy"], none["params"], fixed["params"]) == ("none", {}, {"ttl_s": 600.0})
    assert (none["invocations"], none["user_pct"], fixed["user_pct"]) == (4, 0.0, 25.0)
    wanted = {
        "startup_s_mean", "startup_s_p50", "startup_s_p99", "cold_pct", "bare_pct", "lang_pct", "user_pct",
        "cold_pct_p75_function", "idle_gb_h", "used_gb_h", "wasted_gb_h", "evictions", "wait_s_mean", "wait_s_p99",
        "invocations_per_s",
    }  # fmt: skip
    assert wanted <= set(fixed)


def test_table(trace: str) -> None:
    done = sim(trace, "--policy", "none,fixed", "--memory", "1GB")
    assert done.exit_code == 0, done.output
    titles, _, none, fixed, *_ = done.stdout.splitlines()
    assert re.split(r"\s{2,}", titles) == [
        "policy", "cold %", "bare %", "lang %", "user %", "start-up s", "p99", "used GB·h", "wasted", "evictions",
    ]  # fmt: skip
    assert none.split()[:5] == ["none", "100.00", "0.00", "0.00", "0.00"]
    assert fixed.split()[:5] == ["fixed", "75.00", "0.00", "0.00", "25.00"]
    assert "4 calls of 2 functions" in done.stdout


def test_all_columns(trace: str) -> None:
    titles, _, row, *_ = sim(trace, "--policy", "fixed:user_s=60,lang_s=600", "--wide").stdout.splitlines()
    assert len(re.split(r"\s{2,}", titles)) == len(row.split()) == 17
    assert row.startswith("fixed:user_s=60,lang_s=600 ")


def test_ten_policies_with_long_parameters_fit_into_100_characters(trace: str) -> None:
    long = [f"fixed:user_s={1000 + n}.25,lang_s=123456.789,bare_s=98765.4321" for n in range(5)]
    long += [f"rainbowcake:alpha=0.99{n},floor=61.00005s,p=0.8{n}1" for n in range(5)]
    done = sim(trace, "--policy", ",".join(long))
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert max(len(line.rstrip()) for line in lines) == 100
    # Nothing is cut off: the first column has every parameter, in lines that break between them.
    width = len(lines[0]) - len(lines[0].split("cold %")[1]) - len("cold %") - 2
    said = " ".join(line[:width].strip() for line in lines[2:-2]).split()
    assert said == [word for policy in long for word in policy.replace(":", " ").replace(",", " ").split()]


def test_options_reach_the_trace(trace: str, tmp_path: Path) -> None:
    costs = tmp_path / "costs.toml"
    costs.write_text("[user]\nstartup_s = 7\n", "utf-8")
    done = sim(
        trace, "--hours", "1-", "--layers", str(costs), "--policy", "none", "--json", "--sandboxes-per-function", "3"
    )
    (found,) = json.loads(done.stdout)["policies"]
    assert found["invocations"] == 1
    assert found["startup_s_mean"] > 7
    done = sim("azure-2019", "--granularity", "minute", "--drop-busiest", "300", "--json")
    (found,) = json.loads(done.stdout)["policies"]
    assert found["wait_s_mean"] == 0.0


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--policy", "fixt"], "unknown keepalive policy 'fixt' (did you mean 'fixed'?)"),
        (["--policy", "fixed:tll=3"], "policy 'fixed' has no parameter 'tll'"),
        (["--hours", "6"], "'6' is not FROM-TO in hours"),
        (["--hours", "18-6"], "'18-6' is not FROM-TO in hours"),
        (["--memory", "10MB"], "the memory budget is 10 MB; give more with --memory"),
        (["--layers", "nowhere.toml"], "nowhere.toml: No such file"),
        (["--granularity", "minute"], "use --granularity call"),
        (["--drop-busiest", "2"], "2 functions, and the 2 busiest are to be dropped"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(trace: str, args: list[str], says: str) -> None:
    done = sim(trace, *args)
    assert done.exit_code == 2
    assert says in done.output
    assert "Traceback" not in done.output


def test_a_trace_without_calls_is_told(tmp_path: Path) -> None:
    (tmp_path / "empty.csv").write_text("t_s,function,duration_s\n", "utf-8")
    done = sim(str(tmp_path / "empty.csv"))
    assert done.exit_code == 2
    assert "the file has a header and no rows" in done.output


def test_an_unknown_trace() -> None:
    done = sim("azure-2020")
    assert done.exit_code == 2
    assert "name a trace file, or one of azure-2019, azure-2021, servegen, servegen-images" in done.output
