"""What a guest may say to whoever publishes it, and what becomes of one that says something else."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from rewarm import wire
from rewarm.errors import SandboxFailed, StartFailed
from rewarm.vmm.talk import Talk

ITEMS = [wire.Item(wire.KIND_JSON, b"", b"1")]
LOADED = wire.encode_plain(wire.LOADED, b'{"user_s": 1, "ready_s": 0.5}')


class Far:
    """A machine as far as a conversation needs it, and the guest's ends of its two ports."""

    def __init__(self) -> None:
        self.fn, self.port = socket.socketpair()
        self.fn.setblocking(False)
        self.log_fd, self.out_fd = os.pipe()
        os.set_blocking(self.log_fd, False)

    def last_words(self) -> str:
        return ""


@pytest.fixture
async def far() -> AsyncIterator[Far]:
    far = Far()
    yield far
    far.fn.close()
    far.port.close()
    os.close(far.log_fd)
    os.close(far.out_fd)


async def load(talk: Talk) -> dict[str, float]:
    return await talk.load({})


async def run(talk: Talk) -> list[wire.AnyAnswer]:
    return await talk.run(ITEMS, 1.0)


async def test_notes_are_passed_over_however_many(far: Far) -> None:
    with Talk(far) as talk:  # type: ignore[arg-type]
        far.port.sendall(wire.encode_plain(wire.NOTED) * 2000 + LOADED)
        assert await talk.load({}) == {"user_s": 1.0, "ready_s": 0.5}


async def test_notes_without_end(far: Far) -> None:
    """It is the caller who says how long."""

    async def flood() -> None:
        while True:
            await asyncio.get_running_loop().sock_sendall(far.port, wire.encode_plain(wire.NOTED) * 1000)
            await asyncio.sleep(0)

    far.port.setblocking(False)
    with Talk(far) as talk:  # type: ignore[arg-type]
        flooding = asyncio.create_task(flood())
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(talk.hello(), 0.05)
        flooding.cancel()


@pytest.mark.parametrize(
    ("ask", "says"),
    [
        (load, wire.encode_plain(wire.LOADED, b"nonsense")),
        (load, wire.encode_plain(wire.LOADED, b"[1]")),
        (load, wire.encode_plain(wire.LOADED, b'{"user_s": null}')),
        (load, wire.encode_plain(wire.HELLO)),
        (load, wire.HEAD.pack(wire.CONTROL_BYTES_MAX + 1, wire.LOADED, 0, 0, 0, 0)),
        (run, wire.encode_uniform_reply(wire.FORM_JSON, [b"1", b"2"], 1, 0)),
        (run, wire.encode_uniform_reply(wire.FORM_JSON, [b"1"], 2, 0)),
        (run, wire.encode_uniform_reply(77, [b"1"], 1, 0)),
        (run, wire.HEAD.pack(wire.reply_bytes_max(1) + 1, wire.REPLY, 0, 1, 0, 1)),
    ],
)
async def test_nonsense(far: Far, ask: Callable[[Talk], Any], says: bytes) -> None:
    with Talk(far) as talk:  # type: ignore[arg-type]
        far.port.sendall(says)
        with pytest.raises(SandboxFailed):
            await asyncio.wait_for(ask(talk), 5.0)


async def test_an_answer_may_be_longer_than_other_frames(far: Far) -> None:
    body = bytes(2 * wire.CONTROL_BYTES_MAX)
    reply = wire.encode_uniform_reply(wire.FORM_JSON, [body], 1, 0)
    with Talk(far) as talk:  # type: ignore[arg-type]
        far.port.setblocking(False)
        sending = asyncio.create_task(asyncio.get_running_loop().sock_sendall(far.port, reply))
        assert await asyncio.wait_for(talk.run(ITEMS, 1.0), 5.0) == [(200, wire.FORM_JSON, 0, b"", body)]
        await sending
        far.port.setblocking(True)
        far.port.sendall(wire.HEAD.pack(wire.CONTROL_BYTES_MAX + 1, wire.FROZEN, 0, 0, 0, 0))
        with pytest.raises(SandboxFailed, match="our protocol"):
            await talk.freeze()


async def test_it_says_how_it_failed(far: Far) -> None:
    with Talk(far) as talk:  # type: ignore[arg-type]
        far.port.sendall(wire.encode_plain(wire.FAILED, b'{"code":"start_failed","error":"no","error_type":"E"}'))
        with pytest.raises(StartFailed, match="no"):
            await talk.load({})


async def test_what_is_quoted_of_a_guest_is_short_and_plain(far: Far) -> None:
    with Talk(far) as talk:  # type: ignore[arg-type]
        os.write(far.out_fd, b"\x1b[2J\x07" + b"x" * 5000 + b"\n")
        far.port.shutdown(socket.SHUT_RDWR)
        with pytest.raises(SandboxFailed) as caught:
            await talk.hello()
    assert caught.value.message.startswith("the micro-VM ended: [2Jxxx")
    assert caught.value.message.isprintable() and len(caught.value.message) < 350
