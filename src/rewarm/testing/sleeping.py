"""What a driver of micro-VMs must do beside what every driver does: make snapshots, wake from them, delete them.

    await check_sandbox_driver(make_driver, revision, broken, checks=SLEEP_CHECKS, damage=flip_a_byte)
    await check_sandbox_driver(make_driver, revision, broken, checks=VM_CHECKS, timeout_s=120.0, damage=flip_a_byte)

`revision` and `broken` are of isolation "microvm"; see `sandboxes` for what they do. Snapshots may be there already
when a driver begins: what an earlier one made is used.
"""

from __future__ import annotations

import asyncio

from rewarm.errors import FunctionError, RewarmError
from rewarm.facts import messages as m
from rewarm.facts.sandbox import SandboxState
from rewarm.testing.sandboxes import (
    SANDBOX_CHECKS,
    Check,
    a_zygote_on_its_way_outlives_its_parent,
    call,
    zygotes_are_forked_from_zygotes,
)
from rewarm.testing.stage import SILENCE_S, Stage

State = SandboxState


async def _slept(s: Stage) -> str:
    """The revision has its snapshot. Its digest, by which it is called."""
    digest = s.revision.digest
    before = sum(isinstance(event, m.Slept) for event in s.sink.of(digest))
    s.driver.carry_out(m.Sleep(s.revision))
    slept = await s.heard(m.Slept, digest, before + 1)
    facts = slept.facts
    assert facts.digest == digest and facts.disk_bytes > 0, slept
    assert facts.restore_s > 0.0 and facts.cold_s > 0.0, slept
    return digest


async def _woken(s: Stage) -> int:
    node = s.new_id()
    s.driver.carry_out(m.Restore(node, s.revision))
    await s.raised(node, [State.READY])
    return node


async def _serves(s: Stage, node: int) -> None:
    request = call(n=node)
    s.run(node, request)
    await s.answered(request)
    assert s.sink.answers[request][0] == 200, s.sink.answers[request]


async def an_instance_wakes_from_its_snapshot(s: Stage) -> None:
    await _slept(s)
    node = await _woken(s)
    for _ in range(3):
        await _serves(s, node)
    assert set(s.driver.pids()) <= {node}, "a snapshot has no process"
    s.driver.carry_out(m.Destroy(node, "test"))
    assert (await s.gone(node)).error is None


async def several_wake_from_one_snapshot(s: Stage) -> None:
    await _slept(s)
    nodes = [s.new_id() for _ in range(3)]
    for node in nodes:
        s.driver.carry_out(m.Restore(node, s.revision))
    for node in nodes:
        await s.raised(node, [State.READY])
        await _serves(s, node)
    s.run(nodes[0], call(do="dies"))
    assert isinstance((await s.gone(nodes[0])).error, FunctionError)
    await _serves(s, nodes[1])


async def what_is_there_is_not_made_again(s: Stage) -> None:
    await _slept(s)
    digest = await _slept(s)
    await asyncio.sleep(SILENCE_S)
    assert [type(event) for event in s.sink.of(digest)] == [m.Slept, m.Slept]


async def destroy_ends_a_restore(s: Stage) -> None:
    digest = await _slept(s)
    node = s.new_id()
    s.driver.carry_out(m.Restore(node, s.revision))
    s.driver.carry_out(m.Destroy(node, "test"))
    assert (await s.gone(node)).error is None
    assert len(s.sink.of(node)) == 1, "nothing but the end after Destroy"
    assert not any(isinstance(event, m.SleepLost) for event in s.sink.of(digest))
    await _serves(s, await _woken(s))


async def what_is_forgotten_is_gone_but_for_what_woke_before(s: Stage) -> None:
    digest = await _slept(s)
    before = await _woken(s)
    s.driver.carry_out(m.Forget(s.revision))
    s.driver.carry_out(m.Forget(s.revision))
    late = s.new_id()
    s.driver.carry_out(m.Restore(late, s.revision))
    assert isinstance((await s.gone(late)).error, RewarmError)
    await _serves(s, before)
    said = [event for event in s.sink.events if event in s.sink.of(digest) or event in s.sink.of(late)]
    assert [type(event) for event in said] == [m.Slept, m.SleepLost, m.Exited], "SleepLost comes before the end"


async def forgotten_while_it_is_made(s: Stage) -> None:
    s.driver.carry_out(m.Forget(s.revision))
    s.driver.carry_out(m.Sleep(s.revision))
    s.driver.carry_out(m.Forget(s.revision))
    await asyncio.sleep(SILENCE_S)
    assert not s.sink.of(s.revision.digest), "no answer to what was taken back"
    digest = await _slept(s)
    await asyncio.sleep(SILENCE_S)
    assert [type(event) for event in s.sink.of(digest)] == [m.Slept]
    await _serves(s, await _woken(s))


async def code_that_does_not_load_does_not_sleep(s: Stage) -> None:
    s.driver.carry_out(m.Sleep(s.broken))
    lost = await s.heard(m.SleepLost, s.broken.digest)
    assert lost.error is not None and lost.error.code in ("start_failed", "bad_definition"), lost
    s.driver.carry_out(m.Forget(s.broken))


async def a_damaged_snapshot_is_noticed_and_made_anew(s: Stage) -> None:
    assert s.damage is not None, "check_sandbox_driver(…, damage=…) says how"
    digest = await _slept(s)
    s.damage(s.revision)
    node = s.new_id()
    s.driver.carry_out(m.Restore(node, s.revision))
    assert isinstance((await s.gone(node)).error, RewarmError)
    assert [type(event) for event in s.sink.events[-2:]] == [m.SleepLost, m.Exited], s.sink.events
    assert await _slept(s) == digest
    await _serves(s, await _woken(s))


async def closing_ends_what_is_made_and_what_woke(s: Stage) -> None:
    """What is checked after every driver's `close` does the rest."""
    await _slept(s)
    busy = await _woken(s)
    s.run(busy, call(do="hangs"))
    s.driver.carry_out(m.Restore(s.new_id(), s.revision))
    s.driver.carry_out(m.Sleep(s.broken))


#: Every check of sleep by its name.
SLEEP_CHECKS: dict[str, Check] = {
    check.__name__: check
    for check in (
        an_instance_wakes_from_its_snapshot, several_wake_from_one_snapshot, what_is_there_is_not_made_again,
        destroy_ends_a_restore, what_is_forgotten_is_gone_but_for_what_woke_before, forgotten_while_it_is_made,
        code_that_does_not_load_does_not_sleep, a_damaged_snapshot_is_noticed_and_made_anew,
        closing_ends_what_is_made_and_what_woke,
    )
}  # fmt: skip

_OF_ANCESTORS = {zygotes_are_forked_from_zygotes.__name__, a_zygote_on_its_way_outlives_its_parent.__name__}

#: All that a driver of micro-VMs must pass: their Lang layers are nobody's ancestors.
VM_CHECKS: dict[str, Check] = {
    **{name: check for name, check in SANDBOX_CHECKS.items() if name not in _OF_ANCESTORS}, **SLEEP_CHECKS,
}  # fmt: skip
