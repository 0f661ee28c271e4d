"""How a person defines a function: the decorator and the words it takes.

Nothing runs here: the decorator checks what was written and leaves a FunctionSpec on the class or function as
`__rewarm__`. The entry and the file names in it are made final when the file is deployed.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Never, Protocol, TypeVar

from rewarm.errors import BadDefinition
from rewarm.facts.function import FunctionSpec, Isolation, Pin, PolicySpec, Tensor
from rewarm.units import seconds, size_bytes

F = TypeVar("F", bound=Callable[..., Any])


class WeightsFile(Protocol):
    """`rewarm.Weights` as a decorator sees it: the file, and how much of it may stay in memory while nothing runs."""

    path: Path
    pin: str | int


def NoBatching() -> PolicySpec:  # noqa: N802 - reads as a type in a decorator
    """One request, one call."""
    return PolicySpec("none")


def Static(size: int) -> PolicySpec:  # noqa: N802
    """Wait until `size` requests are there, however long."""
    return PolicySpec("static", {"size": size})


def Dynamic(max_size: int = 16, max_wait: str | float = "5ms") -> PolicySpec:  # noqa: N802
    """Leave at `max_size` requests or `max_wait` after the first."""
    return PolicySpec("dynamic", {"max_size": max_size, "max_wait_s": seconds(max_wait)})


def Aimd(max_size: int = 64, step: int = 1, backoff: float = 0.9) -> PolicySpec:  # noqa: N802
    """Clipper's rule: the batch limit grows by `step` while the SLO holds and shrinks by `backoff` on a miss."""
    return PolicySpec("aimd", {"max_size": max_size, "step": step, "backoff": backoff})


def Slo(mode: str = "latency", max_size: int = 64, slack: str | float = "5ms") -> PolicySpec:  # noqa: N802
    """Leave as late as the SLO allows and waiting pays (`cost`), or as soon as an instance is free (`latency`)."""
    return PolicySpec("slo", {"mode": mode, "max_size": max_size, "slack_s": seconds(slack)})


def function(
    target: F | None = None,
    *,
    name: str | None = None,
    memory: str | int = "1GB",
    timeout: str | float = "60s",
    slo: str | float | None = None,
    batching: PolicySpec | str | None = None,
    keepalive: PolicySpec | str | None = None,
    preload: Sequence[str] = (),
    weights: str | WeightsFile | None = None,
    inputs: Mapping[str, Tensor] | None = None,
    outputs: Mapping[str, Tensor] | None = None,
    max_instances: int = 2,
    queue_max: int = 1024,
    batched: bool = False,
    env: Mapping[str, str] | None = None,
    isolation: Isolation = "process",
    samples: Sequence[str] = (),
    **unknown: Never,
) -> Any:
    """Make a class with `predict`, or a `handler(event, context)`, deployable.

    The class's `predict` takes numpy arrays whose leading axis is the batch and returns as many rows. A handler with
    `batched=True` takes a list of events (and the list of their contexts) and returns a list of as many answers.
    `isolation="microvm"` runs it in a virtual machine of its own, which can sleep on disk; `samples` are JSON files
    beside it, the bodies of calls with which such a machine is warmed up before it sleeps.
    Raises BadDefinition for anything that cannot be meant, at import, with the name of the argument.
    """

    def define(thing: F) -> F:
        is_class = inspect.isclass(thing)
        _check_words(unknown, preload=preload, samples=samples)
        _check_kind(thing, batched, bool(weights or inputs or outputs))
        spec = FunctionSpec(
            name=name or thing.__name__.lower(),
            kind="predict" if is_class else "handler",
            entry=f"{thing.__module__}:{thing.__qualname__}",
            batched=batched,
            memory_bytes=size_bytes(memory),
            timeout_s=seconds(timeout),
            slo_s=None if slo is None else seconds(slo),
            batching=_policy(batching) or default_batching(is_class or batched),
            keepalive=_policy(keepalive),
            preload=tuple(preload),
            weights=weights if weights is None or isinstance(weights, str) else str(weights.path),
            pin="auto" if weights is None or isinstance(weights, str) else pin_of(weights.pin),
            inputs=_inputs(thing, inputs) if inspect.isclass(thing) else (),
            outputs=tuple((outputs or {}).items()),
            max_instances=max_instances,
            queue_max=queue_max,
            env=tuple(sorted((env or {}).items())),
            isolation=isolation,
            samples=tuple(samples),
        )
        check_spec(spec)
        thing.__rewarm__ = spec  # type: ignore[attr-defined]
        return thing

    return define if target is None else define(target)


def _check_words(unknown: Mapping[str, Never], *, preload: Sequence[str], samples: Sequence[str]) -> None:
    """There are no other arguments; and a text is a sequence of texts as well, but hardly meant."""
    for word in unknown:
        from rewarm.policy import registry

        known = [p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
        raise BadDefinition(f"@rewarm.function takes no argument {word!r}{registry.guess(word, known)}")
    if isinstance(preload, str):
        raise BadDefinition(f"preload is a list of packages: write preload=[{preload!r}]")
    if isinstance(samples, str):
        raise BadDefinition(f"samples is a list of files: write samples=[{samples!r}]")


def _check_kind(thing: Callable[..., Any], batched: bool, has_arrays: bool) -> None:
    """What is said goes with a class with predict, or with a handler."""
    is_class = inspect.isclass(thing)
    if is_class and not callable(getattr(thing, "predict", None)):
        raise BadDefinition(f"class {thing.__name__} has no method predict")
    if is_class and batched:
        raise BadDefinition("batched=True is for handlers; predict always takes a batch")
    if not is_class and has_arrays:
        raise BadDefinition("weights, inputs and outputs are for classes with predict, not for handlers")


def default_batching(takes_batches: bool) -> PolicySpec:
    """Whatever queued while the instance was busy leaves together; a lone caller never waits."""
    return PolicySpec("dynamic", {"max_size": 16, "max_wait_s": 0.0}) if takes_batches else PolicySpec("none")


def check_spec(spec: FunctionSpec) -> None:
    """Builds the named policies and the Lang key once, so that a misspelt one fails at definition.

    Raises BadDefinition.
    """
    from rewarm.policy import registry

    policy = registry.batching(spec.batching, spec, registry.ANY_PROFILE)
    if spec.kind == "handler" and not spec.batched and policy.max_size > 1:
        name = spec.batching.name
        raise BadDefinition(f"batching={name!r} needs a handler with batched=True or a class with predict")
    if spec.keepalive is not None:
        registry.keepalive(spec.keepalive)


def pin_of(pin: str | int) -> Pin:
    """ "auto", "none", "all", or a size such as "256MB"."""
    if pin in ("auto", "none", "all"):
        return pin  # type: ignore[return-value]
    try:
        return size_bytes(pin)
    except BadDefinition as error:
        raise BadDefinition(f"pin is 'auto', 'none', 'all' or a size: {error.message}") from None


def _policy(value: PolicySpec | str | None) -> PolicySpec | None:
    if isinstance(value, str):
        from rewarm.policy import registry

        return registry.parse(value)
    if value is None or isinstance(value, PolicySpec):
        return value
    raise BadDefinition(f"a policy is a name or one of rewarm's policy words such as rewarm.Dynamic(…), not {value!r}")


def _inputs(cls: type, declared: Mapping[str, Tensor] | None) -> tuple[tuple[str, Tensor | None], ...]:
    """The parameters of predict, in order, with what was declared of them."""
    parameters = list(inspect.signature(cls.predict).parameters.values())[1:]  # type: ignore[attr-defined]
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    if not names:
        raise BadDefinition(f"{cls.__name__}.predict takes no input; write predict(self, image)")
    unknown = set(declared or {}) - set(names)
    if unknown:
        raise BadDefinition(f"inputs names {sorted(unknown)}, but predict takes {names}")
    return tuple((n, (declared or {}).get(n)) for n in names)
