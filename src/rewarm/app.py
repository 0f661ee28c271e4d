"""The composition root: the one place that names concrete classes."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import logging
import os
import signal
import socket
import time
from collections.abc import Iterator

import uvicorn

import rewarm
from rewarm.config import ServerConfig
from rewarm.control.executor import Executor
from rewarm.control.http import is_loopback, make_application
from rewarm.control.measure import measure_forever
from rewarm.control.models import ModelDesk
from rewarm.control.plane import ControlPlane
from rewarm.control.sleepers import SleepDesk
from rewarm.core.node import Node
from rewarm.errors import PortInUse, SystemFault
from rewarm.facts import messages as m
from rewarm.guest.workshop import Workshop
from rewarm.obs.logs import LogStore
from rewarm.policy import registry
from rewarm.pump import Pump
from rewarm.sandbox.fleet import Fleet
from rewarm.sandbox.guard import GuardedDriver
from rewarm.sandbox.isolation import wanted
from rewarm.sandbox.library import Library
from rewarm.sandbox.microvm import MicrovmDriver
from rewarm.sandbox.process import ProcessDriver
from rewarm.serve.door import Door
from rewarm.serve.protocol import bind
from rewarm.serve.selector import make_loop
from rewarm.store.store import Store
from rewarm.units import counted

log = logging.getLogger("rewarm")

_CLOSE_S = 2  # for connections to take their last answer, once the requests are done
_FORCE_POLL_S = 0.1


def serve(config: ServerConfig) -> int:
    """Run a server until SIGINT or SIGTERM; returns the exit status.

    Raises HomeLocked, HomeTooNew, PortInUse, BadDefinition or SystemFault before it has begun to serve.
    """
    keepalive = registry.keepalive(registry.parse(config.keepalive))
    isolation = wanted(os.environ)
    sock = _listen(config.host, config.port)
    with contextlib.closing(sock), contextlib.closing(Store.open(config.home)) as store:
        logs = LogStore(config.log_bytes_max, time.time)
        pump = Pump()
        models = ModelDesk(store)
        Workshop(store.home.path).clear()
        library = Library(store.home.path, store.snapshots, config.restore, config.vmm)
        processes = ProcessDriver(store.home.run_dir, pump=pump, isolation=isolation, models=models)
        driver = GuardedDriver(Fleet(processes, MicrovmDriver(store.home.run_dir, library, pump=pump)))
        executor = Executor(Node(config.memory_bytes, keepalive, config.disk_bytes), driver, logs, models=models)
        plane = ControlPlane(config, store, executor, models, SleepDesk(library), rewarm.__version__)
        with asyncio.Runner(loop_factory=lambda: make_loop(pump)) as runner:
            return runner.run(_run(config, plane, pump, sock))


async def _run(config: ServerConfig, plane: ControlPlane, pump: Pump, sock: socket.socket) -> int:
    door = Door(config.limits)
    executor = plane.executor
    executor.start(door)
    door.start(plane, pump)
    plane.restore()
    settling = asyncio.create_task(plane.settle())
    settings = uvicorn.Config(
        make_application(plane), http=bind(door), ws="none", lifespan="off", loop="asyncio", log_config=None,
        access_log=False, server_header=False, timeout_keep_alive=int(config.limits.keepalive_timeout_s),
        timeout_graceful_shutdown=_CLOSE_S, backlog=2048,
    )  # fmt: skip
    server = _Server(settings, door, executor, config.drain_s)
    host, port = sock.getsockname()[:2]
    if not is_loopback(config.host):
        log.warning("%s: other machines may reach this server, and it has no authentication; see SECURITY.md", host)
    functions = counted(len(plane.functions()), "function")
    log.info("rewarm %s serves %s on http://%s:%d", rewarm.__version__, functions, host, port)
    gc.collect()
    gc.freeze()  # what start-up made stays: the collector need not look at it again on every round
    measuring = asyncio.create_task(
        measure_forever(executor.driver, executor.post, config.measure_every_s, plane.mapping)
    )
    try:
        await server.serve(sockets=[sock])
    finally:
        measuring.cancel()
        settling.cancel()
        await executor.close()
    return 0


class _Server(uvicorn.Server):
    """uvicorn's server with our order of shutting down: refuse, finish what is queued, close, end the sandboxes."""

    def __init__(self, config: uvicorn.Config, door: Door, executor: Executor, drain_s: float) -> None:
        super().__init__(config)
        self._door = door
        self._executor = executor
        self._drain_s = drain_s

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Like uvicorn's, without raising the signal again afterwards: a stop that was asked for is a success."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._door.draining = True
        node = self._executor.node
        if node.unfinished:
            it = "it" if node.unfinished == 1 else "them"
            left = counted(node.unfinished, "request")
            log.info("finishing %s, up to %g s; Ctrl-C again drops %s", left, self._drain_s, it)
        draining = asyncio.create_task(self._executor.drain(self._drain_s))
        while not draining.done() and not self.force_exit:  # a second Ctrl-C means now
            await asyncio.wait({draining}, timeout=_FORCE_POLL_S)
        if not draining.done() or not draining.result():
            draining.cancel()
            log.warning("shutting down with %s unfinished", counted(node.unfinished, "request"))
            self._executor.post(m.Draining(final=True))
        await super().shutdown(sockets)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        sock = socket.create_server((host, port), family=family, backlog=2048)
        # Connections inherit it. asyncio does not set it here, and an answer in two writes would wait 40 ms for an ACK.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            text = f"port {port} on {host} is in use; choose another with --port, or stop what listens there"
            raise PortInUse(text) from None
        raise SystemFault(f"cannot listen on {host}:{port}: {error.strerror}") from None
