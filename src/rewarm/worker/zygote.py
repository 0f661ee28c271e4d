"""A zygote: an interpreter with a Lang key's packages imported, from which instances and other zygotes are forked.

It runs no user code and starts no thread; after its imports and before each fork it counts its threads and refuses if
there is more than one, because a fork copies only the calling thread and every lock that another one holds stays
locked for ever.

It forks twice. The middle process exits at once, so the new process is adopted by the server (a child subreaper),
which can wait for it, and lives on when the zygote is peeled or dies.

Control channel: one SOCK_SEQPACKET socket; each packet is a JSON object, with descriptors attached.

    server → zygote   {"op": "instance", "scratch": DIR, "memory_bytes": N,
                       "cgroup": DIR or null, "namespaces": none, root, user}   + data socket, log pipe
                      {"op": "zygote", "packages": [...]}                     + control socket of the new zygote
    zygote → server   {"op": "born", "pid": P}                                 first, from a fork of another zygote
                      {"op": "alive", "pid": P, "seconds": S}                 once, after its imports
                      {"op": "failed", "error": "..."}                        instead, then it exits
                      {"op": "refused", "error": "..."}                       a fork that it would not do
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import socket
import sys
import time

from rewarm import kernel

_THREAD_GRACE_S = 0.5


def main(argv: list[str]) -> None:
    """`python -m rewarm.worker.zygote FD SERVER_PID PACKAGE…`: the root of a tree, started from nothing."""
    control = socket.socket(fileno=int(argv[0]))
    server_pid = int(argv[1])
    kernel.die_with(server_pid)
    _serve(control, server_pid, argv[2:], time.monotonic())


def _serve(control: socket.socket, server_pid: int, packages: list[str], since_s: float) -> None:
    """Import, report, then fork on demand until the server hangs up."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # sent to the whole group, they are the server's to handle
    try:
        suspects = preload(packages)
    except BaseException as error:
        _send(control, {"op": "failed", "error": f"{type(error).__name__}: {error}"})
        os._exit(1)
    started = _threads_left() - 1
    if started:
        who = f"{', '.join(suspects or packages)} started {started} thread{'s' if started > 1 else ''} on import"
        _send(control, {"op": "failed", "error": f"{who}; a process with threads can not be forked safely"})
        os._exit(1)
    gc.collect()
    gc.freeze()  # the collector would otherwise write to, and so copy, every shared page
    _send(control, {"op": "alive", "pid": os.getpid(), "seconds": time.monotonic() - since_s})
    while True:
        packet, descriptors, _, _ = socket.recv_fds(control, kernel.PACKET_BYTES_MAX, 2)
        if not packet:
            os._exit(0)
        order = json.loads(packet)
        threads = kernel.thread_count()
        if threads > 1:
            _send(control, {"op": "refused", "error": f"the zygote has {threads} threads and can not fork safely"})
        else:
            _fork(order, descriptors, control, server_pid)
        for descriptor in descriptors:
            os.close(descriptor)


def preload(packages: list[str]) -> list[str]:
    """Import them all; those after whose import there were more threads."""
    # What every instance needs, imported once for all; the registry checks the policies of a decorator.
    from rewarm.policy import registry  # noqa: F401
    from rewarm.worker import handlers, instance, weights  # noqa: F401

    suspects = []
    for package in packages:
        before = kernel.thread_count()
        importlib.import_module(package)
        if kernel.thread_count() > before:
            suspects.append(package)
    if "numpy" in sys.modules:
        from rewarm.worker import arrays  # noqa: F401
    if "torch" in sys.modules:
        from rewarm.worker import firstpass, modules  # noqa: F401
    if "onnxruntime" in sys.modules:
        from rewarm.worker import sessions

        sessions.warm_up()
    return suspects


def _threads_left() -> int:
    """How many threads there are, once those that are about to end have had the time to."""
    deadline_s = time.monotonic() + _THREAD_GRACE_S
    while kernel.thread_count() > 1 and time.monotonic() < deadline_s:
        time.sleep(0.01)
    return kernel.thread_count()


def _fork(order: dict[str, object], descriptors: list[int], control: socket.socket, server_pid: int) -> None:
    since_s = time.monotonic()
    cgroup = order.get("cgroup")
    middle = os.fork() if cgroup is None else kernel.fork_into(str(cgroup))  # its child is born in the same cgroup
    if middle:
        os.waitpid(middle, 0)
        return
    if os.fork():
        os._exit(0)
    try:
        kernel.die_with(server_pid)
        os.setsid()
        if order["op"] == "zygote":
            fresh = socket.socket(fileno=os.dup(descriptors[0]))
            control.close()
            os.close(descriptors[0])
            _send(fresh, {"op": "born", "pid": os.getpid()})  # before its imports, which may hang
            _serve(fresh, server_pid, list(order["packages"]), since_s)  # type: ignore[call-overload]
        else:
            from rewarm.worker import instance

            instance.main(descriptors[0], descriptors[1], order)
    finally:
        os._exit(1)


def _send(control: socket.socket, packet: dict[str, object]) -> None:
    try:
        control.send(json.dumps(packet).encode()[: kernel.PACKET_BYTES_MAX])
    except OSError:
        os._exit(0)  # the server is gone


if __name__ == "__main__":
    main(sys.argv[1:])
