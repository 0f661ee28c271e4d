"""The facts that `rewarm doctor` tells. Each probe answers with a Check and never raises; nothing is left behind."""

from __future__ import annotations

import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rewarm.bench import machine
from rewarm.core import node
from rewarm.errors import SystemFault
from rewarm.sandbox import cgroup, isolation
from rewarm.units import human_bytes
from rewarm.worker.node.inspect import INSTALL, version

_DISK_BYTES = 32 << 20
_NOFILE_MIN = 4096
_CAP_IPC_LOCK = 14
_PACKAGES = (("numpy", "functions on arrays"), ("onnxruntime", "ONNX models; rewarm[onnx]"), ("torch", "rewarm[torch]"))

# Run in a process of its own: it forks and enters namespaces. Prints one JSON object of what worked.
_KERNEL_PROBE = """
import ctypes, json, os, sys
libc = ctypes.CDLL(None, use_errno=True)
def child(call):
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(0 if call() == 0 else min(ctypes.get_errno(), 200))
        except BaseException:
            os._exit(255)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
found = {
    "pdeathsig": child(lambda: libc.prctl(1, 9, 0, 0, 0)),
    "userns": child(lambda: libc.unshare(0x10000000)),
}
number = {"x86_64": 323, "aarch64": 282}.get(os.uname().machine)
if number:
    fd = libc.syscall(number, os.O_CLOEXEC | 1)  # 1: faults of user mode only, all that an ordinary user may have
    found["uffd"] = 0 if fd >= 0 else ctypes.get_errno()
print(json.dumps(found))
"""


@dataclass(frozen=True, slots=True)
class Check:
    """`ok` None: a fact, neither good nor bad. `key` is the stable name for programs."""

    key: str
    name: str
    ok: bool | None
    value: str
    note: str = ""


def all_checks(home: Path) -> list[Check]:
    return [
        Check("python", "Python", True, platform.python_version(), platform.python_implementation()),
        _compiled(),
        Check("kernel", "kernel", platform.system() == "Linux", f"{platform.system()} {platform.release()}"),
        Check("cpu", "processor", None, machine.cpu_model(), f"{machine.usable_cores()} usable cores"),
        _memory(),
        *_kernel(),
        _pidfd(),
        _memfd(),
        _file("psi", "pressure (PSI)", Path("/proc/pressure/memory"), "tells memory pressure before it hurts"),
        _file("pss", "shared memory (PSS)", Path("/proc/self/smaps_rollup"), "the memory ledger measures with it"),
        _cgroup(),
        _namespaces(),
        _kvm(),
        _nofile(),
        _memlock(),
        *(_package(name, what) for name, what in _PACKAGES),
        _node(),
        _wrk(),
        _disk(home),
    ]


def choose_driver(checks: Sequence[Check]) -> dict[str, str]:
    """The sandbox driver of functions that ask for none, and the reason."""
    by_key = {check.key: check for check in checks}
    why = "instances are forked processes, which need no root and no KVM"
    if by_key["pdeathsig"].ok is False:
        why += "; without fork and a parent-death signal it will not run here"
    return {"chosen": "process", "why": why}


def _compiled() -> Check:
    """Whether this installation has its hot path as machine code (adr/0008)."""
    if Path(node.__file__).suffix == ".so":
        return Check("compiled", "hot path", True, "compiled")
    return Check("compiled", "hot path", None, "interpreted", "slower per request; a release wheel has it compiled")


def _memlock() -> Check:
    """How much of the weights may be pinned. Whoever has CAP_IPC_LOCK may lock all."""
    capable = False
    try:
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("CapEff:"):
                capable = bool(int(line.split()[1], 16) >> _CAP_IPC_LOCK & 1)
    except (OSError, ValueError, IndexError):
        pass
    hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
    if capable or hard == resource.RLIM_INFINITY:
        return Check("memlock", "locked memory", True, "no limit", "weights can be pinned")
    note = "weights beyond it are touched from time to time instead; raise ulimit -l to pin them"
    return Check("memlock", "locked memory", None, human_bytes(hard), note)


def _memory() -> Check:
    available = ""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                available = f"{human_bytes(int(line.split()[1]) * 1024)} available"
    except (OSError, ValueError, IndexError):
        pass
    return Check("memory", "memory", None, human_bytes(machine.memory_bytes()), available)


def _kernel() -> list[Check]:
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _KERNEL_PROBE], capture_output=True, text=True, timeout=10, check=True
        )
        found: dict[str, int] = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        found = {}

    def check(key: str, name: str, note: str) -> Check:
        code = found.get(key)
        if code == 0:
            return Check(key, name, True, "works", note)
        return Check(key, name, False, "cannot be tested" if code is None else os.strerror(code), note)

    return [
        check("pdeathsig", "fork, parent-death signal", "no instance outlives the server"),
        check("userns", "user namespaces", "namespaces without root go by way of them"),
        check("uffd", "userfaultfd", "a pager may fill the memory of micro-VMs"),
    ]


def _pidfd() -> Check:
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (OSError, AttributeError) as error:
        return Check("pidfd", "pidfd", False, str(error), "a child's end is noticed without polling")
    return Check("pidfd", "pidfd", True, "works", "a child's end is noticed without polling")


def _memfd() -> Check:
    try:
        os.close(os.memfd_create("rewarm-doctor"))
    except (OSError, AttributeError) as error:
        return Check("memfd", "memfd", False, str(error))
    return Check("memfd", "memfd", True, "works")


def _file(key: str, name: str, path: Path, note: str) -> Check:
    try:
        path.read_bytes()
    except OSError as error:
        return Check(key, name, False, error.strerror or "no", note)
    return Check(key, name, True, "works", note)


def _cgroup() -> Check:
    """Whether a server that is started like this process can make memory cgroups."""
    try:
        place = cgroup.find()
    except OSError as error:
        note = f"{error}; without them only private memory is limited, per process"
        return Check("cgroup", "memory cgroups", None, "none", note)
    note = f"limit an instance with all that it starts; in {place.folder}"
    return Check("cgroup", "memory cgroups", True, f"v{place.files.version}, writable", note)


def _namespaces() -> Check:
    """What an instance does not share with the rest of the machine."""
    found = isolation.probe()
    if found.mode == isolation.NONE:
        note = f"{found.refused or 'no reason given'}; instances share all of them with the server"
        return Check("namespaces", "namespaces", None, "none", note)
    how = "as root" if found.mode == isolation.ROOT else "in a user namespace"
    note = f"its code is not read-only: {found.refused}" if found.refused else "its code is read-only for an instance"
    return Check("namespaces", "namespaces", not found.refused, f"ipc, uts, mount, {how}", note)


def _kvm() -> Check:
    path = Path("/dev/kvm")
    note = "micro-VMs; that it can be opened does not say that a guest boots"
    if not path.exists():
        return Check("kvm", "KVM", None, "no /dev/kvm", note)
    usable = os.access(path, os.R_OK | os.W_OK)
    return Check("kvm", "KVM", usable, "/dev/kvm usable" if usable else "/dev/kvm may not be opened", note)


def _nofile() -> Check:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    note = f"hard limit {hard}" + ("" if soft >= _NOFILE_MIN else f"; raise it with ulimit -n {min(hard, 65536)}")
    return Check("nofile", "open files", soft >= _NOFILE_MIN, str(soft), note)


def _package(name: str, what: str) -> Check:
    version = machine.package_version(name)
    return Check(name, name, True if version else None, version or "not installed", what)


def _node() -> Check:
    """A node that cannot be used is a fact, not a fault: only functions in JavaScript need one."""
    try:
        return Check("node", "Node.js", True, version(), "functions in JavaScript")
    except SystemFault as error:
        found = error.message.partition(";")[0]
        return Check("node", "Node.js", None, found, f"functions in JavaScript; {INSTALL}")


def _wrk() -> Check:
    return Check("wrk", "wrk", None, shutil.which("wrk") or "not installed", "drives benchmarks/throughput.py")


def _disk(home: Path) -> Check:
    """Writes 32 MB through to the disk and reads them back past the page cache (as far as the kernel agrees)."""
    folder = next(path for path in (home, *home.parents) if path.is_dir())
    block = os.urandom(1 << 20)  # random, so that no file system compresses the test away
    try:
        with tempfile.TemporaryFile(dir=folder, prefix=".rewarm-doctor-") as file:
            began = time.perf_counter()
            for _ in range(_DISK_BYTES // len(block)):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
            wrote = time.perf_counter()
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            file.seek(0)
            while file.read(len(block)):
                pass
            read = time.perf_counter()
    except OSError as error:
        return Check("disk", "disk of the home", False, error.strerror or "unusable", str(folder))
    write_speed, read_speed = (human_bytes(_DISK_BYTES / max(s, 1e-9)) for s in (wrote - began, read - wrote))
    return Check("disk", "disk of the home", True, f"write {write_speed}/s, read {read_speed}/s", str(folder))
