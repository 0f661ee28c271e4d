"""What may leave a worker: its size, its dtype, its byte order."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
import pytest

from rewarm import wire
from rewarm.facts.function import FunctionSpec, Tensor
from rewarm.worker import answers
from rewarm.worker.arrays import ArrayEngine
from rewarm.worker.handlers import HandlerEngine

LIMIT_MS = 1000
TOO_MUCH = wire.ANSWER_BYTES_MAX + 1


class Says:
    def __init__(self, output: Any) -> None:
        self.output = output

    def predict(self, x: np.ndarray) -> Any:
        return self.output(x) if callable(self.output) else self.output


def engine(output: Any, declared: bool = True) -> ArrayEngine:
    inputs = (("x", Tensor("float32", (1,)) if declared else None),)
    return ArrayEngine(Says(output), FunctionSpec("says", "predict", "app:Says", inputs=inputs), 1)


def item(value: float, kind: int = wire.KIND_JSON) -> wire.Item:
    if kind == wire.KIND_RAW:
        return wire.Item(kind, b"", np.float32([value]).tobytes())
    if kind == wire.KIND_V2:
        tensor = {"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [value]}
        return wire.Item(kind, b"", orjson.dumps({"inputs": [tensor]}))
    return wire.Item(kind, b"", orjson.dumps([value]))


def every_way(made: ArrayEngine, kind: int, values: list[float]) -> list[list[wire.Answer]]:
    """The answers of `run`, and those of `run_bodies`."""
    items = [item(value, kind) for value in values]
    one, two = made.run(items, LIMIT_MS), made.run_bodies(kind, [bytes(i.body) for i in items], LIMIT_MS)
    return [d.answers or [wire.Answer(200, d.form, 0, b"", body) for body in d.bodies] for d in (one, two)]


def refused(answer: wire.Answer, code: str) -> str:
    said = orjson.loads(answer.body)
    assert said["code"] == code, said
    assert answer.status == (400 if code == "bad_request" else 500)
    return str(said["error"])


def test_what_json_cannot_say_is_null() -> None:
    made = engine(lambda x: np.array([[np.nan, np.inf, 1.0]] * len(x), "float32"))
    raw = np.array([np.nan, np.inf, 1.0], "float32").tobytes()
    for kind, said in ((wire.KIND_JSON, b"[null,null,1.0]"), (wire.KIND_RAW, raw)):
        for found in every_way(made, kind, [1.0, 2.0]):
            assert [answer.body for answer in found] == [said, said]
    (answer,) = every_way(made, wire.KIND_V2, [1.0])[0]
    assert orjson.loads(answer.body)["outputs"][0]["data"] == [None, None, 1.0]


def wide(x: np.ndarray) -> np.ndarray:
    return np.zeros((len(x), TOO_MUCH // 2 + 1), "uint8")


def one_long(x: np.ndarray) -> np.ndarray:
    return np.array([[b"x" * TOO_MUCH if value == 1 else b"y"] for value in x[:, 0]], dtype=object)


@pytest.mark.parametrize("kind", [wire.KIND_JSON, wire.KIND_V2])
@pytest.mark.parametrize("declared", [True, False])
def test_too_large_is_the_callers_own(kind: int, declared: bool) -> None:
    for long, short in every_way(engine(one_long, declared), kind, [1.0, 2.0]):
        assert str(wire.ANSWER_BYTES_MAX) in refused(long, "function_error")
        assert short.status == 200 and b"y" in short.body


def test_too_large_in_the_uniform_answers() -> None:
    for found in every_way(engine(wide), wire.KIND_JSON, [1.0, 2.0]):
        for answer in found:
            assert "64 MB" in refused(answer, "function_error")
    for found in every_way(engine(wide), wire.KIND_RAW, [1.0, 2.0]):  # together too much, each by itself is not
        assert [len(answer.body) for answer in found] == [TOO_MUCH // 2 + 1] * 2


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("kind", [wire.KIND_JSON, wire.KIND_LAMBDA])
def test_too_large_from_a_handler(batched: bool, kind: int) -> None:
    def handler(event: Any, context: Any) -> Any:
        return ["x" * n for n in event] if batched else "x" * event

    made = HandlerEngine(handler, FunctionSpec("h", "handler", "app:h", batched=batched), 1)
    found = made.run([wire.Item(kind, b"", b"%d" % n) for n in (TOO_MUCH, 3)], LIMIT_MS).answers
    assert found is not None and found[1].body == b'"xxx"' and b"AnswerTooLarge" in found[0].body
    if kind == wire.KIND_LAMBDA:
        assert found[0].flags == wire.FLAG_FUNCTION_ERROR
    else:
        refused(found[0], "function_error")


def test_a_long_exception_is_cut() -> None:
    assert len(answers.raised(wire.KIND_LAMBDA, ValueError("x" * TOO_MUCH), None).body) < 1 << 20


@pytest.mark.parametrize("kind", [wire.KIND_JSON, wire.KIND_RAW, wire.KIND_V2])
@pytest.mark.parametrize("dtype", ["complex64", "longdouble", "datetime64[s]", "timedelta64[s]", "V4", "i4,f4"])
def test_dtypes_that_nobody_can_carry(dtype: str, kind: int) -> None:
    made = engine(lambda x: np.zeros((len(x), 2), dtype))
    for found in every_way(made, kind, [1.0, 2.0]):
        for answer in found:
            assert f"dtype {np.dtype(dtype)}" in refused(answer, "function_error")


@pytest.mark.parametrize("kind", [wire.KIND_JSON, wire.KIND_RAW, wire.KIND_V2])
@pytest.mark.parametrize("dtype", ["float16", "bool", "int8", ">f4", ">i8", "float64"])
@pytest.mark.parametrize("width", [(), (2,), (2, 1)])
def test_dtypes_that_can_be_carried(dtype: str, kind: int, width: tuple[int, ...]) -> None:
    made = engine(lambda x: np.ones((len(x), *width), dtype))
    one, two = every_way(made, kind, [1.0, 2.0])
    assert one == two
    assert {answer.status for answer in one} == {200}
    if kind == wire.KIND_JSON:
        assert np.array_equal(orjson.loads(one[0].body), np.ones(width, dtype))
    if kind == wire.KIND_RAW and dtype == ">f4":
        assert one[0].body == np.ones(width, "<f4").tobytes()


@pytest.mark.parametrize("values", [[["a"], ["b"]], [[b"a"], [b"b"]], ["a", "b"], [b"a", b"b"]])
@pytest.mark.parametrize("dtype", [object, None])
def test_texts_have_no_raw_bytes(values: list[Any], dtype: Any) -> None:
    made = engine(np.array(values, dtype))
    for found in every_way(made, wire.KIND_RAW, [1.0, 2.0]):
        assert all("ask in JSON" in refused(answer, "bad_request") for answer in found)
    for found in every_way(made, wire.KIND_JSON, [1.0, 2.0]):
        assert [answer.body for answer in found] in ([b'["a"]', b'["b"]'], [b'"a"', b'"b"'])


def test_what_is_not_json_is_the_callers_own() -> None:
    made = engine(np.array([{1, 2}, {"fine": 1}], dtype=object))
    for bad, good in every_way(made, wire.KIND_JSON, [1.0, 2.0]):
        refused(bad, "function_error")
        assert good.body == b'{"fine":1}'


@pytest.mark.parametrize("output", [{}, ()])
def test_no_output_at_all(output: Any) -> None:
    for found in every_way(engine(output), wire.KIND_JSON, [1.0]):
        refused(found[0], "function_error")


def test_the_server_takes_no_longer_frame_than_the_batch_can_fill() -> None:
    reader = wire.Reader()
    control = wire.encode_plain(wire.LOADED, bytes(100_000))
    assert reader.feed(control) == [control]
    long = wire.encode_plain(wire.REPLY, bytes(wire.CONTROL_BYTES_MAX))
    with pytest.raises(wire.WireError, match=str(wire.CONTROL_BYTES_MAX)):
        reader.feed(long[: wire.HEAD_BYTES])
    reader = wire.Reader(wire.reply_bytes_max(1))
    assert reader.feed(long[:70_000]) == []
    assert reader.feed(long[70_000:]) == [long]
    assert wire.reply_bytes_max(2) > 2 * wire.ANSWER_BYTES_MAX
    assert wire.reply_bytes_max(0xFFFF) == wire.FRAME_BYTES_MAX
