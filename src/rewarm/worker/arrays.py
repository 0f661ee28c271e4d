"""The engine for `predict` on numpy arrays: decode every body of the batch, run once, give each caller its rows.

A body that does not decode is that caller's error and leaves the batch; the others run. Requests whose rows have
different shapes or dtypes (only possible where these were not declared) run as separate groups.
"""

from __future__ import annotations

import math
import sys
import time
import traceback
from typing import Any, NamedTuple

import numpy as np
import orjson
import simdjson

from rewarm import wire
from rewarm.errors import BadRequest
from rewarm.facts.function import DTYPES, FunctionSpec
from rewarm.worker import answers
from rewarm.worker.tensors import Array, Input, Wanted, make_input, row_from_json, row_from_raw, rows_from_v2
from rewarm.worker.user import one_line

_JSON_ARRAYS = orjson.OPT_SERIALIZE_NUMPY
_BUFFER_TYPE = {"f": "d", "i": "i", "u": "u"}  # numpy kind → pysimdjson's 64-bit buffer type
_BUFFER_DTYPE = {"d": np.dtype("f8"), "i": np.dtype("i8"), "u": np.dtype("u8")}

#: What outputs usually are, told without spelling the dtype's name, which is slow.
_CARRIED = frozenset({*(np.dtype(name).type for name in DTYPES), np.str_, np.bytes_})

_OPENING, _CLOSING = b"[]"
_NESTED_OR_SPACE = b"[ \n\t\r"  # after an opening bracket: not a flat list, or not plainly one
_JOINT_SIZE_MAX = 64  # above this, counting commas costs more than parsing together saves


class _Decoded(NamedTuple):
    place: int  # index in the batch
    rows: int
    arrays: dict[str, Array]
    wanted: Wanted | None  # v2 callers only


class ArrayEngine:
    """Runs `instance.predict` on batches."""

    def __init__(self, instance: Any, spec: FunctionSpec, version: int) -> None:
        self._predict = instance.predict
        self._spec = spec
        self._version = version
        self._code_dir = sys.path[0]
        self._inputs: list[Input] = [make_input(name, tensor) for name, tensor in spec.inputs]
        self._output_names = [name for name, _ in spec.outputs]
        self._parser = simdjson.Parser()
        first = self._inputs[0]
        # The fast path: one declared input of fixed size, filled row by row into one array.
        self._fast = (
            len(self._inputs) == 1 and first.dtype is not None and first.size is not None
            and first.dtype.kind in _BUFFER_TYPE and first.dtype.itemsize >= 2
        )  # fmt: skip
        self._flat_rows = self._fast and first.tensor is not None and len(first.tensor.shape) == 1
        # Rows that are decoded together. Smaller integers have ranges of their own to be checked.
        self._joint = (
            self._flat_rows and first.size is not None and first.size <= _JOINT_SIZE_MAX
            and first.dtype is not None and (first.dtype.kind == "f" or first.dtype.itemsize == 8)
        )  # fmt: skip
        # Of doubles that are to become shorter floats: while the sum of their squares is below it, each of them fits.
        self._squares_max = math.inf
        if first.dtype is not None and first.dtype.kind == "f" and first.dtype.itemsize < 8:
            self._squares_max = float(np.finfo(first.dtype).max) ** 2

    def run(self, items: list[wire.Item], limit_ms: int) -> answers.Outcome:
        """One answer per item, in order."""
        results: list[wire.Answer | None] = [None] * len(items)
        if self._fast and all(item.kind <= wire.KIND_RAW for item in items):
            run_us = self._run_fast(items, results)
        else:
            run_us = self._run_any(items, results)
        return _outcome(run_us, results)

    # ------------------------------------------------------------ fast paths

    def run_bodies(self, kind: int, bodies: list[bytes], limit_ms: int) -> answers.Outcome:
        """Rows of one declared size are decoded together and encoded together.

        A batch with anything unusual in it goes to `run`, which finds out whose fault it is.
        """
        batch = self._together(kind, bodies) if self._fast else None
        if batch is None:
            return self.run([wire.Item(kind, b"", body) for body in bodies], limit_ms)
        spec, count = self._inputs[0], len(bodies)
        shaped = batch.reshape(count, *spec.tensor.shape)  # type: ignore[union-attr]
        outputs, run_us = self._call({spec.name: shaped}, count)
        if isinstance(outputs, Exception):
            return answers.Outcome(run_us, [self._raised(outputs, wire.Item(kind, b"", b""))] * count)
        rows = _plain(next(iter(outputs.values())))
        if len(outputs) == 1 and rows.size and rows.dtype.kind in "fiu" and rows.nbytes <= wire.ANSWER_BYTES_MAX:
            if kind == wire.KIND_RAW:
                return answers.Outcome(run_us, None, wire.FORM_RAW, [row.tobytes() for row in rows])
            if rows.ndim <= 2:
                text = orjson.dumps(rows, option=_JSON_ARRAYS)
                if len(text) <= wire.ANSWER_BYTES_MAX:
                    return answers.Outcome(run_us, None, wire.FORM_JSON, _split(text, rows.ndim))
        plain, item = _all_plain(outputs), wire.Item(kind, b"", b"")
        return answers.Outcome(run_us, [self._encode(plain, place, item) for place in range(count)])

    def _together(self, kind: int, bodies: list[bytes]) -> Array | None:
        """All bodies as one array of its own memory, or None if they are not all plain rows of the declared size."""
        try:
            return self._join(kind, bodies)
        except Exception:  # whatever a body does to a decoder, `run` finds out which one it was
            self._parser = simdjson.Parser()
            return None

    def _join(self, kind: int, bodies: list[bytes]) -> Array | None:
        spec = self._inputs[0]
        assert spec.size is not None and spec.dtype is not None
        if kind == wire.KIND_RAW:
            row_bytes = spec.size * spec.dtype.itemsize
            if any(len(body) != row_bytes for body in bodies):
                return None
            return np.frombuffer(bytearray().join(bodies), spec.dtype).reshape(len(bodies), spec.size)
        if kind != wire.KIND_JSON or not self._joint:
            return None
        text = joint_text(bodies, spec.size)
        if text is None:
            return None
        numbers = _numbers(self._parser, text, _BUFFER_TYPE[spec.dtype.kind])
        if not self._all_fit(numbers):
            return None
        return numbers.reshape(len(bodies), spec.size).astype(spec.dtype)

    def _all_fit(self, numbers: Array) -> bool:
        """None of them can become infinite in the declared dtype. One product, because each request pays for it.

        Not `dot`, which would warn of an overflow of its own.
        """
        return self._squares_max == math.inf or float(np.vdot(numbers, numbers)) <= self._squares_max

    def _run_fast(self, items: list[wire.Item], results: list[wire.Answer | None]) -> int:
        spec = self._inputs[0]
        assert spec.size is not None
        batch: Array = np.empty((len(items), spec.size), spec.dtype)
        places: list[int] = []
        for place, item in enumerate(items):
            try:
                self._fill(batch, len(places), item, spec)
                places.append(place)
            except Exception as error:
                results[place] = _refused(error)
        if not places:
            return 0
        shaped = batch[: len(places)].reshape(len(places), *spec.tensor.shape)  # type: ignore[union-attr]
        outputs, run_us = self._call({spec.name: shaped}, len(places))
        if isinstance(outputs, Exception):
            for place in places:
                results[place] = self._raised(outputs, items[place])
            return run_us
        plain = _all_plain(outputs)
        for index, place in enumerate(places):
            results[place] = self._encode(plain, index, items[place])
        return run_us

    def _fill(self, batch: Array, index: int, item: wire.Item, spec: Input) -> None:
        """Decode one body straight into row `index` of the batch."""
        body = item.body
        if item.kind == wire.KIND_RAW:
            if len(body) != batch.shape[1] * batch.itemsize:
                row_from_raw(body, self._inputs)  # raises with the right sentence
            batch[index] = np.frombuffer(body, batch.dtype)
            return
        head = bytes(body[:2])
        if self._flat_rows and len(head) == 2 and head[0] == _OPENING and head[1] not in _NESTED_OR_SPACE:
            buffer_type = _BUFFER_TYPE[batch.dtype.kind]
            try:
                row: Array | None = _numbers(self._parser, body, buffer_type)
            except (TypeError, ValueError, RuntimeError):
                row = None  # not a flat list of such numbers: let the careful path say what it is
                self._parser = simdjson.Parser()
            if (
                row is not None and len(row) == batch.shape[1] and self._all_fit(row)
                and (batch.dtype.kind == "f" or batch.itemsize == 8)
            ):  # fmt: skip
                batch[index] = row
                return
        batch[index] = row_from_json(body, self._inputs)[spec.name].reshape(-1)

    # ------------------------------------------------------------ any mixture

    def _run_any(self, items: list[wire.Item], results: list[wire.Answer | None]) -> int:
        groups: dict[tuple[Any, ...], list[_Decoded]] = {}
        for place, item in enumerate(items):
            try:
                decoded = self._decode(place, item)
            except Exception as error:
                results[place] = _refused(error)
                continue
            key = tuple((a.dtype.str, a.shape[1:]) for a in decoded.arrays.values())
            groups.setdefault(key, []).append(decoded)
        return sum(self._run_group(group, items, results) for group in groups.values())

    def _decode(self, place: int, item: wire.Item) -> _Decoded:
        wanted = None
        if item.kind == wire.KIND_V2:
            arrays, wanted = rows_from_v2(memoryview(item.body), item.meta, self._inputs)
        elif item.kind == wire.KIND_RAW:
            arrays = row_from_raw(item.body, self._inputs)
        else:
            arrays = row_from_json(item.body, self._inputs)
        ordered = {spec.name: arrays[spec.name] for spec in self._inputs}
        return _Decoded(place, len(next(iter(ordered.values()))), ordered, wanted)

    def _run_group(self, group: list[_Decoded], items: list[wire.Item], results: list[wire.Answer | None]) -> int:
        names = [spec.name for spec in self._inputs]
        # concatenate copies, also for one request: user code may keep what it was given, the frame buffer is reused
        batch = {name: np.concatenate([d.arrays[name] for d in group]) for name in names}
        rows = sum(d.rows for d in group)
        outputs, run_us = self._call(batch, rows)
        if isinstance(outputs, Exception):
            for decoded in group:
                results[decoded.place] = self._raised(outputs, items[decoded.place])
            return run_us
        at = 0
        plain = _all_plain(outputs)
        for decoded in group:
            if decoded.wanted is not None:
                part = {name: array[at : at + decoded.rows] for name, array in outputs.items()}
                results[decoded.place] = self._encode(part, 0, items[decoded.place], decoded.wanted)
            else:
                results[decoded.place] = self._encode(plain, at, items[decoded.place])
            at += decoded.rows
        return run_us

    def _call(self, batch: dict[str, Array], rows: int) -> tuple[dict[str, Array] | Exception, int]:
        """predict's outputs by name, or what it raised (its answer's shape is its fault too), and its microseconds."""
        since_ns = time.perf_counter_ns()
        try:
            output = self._predict(**batch)
            run_us = (time.perf_counter_ns() - since_ns) // 1000
            return self._named(output, rows), run_us
        except Exception as error:
            run_us = (time.perf_counter_ns() - since_ns) // 1000
            traceback.print_exc()
            return error, run_us

    def _raised(self, error: Exception, item: wire.Item) -> wire.Answer:
        return answers.raised(item.kind, error, self._code_dir, answers.request_id(item))

    def _named(self, output: Any, rows: int) -> dict[str, Array]:
        """predict's result by output name, in native byte order.

        Raises ValueError unless each has as many rows as the batch, of a dtype that can be sent.
        """
        if isinstance(output, dict):
            named = {str(name): np.asarray(array) for name, array in output.items()}
        elif isinstance(output, tuple):
            names = self._output_names or [f"output_{i}" for i in range(len(output))]
            if len(names) != len(output):
                raise ValueError(f"predict returned {len(output)} outputs, declared are {names}")
            named = {name: np.asarray(array) for name, array in zip(names, output, strict=True)}
        else:
            named = {self._output_names[0] if self._output_names else "output": np.asarray(output)}
        for name, array in named.items():
            if array.ndim == 0 or len(array) != rows:
                got = f"{len(array)} rows" if array.ndim else "a single number"
                raise ValueError(f"predict returned {got} in {name!r} for a batch of {rows} rows")
            if array.dtype.type not in _CARRIED and array.dtype.name not in DTYPES:
                raise ValueError(f"predict returned dtype {array.dtype} in {name!r}; it can be {', '.join(DTYPES)}")
            if not array.dtype.isnative:
                named[name] = array.astype(array.dtype.newbyteorder("="))
        if not named:
            raise ValueError("predict returned no output")
        return named

    def _encode(
        self, outputs: dict[str, Array], index: int, item: wire.Item, wanted: Wanted | None = None
    ) -> wire.Answer:
        """One caller's answer; what can not be written, or is too large, is the misfortune of this caller alone."""
        try:
            if wanted is not None:
                return answers.bounded(self._encode_v2(outputs, wanted))
            return answers.bounded(_encode_plain(outputs, index, item.kind))
        except Exception as error:
            traceback.print_exc()
            return self._raised(error, item)

    def _encode_v2(self, outputs: dict[str, Array], wanted: Wanted) -> wire.Answer:
        unknown = [name for name in wanted.outputs if name not in outputs]
        if unknown:
            return answers.fault("bad_tensor", f"there is no output {unknown[0]!r}; the function has {list(outputs)}")
        described, chunks = [], []
        for name in wanted.outputs or outputs:
            array = outputs[name]
            datatype = "BYTES" if array.dtype.kind in "OUS" else DTYPES.get(array.dtype.name)
            if datatype is None:
                return answers.fault(
                    "function_error", f"output {name!r} has dtype {array.dtype}, which v2 cannot carry"
                )
            entry: dict[str, Any] = {"name": name, "datatype": datatype, "shape": list(array.shape)}
            if wanted.outputs.get(name, wanted.binary_default):
                chunk = _binary(array)
                entry["parameters"] = {"binary_data_size": len(chunk)}
                chunks.append(chunk)
            else:
                entry["data"] = _plain(array).ravel()
            described.append(entry)
        head = {"model_name": self._spec.name, "model_version": str(self._version), "outputs": described}
        if wanted.request_id is not None:
            head["id"] = wanted.request_id
        text = orjson.dumps(head, option=_JSON_ARRAYS, default=_jsonable)
        if not chunks:
            return wire.Answer(200, wire.FORM_JSON, 0, b"", text)
        return wire.Answer(200, wire.FORM_V2_BINARY, 0, str(len(text)).encode(), b"".join((text, *chunks)))


def _outcome(run_us: int, results: list[wire.Answer | None]) -> answers.Outcome:
    return answers.Outcome(run_us, [r if r is not None else answers.fault("internal", "no answer") for r in results])


def _refused(error: Exception) -> wire.Answer:
    """A body that does not decode, whatever it made the decoder raise: its own caller's error, nobody else's."""
    if isinstance(error, BadRequest):
        return answers.fault(error.code, error.message, type(error).__name__)
    return answers.fault("bad_request", f"the body cannot be decoded: {one_line(error)}")


def _numbers(parser: Any, text: Any, buffer_type: str) -> Array:
    """The numbers of a JSON list, nested or flat. Raises TypeError, ValueError or RuntimeError if it is not one."""
    return np.frombuffer(parser.parse(text).as_buffer(of_type=buffer_type), _BUFFER_DTYPE[buffer_type])


def joint_text(bodies: list[bytes], size: int) -> bytes | None:
    """The bodies as one JSON list of lists, or None if one of them might not be a flat list of `size` values.

    Each must begin and end its own list, hold no other bracket and exactly `size - 1` commas: so no body can reach
    into its neighbour's row, and together with the total number of values each row has its own `size`.
    """
    commas = size - 1
    for body in bodies:
        if not body or body[0] != _OPENING or body[-1] != _CLOSING or body.count(b",") != commas:
            return None
    text = b",".join(bodies)
    if text.count(b"[") != len(bodies) or text.count(b"]") != len(bodies):
        return None  # each has one of either, and no more
    return b"[%s]" % text


def _plain(array: Array) -> Array:
    """An array that orjson can write: contiguous, native, no half precision."""
    if array.dtype == np.float16:
        array = array.astype(np.float32)
    return np.ascontiguousarray(array)


def _all_plain(outputs: dict[str, Array]) -> dict[str, Array]:
    return {name: _plain(array) for name, array in outputs.items()}


def _split(text: bytes, ndim: int) -> list[bytes]:
    """The rows of `[[1,2],[3,4]]` or of `[1,2]`: numbers only, so what separates rows is nowhere else."""
    return text[1:-1].replace(b"],[", b"]\n[").split(b"\n") if ndim == 2 else text[1:-1].split(b",")


def _jsonable(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    raise TypeError(f"{type(value).__name__} is not JSON")


def _encode_plain(outputs: dict[str, Array], index: int, kind: int) -> wire.Answer:
    """Row `index` of plain arrays as an answer: the value itself for a single output, else an object by name."""
    value: Any = {name: array[index] for name, array in outputs.items()}
    if kind == wire.KIND_RAW and len(outputs) > 1:
        return answers.fault("bad_request", f"raw bytes need one output, the function has {list(outputs)}; ask in JSON")
    if len(outputs) == 1:
        ((name, value),) = value.items()
        if kind == wire.KIND_RAW:
            dtype = outputs[name].dtype
            if dtype.kind in "OUS":
                return answers.fault("bad_request", f"raw bytes need numbers, output {name!r} is {dtype}; ask in JSON")
            return wire.Answer(200, wire.FORM_RAW, 0, b"", value.tobytes())
    return wire.Answer(200, wire.FORM_JSON, 0, b"", orjson.dumps(value, option=_JSON_ARRAYS, default=_jsonable))


def _binary(array: Array) -> bytes:
    if array.dtype.kind not in "OUS":
        return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    chunks = []
    for value in array.ravel().tolist():
        text = value if isinstance(value, bytes) else str(value).encode()
        chunks.append(len(text).to_bytes(4, "little") + text)
    return b"".join(chunks)
