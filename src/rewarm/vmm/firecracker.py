"""Firecracker instead of QEMU: the same steps, files and pager (experimental: tested against its documented API only).

What differs. It needs KVM, and runs as the server's user. Its guests have no virtio-serial ports but vsock: the host
connects to a Unix socket, says "CONNECT port\\n" and hears "OK port\\n" once the guest listens. A snapshot ends such
connections, and a restored machine makes the socket, and opens the drives, at the paths that the first was told; so
those are names in the working directory, of which each machine has one of its own, with links to its drives. A memory
file is written when a snapshot is made; until then memory is anonymous, or what was restored and stays private.
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
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rewarm.errors import MicrovmUnavailable, SandboxFailed, SnapshotCorrupt, SnapshotFailed
from rewarm.guest import GuestFiles, find_guest
from rewarm.vmm import kvm
from rewarm.vmm.child import Child
from rewarm.vmm.firecracker_api import FirecrackerApi, FirecrackerError, FirecrackerRefusal, config
from rewarm.vmm.monitor import Monitor, ask_version, quoted
from rewarm.vmm.qemu import PROBE_MEMORY_BYTES, PROBE_WORDS, Hardware, kernel_words

if TYPE_CHECKING:
    from rewarm.snapshot.pager_client import Listening
    from rewarm.snapshot.restore import RestorePlan

#: Where a guest listens: for frames, and for whoever reads what its code writes.
_VSOCK_PORTS = FN_VSOCK_PORT, LOG_VSOCK_PORT = 5001, 5002

_BINARY = "firecracker"
_VERSION_MIN = (1, 17)  # the first that boots a bzImage, which is what Debian's kernels are
_VERSION = re.compile(r"v((\d+)\.(\d+)\.\d+)")
_INSTALL = "Debian has no package of it, its project has releases"
_GUEST_CID = 3  # the same for all: each machine has a socket of its own
_API_SOCKET, _VSOCK_SOCKET, _PAGER_SOCKET = "api.sock", "vsock.sock", "pager.sock"
_POLL_S = 0.005
_CONNECT_WAIT_S = 60.0  # a guest listens once it has booted
_READ_BYTES = 1 << 16
_LAST_WORDS_WAIT_S = 1.0  # for an answer on its way from one that has ended


class Firecracker(NamedTuple):
    """One that is new enough. `run_dir`: where each machine makes a folder for its sockets, which goes with it."""

    path: Path
    version_text: str
    run_dir: Path


def find_firecracker(run_dir: Path, binary: str = _BINARY) -> Firecracker:
    """Blocks for some milliseconds. Raises MicrovmUnavailable: none, too old, broken."""
    path, match = ask_version(binary, _VERSION, _INSTALL)
    if (int(match[2]), int(match[3])) < _VERSION_MIN:
        oldest = ".".join(map(str, _VERSION_MIN))
        raise MicrovmUnavailable(f"{path} is {match[0]}, and v{oldest} is needed; {_INSTALL}")
    return Firecracker(path, match[1], run_dir)


def usable(home_dir: Path, binary: str = _BINARY) -> Firecracker:
    """The Firecracker of this machine, if the guest boots in it. Raises MicrovmUnavailable that says why it is off.

    Blocks: at most for 3.5 s, and that only once after a boot of this machine, for each version and kernel.
    """
    found = find_firecracker(home_dir / "run", binary)
    guest = find_guest(home_dir)
    accel = kvm.proven(
        home_dir / "microvm" / "accel-firecracker.json",
        {"firecracker": found.version_text, "kernel": guest.sha256["kernel"]}, lambda: _why_no_boot(found, guest),
    )  # fmt: skip
    if accel.name != "kvm":
        raise MicrovmUnavailable(f"Firecracker needs KVM: {accel.why}")
    return found


def _why_no_boot(firecracker: Firecracker, guest: GuestFiles) -> str | None:
    """As `kvm.watched`, of a guest in Firecracker. Raises MicrovmUnavailable."""
    words = f"{kernel_words('kvm')} {PROBE_WORDS}"
    try:
        with tempfile.TemporaryDirectory(prefix="rewarm-firecracker-") as folder:
            file = Path(folder, "config.json")
            file.write_text(config(guest.kernel, guest.initrd, words, PROBE_MEMORY_BYTES), encoding="utf-8")
            return kvm.watched([str(firecracker.path), "--no-api", "--config-file", str(file)], kvm.PROBE_WAIT_S)
    except OSError as error:
        raise MicrovmUnavailable(f"{firecracker.path} cannot be tried: {error}") from error


def host_cpu() -> str:
    """The processor that a snapshot is bound to: guests of Firecracker have the host's. Raises MicrovmUnavailable."""
    names = ("vendor_id", "cpu family", "model", "stepping")
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").partition("\n\n")[0].splitlines()
        told = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        return "-".join(told[name] for name in names)
    except (OSError, KeyError) as error:
        raise MicrovmUnavailable(f"/proc/cpuinfo does not tell what processor this is: {error}") from error


class FirecrackerMachine(Monitor):
    """One micro-VM. `fn` and `log_fd` are joined to the guest once it listens."""

    def __init__(
        self, hw: Hardware, memory: Path, run_dir: Path, listen: Callable[[Path], Listening] | None = None
    ) -> None:
        """Use `boot` or `restore`."""
        self.since_s = time.monotonic()
        self._hw = hw
        self._memory = memory
        self._refusal = ""  # what went wrong on its way up
        self._up: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        with contextlib.ExitStack() as own, contextlib.ExitStack() as on_error:
            try:
                folder = Path(tempfile.mkdtemp(prefix="firecracker-", dir=run_dir))
                own.callback(shutil.rmtree, folder, ignore_errors=True)
                self._folder_fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                own.callback(os.close, self._folder_fd)
                for name, drive in self._drives():
                    Path(folder, name).symlink_to(drive.absolute())
                if listen is not None:
                    own.callback(listen(Path(self._reach(_PAGER_SOCKET))).close)
                near, self._far = zip(*(socket.socketpair() for _ in _VSOCK_PORTS), strict=True)
                for end in near:
                    on_error.enter_context(end).setblocking(False)
                for end in self._far:
                    own.enter_context(end).setblocking(False)
                child = Child([str(hw.binary), "--api-sock", _API_SOCKET], {}, (), folder)
            except OSError as error:
                raise SandboxFailed(f"no process for a micro-VM: {error}") from error
            on_error.pop_all()
            self._own = own.pop_all()  # what goes once nobody carries bytes any more
        super().__init__(child, near[0], near[1].detach())
        self._api = FirecrackerApi(self._reach(_API_SOCKET))

    @classmethod
    def boot(cls, hw: Hardware, memory: Path, run_dir: Path) -> FirecrackerMachine:
        """Start a guest; `snapshot` writes its memory to `memory`. Returns at once. Raises SandboxFailed."""
        machine = cls(hw, memory, run_dir)
        machine._begin(machine._boot)
        return machine

    @classmethod
    def restore(
        cls, hw: Hardware, state: Path, plan: RestorePlan, run_dir: Path, copy: Path | None = None
    ) -> FirecrackerMachine:
        """Start from a snapshot; `running` tells when it does. The caller begins and ends the plan.

        A snapshot of it is written to `copy`. Returns at once. Raises SandboxFailed.
        """
        machine = cls(hw, copy or plan.memory, run_dir, plan.listen)
        memory = plan.memory if plan.listen is None else _PAGER_SOCKET
        machine._begin(functools.partial(machine._restore, state, memory))
        return machine

    async def running(self, timeout_s: float = 10.0) -> None:
        try:
            await asyncio.wait_for(asyncio.shield(self._up), timeout_s)
        except TimeoutError:
            raise SandboxFailed(f"a micro-VM did not wake within {timeout_s:g} s: {self.last_words()}") from None
        except FirecrackerError:
            raise SandboxFailed(f"a micro-VM did not wake: {self.last_words() or 'it has ended'}") from None

    async def snapshot(self, state: Path, timeout_s: float = 30.0) -> None:
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
        loop = asyncio.get_running_loop()
        self._life = loop.create_task(self._live(steps))
        self.when_ended(lambda _: loop.call_later(_LAST_WORDS_WAIT_S, self._life.cancel))

    async def _live(self, steps: Callable[[], Awaitable[None]]) -> None:
        """Come up, then carry bytes between the guest's ports and ours; ours hear the end."""
        guest: list[socket.socket] = []
        error: Exception | None = FirecrackerError("it has ended")
        try:
            await steps()
            for port in _VSOCK_PORTS:
                guest.append(await self._guest_port(port))
            error = None
            self._up.set_result(None)
            await asyncio.gather(*map(_join, guest, self._far))
        except (FirecrackerError, SnapshotCorrupt) as refusal:
            error, self._refusal = refusal, str(refusal)
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
        for name, _ in self._drives():
            await api.drive(name)
        await api.vsock(_GUEST_CID, _VSOCK_SOCKET)
        await api.start()

    async def _restore(self, state: Path, memory: Path | str) -> None:
        """`memory`: its file, or the socket of who fills it. Raises SnapshotCorrupt, too."""
        await self._listening()
        try:
            await self._api.load_snapshot(state, memory)
        except FirecrackerRefusal as refusal:
            if isinstance(memory, str):
                raise  # perhaps it is about the pager
            raise SnapshotCorrupt(f"{state} is damaged or of another machine: {refusal}") from refusal

    def _drives(self) -> list[tuple[str, Path]]:
        """By their names in its folder, in their order."""
        return [(f"drive{number}", drive) for number, drive in enumerate(self._hw.drives)]

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
        raise FirecrackerError(f"{what} was not there")

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
        return self._child.output

    def last_words(self) -> str:
        lines = [line.strip() for line in self.console.splitlines() if line.strip()]
        return "; ".join(filter(None, (self._refusal, *map(quoted, lines[-1:]))))


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
