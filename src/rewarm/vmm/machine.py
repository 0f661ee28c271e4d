"""One micro-VM: a QEMU process, the host's ends of its guest's two ports, its monitor."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewarm.errors import SandboxFailed, SnapshotCorrupt, SnapshotFailed
from rewarm.vmm.child import Child
from rewarm.vmm.handed import Handed
from rewarm.vmm.monitor import Monitor, quoted
from rewarm.vmm.qemu import Ends, Hardware, command
from rewarm.vmm.qmp import Command, Qmp, QmpError
from rewarm.vmm.user import take_uid

if TYPE_CHECKING:
    from rewarm.snapshot.restore import RestorePlan

# What QEMU says on stderr when it cannot load a state.
_UNREADABLE = ("load of migration failed", "error while loading state", "migration stream")
_COMPLAINT = re.compile(r"qemu[\w-]*: (?!warning: )")
_COMPLAINTS_MAX = 3  # the cause comes before what follows from it
_LAST_WORDS_WAIT_S = 1.0
_COMPLAINT_CHARS_MAX = 1000  # it comes behind the option that it is about
_CAPABILITIES: Command = ("qmp_capabilities", {})


def _migration(name: str, state: Path) -> list[Command]:
    """To or from the file `state`, without the memory, which is in a file already (x-ignore-shared)."""
    address = {"transport": "file", "filename": str(state), "offset": 0}
    ignore = {"capability": "x-ignore-shared", "state": True}
    return [
        ("migrate-set-capabilities", {"capabilities": [ignore]}),
        (name, {"channels": [{"channel-type": "main", "addr": address}]}),
    ]


class Machine(Monitor):
    """Lives on the event loop's thread: QEMU is killed when the thread that starts it ends, as it does with the server.

    Where the server is root, QEMU runs as the user and group `uid`, which nobody else has (see `user`).
    """

    def __init__(
        self, hw: Hardware, memory: Path, *, shared: bool, state: Path | None = None,
        env: Mapping[str, str] | None = None, pass_fds: tuple[int, ...] = (),
    ) -> None:  # fmt: skip
        """Use `boot` or `restore`."""
        self.since_s = time.monotonic()
        self.uid = take_uid()
        self._memory = memory
        self._state = state
        self._saved: int | None = None  # where QEMU, which may not enter our folders, can save its state
        with contextlib.ExitStack() as on_error, contextlib.ExitStack() as far_ends:
            near, far = zip(*(socket.socketpair() for _ in Ends._fields), strict=True)
            for end in near:
                end.setblocking(False)
                on_error.callback(end.close)
            for end in far:
                far_ends.callback(end.close)
            ends = Ends(*(end.fileno() for end in far))
            try:
                if shared:
                    self._saved = os.memfd_create("state", os.MFD_CLOEXEC)
                    on_error.callback(os.close, self._saved)
                    pass_fds += (self._saved,)
                with Handed(self.uid) as self._handed:
                    words = command(
                        self._handed.hardware(hw), ends, self._handed.file(memory, shared),
                        incoming=state is not None, shared=shared, kvm_fd=self._handed.kvm(hw.accel),
                    )  # fmt: skip
                    self._source = state and self._handed.file(state)
                    child = Child(words, env or {}, (*ends, *self._handed.fds, *pass_fds), uid=self.uid)
            except OSError as error:
                raise self._not_started(error) from error
            on_error.pop_all()
        super().__init__(child, near[0], near[1].detach())
        self._qmp = Qmp(near[2])
        self._answers: list[asyncio.Future[Any]] = []
        self.when_ended(lambda _: self._qmp.close())

    @classmethod
    def boot(cls, hw: Hardware, memory: Path) -> Machine:
        """Start a guest whose memory is the file `memory`, made here. It says HELLO on `fn` when it is up.

        Returns at once. Raises SandboxFailed, with nothing left open, if no process can be had.
        """
        machine = cls(hw, memory, shared=True)
        machine._answers = machine._qmp.send(_CAPABILITIES)
        return machine

    @classmethod
    def restore(cls, hw: Hardware, state: Path, plan: RestorePlan, copy: Path | None = None) -> Machine:
        """Start from a snapshot; `running` tells when it does. The caller begins and ends the plan.

        `hw` must be what the snapshot was made with. With `copy`, one of the snapshot's memory file, the guest writes
        to that, and `snapshot` makes another one of it; otherwise what the guest writes is lost with it.
        Returns at once. Raises SnapshotCorrupt if a file of it is missing, else SandboxFailed as `boot` does.
        """
        memory, shared = (plan.memory, False) if copy is None else (copy, True)
        machine = cls(hw, memory, shared=shared, state=state, env=plan.env, pass_fds=plan.pass_fds)
        assert machine._source is not None
        resumed = machine._qmp.event("RESUME")
        sent = machine._qmp.send(_CAPABILITIES, *_migration("migrate-incoming", machine._source))
        machine._answers = [*sent, resumed]
        return machine

    def _not_started(self, error: OSError) -> SandboxFailed | SnapshotCorrupt:
        if self._state is not None and isinstance(error, FileNotFoundError):
            for path in (self._state, self._memory):
                if not path.exists():
                    return SnapshotCorrupt(f"{path} of a snapshot is missing; it is made again at the next deploy")
        return SandboxFailed(f"no process for a micro-VM: {error}")

    async def running(self, timeout_s: float = 10.0) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                for answer in self._answers:
                    await asyncio.shield(answer)  # a wait that is given up must not take the answer with it
        except TimeoutError:
            raise SandboxFailed(f"a micro-VM did not wake within {timeout_s:g} s: {self.last_words()}") from None
        except QmpError as error:
            raise await self._why_not(error) from None

    async def _why_not(self, refusal: QmpError) -> SandboxFailed | SnapshotCorrupt:
        """Why a restored guest does not run."""
        with contextlib.suppress(TimeoutError):  # what it says as it ends tells more than that it has ended
            await asyncio.wait_for(self.wait(), _LAST_WORDS_WAIT_S)
        words = self.last_words() or self._handed.told(str(refusal))
        if self.status is not None and os.WIFEXITED(self.status) and any(word in words for word in _UNREADABLE):
            return SnapshotCorrupt(f"{self._state} is damaged or of another machine: {words}")
        return SandboxFailed(f"a micro-VM did not wake: {words}")

    async def snapshot(self, state: Path, timeout_s: float = 30.0) -> None:
        """Save the guest's state in the file `state` and end the machine; its memory file is the other half.

        The guest runs until it is saved and again from where it was when it is restored. Raises SnapshotFailed, also
        for a machine that was restored without a copy, whose memory is in no file; `close` it then.
        """
        if self._saved is None:
            raise SnapshotFailed("a micro-VM cannot be saved: what it writes to its memory is not kept")
        target = Path(f"/proc/self/fd/{self._saved}")
        ended = self._qmp.event("MIGRATION", lambda data: data["status"] in ("completed", "failed"))
        events = {"capabilities": [{"capability": "events", "state": True}]}
        sent = self._qmp.send(("migrate-set-capabilities", events), *_migration("migrate", target))
        try:
            async with asyncio.timeout(timeout_s):
                for answer in (*self._answers, *sent):
                    await asyncio.shield(answer)
                if (await ended)["status"] != "completed":
                    (told,) = self._qmp.send(("query-migrate", {}))
                    raise QmpError((await told).get("error-desc", "it does not say why"))
                self._qmp.send(("quit", {}))
                status = await self.wait()
        except TimeoutError:
            raise SnapshotFailed(f"a micro-VM was not saved within {timeout_s:g} s: {self.last_words()}") from None
        except QmpError as error:
            raise SnapshotFailed(f"a micro-VM could not be saved in {state}: {error}; {self.last_words()}") from None
        if status != 0:
            raise SnapshotFailed(f"a micro-VM was not saved: its QEMU ended with status {status}: {self.last_words()}")
        try:
            with open(self._saved, "rb", closefd=False) as saved, state.open("wb") as file:
                shutil.copyfileobj(saved, file)
            self._handed.give_back()
        except OSError as error:
            raise SnapshotFailed(f"a micro-VM could not be saved in {state}: {error}") from error

    async def close(self) -> None:
        try:
            await super().close()
        finally:
            if self._saved is not None:
                os.close(self._saved)
                self._saved = None

    # ------------------------------------------------------------ what was said

    @property
    def console(self) -> str:
        return self._handed.told(self._child.output)

    def last_words(self) -> str:
        lines = [line.strip() for line in self.console.splitlines() if line.strip()]
        complaints = [line.partition(": ")[2] for line in lines if _COMPLAINT.match(line)][-_COMPLAINTS_MAX:]
        told = [quoted(complaint, _COMPLAINT_CHARS_MAX) for complaint in complaints]
        return "; ".join(told or map(quoted, lines[-1:]))
