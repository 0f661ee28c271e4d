"""What is done with functions as a whole: deploy, remove, flush, load, unload, and the end of the server."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from rewarm.core import refusals
from rewarm.core.state import FunctionState
from rewarm.errors import NotFound
from rewarm.facts import messages as m
from rewarm.facts.messages import Effect
from rewarm.facts.sandbox import SandboxState
from rewarm.policy import registry

if TYPE_CHECKING:
    from rewarm.core.node import Node


def _deployed(node: Node, event: m.Deployed, now: float, out: list[Effect]) -> None:
    revision, spec = event.revision, event.revision.spec
    batching = registry.batching(spec.batching, spec, event.profile)
    keepalive = registry.keepalive(spec.keepalive) if spec.keepalive is not None else node.pool.keepalive
    node.pool.models.adopt(revision, now, out)
    fn = node.functions.get(revision.name)
    if fn is None:
        fn = node.functions[revision.name] = FunctionState(revision, batching, keepalive)
        node.pool.asleep.adopt(fn, now, out)
        node.pool.deployed(fn, now)
        return
    if fn.revision.digest == revision.digest:
        if event.profile is not None:  # measured anew: the policy plans with it
            fn.batching = batching
        return
    node.pool.asleep.leave(fn, out)
    fn.take_on(revision, batching, keepalive)
    node.pool.asleep.adopt(fn, now, out)
    _end_unless_busy(node, fn, "outdated", out)
    if fn.queue:
        node.scale(fn, now, out)


def _removed(node: Node, event: m.Removed, now: float, out: list[Effect]) -> None:
    fn = node.functions.pop(event.function, None)
    if fn is None:
        return
    fn.removed = True
    node.pool.models.forget(fn.name, now, out)
    node.pool.asleep.leave(fn, out)
    node.reject_all(fn, NotFound(f"the function {fn.name!r} was removed"), out)
    _end_unless_busy(node, fn, "removed", out)


def _end_unless_busy(node: Node, fn: FunctionState, reason: str, out: list[Effect]) -> None:
    for sandbox in list(fn.sandboxes.values()):
        if sandbox.state is not SandboxState.BUSY:
            node.pool.destroy(sandbox, reason, out)


def _flush(node: Node, event: m.Flush, now: float, out: list[Effect]) -> None:
    fn = node.functions.get(event.function)
    if fn is not None and fn.queue:
        fn.flushing = True
        node.pump(fn, now, out)


def _load(node: Node, event: m.Load, now: float, out: list[Effect]) -> None:
    fn = node.functions.get(event.function)
    if fn is not None and fn.live == 0 and not node.draining:
        node.pool.start(fn, now, out)


def _unload(node: Node, event: m.Unload, now: float, out: list[Effect]) -> None:
    fn = node.functions.get(event.function)
    if fn is not None and not fn.queue:
        for sandbox in list(fn.idle):
            node.pool.destroy(sandbox, "unload", out)


def _drain(node: Node, event: m.Draining, now: float, out: list[Effect]) -> None:
    node.draining = node.pool.ground.draining = True
    if event.final:
        node.pool.close(out)
        for sandbox in node.pool.sandboxes.values():
            if sandbox.batch:  # what still runs is lost, by no fault of its function
                node.cut_short(sandbox, "shutdown", refusals.draining(), out)
    for fn in node.functions.values():
        if event.final:
            node.reject_all(fn, refusals.draining(), out)
        if fn.queue:
            fn.flushing = True
            node.pump(fn, now, out)


HANDLERS: dict[type, Callable[..., None]] = {
    m.Deployed: _deployed, m.Removed: _removed, m.Flush: _flush, m.Load: _load, m.Unload: _unload, m.Draining: _drain,
}  # fmt: skip
