"""What `rewarm experiment starts` makes of a server's figures, and that the simulator reads what it writes."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from rewarm.bench.experiment_starts import MB, Costs, Result, growth, layer_seconds, to_toml
from rewarm.cli.main import rewarm
from rewarm.errors import SystemFault
from rewarm.facts.function import LangKey
from rewarm.obs.metrics import Collector, LayerTimes, page
from rewarm.sim import costs

PYTHON = Costs("digits", "python+a.b+numpy", True, 0.0002, 0.15, 0.004, 0.0105, 37 * MB, 16 * MB, 5)
NODE = Costs("nodejs", "nodejs", False, 0.0004, 0.27, 0.0003, 0.0025, 42 * MB, 0, 5)
RESULT = Result({"cpu": "A", "cores": 2, "python": "3.11"}, (PYTHON, NODE), {})


def test_the_simulator_reads_what_it_writes(tmp_path: Path) -> None:
    path = tmp_path / "costs.toml"
    path.write_text(to_toml(RESULT))
    found = costs.read(path)
    assert (found.bare_s, found.bare_bytes) == (pytest.approx(0.0003), 0)
    assert dict(found.langs) == {
        "python_a_b_numpy": costs.LangCosts(0.15, 37 * MB, 0.5, 0.004, True),
        "nodejs": costs.LangCosts(0.27, 42 * MB, 0.5, 0.0003, False),
    }
    assert found.user["python_a_b_numpy"] == costs.UserCosts(costs.Draw(0.0105), costs.Draw(16 * MB))
    assert found.user["nodejs"] == costs.UserCosts(costs.Draw(0.0025), costs.Draw(0))
    runtimes = {found.of(f"f{number}", None, 1).runtime for number in range(50)}
    assert runtimes == set(found.langs)
    for runtime in runtimes:
        spec = found.spec("f", runtime, 1)
        assert found.lang(spec.lang_key) is found.langs[runtime]
        assert isinstance(spec.lang_key, LangKey) and spec.lang_key.forks is found.langs[runtime].forks


def test_a_simulation_with_it(tmp_path: Path) -> None:
    (tmp_path / "costs.toml").write_text(to_toml(RESULT))
    (tmp_path / "trace.csv").write_text("t_s,function,duration_s\n0,f,0.1\n60,f,0.1\n61,g,0.1\n")
    ran = CliRunner().invoke(
        rewarm,
        ["sim", str(tmp_path / "trace.csv"), "--policy", "fixed", "--layers", str(tmp_path / "costs.toml"), "--json"],
    )
    assert ran.exit_code == 0, ran.output


def test_seconds_are_the_growth_between_two_pages() -> None:
    times = LayerTimes()

    def now() -> dict[str, tuple[float, float]]:
        return layer_seconds(page(Collector({}, times, lambda: ())).decode())

    for layer in ("bare", "zygote", "lang", "user"):
        times.observe(layer, 100.0)
    before = now()
    with pytest.raises(SystemFault, match="no bare layer"):
        growth(before, before)
    for layer in ("bare", "zygote", "zygote", "lang", "user", "ready"):
        times.observe(layer, 0.25)
    times.observe("zygote", 1.0)
    assert growth(before, now()) == {"bare": 0.25, "zygote": 0.5, "lang": 0.25, "user": 0.25, "ready": 0.25}


def test_it_is_told_before_it_is_measured_where_the_file_cannot_go(tmp_path: Path) -> None:
    ran = CliRunner().invoke(rewarm, ["experiment", "starts", "--save", str(tmp_path / "no" / "costs.toml")])
    assert ran.exit_code == 2
    assert "there is no folder" in ran.stderr
