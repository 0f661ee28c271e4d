"""What a run says of a policy, as figures for programs and rows for people."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rewarm.facts.function import PolicySpec
from rewarm.facts.sandbox import Layer, StartKind
from rewarm.sim.tally import FunctionTally, Tally

_GB_H = float(1 << 30) * 3600.0


@dataclass(frozen=True, slots=True)
class Report:
    """One policy over one trace.

    Shares are percent of the calls that ran: `cold` found nothing, `restored` a snapshot on disk, `bare` a layer on its
    way up, `lang` its runtime, `user` needed no start. Start-up and waiting seconds are over all calls that ran, zeros
    among them; waiting is the time in the queue that was not start-up. The 75th percentiles over functions weigh each
    function alike (Shahrad et al., ATC'20): of its share of `cold` calls, and of calls with a start of any kind. Idle,
    used and wasted are memory; `disk_gb_h` is what snapshots took on disk. GB are 2^30 bytes.
    """

    policy: PolicySpec
    invocations: int
    rejected: Mapping[str, int]
    unserved: int  # still waiting a day after the end
    cold_pct: float
    bare_pct: float
    lang_pct: float
    restored_pct: float
    user_pct: float
    startup_s_mean: float
    startup_s_p50: float
    startup_s_p99: float
    wait_s_mean: float
    wait_s_p99: float
    idle_gb_h: float
    used_gb_h: float
    wasted_gb_h: float
    idle_gb_h_by_layer: Mapping[str, float]
    disk_gb_h: float
    evictions: int
    cold_pct_p75_function: float
    start_pct_p75_function: float
    started: int  # calls with a start of any kind
    wall_s: float
    functions: tuple[FunctionTally, ...] = field(repr=False)

    @property
    def invocations_per_s(self) -> float:
        """How fast the simulator was."""
        return self.invocations / self.wall_s if self.wall_s > 0 else 0.0

    def to_json(self) -> dict[str, Any]:
        """All but the functions one by one. `policy` and `params` as the experiments write them."""
        left_out = {"policy", "functions", "wall_s"}
        figures = {name: getattr(self, name) for name in self.__slots__ if name not in left_out}
        return {
            "policy": self.policy.name,
            "params": dict(self.policy.params),
            **{name: _rounded(value) for name, value in figures.items()},
            "wall_s": round(self.wall_s, 3),
            "invocations_per_s": round(self.invocations_per_s),
        }


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _rounded(inner) for key, inner in value.items()}
    return float(f"{value:.6g}") if isinstance(value, float) else value


def report(policy: PolicySpec, tally: Tally, wall_s: float) -> Report:
    ran = tally.started
    started = tally.starts.total()
    pct = {kind: 100.0 * count / ran for kind, count in tally.starts.items()} if ran else {}
    tally.startup_s.add_zeros(ran - tally.startup_s.count)
    tally.wait_s.add_zeros(ran - tally.wait_s.count)
    used, wasted = sum(tally.used.values()) / _GB_H, sum(tally.wasted.values()) / _GB_H
    layers = (Layer.BARE, Layer.LANG, Layer.USER)
    called = [function for function in tally.functions if function.calls]
    return Report(
        policy=policy,
        invocations=tally.arrived,
        rejected=dict(tally.rejected),
        unserved=tally.waiting,
        cold_pct=pct.get(StartKind.COLD, 0.0),
        bare_pct=pct.get(StartKind.BARE, 0.0),
        lang_pct=pct.get(StartKind.LANG, 0.0),
        restored_pct=pct.get(StartKind.RESTORED, 0.0),
        user_pct=100.0 * (ran - started) / ran if ran else 0.0,
        startup_s_mean=tally.startup_s.mean,
        startup_s_p50=tally.startup_s.quantile(0.50),
        startup_s_p99=tally.startup_s.quantile(0.99),
        wait_s_mean=tally.wait_s.mean,
        wait_s_p99=tally.wait_s.quantile(0.99),
        idle_gb_h=used + wasted,
        used_gb_h=used,
        wasted_gb_h=wasted,
        idle_gb_h_by_layer={
            layer.name.lower(): (tally.used[layer] + tally.wasted[layer]) / _GB_H for layer in layers
        },
        disk_gb_h=tally.disk_byte_s / _GB_H,
        evictions=tally.evictions,
        cold_pct_p75_function=_p75([100.0 * function.cold / function.calls for function in called]),
        start_pct_p75_function=_p75([100.0 * function.started / function.calls for function in called]),
        started=started,
        wall_s=wall_s,
        functions=tuple(tally.functions),
    )  # fmt: skip


def _p75(values: list[float]) -> float:
    """Nearest rank."""
    return sorted(values)[math.ceil(0.75 * len(values)) - 1] if values else 0.0
