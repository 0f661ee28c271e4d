"""The weights of a deployed function, as its constructor sees them."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewarm.errors import BadDefinition
from rewarm.policy.pinning.timeline import ttfi_s
from rewarm.weights.format import Pack, open_pack
from rewarm.weights.loader import Stream
from rewarm.weights.pages import Mapped

if TYPE_CHECKING:
    import numpy as np

    from rewarm.worker.firstpass import FirstPass, Stopwatch
    from rewarm.worker.sessions import PackedSession


#: While a module is built, Python's threads take turns this often: the loader, which needs its turn for a moment after
#: each system call, would else wait 5 ms for it every time, and the disk with it.
_SWITCH_S = 0.0005


class Weights:
    """One read-only file in the store. `path` may be opened by anything; the methods are shortcuts.

    In a decorator, `Weights(path, pin=…)` names the file and says how much of it may be kept in memory while nothing
    runs: "auto", "none", "all" or a size.
    """

    def __init__(self, path: str | Path, pin: str | int = "auto") -> None:
        self.path = Path(path)
        self.pin = pin
        self._pack: Pack | None = None
        self._order: Mapping[str, Any] = {}
        self._mapped: list[Mapped] | None = None
        self._stream: Stream | None = None
        self._setup_s = 0.0
        self._first: FirstPass | Stopwatch | PackedSession | None = None

    @classmethod
    def packed(cls, path: str | Path, order: Mapping[str, Any]) -> Weights:
        """With a pack: `{"folder", "tensors_dir", "bandwidth_bytes_s", "pinned_bytes"}`, and what is expected of each
        layer, if more is known than when it was packed: "setup_s", "compute_s", "rows_s". Raises WeightsCorrupt.
        """
        weights = cls(path)
        weights._order = order
        weights._pack = open_pack(Path(order["folder"]), Path(order["tensors_dir"]))
        return weights

    @property
    def size_bytes(self) -> int:
        return self.path.stat().st_size

    def module(self, factory: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The torch module that `factory(*args, **kwargs)` makes, with these weights; ready for inference.

        Its parameters are not initialised but mapped, read-only and shared with all instances: to write into one ends
        the process. While they are still being read the first layers can run. It is in eval mode and wants no
        gradients. Names, shapes and dtypes are those of the file. Raises BadDefinition, naming tensors, if these
        do not fit, or if the file is no checkpoint or holds pickled code.
        """
        from rewarm.worker import checkpoints, firstpass, modules

        since_s = time.perf_counter()
        if self._pack is None or self._pack.index.kind != "tensors":
            return modules.load(factory, args, kwargs, checkpoints.file_tensors(self.path))
        stream = self._streamed(self._pack)
        interval_s = sys.getswitchinterval()
        sys.setswitchinterval(_SWITCH_S)
        try:
            tensors = checkpoints.pack_tensors(self._pack.index, self._mappings(self._pack))
            module = modules.load(factory, args, kwargs, tensors)
        except BaseException:
            stream.close()
            raise
        finally:
            sys.setswitchinterval(interval_s)
        if self._first is None:
            if stream.whole and firstpass.Stopwatch.fits(module):
                self._first = firstpass.Stopwatch(module, self._pack.index)
            else:
                self._first = firstpass.FirstPass(module, self._pack.index, stream.wait, lambda: stream.done)
            self._setup_s = time.perf_counter() - since_s
        return module

    def session(self, **options: Any) -> Any:
        """An `onnxruntime.InferenceSession` on the file, with one compute thread.

        Keyword arguments set attributes of its SessionOptions (for example `intra_op_num_threads=2`). Raises what
        onnxruntime raises if the file is not an ONNX model.
        """
        from rewarm.worker import sessions

        if self._pack is None or self._pack.index.kind != "onnx":
            return sessions.open_session(self.path, options)
        since_s = time.perf_counter()
        stream = self._streamed(self._pack)
        mapped = next(iter(self._mappings(self._pack)), None)  # a small model has all its weights in the graph
        session = sessions.open_session(self.path, options, pack=self._pack, mapped=mapped)
        if self._first is None and isinstance(session, sessions.PackedSession):
            self._first, self._setup_s = session, time.perf_counter() - since_s
            session.rows_of = None if stream.whole else mapped
        return session

    def arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        """The tensors of a checkpoint as read-only arrays; of an `.npz` file its arrays, of `.npy` one named "weights".

        Never unpickles. Raises BadDefinition for a dtype that numpy does not have (bfloat16, float8).
        """
        import numpy as np

        from rewarm.worker import raw_arrays

        if self._pack is not None and self._pack.index.kind == "tensors":
            return raw_arrays.of_pack(self._pack.index, self._mappings(self._pack))
        if self.path.suffix == ".safetensors":
            return raw_arrays.of_file(self.path)
        if self.path.suffix not in (".npz", ".npy"):
            raise BadDefinition(f"{self.path.name} has no arrays: they come from .safetensors, .npz and .npy")
        loaded = np.load(self.path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {"weights": loaded}
        return {name: loaded[name] for name in loaded.files}

    def report(self) -> dict[str, Any] | None:
        """What the first pass took, or None before its end. What is not known is left out.

        `setup_ms`: construction; `ttfi_ms`: that and the first pass; `predicted_ms`: the same by the closed form of
        `policy.pinning`, from what was in memory when the load began; needs a bandwidth. `bubble_ms`: waited for
        layers, and for rows of tables; `rows_s`: the latter, by layer. `read_bytes`: what was not in memory.
        `bandwidth_mb_s`: of the load, if it read anything. `compute_s`: by layer; shares of the whole as measured at
        deploy, if all was in memory. Of a session, bubble and compute are estimates: what its first run took beyond
        its own CPU time, and shares of that time.
        """
        if self._pack is None or self._stream is None or self._first is None or self._first.passed is None:
            return None
        passed, stream = self._first.passed, self._stream
        report: dict[str, Any] = {
            "ttfi_ms": (self._setup_s + passed.seconds) * 1e3,
            "setup_ms": self._setup_s * 1e3,
            "bubble_ms": passed.waited_s * 1e3,
            "read_bytes": stream.bytes_read,
            "pinned_bytes": int(self._order.get("pinned_bytes") or 0),
            "compute_s": list(passed.compute_s),
            "rows_s": list(passed.rows_s.items()),
        }
        bandwidth_bytes_s = self._order.get("bandwidth_bytes_s")
        if bandwidth_bytes_s:
            loads_s = [missing / bandwidth_bytes_s for missing in stream.missing_bytes]
            computes_s = self._order.get("compute_s") or [layer.compute_s for layer in self._pack.index.layers]
            if not stream.whole and self._order.get("rows_s"):
                computes_s = [sum(pair) for pair in zip(computes_s, self._order["rows_s"], strict=True)]
            setup_s = self._order.get("setup_s")
            setup_s = self._pack.index.setup_s if setup_s is None else float(setup_s)
            predicted_s = ttfi_s(loads_s, computes_s, setup_s)
            if math.isfinite(predicted_s):
                report["predicted_ms"] = predicted_s * 1e3
        if stream.bytes_read and stream.seconds:
            report["bandwidth_mb_s"] = stream.bytes_read / stream.seconds / 1e6
        return report

    def _mappings(self, pack: Pack) -> list[Mapped]:
        """Its data files, each mapped once."""
        if self._mapped is None:
            self._mapped = [Mapped(pack.path(no), file.size_bytes) for no, file in enumerate(pack.index.files)]
        return self._mapped

    def _streamed(self, pack: Pack) -> Stream:
        """The load, begun on first use."""
        if self._stream is None:
            self._stream = Stream(pack.index, self._mappings(pack))
        return self._stream

    def __repr__(self) -> str:
        return f"<Weights {self.path.name}>"
