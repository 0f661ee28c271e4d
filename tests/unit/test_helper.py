"""What its two users share; what becomes of an end that was not asked for is tested with them."""

from __future__ import annotations

import os
import sys

import pytest

from rewarm.helper import Helper


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


async def test_one_that_cannot_be_started_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    helper = Helper("rewarm.weights.keeper", lambda: None)
    helper.kill()  # there is none
    before = open_files()
    with monkeypatch.context() as broken:
        broken.setattr(sys, "executable", "/python/of/nobody")
        with pytest.raises(FileNotFoundError):
            helper.start()
    assert open_files() == before
    assert helper.pid is None and helper.control is None
    helper.start()  # no harm was done
    assert helper.pid is not None and helper.control is not None
    await helper.close()


async def test_each_is_another_one() -> None:
    helper = Helper("rewarm.weights.keeper", lambda: pytest.fail("an end that was asked for was told"))
    before = open_files()
    helper.start()
    first = helper.pid
    helper.start()
    assert first is not None and helper.pid == first
    helper.stop()
    helper.start()
    assert helper.pid not in (None, first)
    await helper.close()
    await helper.close()
    assert helper.pid is None
    assert open_files() == before
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)
