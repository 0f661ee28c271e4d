from __future__ import annotations

import asyncio
import os
import signal
import time

import pytest

from rewarm.vmm.child import Child


def shell(script: str) -> Child:
    return Child(["sh", "-c", script], {}, ())


async def test_its_end_is_told_once() -> None:
    child = shell("exit 7")
    told: list[int] = []
    child.when_ended(told.append)
    assert told == []
    status = await asyncio.wait_for(child.wait(), 10)
    assert os.waitstatus_to_exitcode(status) == 7
    assert child.status == status
    await child.end()
    assert told == [status]
    with pytest.raises(ChildProcessError):
        os.waitpid(child.pid, os.WNOHANG)  # it is reaped


async def test_a_wait_that_is_given_up_leaves_it_alone() -> None:
    child = shell("exec sleep 100")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(child.wait(), 0.05)
    assert child.status is None
    await child.end()
    assert child.status is not None
    assert os.WTERMSIG(child.status) == signal.SIGKILL


async def test_both_its_outputs_are_kept() -> None:
    child = shell("echo out; echo err >&2; printf 'a\\r\\nb'")
    await asyncio.wait_for(child.wait(), 10)
    assert child.output == "out\nerr\na\nb"


async def test_of_much_the_first_and_the_last_is_kept() -> None:
    child = shell("echo first; i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i + 1)); done; echo last")
    await asyncio.wait_for(child.wait(), 30)
    assert child.output.startswith("first\nline 0\n")
    assert child.output.endswith("line 19999\nlast\n")
    assert 6000 < len(child.output) < 6200


async def test_a_flood_does_not_keep_the_loop_busy() -> None:
    child = shell("exec yes")
    try:
        began_s, cpu_s = time.monotonic(), time.process_time()
        await asyncio.sleep(0.5)
        assert time.process_time() - cpu_s < 0.5 * (time.monotonic() - began_s)
    finally:
        await child.end()


async def test_it_does_not_outlive_one_that_is_no_parent_any_more() -> None:
    """The shell between setpriv and the program ends if somebody else is its parent by then."""
    script = f'[ "$PPID" = {os.getpid()} ] || exit 1; exec "$@"'
    outer = shell(f"sh -c '{script}' sh echo it ran; echo status $?")
    await asyncio.wait_for(outer.wait(), 10)
    assert outer.output == "status 1\n"


async def test_what_cannot_be_spawned_leaves_nothing_open() -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError):
        Child(["true"], {}, (10_000,))
    assert len(os.listdir("/proc/self/fd")) == before
