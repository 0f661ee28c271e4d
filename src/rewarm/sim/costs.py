"""What layers cost: seconds to raise them and bytes to keep them, from a file or the indicative defaults.

    [bare]
    startup_s = 0.5
    resident_mb = 2

    [lang.python]               # one table per runtime
    share = 0.5                 # of the functions; drawn with the seed, as traces do not name a language
    startup_s = 0.6
    resident_mb = 25
    fork_s = 0.0                # to fork an instance off it
    forks = true                # false: it becomes the instance and is used up; for one runtime only

    [user]                      # and [user.python] where a runtime differs
    startup_s = { median = 0.8, sigma = 0.8 }   # a number, or lognormal: one draw per function
    resident_mb = 55            # where the trace does not say

    [asleep]                    # functions sleep on disk, each in a snapshot that is there from the start
    restore_s = 0.15            # to wake an instance from it, all layers at once
    disk_mb = 240

What a file leaves out is taken from the defaults, except that its `lang` tables replace all of theirs, and that without
`asleep` nothing sleeps. MB is 2^20.
"""

from __future__ import annotations

import math
import tomllib
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from rewarm.errors import BadDefinition
from rewarm.facts.function import FunctionSpec, LangKey
from rewarm.units import MB

_FOR_EVER_S = 1e7


@dataclass(frozen=True, slots=True)
class Draw:
    """A fixed figure (`sigma` 0), or a lognormal one with this median."""

    median: float
    sigma: float = 0.0

    def of(self, normal: float) -> float:
        """The figure for a standard normal draw."""
        return self.median * math.exp(self.sigma * normal)


@dataclass(frozen=True, slots=True)
class LangCosts:
    startup_s: float
    resident_bytes: int
    share: float = 1.0
    fork_s: float = 0.0
    forks: bool = True


@dataclass(frozen=True, slots=True)
class UserCosts:
    startup_s: Draw
    resident_bytes: Draw


@dataclass(frozen=True, slots=True)
class AsleepCosts:
    restore_s: float
    disk_bytes: int


@dataclass(frozen=True, slots=True)
class FunctionCosts:
    """What one function turned out to cost."""

    runtime: str
    user_s: float
    user_bytes: int


@dataclass(frozen=True, slots=True)
class Costs:
    """All that the simulator knows of layers. `user` is by runtime; "" is for those that are not named."""

    bare_s: float
    bare_bytes: int
    langs: Mapping[str, LangCosts]
    user: Mapping[str, UserCosts]
    asleep: AsleepCosts | None = None

    def of(self, function: str, memory_bytes: int | None, seed: int) -> FunctionCosts:
        """The costs of one function: the same for a name and a seed, whatever else the trace holds."""
        rng = np.random.default_rng((seed, zlib.crc32(function.encode())))
        runtime = self._runtime(float(rng.random()))
        user = self.user.get(runtime, self.user[""])
        startup_s, resident = (float(normal) for normal in rng.standard_normal(2))
        if memory_bytes is None:
            memory_bytes = round(user.resident_bytes.of(resident))
        return FunctionCosts(runtime, user.startup_s.of(startup_s), memory_bytes)

    def spec(self, function: str, runtime: str, max_instances: int) -> FunctionSpec:
        """What the core is told. A runtime that forks is a package of its own to it, none another's ancestor.

        It gives no time limit to speak of: traces hold what was let run to its end.
        """
        forks = self.langs[runtime].forks
        return FunctionSpec(
            function, "handler", "trace:run", timeout_s=_FOR_EVER_S, max_instances=max_instances, queue_max=1_000_000,
            preload=(runtime,) if forks else (), runtime="python" if forks else "nodejs",
        )  # fmt: skip

    def lang(self, key: LangKey) -> LangCosts:
        """The costs of the layer that the functions of `spec` share."""
        if key.forks:
            return self.langs[key.packages[0]]
        return next(lang for lang in self.langs.values() if not lang.forks)

    def cold_s(self, function: FunctionCosts) -> float:
        """What a start with nothing but the runtime takes: what a snapshot is there to save."""
        return self.bare_s + self.langs[function.runtime].fork_s + function.user_s

    def making_s(self, function: FunctionCosts) -> float:
        """What it takes to make a snapshot: one instance from nothing, one layer after the other."""
        return self.cold_s(function) + self.langs[function.runtime].startup_s

    def whole_bytes(self, function: FunctionCosts) -> int:
        """An instance with all its layers, none of them shared."""
        return self.bare_bytes + self.langs[function.runtime].resident_bytes + function.user_bytes

    def _runtime(self, uniform: float) -> str:
        left = uniform * sum(lang.share for lang in self.langs.values())
        for runtime, lang in self.langs.items():
            left -= lang.share
            if left < 0:
                return runtime
        return list(self.langs)[-1]


#: Indicative figures, as docs/simulator.md has them.
DEFAULTS = Costs(
    bare_s=0.5,
    bare_bytes=2 * MB,
    langs={
        "python": LangCosts(0.6, 25 * MB, 0.50),
        "node": LangCosts(0.4, 35 * MB, 0.35),
        "java": LangCosts(1.2, 60 * MB, 0.15),
    },
    user={"": UserCosts(Draw(0.8, 0.8), Draw(55 * MB))},
)

_LANG_KEYS = ("share", "startup_s", "resident_mb", "fork_s", "forks")
_COST_KEYS = ("startup_s", "resident_mb")
_ASLEEP_KEYS = ("restore_s", "disk_mb")


def read(path: Path) -> Costs:
    """The costs in a TOML file. Raises BadDefinition that names the file, the key and what to write."""
    try:
        said = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise BadDefinition(f"{path}: {error.strerror}; name a file with layer costs (docs/simulator.md)") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadDefinition(f"{path}: not TOML: {error}") from None
    reader = _Reader(path)
    reader.only(said, "", ("bare", "lang", "user", "asleep"), what="layer")
    costs = DEFAULTS
    if "bare" in said:
        bare = reader.table(said["bare"], "bare", _COST_KEYS)
        costs = replace(
            costs,
            bare_s=reader.number(bare, "bare", "startup_s", DEFAULTS.bare_s),
            bare_bytes=round(reader.number(bare, "bare", "resident_mb", DEFAULTS.bare_bytes / MB) * MB),
        )
    if "lang" in said:
        costs = replace(costs, langs=reader.langs(said["lang"]))
    if "user" in said:
        costs = replace(costs, user=reader.user(said["user"], costs.langs))
    if "asleep" in said:
        costs = replace(costs, asleep=reader.asleep(said["asleep"]))
    return costs


class _Reader:
    """Takes tables apart; every complaint names the file and the key."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def bad(self, what: str) -> BadDefinition:
        return BadDefinition(f"{self.path}: {what}")

    def only(self, table: Mapping[str, Any], where: str, known: tuple[str, ...], what: str = "key") -> None:
        for key in table:
            if key not in known:
                name = f"{where}.{key}" if where else key
                raise self.bad(f"unknown {what} {name!r}; use {', '.join(known)}")

    def table(self, value: Any, where: str, known: tuple[str, ...]) -> Mapping[str, Any]:
        if not isinstance(value, dict):
            raise self.bad(f"{where} must be a table, written [{where}]")
        self.only(value, where, known)
        return value

    def number(self, table: Mapping[str, Any], where: str, key: str, default: float | None = None) -> float:
        value = table.get(key, default)
        if value is None:
            raise self.bad(f"{where}.{key} is missing; write {key} = NUMBER under [{where}]")
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise self.bad(f"{where}.{key} must be a number that is 0 or more, not {value!r}")
        return float(value)

    def draw(self, table: Mapping[str, Any], where: str, key: str, default: Draw) -> Draw:
        value = table.get(key)
        if value is None:
            return default
        if not isinstance(value, dict):
            return Draw(self.number(table, where, key))
        inner = f"{where}.{key}"
        self.only(value, inner, ("median", "sigma"))
        return Draw(self.number(value, inner, "median"), self.number(value, inner, "sigma"))

    def langs(self, value: Any) -> dict[str, LangCosts]:
        if not isinstance(value, dict) or not value:
            raise self.bad("lang must have one table per runtime, for example [lang.python]")
        langs = {}
        for runtime, inner in value.items():
            where = f"lang.{runtime}"
            table = self.table(inner, where, _LANG_KEYS)
            langs[runtime] = LangCosts(
                self.number(table, where, "startup_s"),
                round(self.number(table, where, "resident_mb") * MB),
                self.number(table, where, "share", 1.0),
                self.number(table, where, "fork_s", 0.0),
                self.forks(table, where, runtime),
            )
        if not sum(lang.share for lang in langs.values()):
            raise self.bad("all shares under lang are 0; give one runtime a share")
        if sum(not lang.forks for lang in langs.values()) > 1:
            raise self.bad("forks = false is for one runtime only; let the others fork")
        return langs

    def forks(self, table: Mapping[str, Any], where: str, runtime: str) -> bool:
        value = table.get("forks", runtime != "nodejs")
        if not isinstance(value, bool):
            raise self.bad(f"{where}.forks must be true or false, not {value!r}")
        try:
            LangKey((runtime,))
        except BadDefinition:
            raise self.bad(f"{where}: use letters, digits and _ in the name of a runtime") from None
        return value

    def user(self, value: Any, langs: Mapping[str, LangCosts]) -> dict[str, UserCosts]:
        table = self.table(value, "user", (*_COST_KEYS, *langs))
        common = self.user_costs(table, "user", DEFAULTS.user[""])
        users = {"": common}
        for runtime in langs:
            if runtime in table:
                where = f"user.{runtime}"
                users[runtime] = self.user_costs(self.table(table[runtime], where, _COST_KEYS), where, common)
        return users

    def asleep(self, value: Any) -> AsleepCosts:
        table = self.table(value, "asleep", _ASLEEP_KEYS)
        restore_s, disk_mb = (self.number(table, "asleep", key) for key in _ASLEEP_KEYS)
        if restore_s <= 0:
            raise self.bad("asleep.restore_s must be more than 0: a start that takes no time is not one")
        return AsleepCosts(restore_s, round(disk_mb * MB))

    def user_costs(self, table: Mapping[str, Any], where: str, common: UserCosts) -> UserCosts:
        startup_s = self.draw(table, where, "startup_s", common.startup_s)
        if startup_s.median <= 0:
            raise self.bad(f"{where}.startup_s must be more than 0: a start that takes no time is not one")
        common_mb = Draw(common.resident_bytes.median / MB, common.resident_bytes.sigma)
        resident_mb = self.draw(table, where, "resident_mb", common_mb)
        return UserCosts(startup_s, Draw(resident_mb.median * MB, resident_mb.sigma))
