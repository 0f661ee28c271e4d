"""onnxruntime sessions: plain ones on a file, and mapped ones on a pack that are ready in milliseconds.

What costs time in the default path is optimising the graph, copying the weights and repacking them for the CPU. A pack
holds a graph that was optimised at deploy, and weights that are used where they lie in the file:

- The initialisers are handed over as views of one read-only shared mapping (`add_initializer`). onnxruntime would map
  the file by itself too, but privately and writable, which counts against RLIMIT_DATA: a model larger than the memory
  of its function could not be opened. This way it can, all instances share its pages, and those that the loader's
  thread populates are mapped for the session as well.
- Prepacking is off: it copies.
- So is reuse of activations within the plan, whose making took three quarters of the remaining time (BERT-base: about
  90 of 120 ms). The arena reuses memory anyway: private memory was the same after a run of 8 × 128 tokens.

Without prepacking a run is slower (BERT-base: 1.3 to 2 times), so a function that is called often gets a second
session with everything on, made in a background thread and used from one run to the next. Its answers are the same
within the rounding that onnxruntime's kernels differ by; `repack=False` keeps the first for good.
"""

from __future__ import annotations

import resource
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime

from rewarm.errors import RewarmError
from rewarm.weights.format import GRAPH_NAME, Pack
from rewarm.weights.pages import ROWS_MAX, Mapped, wait_for

#: Well beyond the runs that pay for making the second session in time (BERT-base: 6 to 16), since its copy of the
#: weights costs memory for as long as the instance lives. A choice, not tuned.
REPACK_RUNS = 32
#: In an idle moment sooner, but not for a function that is hardly called: the copy costs memory.
REPACK_IDLE_RUNS, REPACK_IDLE_S = 8, 1.0
#: Most weights are copied once, and some room has to be left for the function itself.
_REPACK_BYTES_PER_BYTE = 1.5

#: dtype of a pack → that of numpy, and the element type of ONNX where numpy has none.
_VIEWS: dict[str, tuple[str, int | None]] = {
    "F32": ("f4", None), "F64": ("f8", None), "F16": ("f2", None), "BOOL": ("?", None),
    "I8": ("i1", None), "I16": ("i2", None), "I32": ("i4", None), "I64": ("i8", None),
    "U8": ("u1", None), "U16": ("u2", None), "U32": ("u4", None), "U64": ("u8", None),
    "BF16": ("u2", 16), "F8_E4M3": ("u1", 17), "F8_E4M3FNUZ": ("u1", 18), "F8_E5M2": ("u1", 19),
    "F8_E5M2FNUZ": ("u1", 20),
}  # fmt: skip

#: Options that say how the graph is optimised, which for a pack was decided at deploy.
_OF_THE_GRAPH = frozenset({"graph_optimization_level", "optimized_model_filepath"})
PROVIDERS = ["CPUExecutionProvider"]
#: b = Identity(a), of one float: opset 17, IR 9, as onnx.helper writes it.
_ROWS_WAITED = 1024  # no more are waited for before the first run
_SMALLEST_MODEL = (
    b'\x08\t:7\n\x10\n\x01a\x12\x01b"\x08Identity\x12\x01gZ\x0f\n\x01a\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01'
    b"b\x0f\n\x01b\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\x11"
)


def warm_up() -> None:
    """Have onnxruntime do what it does once in a process, for all who are forked from this one. Starts no thread."""
    onnxruntime.InferenceSession(_SMALLEST_MODEL, lean({}), providers=PROVIDERS)


def open_session(
    path: Path, options: Mapping[str, Any], *, pack: Pack | None = None, mapped: Mapped | None = None
) -> onnxruntime.InferenceSession:
    """A session with one compute thread on `pack`, or on the ONNX file at `path` where there is none.

    `options` are attributes of SessionOptions; one that says how to optimise the graph opens the file at `path`. One
    more, `repack=False`, keeps the session from being replaced. `mapped`: the pack's data file, if somebody has it
    mapped already. Raises AttributeError for an option that there is not, WeightsCorrupt if the pack's file was
    changed, and what onnxruntime raises if `path` is no ONNX model.
    """
    chosen = dict(options)
    repack = bool(chosen.pop("repack", True))
    if pack is not None and not _OF_THE_GRAPH & set(chosen):
        settings(chosen)  # a wrong option is not the pack's fault
        try:
            return PackedSession(pack, mapped, chosen, repack=repack)
        except RewarmError:
            raise
        except Exception as error:  # of onnxruntime's, which have no common class: a pack of another version, perhaps
            print(f"the packed model cannot be used, the original is: {error}", file=sys.stderr)
    return onnxruntime.InferenceSession(str(path), settings(chosen), providers=PROVIDERS)


def settings(options: Mapping[str, Any]) -> Any:
    """SessionOptions with one compute thread, and `options`. Raises AttributeError for one that there is not."""
    made = onnxruntime.SessionOptions()
    made.intra_op_num_threads = 1
    made.inter_op_num_threads = 1
    made.log_severity_level = 3
    for name, value in options.items():
        if not hasattr(made, name):
            raise AttributeError(f"onnxruntime.SessionOptions has no option {name!r}")
        setattr(made, name, value)
    return made


def lean(options: Mapping[str, Any]) -> Any:
    """`settings` for a session that should be ready soon: nothing optimised, nothing copied."""
    made = settings({"enable_mem_reuse": False, **options})
    made.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    made.add_session_config_entry("session.disable_prepacking", "1")
    _no_spinning(made)
    return made


def _no_spinning(made: Any) -> None:
    """Threads that wait, of a user who asked for more than one, leave the CPU to others."""
    made.add_session_config_entry("session.intra_op.allow_spinning", "0")
    made.add_session_config_entry("session.inter_op.allow_spinning", "0")


class Pass(NamedTuple):
    """The first run: its time, how much of that was waiting, compute by layer.

    onnxruntime says nothing while it runs. So waiting is what the calling thread was not on a CPU, mostly for pages;
    the rest is shared out among the layers as it was when the model was packed. `rows_s`: what of the waiting was for
    rows of a table, by layer, where some had to be read.
    """

    seconds: float
    waited_s: float
    compute_s: tuple[float, ...]
    rows_s: Mapping[int, float] = {}


class PackedSession(onnxruntime.InferenceSession):  # type: ignore[misc]
    """The lean session on a pack, and later the full one behind its `run`.

    A subclass and not a proxy: user code may ask for its type, and everything that onnxruntime offers (inputs, I/O
    binding, asynchronous runs) works on the lean session, which stays for as long as this does: it holds little but
    its plan. Only `run` and `run_with_ort_values` change over. Uses no private name of onnxruntime.
    """

    def __init__(self, pack: Pack, mapped: Mapped | None, options: Mapping[str, Any], *, repack: bool = True) -> None:
        self._pack = pack
        self._pack_values = _values(pack, mapped)  # onnxruntime uses them, but does not hold them
        self._pack_options = dict(options)
        first = lean(options)
        self._bind(first)
        super().__init__(str(pack.folder / GRAPH_NAME), first, providers=PROVIDERS, enable_fallback=0)
        self.swap = Swap(self._full if repack else None)
        #: None until the first run is over.
        self.passed: Pass | None = None
        #: Where the rows of tables are asked for before the first run; None if all is in memory.
        self.rows_of: Mapped | None = None

    def run(self, output_names: Any, input_feed: Any, run_options: Any = None) -> Any:
        """As InferenceSession.run."""
        return self._call("run", output_names, input_feed, run_options)

    def run_with_ort_values(self, output_names: Any, input_dict_ort_values: Any, run_options: Any = None) -> Any:
        """As InferenceSession.run_with_ort_values."""
        return self._call("run_with_ort_values", output_names, input_dict_ort_values, run_options)

    def _call(self, method: str, *arguments: Any) -> Any:
        if self.passed is not None:
            return self._answer(method, arguments)
        since_s, since_cpu_s = time.perf_counter(), time.thread_time()
        rows_s = {} if self.rows_of is None else self._look_ahead(self.rows_of, arguments[1])
        answer = self._answer(method, arguments)
        seconds, cpu_s = time.perf_counter() - since_s, time.thread_time() - since_cpu_s
        self.passed = Pass(seconds, max(0.0, seconds - cpu_s), self._pack.index.shares(min(cpu_s, seconds)), rows_s)
        return answer

    def _look_ahead(self, mapped: Mapped, feed: Any) -> dict[int, float]:
        """Wait for the rows that may be looked up in tables that are read on demand: seconds, by layer.

        Which input numbers the rows of which table is not known, so that any whole number may be one. So many that they
        can hardly be rows are asked for, but not waited for.
        """
        index = self._pack.index
        tables = [
            (no, index.tensors[name])
            for no, layer in enumerate(index.layers) if layer.on_demand
            for name in layer.tensors
        ]  # fmt: skip
        inputs = [value for value in feed.values() if isinstance(value, np.ndarray) and value.dtype.kind in "iu"]
        rows = sorted({row for value in inputs for row in np.unique(value)[:ROWS_MAX].tolist()})
        missing: list[tuple[int, list[tuple[int, int]]]] = []
        for no, table in tables:
            row_bytes = (table.end - table.begin) // table.shape[0]
            missing.append((no, mapped.ask_for_rows(table.begin, row_bytes, table.shape[0], rows)))
        waited_s: dict[int, float] = {}
        for no, runs in missing if len(rows) <= _ROWS_WAITED else ():
            if runs:
                waited_s[no] = waited_s.get(no, 0.0) + wait_for(runs)
        return waited_s

    def _answer(self, method: str, arguments: tuple[Any, ...]) -> Any:
        with self.swap as full:
            return getattr(super() if full is None else full, method)(*arguments)

    def _bind(self, made: Any) -> None:
        for name, value in self._pack_values.items():
            made.add_initializer(name, value)

    def _full(self) -> onnxruntime.InferenceSession | None:
        if not has_room(int(_REPACK_BYTES_PER_BYTE * self._pack.index.facts().streamed_bytes)):
            return None
        made = settings(self._pack_options)
        _no_spinning(made)
        self._bind(made)
        return onnxruntime.InferenceSession(str(self._pack.folder / GRAPH_NAME), made, providers=PROVIDERS)


class Swap:
    """Counts runs and has the full session made when it is worth it: `with swap as full` around each run.

    `build` is called at most once, in a thread of its own, after `runs` runs, or as soon as there was none for about
    `idle_s` seconds after `idle_runs`. It may return None, or fail: then everything stays as it is. Without `build`
    it does always.
    """

    def __init__(
        self,
        build: Callable[[], Any] | None,
        *,
        runs: int = REPACK_RUNS,
        idle_runs: int = REPACK_IDLE_RUNS,
        idle_s: float = REPACK_IDLE_S,
    ) -> None:
        self.full: Any = None
        self._build, self._most_runs, self._idle_runs, self._idle_s = build, runs, idle_runs, idle_s
        self._lock = threading.Lock()
        self._begun = self._ended = 0
        self._enough = threading.Event()
        self.thread: threading.Thread | None = None

    def __enter__(self) -> Any:
        full = self.full
        if full is None:
            with self._lock:
                self._begun += 1
        return full

    def __exit__(self, *_: object) -> None:
        if self.full is not None or self._build is None:
            return
        with self._lock:
            self._ended += 1
            if self._ended >= self._most_runs:
                self._enough.set()
            if self.thread is None and self._ended >= min(self._idle_runs, self._most_runs):
                self.thread = threading.Thread(
                    target=self._watch, args=(self._build,), name="rewarm-repack", daemon=True
                )
                self.thread.start()

    def _watch(self, build: Callable[[], Any]) -> None:
        seen = (-1, -1)
        while not self._enough.wait(self._idle_s):
            now = (self._begun, self._ended)
            if now == seen and now[0] == now[1]:
                break
            seen = now
        try:
            self.full = build()
        except Exception as error:  # of any kind: onnxruntime's have no common class
            print(f"the model stays as it is, slower than it could be: {error}", file=sys.stderr)


def has_room(need_bytes: int) -> bool:
    """Whether this process may have so many private bytes more (RLIMIT_DATA, which an instance's memory is)."""
    limit_bytes = resource.getrlimit(resource.RLIMIT_DATA)[0]
    if limit_bytes == resource.RLIM_INFINITY:
        return True
    with open("/proc/self/status", encoding="ascii", errors="replace") as lines:
        used_bytes = next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmData:")), 0)
    return used_bytes + need_bytes <= limit_bytes


def _values(pack: Pack, mapped: Mapped | None) -> dict[str, Any]:
    """The tensors of a pack as OrtValues on its mapping, which lives as long as they do."""
    index = pack.index
    if not index.files:
        return {}
    buffer = (mapped or Mapped(pack.path(0), index.files[0].size_bytes)).buffer
    made = onnxruntime.OrtValue
    values = {}
    for name, entry in index.tensors.items():
        dtype, element_type = _VIEWS[entry.dtype]
        view = np.frombuffer(buffer[entry.begin : entry.end], dtype).reshape(entry.shape)
        if element_type is None:
            values[name] = made.ortvalue_from_numpy(view)
        else:
            values[name] = made.ortvalue_from_numpy_with_onnx_type(view, element_type)
    return values
