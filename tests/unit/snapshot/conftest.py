"""Small snapshots, and a program that maps them the way QEMU does."""

from __future__ import annotations

import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rewarm.snapshot.holes import drop_cache, punch_zero_pages
from rewarm.snapshot.loading import write_loading_set
from rewarm.snapshot.manifest import Platform, Snapshot, describe, write_manifest
from rewarm.snapshot.regions import PAGE_BYTES
from rewarm.snapshot.restore import Means, RestorePlan, detect_means
from rewarm.snapshot.shim import COMPILERS

MEMORY_PAGES = 1024
#: First page and pages of what the memory of the sample holds.
DATA = ((0, 3), (10, 2), (200, 150), (600, 1), (602, 40), (1000, 24))
#: Pages that the guest of the sample touched; 5 and 400 are zero.
TOUCHED = {0, 1, 5, 210, 211, 212, 220, 400, 602, 603, 641, 1023}


Make = Callable[..., Snapshot]


def page(number: int) -> bytes:
    """What stands in a page of the sample that is not zero."""
    return random.Random(number).randbytes(PAGE_BYTES)


@pytest.fixture(scope="session")
def sample() -> bytes:
    """The memory of the sample."""
    content = bytearray(MEMORY_PAGES * PAGE_BYTES)
    for first, count in DATA:
        for number in range(first, first + count):
            content[number * PAGE_BYTES : (number + 1) * PAGE_BYTES] = page(number)
    return bytes(content)


@pytest.fixture(scope="session")
def platform() -> Platform:
    return Platform(
        kernel="k" * 64, initrd="i" * 64, rootfs="r" * 64, packages="p", function="f", vmm="QEMU 10.0.2",
        machine="microvm", cpu="Nehalem", accel="tcg", memory_bytes=MEMORY_PAGES * PAGE_BYTES,
    )  # fmt: skip


@pytest.fixture
def make(tmp_path: Path, platform: Platform, sample: bytes) -> Make:
    """Makes snapshots of the sample: `make(name, touched)`; None for one without a loading set."""

    def made(name: str = "s", touched: set[int] | None = TOUCHED, gap_pages: int = 4) -> Snapshot:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "memory").write_bytes(sample)
        (folder / "state").write_bytes(random.Random(name).randbytes(10_000))
        punch_zero_pages(folder / "memory")
        manifest = describe(folder, "user", "digest", platform, {"publish": 2.5})
        if touched is not None:
            manifest = manifest.with_loading(folder, write_loading_set(folder, touched, gap_pages))
        return write_manifest(folder, manifest)

    return made


@pytest.fixture(scope="session")
def means(tmp_path_factory: pytest.TempPathFactory) -> Means:
    return detect_means(tmp_path_factory.mktemp("shim"))


@pytest.fixture(scope="session")
def shim(means: Means) -> Path:
    if means.shim is None:
        pytest.skip(means.why["shim"])
    return means.shim


@pytest.fixture(scope="session")
def userfaultfd(means: Means) -> None:
    if not means.userfaultfd:
        pytest.skip(means.why["userfaultfd"])


class Mapper:
    """The program, with the memory of a snapshot mapped."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.pid = process.pid
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"

    def ask(self, order: str) -> str:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(order + "\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()

    def page(self, number: int) -> bytes:
        """Its first 16 bytes."""
        return bytes.fromhex(self.ask(f"page {number}"))

    def dump(self, path: Path) -> bytes:
        """All of it, as a system call sees it."""
        assert int(self.ask(f"dump {path}")) == MEMORY_PAGES * PAGE_BYTES
        return path.read_bytes()

    def end(self) -> str:
        """What it said on stderr."""
        self._process.kill()
        return self._process.communicate()[1]


Start = Callable[[RestorePlan], Mapper]


@pytest.fixture(scope="session")
def mapper_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = next((found for name in COMPILERS if (found := shutil.which(name))), None)
    if compiler is None:
        pytest.skip("no C compiler; install gcc (make system-deps)")
    program = tmp_path_factory.mktemp("mapper") / "mapper"
    source = Path(__file__).with_name("mapper.c")
    subprocess.run([compiler, "-std=c11", "-O1", "-Wall", "-Werror", "-o", str(program), str(source)], check=True)
    return program


@pytest.fixture
def start(mapper_program: Path) -> Iterator[Start]:
    """Spawns the program as the VMM of a plan."""
    running: list[subprocess.Popen[str]] = []

    def started(plan: RestorePlan) -> Mapper:
        with spawning(plan):
            process = subprocess.Popen(
                [str(mapper_program), str(plan.memory)], env=plan.env, pass_fds=plan.pass_fds, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )  # fmt: skip
        running.append(process)
        return Mapper(process)

    yield started
    for process in running:
        process.kill()
        process.communicate()


@contextmanager
def spawning(plan: RestorePlan) -> Iterator[None]:
    plan.begin()
    try:
        yield
    finally:
        plan.end()


@pytest.fixture
def cold() -> Callable[[Snapshot], None]:
    """Takes the files of a snapshot out of the page cache."""

    def dropped(snapshot: Snapshot) -> None:
        for path, _ in snapshot.files():
            drop_cache(path)

    return dropped
