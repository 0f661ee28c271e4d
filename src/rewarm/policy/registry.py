"""The one menu of policies: name → factory, and the short way to write them.

    fixed                     fixed:ttl=10min               fixed:user_s=30,lang_s=60
    slo:mode=cost,max_size=32                               dynamic:max_size=5,max_wait=300ms

A parameter that ends in `_s` is a duration: a number of seconds, or text such as "300ms"; its name may be written
without the `_s`. Third parties add names through the entry point groups `rewarm.batching`, whose objects are called as
`factory(function_spec, **parameters)`, with `profile=…` if they have a parameter of this name, and `rewarm.keepalive`,
called as `factory(**parameters)`. Their distributions are looked at only when a name is not on the menu.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any

from rewarm.errors import BadDefinition
from rewarm.facts.function import FunctionSpec, PolicySpec
from rewarm.facts.profile import Profile
from rewarm.policy.batching.aimd import Aimd
from rewarm.policy.batching.base import BatchingPolicy
from rewarm.policy.batching.batch import Batch
from rewarm.policy.batching.dynamic import Dynamic
from rewarm.policy.batching.mbs import Mbs
from rewarm.policy.batching.none import NoBatching
from rewarm.policy.batching.slo import Slo
from rewarm.policy.batching.static import Static
from rewarm.policy.keepalive.barista import Barista
from rewarm.policy.keepalive.base import KeepalivePolicy
from rewarm.policy.keepalive.break_even import BreakEven
from rewarm.policy.keepalive.faascache import FaasCache
from rewarm.policy.keepalive.fixed import FixedKeepalive
from rewarm.policy.keepalive.hazard import Hazard
from rewarm.policy.keepalive.histogram import Histogram
from rewarm.policy.keepalive.lru import LeastRecentlyUsed
from rewarm.policy.keepalive.none import NoKeepalive
from rewarm.policy.keepalive.rainbowcake import RainbowCake
from rewarm.units import seconds

_BATCHING: dict[str, Callable[..., BatchingPolicy]] = {
    "none": NoBatching,
    "static": Static,
    "dynamic": Dynamic,
    "aimd": Aimd,
    "slo": Slo,
    "batch": Batch,
    "mbs": Mbs,
}
_PROFILE = "profile"  # the parameter that is measured and not written
_KEEPALIVE: dict[str, Callable[..., KeepalivePolicy]] = {
    "none": NoKeepalive,
    "fixed": FixedKeepalive,
    "lru": LeastRecentlyUsed,
    "faascache": FaasCache,
    "break_even": BreakEven,
    "histogram": Histogram,
    "rainbowcake": RainbowCake,
    "barista": Barista,
    "hazard": Hazard,
}

#: For checking what a person wrote before anything was measured: a policy that plans with a profile takes any.
ANY_PROFILE = Profile((1, 2), (1,), ((0.001, 0.001),))


def batching(spec: PolicySpec, function: FunctionSpec, profile: Profile | None = None) -> BatchingPolicy:
    """A fresh policy for one function; `profile` goes to a factory that has a parameter of this name.

    Raises BadDefinition for an unknown name or parameter, a bad value, or a profile that is missing.
    """
    factory: Callable[..., BatchingPolicy] = _find("batching", _BATCHING, spec.name)
    measured = {_PROFILE: profile} if _takes_profile(factory) else {}
    return factory(function, **_fit(spec, factory, skip=1), **measured)


def plans_with_profile(spec: PolicySpec) -> bool:
    """True if this batching policy is given a profile. Raises BadDefinition for an unknown name."""
    return _takes_profile(_find("batching", _BATCHING, spec.name))


def keepalive(spec: PolicySpec) -> KeepalivePolicy:
    """A fresh policy for one server. Raises BadDefinition for an unknown name or parameter or a bad value."""
    factory: Callable[..., KeepalivePolicy] = _find("keepalive", _KEEPALIVE, spec.name)
    return factory(**_fit(spec, factory, skip=0))


def batching_names() -> tuple[str, ...]:
    """The built-in names, then those of installed third parties."""
    return _names("batching", _BATCHING)


def keepalive_names() -> tuple[str, ...]:
    """The built-in names, then those of installed third parties."""
    return _names("keepalive", _KEEPALIVE)


def parse(text: str) -> PolicySpec:
    """ "name" or "name:key=value,key=value" as a PolicySpec with typed values. Raises BadDefinition.

    Parameters are checked here for built-in names only; for others, and for the name itself, when it is built.
    """
    name, colon, rest = (part.strip() for part in text.partition(":"))
    if not name or (colon and not rest):
        raise BadDefinition(f"{text!r} is not a policy; write 'name' or 'name:key=value,key=value'")
    params: dict[str, Any] = {}
    for item in rest.split(",") if rest else ():
        key, equals, value = (part.strip() for part in item.partition("="))
        if not key or not equals or not value:
            raise BadDefinition(f"{item.strip()!r} in {text!r} is not key=value")
        if key in params:
            raise BadDefinition(f"{key} is given twice in {text!r}")
        params[key] = _word(value)
    spec = PolicySpec(name, params)
    takers = [(factory, skip) for menu, skip in ((_BATCHING, 1), (_KEEPALIVE, 0)) if (factory := menu.get(name))]
    if not takers:
        return PolicySpec(name, {key: _value(key, value) for key, value in params.items()})
    factory, skip = takers[-1]  # only `none` is on both menus; for batching it takes nothing, and says so when built
    return PolicySpec(name, _fit(spec, factory, skip))


def _word(text: str) -> int | float | str:
    """A whole number, a number, or the text itself."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _value(key: str, value: Any) -> Any:
    if not key.endswith("_s") or value is None:
        return value
    try:
        return seconds(value)
    except BadDefinition as error:
        raise BadDefinition(f"{key}: {error}") from None


def _fit(spec: PolicySpec, factory: Callable[..., Any], skip: int) -> dict[str, Any]:
    """The parameters of `spec` as `factory` names them, durations in seconds. The first `skip` are not for callers."""
    known = list(_parameters(factory).values())[skip:]
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in known):
        return {key: _value(key, value) for key, value in spec.params.items()}
    known = [parameter for parameter in known if parameter.name != _PROFILE]
    names = [parameter.name for parameter in known]
    fitted: dict[str, Any] = {}
    for key, value in spec.params.items():
        name = f"{key}_s" if key not in names and f"{key}_s" in names else key
        if name not in names:
            listed = f"its parameters are {', '.join(names)}" if names else "it has none"
            raise BadDefinition(f"policy {spec.name!r} has no parameter {key!r}{guess(key, names)}; {listed}")
        if name in fitted:
            raise BadDefinition(f"policy {spec.name!r}: {name} is given twice")
        fitted[name] = _value(name, value)
    missing = [p.name for p in known if p.default is p.empty and p.name not in fitted]
    if missing:
        needs = ", ".join(missing)
        raise BadDefinition(f"policy {spec.name!r} needs {needs}, for example '{spec.name}:{missing[0]}=8'")
    return fitted


@lru_cache(maxsize=256)
def _parameters(factory: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """Kept, because each function deployed asks."""
    return inspect.signature(factory).parameters


def _takes_profile(factory: Callable[..., Any]) -> bool:
    return _PROFILE in _parameters(factory)


def _find(kind: str, menu: Mapping[str, Callable[..., Any]], name: str) -> Callable[..., Any]:
    found = menu.get(name)
    if found is not None:
        return found
    points = _entry_points(kind)
    if name in points:
        try:
            loaded = points[name].load()
        except Exception as error:  # whatever a stranger's module raises while it is imported
            raise BadDefinition(f"{kind} policy {name!r} could not be imported: {error!r}") from error
        if not callable(loaded):
            raise BadDefinition(f"{kind} policy {name!r} is not callable")
        return loaded  # type: ignore[no-any-return]
    names = _names(kind, menu)
    raise BadDefinition(f"unknown {kind} policy {name!r}{guess(name, names)}; there are {', '.join(names)}")


def _names(kind: str, menu: Mapping[str, Any]) -> tuple[str, ...]:
    return (*menu, *sorted(set(_entry_points(kind)) - set(menu)))


def _entry_points(kind: str) -> dict[str, Any]:
    from importlib import metadata  # reads the disk: only when somebody asks beyond the menu

    return {point.name: point for point in metadata.entry_points(group=f"rewarm.{kind}")}


def guess(name: str, names: Iterable[str]) -> str:
    """What was most likely meant, to be put behind a complaint about `name`; "" if nothing is near."""
    close = difflib.get_close_matches(name, list(names), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
