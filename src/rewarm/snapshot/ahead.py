"""Reading ahead: parts of files come into the page cache in a thread, while the guest that needs them already runs."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

#: One call asks for no more: the kernel cuts it to the readahead window of the device, which is seldom smaller.
_CHUNK_BYTES = 128 << 10


class Span(NamedTuple):
    """Bytes of a file."""

    begin: int
    size_bytes: int


class Readahead:
    """Each file by one thread at a time: a burst of restores from one snapshot reads it once."""

    def __init__(self) -> None:
        self._threads: dict[tuple[int, int], threading.Thread] = {}
        self._lock = threading.Lock()

    def begin(self, path: Path, spans: Sequence[Span]) -> threading.Thread:
        """Begin to read the spans, in their order, unless that file is being read. The thread ends once all are there.

        Raises OSError if there is no such file; what goes wrong later only means that it is read by whoever needs it.
        """
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        status = os.fstat(file)
        key = (status.st_dev, status.st_ino)
        with self._lock:
            thread = self._threads.get(key)
            if thread is not None:
                os.close(file)
                return thread
            thread = threading.Thread(target=self._read, args=(key, file, spans), name="readahead", daemon=True)
            self._threads[key] = thread
            thread.start()
        return thread

    def _read(self, key: tuple[int, int], file: int, spans: Sequence[Span]) -> None:
        try:
            with suppress(OSError):
                read_ahead(file, spans)
        finally:
            os.close(file)
            with self._lock:
                del self._threads[key]


def read_ahead(file: int, spans: Sequence[Span]) -> None:
    """Asks for all spans at once, then waits until they have come. Raises OSError."""
    chunks = [
        Span(begin, min(_CHUNK_BYTES, span.begin + span.size_bytes - begin))
        for span in spans
        for begin in range(span.begin, span.begin + span.size_bytes, _CHUNK_BYTES)
    ]
    for begin, size_bytes in chunks:
        os.posix_fadvise(file, begin, size_bytes, os.POSIX_FADV_WILLNEED)
    for begin, size_bytes in chunks:
        os.pread(file, 1, begin + size_bytes - 1)
