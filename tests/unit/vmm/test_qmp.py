"""QEMU's side of the monitor played by the test, over a real socket pair."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from rewarm.vmm.qmp import Qmp, QmpError


class Peer:
    """The far end."""

    def __init__(self, channel: socket.socket) -> None:
        self.channel = channel
        self.channel.setblocking(False)

    async def heard(self) -> list[dict[str, Any]]:
        chunk = await asyncio.get_running_loop().sock_recv(self.channel, 1 << 16)
        return [json.loads(line) for line in chunk.splitlines()]

    async def say(self, text: str | bytes) -> None:
        data = text if isinstance(text, bytes) else text.encode()
        await asyncio.get_running_loop().sock_sendall(self.channel, data)


@pytest.fixture
async def ends() -> AsyncIterator[tuple[Qmp, Peer]]:
    near, far = socket.socketpair()
    qmp = Qmp(near)
    yield qmp, Peer(far)
    qmp.close()
    far.close()


async def soon(future: asyncio.Future[Any]) -> Any:
    return await asyncio.wait_for(future, 5)


async def test_commands_go_in_one_write_and_answers_come_back(ends: tuple[Qmp, Peer]) -> None:
    qmp, peer = ends
    one, two, three = qmp.send(("qmp_capabilities", {}), ("first", {"a": 1}), ("second", {}))
    assert await peer.heard() == [
        {"execute": "qmp_capabilities", "arguments": {}, "id": 1},
        {"execute": "first", "arguments": {"a": 1}, "id": 2},
        {"execute": "second", "arguments": {}, "id": 3},
    ]
    await peer.say('{"QMP": {"version": {}}}\r\n{"return": {}, "id": 1}\r\n{"ret')
    assert await soon(one) == {}
    assert not two.done()
    await peer.say(
        'urn": {"x": 2}, "id": 2}\r\n{"error": {"class": "GenericError", "desc": "no such thing"}, "id": 3}\r\n'
    )
    assert await soon(two) == {"x": 2}
    with pytest.raises(QmpError, match=r"^no such thing$"):
        await soon(three)


async def test_events(ends: tuple[Qmp, Peer]) -> None:
    qmp, peer = ends
    resumed = qmp.event("RESUME")
    done = qmp.event("MIGRATION", lambda data: data["status"] == "completed")
    given_up = qmp.event("RESUME")
    given_up.cancel()
    await peer.say('{"event": "STOP", "timestamp": {}}\n{"event": "MIGRATION", "data": {"status": "active"}}\n')
    await peer.say('{"event": "RESUME"}\n{"event": "MIGRATION", "data": {"status": "completed"}}\n')
    assert await soon(resumed) == {}
    assert await soon(done) == {"status": "completed"}


async def test_an_answer_nobody_waits_for(ends: tuple[Qmp, Peer]) -> None:
    qmp, peer = ends
    first, second = qmp.send(("a", {}), ("b", {}))
    first.cancel()
    await peer.say('{"return": {}, "id": 1}\n{"return": {}, "id": 77}\n{"return": 5, "id": 2}\n')
    assert await soon(second) == 5


@pytest.mark.parametrize(
    "nonsense",
    [b"hello\n", b"\xff\n", b"[]\n", b"5\n", b'{"id": 1}\n', b'{"error": "no", "id": 1}\n', b"x" * ((1 << 20) + 1)],
)
async def test_nonsense_ends_it(ends: tuple[Qmp, Peer], nonsense: bytes) -> None:
    qmp, peer = ends
    (answer,) = qmp.send(("a", {}))
    event = qmp.event("RESUME")
    await peer.say(nonsense)
    for future in (answer, event):
        with pytest.raises(QmpError, match="cannot be understood"):
            await soon(future)


async def test_the_end(ends: tuple[Qmp, Peer]) -> None:
    qmp, peer = ends
    (answer,) = qmp.send(("a", {}))
    await peer.heard()
    peer.channel.close()
    with pytest.raises(QmpError, match="has ended"):
        await soon(answer)
    for late in (*qmp.send(("b", {})), qmp.event("RESUME")):
        with pytest.raises(QmpError, match="has ended"):
            await soon(late)


async def test_closing_fails_what_is_awaited(ends: tuple[Qmp, Peer]) -> None:
    qmp, _ = ends
    (answer,) = qmp.send(("a", {}))
    qmp.close()
    qmp.close()
    with pytest.raises(QmpError, match="closed"):
        await soon(answer)
