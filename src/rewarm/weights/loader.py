"""The loader: one thread that brings a pack's layers into memory in execution order, while others compute.

Nothing depends on it but time. Who reads a page before the loader came to it takes a page fault, as with any mapped
file; so a loader that fails lets everybody pass, and the bytes are what they are. Layers that are in memory when it
begins it leaves alone, and where all are there is no thread: to map them ahead takes as long as the page faults that it
saves, and the disk would stand still meanwhile.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence

from rewarm import kernel
from rewarm.weights.format import Index, Span
from rewarm.weights.pages import Mapped


class Stream:
    """Populates the layers of `index` that are not on demand, in order; `mappings` are its data files, mapped.

    The thread starts at once and ends with the last layer; there is none if nothing is missing. It must not be started
    in a process that will fork.
    """

    def __init__(self, index: Index, mappings: Sequence[Mapped]) -> None:
        self._mappings = mappings
        self._progress = threading.Condition()
        self._stopped = False
        self._thread: threading.Thread | None = None
        #: Seconds from the start to the end of the load, so far.
        self.seconds = 0.0
        #: Why the loader gave up, if it did.
        self.error: Exception | None = None
        #: Whether every byte of the files was in memory at the start.
        self.whole = all(mapped.is_cached() for mapped in mappings)
        self._layer_count = len(index.layers)
        self._loaded = self._layer_count if self.whole else 0  # layers 0 … loaded - 1 are in memory
        #: By layer, the bytes that were not in memory when the load began: what it has to read.
        self.missing_bytes: tuple[int, ...] = (0,) * self._layer_count
        if not self.whole:
            self._begin(index)

    def _begin(self, index: Index) -> None:
        self._spans = [() if layer.on_demand else index.spans(no) for no, layer in enumerate(index.layers)]
        self.missing_bytes = tuple(self._missing())
        self._since_s = time.perf_counter()
        for no, layer in enumerate(index.layers):
            for span in index.spans(no) if layer.on_demand else ():
                # Else a page fault reads 8 MiB for a row, which holds up what is streamed.
                self._mappings[span.file].expect_rows(span.begin, span.end)
        self._thread = threading.Thread(target=self._run, name="rewarm-loader", daemon=True)
        self._thread.start()

    @property
    def done(self) -> bool:
        """Nothing will be waited for any more."""
        return self._loaded == self._layer_count

    @property
    def bytes_read(self) -> int:
        """Of the layers loaded so far, what was not in memory when the load began."""
        return sum(self.missing_bytes[: self._loaded])

    def wait(self, layer_no: int) -> float:
        """Until the layer, and all before it, are in memory → seconds waited."""
        if layer_no < self._loaded:  # without the lock: it only grows
            return 0.0
        since_s = time.perf_counter()
        with self._progress:
            self._progress.wait_for(lambda: layer_no < self._loaded)
        return time.perf_counter() - since_s

    def close(self) -> None:
        """Stop after the chunk in flight, let all who wait pass, and leave no thread. Harmless a second time."""
        self._stopped = True
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            for layer_no in range(self._layer_count):
                self._load(layer_no)
                self._reached(layer_no + 1)
        except Exception as error:  # whoever touches the page meets the same fault, and can say whose it was
            self.error = error
        finally:
            self._reached(self._layer_count)

    def _missing(self) -> Iterator[int]:
        # All before the first read: the kernel reads ahead, so what a layer lacks may be there when its turn comes.
        files = [os.open(mapped.path, os.O_RDONLY | os.O_CLOEXEC) for mapped in self._mappings]
        try:
            for spans in self._spans:
                yield sum(self._missing_of(span, files[span.file]) for span in spans)
        finally:
            for file in files:
                os.close(file)

    def _missing_of(self, span: Span, file: int) -> int:
        size_bytes = span.end - span.begin
        try:
            return max(0, size_bytes - kernel.cached_bytes(file, span.begin, span.end))
        except OSError:
            return min(size_bytes, self._mappings[span.file].missing_bytes(span.begin, span.end))

    def _load(self, layer_no: int) -> None:
        if not self.missing_bytes[layer_no]:
            return
        for span in self._spans[layer_no]:
            self._mappings[span.file].populate(span.begin, span.end, self._go_on)

    def _go_on(self, begin: int, end: int) -> None:
        if self._stopped:
            raise InterruptedError("the load was stopped")

    def _reached(self, loaded: int) -> None:
        self.seconds = time.perf_counter() - self._since_s
        with self._progress:
            self._loaded = loaded
            self._progress.notify_all()
