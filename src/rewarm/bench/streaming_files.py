"""Experiment `streaming`: a model's files, what of them is in the page cache, and what is locked there."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rewarm.bench.streaming_rows import PACKED, Case
from rewarm.errors import SystemFault
from rewarm.weights.format import Pack, Span
from rewarm.weights.pages import Mapped

_LEFT_SHARE_MAX = 0.02  # pages that the kernel has in its hands for a moment stay
_EVICT_S_MAX = 2.0
_CHUNK_BYTES = 8 << 20


@dataclass(slots=True)
class ModelFiles:
    """Where the forms of one model are: each loader reads its own. None: there is no such form."""

    weights: Path
    pt: Path
    pack: Pack
    tensors: Path | None = None  # tensorizer's
    onnx: Path | None = None
    onnx_pack: Pack | None = None
    input: Path | None = None  # onnxruntime's cases have no torch to make it with

    def of(self, case: Case) -> list[Path]:
        """What a case reads."""
        if case.engine == "onnxruntime" and case.mode == "read-all":
            return [self.onnx] if self.onnx else []
        if case.mode in PACKED:
            return [path for path, _ in self.pack_of(case).files()]
        own = {"torch.load": self.pt, "torch.load-mmap": self.pt, "tensorizer": self.tensors}
        return [own.get(case.mode) or self.weights]

    def pack_of(self, case: Case) -> Pack:
        pack = self.onnx_pack if case.engine == "onnxruntime" else self.pack
        assert pack is not None, "there are no cases for what has no pack"
        return pack


def evict(paths: Iterable[Path], kept: int = 0, left_share: float = _LEFT_SHARE_MAX) -> None:
    """Have the kernel forget its copies, but for `kept` bytes that are locked and a share of each file.

    Raises SystemFault if it does not: the disk is memory (tmpfs), or somebody else has the file mapped.
    """
    for path in paths:
        size_bytes = path.stat().st_size
        until_s = time.monotonic() + _EVICT_S_MAX
        while True:
            file = os.open(path, os.O_RDONLY)
            try:
                os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(file)
            left_bytes = resident_bytes(path, size_bytes)
            if left_bytes <= kept + left_share * size_bytes:
                break
            if time.monotonic() > until_s:
                raise SystemFault(
                    f"{left_bytes} of {size_bytes} bytes of {path} stay in the page cache: something has it mapped, or "
                    "its disk is memory; name a folder on a real disk"
                )
            time.sleep(0.01)


def resident_bytes(path: Path, size_bytes: int) -> int:
    mapped = Mapped(path, size_bytes)
    try:
        return mapped.resident_bytes(0, size_bytes)
    finally:
        mapped.close()


def read_in(paths: Iterable[Path]) -> None:
    """Have all of the files in the page cache."""
    scratch = bytearray(_CHUNK_BYTES)
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.readinto(scratch):
                pass


def part(spans: Sequence[Span], size_bytes: int, *, last: bool = False) -> list[Span]:
    """The first `size_bytes` of what is streamed, or the last."""
    found: list[Span] = []
    for span in reversed(spans) if last else spans:
        taken = min(size_bytes, span.end - span.begin)
        if taken:
            begin = span.end - taken if last else span.begin
            found.append(Span(span.file, begin, begin + taken))
        size_bytes -= taken
    return found


@contextlib.contextmanager
def locked(pack: Pack, spans: Sequence[Span]) -> Iterator[None]:
    """The spans stay in memory meanwhile. Raises SystemFault where locking is not allowed."""
    held: dict[int, Mapped] = {}
    try:
        _lock(pack, spans, held)
        yield
    finally:
        for mapped in held.values():
            mapped.close()


def _lock(pack: Pack, spans: Sequence[Span], held: dict[int, Mapped]) -> None:
    for span in spans:
        if span.file not in held:
            held[span.file] = Mapped(pack.path(span.file), pack.index.files[span.file].size_bytes)
        try:
            held[span.file].lock(span.begin, span.end)
        except OSError as error:
            raise SystemFault(f"cannot lock memory: {error.strerror}; raise `ulimit -l`, or be root") from error


def bandwidth_bytes_s(pack: Pack) -> float:
    """How fast the streamed part of a pack comes from the disk now, as the loader reads it. Leaves it in memory."""
    evict(pack.path(number) for number in range(len(pack.index.files)))
    files = [Mapped(pack.path(number), file.size_bytes) for number, file in enumerate(pack.index.files)]
    spans = pack.index.streamed_spans()
    since_s = time.perf_counter()
    for span in spans:
        files[span.file].populate(span.begin, span.end)
    took_s = time.perf_counter() - since_s
    for mapped in files:
        mapped.close()
    return sum(span.end - span.begin for span in spans) / took_s
