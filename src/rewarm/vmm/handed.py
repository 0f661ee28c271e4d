"""Files handed to a monitor as descriptors: it may run as a user that may not enter the folders where they lie.

It opens each anew, by its name in /proc. So it has to have the right to the file itself: what is only read can be read
by anybody who gets at it, and what is to be written belongs to the monitor's user meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from rewarm.vmm.qemu import KVM_DEVICE, Hardware

_NAME = re.compile(r"/proc/self/fd/(\d+)")


class Handed:
    """A context: what was opened in it is closed at its end, when the child has inherited it."""

    def __init__(self, uid: int | None) -> None:
        """The monitor runs as the user `uid`, or as this one."""
        self._uid = uid
        self._paths: dict[int, Path] = {}
        self._given: list[Path] = []
        self._open = contextlib.ExitStack()

    @property
    def fds(self) -> tuple[int, ...]:
        return tuple(self._paths)

    def file(self, path: Path, writable: bool = False) -> Path:
        """Its name in the child. One that is writable is made if need be, and the child's own. Raises OSError."""
        flags = os.O_RDWR | os.O_CREAT if writable else os.O_RDONLY
        name = self._keep(os.open(path, flags | os.O_CLOEXEC, 0o644), path)
        if writable and self._uid is not None:
            os.chown(path, self._uid, self._uid)
            self._given.append(path)
        return name

    def give_back(self) -> None:
        """What was writable is this user's again: the child has ended. Raises OSError."""
        for path in self._given:
            os.chown(path, os.geteuid(), os.getegid())

    def hardware(self, hw: Hardware) -> Hardware:
        """The same by names in the child. Raises OSError."""
        kernel, initrd, *drives = (self.file(path) for path in (hw.kernel, hw.initrd, *hw.drives))
        return replace(hw, kernel=kernel, initrd=initrd, drives=tuple(drives))

    def kvm(self, accel: str) -> int | None:
        """KVM's device, if the child needs it and may not open it itself. Raises OSError."""
        if accel != "kvm" or self._uid is None:
            return None
        fd = os.open(KVM_DEVICE, os.O_RDWR | os.O_CLOEXEC)
        self._keep(fd, Path(KVM_DEVICE))
        return fd

    def told(self, text: str) -> str:
        """What the child says, with the names that we know."""
        return _NAME.sub(lambda found: str(self._paths.get(int(found[1]), found[0])), text)

    def _keep(self, fd: int, path: Path) -> Path:
        self._open.callback(os.close, fd)
        self._paths[fd] = path
        return Path(f"/proc/self/fd/{fd}")

    def __enter__(self) -> Handed:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()
