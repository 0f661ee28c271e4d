"""What every sandbox driver must do, as one call.

    await check_sandbox_driver(make_driver, revision, broken)
    await check_sandbox_driver(make_driver, revision, broken, checks=CONSUMED_CHECKS)

`revision` is a handler that does what its event says, as `PROBE` does: a driver that runs files is given a folder with
PROBE in it, the fake driver gets `behave`. `broken` is a revision whose code does not come up. The second call is for
drivers with a runtime that does not fork; both revisions then are of that runtime. Every driver is wrapped in a
GuardedDriver, as the server does. AssertionError says what was expected.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

import orjson

from rewarm import wire
from rewarm.errors import FunctionError, RewarmError
from rewarm.facts import messages as m
from rewarm.facts.function import LangKey, Revision
from rewarm.facts.request import Request
from rewarm.facts.sandbox import SandboxState
from rewarm.sandbox.port import SandboxDriver
from rewarm.testing.fake_driver import Outcome
from rewarm.testing.stage import SILENCE_S, TIMEOUT_S, Stage

State = SandboxState

#: The handler of `revision`: gives every event back, unless it says what else to do.
PROBE = """
import ctypes, os


def main(event, context):
    what = event.get("do", "ok")
    if what == "error":
        raise ValueError("asked for")
    if what == "exits":
        os._exit(0)
    if what == "dies":
        ctypes.string_at(0)
    while what == "hangs":
        pass
    return event
"""


def behave(request: Request) -> Outcome:
    """PROBE for the fake driver."""
    return Outcome(orjson.loads(request.payload[2]).get("do", "ok"))


def call(**event: object) -> Request:
    """A request for PROBE."""
    return Request("probe", 0.0, 0.0, wire.Item(wire.KIND_JSON, b"", orjson.dumps(event)))


Check = Callable[[Stage], Awaitable[None]]


async def layers_come_in_order(s: Stage) -> None:
    key = await s.zygote()
    node = await s.climb(State.READY)
    assert set(s.driver.pids()) <= {key, node}


async def runs_are_answered_in_order(s: Stage) -> None:
    await s.zygote()
    node = await s.climb(State.READY)
    for size in (1, 5, 1):
        requests = [call(n=n) for n in range(size)]
        s.run(node, *requests)
        await s.answered(*requests)
        for request in requests:
            assert s.sink.answers[request][0] == 200
            assert orjson.loads(s.sink.answers[request][4]) == orjson.loads(request.payload[2])
    assert sum(isinstance(event, m.RunDone) for event in s.sink.of(node)) == 3


async def an_exception_is_an_answer(s: Stage) -> None:
    await s.zygote()
    node = await s.climb(State.READY)
    good, bad = call(n=1), call(do="error")
    s.run(node, good, bad)
    await s.answered(good, bad)
    assert [s.sink.answers[request][0] for request in (good, bad)] == [200, FunctionError.status]
    again = call(n=2)
    s.run(node, again)
    await s.answered(again)


async def destroy_ends_every_stage(s: Stage) -> None:
    await s.zygote()
    for stage in (State.BARE, State.LANG, State.READY):
        node = await s.climb(stage)
        s.driver.carry_out(m.Destroy(node, "test"))
        s.driver.carry_out(m.Destroy(node, "test"))
        assert (await s.gone(node)).error is None, f"Destroy in {stage.value}"


async def destroy_ends_every_step(s: Stage) -> None:
    """Between an effect and its report."""
    key = await s.zygote()
    steps: list[tuple[SandboxState, Callable[[int], m.Effect]]] = [
        (State.BARE, lambda node: m.Fork(node, key, s.revision.spec)),
        (State.LANG, lambda node: m.LoadUser(node, s.revision)),
        (State.LANG, lambda node: m.LoadUser(node, s.broken)),
        (State.READY, lambda node: m.Run(node, [call(n=1)])),
        (State.READY, lambda node: m.Run(node, [call(do="hangs")])),
    ]
    for stage, step in steps:
        node = await s.climb(stage)
        before = len(s.sink.of(node))
        s.driver.carry_out(step(node))
        s.driver.carry_out(m.Destroy(node, "test"))
        assert (await s.gone(node)).error is None, f"Destroy right after {step(node)}"
        assert len(s.sink.of(node)) == before + 1, "nothing but the end after Destroy"
    assert not s.sink.answers, "nothing is answered after Destroy"


async def a_death_has_a_reason(s: Stage) -> None:
    await s.zygote()
    for how in ("dies", "exits"):
        node = await s.climb(State.READY)
        first = call(n=1)
        s.run(node, first)
        await s.answered(first)
        lost = [call(n=2), call(do=how)]
        s.run(node, *lost)
        end = await s.gone(node)
        assert isinstance(end.error, FunctionError), f"user code {how}: {end}"
        assert not any(request in s.sink.answers for request in lost)
    node = await s.climb(State.READY)
    after = call(n=3)
    s.run(node, after)
    await s.answered(after)


async def a_failed_start_has_a_reason(s: Stage) -> None:
    await s.zygote()
    node = await s.climb(State.LANG)
    s.driver.carry_out(m.LoadUser(node, s.broken))
    end = await s.gone(node)
    assert end.error is not None and end.error.code in ("start_failed", "bad_definition"), end
    assert end.error.message


async def zygotes_end_when_told(s: Stage) -> None:
    key = await s.zygote()
    s.driver.carry_out(m.DropLang(key, "test"))
    assert (await s.heard(m.LangExited, key)).error is None
    assert key not in s.driver.pids()
    s.driver.carry_out(m.RaiseLang(key, None))
    await s.heard(m.LangRaised, key, 2)
    s.driver.carry_out(m.DropLang(key, "test"))
    s.driver.carry_out(m.DropLang(key, "test"))
    await s.heard(m.LangExited, key, 2)
    s.driver.carry_out(m.RaiseLang(key, None))
    s.driver.carry_out(m.DropLang(key, "test"))  # while it rises
    await s.heard(m.LangExited, key, 3)
    await asyncio.sleep(SILENCE_S)
    assert isinstance(s.sink.of(key)[-1], m.LangExited)


async def zygotes_are_forked_from_zygotes(s: Stage) -> None:
    parent = await s.zygote()
    child = await s.zygote(LangKey((*parent.packages, "decimal")), parent)
    s.driver.carry_out(m.DropLang(parent, "test"))
    await s.heard(m.LangExited, parent)
    await asyncio.sleep(SILENCE_S)
    assert not any(isinstance(event, m.LangExited) for event in s.sink.of(child)), "it outlives its parent"
    s.driver.carry_out(m.DropLang(child, "test"))
    assert (await s.heard(m.LangExited, child)).error is None


async def a_zygote_on_its_way_outlives_its_parent(s: Stage) -> None:
    parent = await s.zygote()
    child = LangKey((*parent.packages, "decimal"))
    s.driver.carry_out(m.RaiseLang(child, parent))
    s.driver.carry_out(m.DropLang(parent, "test"))
    await s.heard(m.LangRaised, child)
    assert (await s.heard(m.LangExited, parent)).error is None


async def instances_outlive_their_zygote(s: Stage) -> None:
    key = await s.zygote()
    node = await s.climb(State.READY)
    s.driver.carry_out(m.DropLang(key, "test"))
    await s.heard(m.LangExited, key)
    request = call(n=1)
    s.run(node, request)
    await s.answered(request)
    s.driver.carry_out(m.Destroy(node, "test"))
    assert (await s.gone(node)).error is None


async def a_fork_without_its_zygote_fails(s: Stage) -> None:
    key = await s.zygote()
    node = await s.climb(State.BARE)
    s.driver.carry_out(m.DropLang(key, "test"))
    s.driver.carry_out(m.Fork(node, key, s.revision.spec))
    assert isinstance((await s.gone(node)).error, RewarmError)


async def the_unknown_is_ignored(s: Stage) -> None:
    nobody = LangKey(("decimal", "fractions"))
    for effect in (
        m.Fork(99, nobody, s.revision.spec), m.LoadUser(99, s.revision), m.Run(99, [call(n=1)]),
        m.Destroy(99, "test"), m.DropLang(nobody, "test"),
    ):  # fmt: skip
        s.driver.carry_out(effect)
    node = await s.climb(State.BARE)
    s.driver.carry_out(m.Destroy(node, "test"))
    await s.gone(node)
    before = len(s.sink.events)
    s.driver.carry_out(m.LoadUser(node, s.revision))
    s.driver.carry_out(m.Destroy(node, "test"))
    s.driver.drain_log(node)
    await asyncio.sleep(SILENCE_S)
    assert len(s.sink.events) == before, "effects for what is unknown or gone are ignored"


async def several_at_once(s: Stage) -> None:
    await s.zygote()
    nodes = [await s.climb(State.READY) for _ in range(3)]
    requests = [call(n=node) for node in nodes]
    for node, request in zip(nodes, requests, strict=True):
        s.run(node, request)
    await s.answered(*requests)
    s.run(nodes[0], call(do="dies"))
    await s.gone(nodes[0])
    again = call(n=1)
    s.run(nodes[1], again)
    await s.answered(again)


async def closing_ends_everything(s: Stage) -> None:
    """At every stage at once; what is checked after every driver's `close` does the rest."""
    await s.zygote()
    for stage in (State.BARE, State.LANG, State.READY, State.READY):
        node = await s.climb(stage)
    s.run(node, call(do="hangs"))
    node = await s.climb(State.LANG)
    s.driver.carry_out(m.LoadUser(node, s.revision))
    s.driver.carry_out(m.RaiseLang(LangKey(("decimal",), vm_bytes=s.revision.spec.vm_bytes), None))


# ---------------------------------------------------------------- runtimes that do not fork


async def a_runtime_becomes_an_instance(s: Stage) -> None:
    key = await s.zygote()
    node = await s.climb(State.READY)
    assert set(s.driver.pids()) <= {node}, "it is the sandbox's process now"
    request = call(n=1)
    s.run(node, request)
    await s.answered(request)
    s.driver.carry_out(m.Destroy(node, "test"))
    assert (await s.gone(node)).error is None
    assert [type(event) for event in s.sink.of(key)] == [m.LangRaised], "no end of a runtime that was used up"


async def the_next_runtime_may_be_raised_at_once(s: Stage) -> None:
    key = await s.zygote()
    first, second = await s.climb(State.BARE), await s.climb(State.BARE)
    s.driver.carry_out(m.Fork(first, key, s.revision.spec))
    s.driver.carry_out(m.RaiseLang(key, None))
    await s.raised(first, [State.BARE, State.LANG])
    await s.heard(m.LangRaised, key, 2)
    s.driver.carry_out(m.Fork(second, key, s.revision.spec))
    await s.raised(second, [State.BARE, State.LANG])
    for node in (first, second):
        s.driver.carry_out(m.LoadUser(node, s.revision))
    requests = []
    for node in (first, second):
        await s.raised(node, [State.BARE, State.LANG, State.USER, State.READY])
        requests.append(call(n=node))
        s.run(node, requests[-1])
    await s.answered(*requests)
    s.run(first, call(do="dies"))
    assert isinstance((await s.gone(first)).error, FunctionError)
    again = call(n=3)
    s.run(second, again)
    await s.answered(again)


async def a_runtime_that_waits_ends_when_told(s: Stage) -> None:
    key = await s.zygote()
    s.driver.carry_out(m.DropLang(key, "test"))
    assert (await s.heard(m.LangExited, key)).error is None
    assert key not in s.driver.pids()
    s.driver.carry_out(m.RaiseLang(key, None))
    s.driver.carry_out(m.DropLang(key, "test"))  # while it rises
    s.driver.carry_out(m.DropLang(key, "test"))
    await s.heard(m.LangExited, key, 2)
    await asyncio.sleep(SILENCE_S)
    assert isinstance(s.sink.of(key)[-1], m.LangExited)


async def there_is_one_instance_in_a_runtime(s: Stage) -> None:
    key = await s.zygote()
    await s.climb(State.LANG)
    late = await s.climb(State.BARE)
    s.driver.carry_out(m.Fork(late, key, s.revision.spec))
    assert isinstance((await s.gone(late)).error, RewarmError)
    s.driver.carry_out(m.Fork(99, key, s.revision.spec))
    s.driver.carry_out(m.RaiseLang(key, None))
    await s.heard(m.LangRaised, key, 2)
    assert not any(isinstance(event, m.LangExited) for event in s.sink.of(key))


async def destroy_ends_what_a_runtime_became(s: Stage) -> None:
    key = s.revision.spec.lang_key
    steps: list[tuple[SandboxState, Callable[[int], m.Effect]]] = [
        (State.BARE, lambda node: m.Fork(node, key, s.revision.spec)),
        (State.LANG, lambda node: m.LoadUser(node, s.revision)),
        (State.LANG, lambda node: m.LoadUser(node, s.broken)),
        (State.READY, lambda node: m.Run(node, [call(do="hangs")])),
    ]
    for stage, step in steps:
        await s.zygote()
        node = await s.climb(stage)
        s.driver.carry_out(step(node))
        s.driver.carry_out(m.Destroy(node, "test"))
        assert (await s.gone(node)).error is None, f"Destroy right after {step(node)}"
    assert not any(isinstance(event, m.LangExited) for event in s.sink.of(key))


async def code_that_does_not_load_ends_its_runtime_with_a_reason(s: Stage) -> None:
    await s.zygote()
    node = await s.climb(State.LANG)
    s.driver.carry_out(m.LoadUser(node, s.broken))
    end = await s.gone(node)
    assert end.error is not None and end.error.code in ("start_failed", "bad_definition"), end


async def closing_ends_runtimes_and_what_they_became(s: Stage) -> None:
    for stage in (State.LANG, State.READY):
        await s.zygote()
        node = await s.climb(stage)
    s.run(node, call(do="hangs"))
    await s.zygote()


#: Every check of a driver by its name, for a parametrized test.
SANDBOX_CHECKS: dict[str, Check] = {
    check.__name__: check
    for check in (
        layers_come_in_order, runs_are_answered_in_order, an_exception_is_an_answer, destroy_ends_every_stage,
        destroy_ends_every_step, a_death_has_a_reason, a_failed_start_has_a_reason, zygotes_end_when_told,
        zygotes_are_forked_from_zygotes, a_zygote_on_its_way_outlives_its_parent, instances_outlive_their_zygote,
        a_fork_without_its_zygote_fails, the_unknown_is_ignored, several_at_once, closing_ends_everything,
    )
}  # fmt: skip


#: The same for a driver with a runtime that does not fork.
CONSUMED_CHECKS: dict[str, Check] = {
    check.__name__: check
    for check in (
        a_runtime_becomes_an_instance, the_next_runtime_may_be_raised_at_once, a_runtime_that_waits_ends_when_told,
        there_is_one_instance_in_a_runtime, destroy_ends_what_a_runtime_became,
        code_that_does_not_load_ends_its_runtime_with_a_reason, closing_ends_runtimes_and_what_they_became,
    )
}  # fmt: skip


async def check_sandbox_driver(
    make_driver: Callable[[], SandboxDriver], revision: Revision, broken: Revision, *,
    checks: Mapping[str, Check] = SANDBOX_CHECKS, only: str | None = None, held: Callable[[], set[str]] = set,
    timeout_s: float = TIMEOUT_S, damage: Callable[[SandboxDriver, Revision], None] | None = None,
) -> None:  # fmt: skip
    """Takes a fresh driver through each of `checks`, or through the one named `only`.

    `held` says what this process holds (see `held_by_process`); after `close()` that is what it was before. What is
    waited for may take `timeout_s`; `damage`: see `Stage`.
    """
    for name, check in checks.items():
        if only not in (None, name):
            continue
        before = held()
        stage = Stage(make_driver(), revision, broken, timeout_s=timeout_s, damage=damage)
        try:
            await check(stage)
        finally:
            await stage.driver.close()
        assert not stage.sink.wrong, f"{name}: {stage.sink.wrong}"
        ends = [event for event in stage.sink.events if isinstance(event, m.Exited)]
        assert len({event.sandbox_id for event in ends}) == len(ends), f"{name}: an end was reported twice"
        assert not stage.driver.pids(), f"{name}: left after close(): {stage.driver.pids()}"
        left = held() - before
        assert not left, f"{name}: left after close(): {sorted(left)}"
