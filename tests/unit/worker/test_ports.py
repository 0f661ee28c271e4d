"""A micro-VM's connections without the machine: pipes for a virtio port, Unix sockets for vsock."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rewarm.worker.ports import Port, Reconnecting


def test_a_port_waits_for_a_host_that_is_away(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "port")
    file = os.open(tmp_path / "port", os.O_RDONLY | os.O_NONBLOCK)  # nobody writes: it reads as ended
    os.set_blocking(file, True)
    port, buffer = Port(file), bytearray(8)

    def come_back() -> None:
        time.sleep(0.05)
        with open(tmp_path / "port", "wb") as far:
            far.write(b"frame")

    thread = threading.Thread(target=come_back)
    thread.start()
    assert port.recv_into(memoryview(buffer)) == 5
    thread.join()
    os.close(file)
    assert buffer[:5] == b"frame"


def test_a_port_sends_all_even_if_it_takes_little_at_a_time() -> None:
    near, far = os.pipe()
    os.set_blocking(far, True)
    data, got = random.Random(1).randbytes(1 << 20), bytearray()

    def read() -> None:
        while len(got) < len(data):
            got.extend(os.read(near, 30_000))

    thread = threading.Thread(target=read)
    thread.start()
    Port(far).sendall(data)
    thread.join()
    os.close(near)
    os.close(far)
    assert bytes(got) == data


# ---------------------------------------------------------------- vsock

_ECHO = """\
import socket, sys
from rewarm.worker.ports import Reconnecting

frames, log = (socket.socket(fileno=int(number)) for number in sys.argv[1:])
channel = Reconnecting(frames, log, away_s=1.0)
channel.accept()
buffer = memoryview(bytearray(100))
while got := channel.recv_into(buffer):
    print("got", got, flush=True)
    channel.sendall(bytes(buffer[:got]))
"""


class Far:
    """A process whose two ports one connects to."""

    def __init__(self, folder: Path) -> None:
        self._places = [str(folder / name) for name in ("frames", "log")]
        listeners = []
        for place in self._places:
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(place)
            listener.listen(1)
            listeners.append(listener)
        fds = [listener.fileno() for listener in listeners]
        words = [sys.executable, "-c", _ECHO, *map(str, fds)]
        self.process = subprocess.Popen(words, pass_fds=fds, env={"PYTHONPATH": os.pathsep.join(sys.path)})
        for listener in listeners:
            listener.close()

    def connect(self) -> tuple[socket.socket, socket.socket]:
        found = []
        for place in self._places:
            channel = socket.socket(socket.AF_UNIX)
            channel.settimeout(20)
            channel.connect(place)
            found.append(channel)
        return found[0], found[1]


@pytest.fixture
def far(tmp_path: Path) -> Iterator[Far]:
    far = Far(tmp_path)
    try:
        yield far
    finally:
        far.process.kill()
        far.process.wait()


def test_a_host_may_connect_again_and_again(far: Far) -> None:
    for number in range(1, 4):
        frames, log = far.connect()
        with frames, log:
            for _ in range(2):
                frames.sendall(b"x" * number)
                assert frames.recv(100) == b"x" * number
                assert log.recv(100) == b"got %d\n" % number


def test_what_was_sent_to_one_that_went_away_is_lost(far: Far) -> None:
    frames, log = far.connect()
    with log:
        frames.sendall(b"question")
        frames.close()
        assert log.recv(100) == b"got 8\n"
    frames, log = far.connect()
    with frames, log:
        frames.sendall(b"more")
        assert frames.recv(100) == b"more"


def test_a_host_that_stays_away_ends_it(far: Far) -> None:
    for channel in far.connect():
        channel.close()
    assert far.process.wait(20) == 0


def test_nobody_ever_comes(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as frames, socket.socket(socket.AF_UNIX) as log:
        for listener, name in ((frames, "frames"), (log, "log")):
            listener.bind(str(tmp_path / name))
            listener.listen(1)
        with pytest.raises(TimeoutError):
            Reconnecting(frames, log, away_s=0.01).accept()
