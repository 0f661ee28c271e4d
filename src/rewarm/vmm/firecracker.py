"""Firecracker instead of QEMU: the same steps, files and pager (experimental: tested against its documented API only).

What differs. It needs KVM. Its guests have no virtio-serial ports but vsock: the host connects to a Unix socket, says
"CONNECT port\\n" and hears "OK port\\n" once the guest listens. A snapshot ends such connections, and a restored
machine makes the socket at the path that the first was told; so that is a name in the working directory, of which each
machine has one of its own. A memory file is written when a snapshot is made; until then memory is anonymous.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rewarm.errors import MicrovmUnavailable, SandboxFailed, SnapshotFailed, SystemFault
from rewarm.guest import find_guest
from rewarm.vmm import kvm
from rewarm.vmm.child import Child
from rewarm.vmm.firecracker_api import FirecrackerApi, FirecrackerError
from rewarm.vmm.monitor import Monitor, ask_version
from rewarm.vmm.qemu import Hardware, find_qemu, kernel_words

if TYPE_CHECKING:
    from rewarm.snapshot.restore import RestorePlan

#: Where a guest listens: for frames, and for whoever reads what its code writes.
_VSOCK_PORTS = FN_VSOCK_PORT, LOG_VSOCK_PORT = 5001, 5002

_BINARY = "firecracker"
_VERSION_MIN = (1, 17)  # the first that boots a bzImage, which is what Debian's kernels are
_VERSION = re.compile(r"v(\d+)\.(\d+)\.\d+")
_INSTEAD = "it is not packaged by Debian, QEMU is used"
_GUEST_CID = 3  # the same for all: each machine has a socket of its own
_API_SOCKET, _VSOCK_SOCKET = "api.sock", "vsock.sock"
_POLL_S = 0.005
_CONNECT_WAIT_S = 60.0  # a guest listens once it has booted
_READ_BYTES = 1 << 16


def find_firecracker(binary: str = _BINARY) -> Path:
    """Blocks for some milliseconds. Raises MicrovmUnavailable: none, too old, broken."""
    path, match = ask_version(binary, _VERSION, _INSTEAD)
    if (int(match[1]), int(match[2])) < _VERSION_MIN:
        oldest = ".".join(map(str, _VERSION_MIN))
        raise MicrovmUnavailable(f"{path} is {match[0]}, and v{oldest} is needed; {_INSTEAD}")
    return path


def available(home_dir: Path, binary: str = _BINARY) -> tuple[bool, str]:
    """Whether Firecracker could be used here, and why (not). Blocks as `kvm.verdict`, whose boot probe has to agree."""
    try:
        found = find_firecracker(binary)
        why_not = kvm.obstacle()
        if why_not is not None:
            return False, f"it needs KVM: {why_not}"
        accel = kvm.verdict(home_dir, find_guest(home_dir), find_qemu())
    except SystemFault as error:
        return False, error.message
    return (True, str(found)) if accel.name == "kvm" else (False, f"it needs KVM: {accel.why}")


class FirecrackerMachine(Monitor):
    """One micro-VM, with the methods of `machine.Machine`; `fn` and `log_fd` are joined to the guest once it listens.

    `run_dir`: where it makes a folder for its sockets, which goes with it.
    """

    def __init__(self, binary: Path, hw: Hardware, memory: Path, run_dir: Path) -> None:
        """Use `boot` or `restore`."""
        self._hw = hw
        self._memory = memory
        self._up: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        with contextlib.ExitStack() as own, contextlib.ExitStack() as on_error:
            try:
                folder = Path(tempfile.mkdtemp(prefix="firecracker-", dir=run_dir))
                own.callback(shutil.rmtree, folder, ignore_errors=True)
                self._folder_fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                own.callback(os.close, self._folder_fd)
                near, self._far = zip(*(socket.socketpair() for _ in _VSOCK_PORTS), strict=True)
                for end in near:
                    on_error.enter_context(end).setblocking(False)
                for end in self._far:
                    own.enter_context(end).setblocking(False)
                words = [str(binary), "--api-sock", _API_SOCKET, "--id", folder.name]
                child = Child(words, {}, (), folder)
            except OSError as error:
                raise SandboxFailed(f"no process for a micro-VM: {error}") from error
            on_error.pop_all()
            self._own = own.pop_all()  # what goes once nobody carries bytes any more
        super().__init__(child, near[0], near[1].detach())
        self._api = FirecrackerApi(self._reach(_API_SOCKET))

    @classmethod
    def boot(cls, binary: Path, hw: Hardware, memory: Path, run_dir: Path) -> FirecrackerMachine:
        """Start a guest; `snapshot` writes its memory to `memory`. Returns at once. Raises SandboxFailed."""
        machine = cls(binary, hw, memory, run_dir)
        machine._begin(machine._boot)
        return machine

    @classmethod
    def restore(
        cls, binary: Path, hw: Hardware, state: Path, plan: RestorePlan, run_dir: Path,
        copy: Path | None = None, pager_socket: Path | None = None,
    ) -> FirecrackerMachine:  # fmt: skip
        """Start from a snapshot; `running` tells when it does. The caller begins and ends the plan.

        `pager_socket`: where a pager listens that fills the memory; otherwise it is mapped from the plan's file. A
        snapshot of it is written to `copy`. Returns at once. Raises SandboxFailed.
        """
        machine = cls(binary, hw, copy or plan.memory, run_dir)
        machine._begin(functools.partial(machine._restore, state, plan.memory, pager_socket))
        return machine

    async def running(self, timeout_s: float = 10.0) -> None:
        """Returns once the guest runs and was reached. Raises SandboxFailed, with what Firecracker said; `close` it."""
        try:
            await asyncio.wait_for(asyncio.shield(self._up), timeout_s)
        except TimeoutError:
            raise SandboxFailed(f"a micro-VM did not wake within {timeout_s:g} s: {self.last_words()}") from None
        except FirecrackerError as error:
            raise SandboxFailed(f"a micro-VM did not wake: {error} {self.last_words()}") from None

    async def snapshot(self, state: Path, timeout_s: float = 30.0) -> None:
        """Save the guest's state in `state` and its memory, and end the machine. Raises SnapshotFailed; `close` it."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._api.pause()
                await self._api.create_snapshot(state, self._memory)
        except TimeoutError:
            raise SnapshotFailed(f"a micro-VM was not saved within {timeout_s:g} s: {self.last_words()}") from None
        except FirecrackerError as error:
            raise SnapshotFailed(f"a micro-VM could not be saved in {state}: {error}") from None
        await self._child.end()

    # ------------------------------------------------------------ on its way up

    def _begin(self, steps: Callable[[], Awaitable[None]]) -> None:
        self._life = asyncio.get_running_loop().create_task(self._live(steps))
        self.when_ended(lambda _: self._life.cancel())

    async def _live(self, steps: Callable[[], Awaitable[None]]) -> None:
        """Come up, then carry bytes between the guest's ports and ours; ours hear the end."""
        guest: list[socket.socket] = []
        error: BaseException | None = FirecrackerError("it has ended;")
        try:
            await steps()
            for port in _VSOCK_PORTS:
                guest.append(await self._guest_port(port))
            error = None
            self._up.set_result(None)
            await asyncio.gather(*map(_join, guest, self._far))
        except FirecrackerError as refusal:
            error = refusal
        finally:
            for end in (*guest, *self._far):
                end.close()
            if error is not None:
                self._up.set_exception(error)
                self._up.exception()  # perhaps nobody asks: that is no mistake
                self.kill()

    async def _boot(self) -> None:
        api, hw = self._api, self._hw
        await self._listening()
        await api.boot_source(hw.kernel, hw.initrd, kernel_words("kvm", hw.packages))
        await api.machine_config(hw.memory_bytes)
        for number, drive in enumerate(hw.drives):
            await api.drive(f"drive{number}", drive)
        await api.vsock(_GUEST_CID, _VSOCK_SOCKET)
        await api.start()

    async def _restore(self, state: Path, memory: Path, pager_socket: Path | None) -> None:
        await self._listening()
        await self._api.load_snapshot(state, memory, pager_socket)
        for number, drive in enumerate(self._hw.drives):
            await self._api.change_drive(f"drive{number}", drive)
        await self._api.resume()

    async def _listening(self) -> None:
        """Returns once the API's socket is there."""
        (await self._until("its API", lambda: self._dial(_API_SOCKET))).close()

    async def _guest_port(self, port: int) -> socket.socket:
        """Connected to whoever listens there in the guest."""
        return await self._until(f"port {port} of its guest", lambda: self._ask_for(port))

    async def _ask_for(self, port: int) -> socket.socket:
        loop = asyncio.get_running_loop()
        channel = await self._dial(_VSOCK_SOCKET)
        try:
            await loop.sock_sendall(channel, b"CONNECT %d\n" % port)
            answer = b""
            while not answer.endswith(b"\n"):
                byte = await loop.sock_recv(channel, 1)  # what follows the line is the guest's
                if not byte:
                    raise ConnectionResetError("nobody listens yet")
                answer += byte
        except BaseException:
            channel.close()
            raise
        return channel

    async def _dial(self, name: str) -> socket.socket:
        channel = socket.socket(socket.AF_UNIX)
        channel.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(channel, self._reach(name))
        except BaseException:
            channel.close()
            raise
        return channel

    async def _until(self, what: str, attempt: Callable[[], Awaitable[socket.socket]]) -> socket.socket:
        """Try until it works. Raises FirecrackerError if the process ends first, or time is up."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + _CONNECT_WAIT_S
        while self.status is None and loop.time() < until_s:
            try:
                return await attempt()
            except OSError:
                await asyncio.sleep(_POLL_S)
        raise FirecrackerError(f"{what} was not there;")

    def _reach(self, name: str) -> str:
        """A path to a socket in its folder that is short enough for the kernel, wherever that is."""
        return f"/proc/self/fd/{self._folder_fd}/{name}"

    # ------------------------------------------------------------ the end

    async def close(self) -> None:
        try:
            await super().close()
        finally:
            self._life.cancel()
            await asyncio.wait([self._life])
            self._own.close()

    # ------------------------------------------------------------ what was said

    @property
    def console(self) -> str:
        """The first 4 KiB and the last 2 of what Firecracker and the guest's console wrote."""
        return self._child.output

    def last_words(self) -> str:
        """The last line of those; empty if there is none."""
        lines = [line.strip() for line in self.console.splitlines() if line.strip()]
        return (lines or [""])[-1]


async def _join(one: socket.socket, other: socket.socket) -> None:
    """Carry bytes both ways until either ends."""
    ways = [asyncio.create_task(_carry(one, other)), asyncio.create_task(_carry(other, one))]
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for way in ways:
            way.cancel()
        await asyncio.wait(ways)


async def _carry(source: socket.socket, target: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    with contextlib.suppress(OSError):
        while chunk := await loop.sock_recv(source, _READ_BYTES):
            await loop.sock_sendall(target, chunk)
