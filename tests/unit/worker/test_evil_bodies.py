"""A body that breaks a decoder is its own caller's error: whoever shares the batch gets a good answer."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import orjson
import pytest

from rewarm import wire
from rewarm.facts.function import FunctionSpec, Tensor
from rewarm.worker.arrays import ArrayEngine
from rewarm.worker.handlers import HandlerEngine
from rewarm.worker.instance import Engine

SIZE = 4
LIMIT_MS = 1000


class Double:
    def predict(self, x: np.ndarray) -> np.ndarray:
        return x if x.dtype.kind in "OUS" else x * 2


class Same:
    def predict(self, x: np.ndarray) -> np.ndarray:
        return x


def engine(tensor: Tensor | None) -> Engine:
    return ArrayEngine(Double(), FunctionSpec("double", "predict", "app:Double", inputs=(("x", tensor),)), 1)


def v2(shape: Any, datatype: str, chunk: bytes | None = None, data: Any = None, meta: bytes | None = None) -> wire.Item:
    tensor: dict[str, Any] = {"name": "x", "shape": shape, "datatype": datatype}
    if chunk is None:
        tensor["data"] = data
    else:
        tensor["parameters"] = {"binary_data_size": len(chunk)}
    head = json.dumps({"inputs": [tensor]}).encode()
    return wire.Item(wire.KIND_V2, str(len(head)).encode() if meta is None else meta, head + (chunk or b""))


def plain(value: Any, kind: int = wire.KIND_JSON) -> wire.Item:
    return wire.Item(kind, b"", value if isinstance(value, bytes) else json.dumps(value).encode())


F4 = Tensor("float32", (SIZE,))
GOOD_F4 = plain([1, 2, 3, 4])
DEEP = b"[" * 1000 + b"]" * 1000
CASES = {
    "one long string": (F4, GOOD_F4, plain(["x" * 1_000_000, "", "", ""])),
    "a long string deep inside": (Tensor("float32", (2, 2)), plain([[1, 2], [3, 4]]), plain([[1, "x" * 99], [3, 4]])),
    "null": (F4, GOOD_F4, plain([1, None, 3, 4])),
    "an object": (F4, GOOD_F4, plain([1, {}, 3, 4])),
    "deep nesting": (F4, GOOD_F4, plain(DEEP)),
    "deep nesting, integers": (Tensor("int8", (SIZE,)), GOOD_F4, plain(DEEP)),
    "deep nesting, undeclared": (None, GOOD_F4, plain(DEEP)),
    "not UTF-8": (F4, GOOD_F4, plain(b'["\xff\xfe", 1, 2, 3]')),
    "nothing": (F4, GOOD_F4, plain(b"")),
    "raw of the wrong length": (F4, plain(b"\0" * 16, wire.KIND_RAW), plain(b"\0" * 15, wire.KIND_RAW)),
    "undeclared strings of all lengths": (None, GOOD_F4, plain(["x" * 1_000_000, *[""] * 783])),
    "undeclared nested strings": (None, GOOD_F4, plain([["x" * 1_000_000], *[[""]] * 783])),
    "a shape beyond 64 bits": (None, v2([1, 4], "FP32", data=[1, 2, 3, 4]), v2([1 << 62, 4], "FP32", data=[1])),
    "a shape whose product wraps": (None, GOOD_F4, v2([1 << 32, 1 << 32], "FP32", b"")),
    "rows without bytes": (None, GOOD_F4, v2([1 << 40, 0], "FP32", b"")),
    "an absurd dimension next to none": (None, GOOD_F4, v2([1, 0, (1 << 63) - 1], "FP32", b"")),
    "too many dimensions": (None, GOOD_F4, v2([1] * 65, "FP32", data=[1])),
    "more strings than bytes": (
        Tensor("object", (-1,)), v2([1, 1], "BYTES", data=["a"]), v2([1 << 20, 1 << 20], "BYTES", struct.pack("<I", 0)),
    ),
    "a header length of many digits": (F4, GOOD_F4, v2([1, 4], "FP32", data=[1, 2, 3, 4], meta=b"9" * 5000)),
    "a huge number": (F4, GOOD_F4, plain(b"[" + b"9" * 5000 + b",1,2,3]")),
    "beyond float32": (F4, GOOD_F4, plain([1e39, 1, 3, 4])),
    "beyond float16": (Tensor("float16", (SIZE,)), GOOD_F4, plain([1, 2, 3, -70000])),
    "beyond float16, an integer": (Tensor("float16", (2, 2)), GOOD_F4, plain([[1, 2], [3, 70000]])),
    "beyond float32, in v2": (F4, v2([1, 4], "FP32", data=[1, 2, 3, 4]), v2([1, 4], "FP32", data=[1, 2, 3, -1e39])),
    "beyond float32, undeclared in v2": (None, GOOD_F4, v2([1, 4], "FP32", data=[1e39, 2, 3, 4])),
}  # fmt: skip


def codes(reply: Any) -> list[int]:
    return [answer[0] for answer in reply.answers] if reply.answers is not None else [200] * len(reply.bodies)


@pytest.mark.parametrize("evil_first", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_only_the_evil_body_fails(case: str, evil_first: bool) -> None:
    tensor, good, evil = CASES[case]
    batch = [evil, good] if evil_first else [good, evil]
    made = engine(tensor)
    done = made.run(batch, LIMIT_MS)
    assert done.answers is not None
    statuses = [answer.status for answer in done.answers]
    assert statuses == ([400, 200] if evil_first else [200, 400]), done.answers
    said = orjson.loads(done.answers[0 if evil_first else 1].body)
    assert said["code"] in ("bad_request", "bad_tensor") and len(said["error"]) < 1000
    if not evil.meta and not good.meta and evil.kind == good.kind:
        joint = made.run_bodies(evil.kind, [bytes(item.body) for item in batch], LIMIT_MS)
        assert codes(joint) == statuses
    assert codes(made.run([good], LIMIT_MS)) == [200]


def test_whatever_the_decoder_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors that no body we know of causes, such as memory that runs out."""
    loads = orjson.loads

    def starved(text: Any) -> Any:
        if bytes(text).startswith(b'{"x"'):
            raise MemoryError
        return loads(text)

    monkeypatch.setattr(orjson, "loads", starved)
    evil = plain({"x": [1, 2, 3, 4]})
    for made in (engine(F4), engine(None), HandlerEngine(lambda e, _: e, FunctionSpec("h", "handler", "app:h"), 1)):
        assert codes(made.run_bodies(wire.KIND_JSON, [evil.body, GOOD_F4.body], LIMIT_MS)) == [400, 200]
        assert codes(made.run([evil, GOOD_F4], LIMIT_MS)) == [400, 200]


LARGEST_F4 = float(np.finfo("float32").max)


@pytest.mark.filterwarnings("error")  # a warning would be in the function's log
@pytest.mark.parametrize("number", [b"1e39", b"-1e300"])
def test_floats_beyond_the_declared_dtype_are_refused_by_name(number: bytes) -> None:
    (answer,) = engine(F4).run_bodies(wire.KIND_JSON, [b"[%s,1,3,4]" % number], LIMIT_MS).answers or ()
    assert answer.status == 400
    assert orjson.loads(answer.body) == {
        "error": "input 'x' holds values outside the range of float32", "code": "bad_tensor",
        "error_type": "BadTensor",
    }  # fmt: skip


def test_the_largest_floats_are_taken_and_raw_infinities_too() -> None:
    same = ArrayEngine(Same(), FunctionSpec("same", "predict", "app:Same", inputs=(("x", F4),)), 1)
    raw = np.array([np.inf, -np.inf, np.nan, LARGEST_F4], "<f4").tobytes()
    assert same.run_bodies(wire.KIND_RAW, [raw], LIMIT_MS).bodies == [raw]
    largest = orjson.dumps([LARGEST_F4, -LARGEST_F4, LARGEST_F4, 0])
    (answer,) = same.run_bodies(wire.KIND_JSON, [largest], LIMIT_MS).answers or ()
    assert np.array_equal(np.float32(orjson.loads(answer.body)), np.float32(orjson.loads(largest)))


BIG = (1 << 63) - 1  # of which a float would make another number
INTEGERS = {
    "small": [3, 4, 5, 6],
    "the largest and the smallest": [BIG, -BIG - 1, 0, 1],
    "whole, but not written so": [1.0, 2e3, 3, 4],
    "a fraction": [1, 2, 3, 4.5],
    "out of range": [BIG + 1, 0, 0, 0],
    "too few": [1, 2, 3],
    "a truth": [True, 2, 3, 4],
}


@pytest.mark.parametrize("dtype", ["int64", "uint64", "int32"])
def test_integers_in_a_batch_are_what_they_are_alone(dtype: str) -> None:
    made = ArrayEngine(Same(), FunctionSpec("same", "predict", "app:Same", inputs=(("x", Tensor(dtype, (SIZE,))),)), 1)
    bodies = [orjson.dumps(values) for values in INTEGERS.values()]
    alone = [made.run([wire.Item(wire.KIND_JSON, b"", body)], LIMIT_MS).answers for body in bodies]
    for first in bodies:
        together = made.run_bodies(wire.KIND_JSON, [first, bodies[0]], LIMIT_MS)
        answers = [(answer.status, answer.body) for answer in together.answers or ()]
        answers = answers or [(200, body) for body in together.bodies]
        expected = [*(alone[bodies.index(first)] or ()), *(alone[0] or ())]
        assert answers == [(answer.status, answer.body) for answer in expected]
