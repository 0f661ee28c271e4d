"""The Open Inference Protocol with its reference client, and what no good client would send."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

pytestmark = pytest.mark.e2e

MODELS = """
import numpy as np
import rewarm


@rewarm.function(inputs={"x": rewarm.Tensor("float32", [4])}, outputs={"y": rewarm.Tensor("float32", [4])})
class Double:
    def predict(self, x):
        return x * 2


@rewarm.function(
    inputs={"a": rewarm.Tensor("int64", [2]), "b": rewarm.Tensor("float64", [2])},
    outputs={"total": rewarm.Tensor("float64", [2]), "big": rewarm.Tensor("bool", [2])},
)
class Pair:
    def predict(self, a, b):
        return {"total": a + b, "big": a > b}


@rewarm.function(inputs={"text": rewarm.Tensor("object", [1])}, outputs={"upper": rewarm.Tensor("object", [1])})
class Upper:
    def predict(self, text):
        return np.array([[as_text(value).upper().encode()] for value in text[:, 0]], dtype=object)


@rewarm.function(inputs={"flag": rewarm.Tensor("bool", [3])}, outputs={"not_flag": rewarm.Tensor("bool", [3])})
class Invert:
    def predict(self, flag):
        return ~flag


@rewarm.function
class Anything:
    def predict(self, x):
        return x.astype("float64").reshape(len(x), -1).sum(axis=1)


def as_text(value):
    return value.decode() if isinstance(value, bytes) else value
"""


@pytest.fixture(scope="module")
def models(server: Any) -> Any:
    for select in ("Double", "Pair", "Upper", "Invert", "Anything"):
        server.deploy(MODELS, select=select, name=f"oip-{select.lower()}")
    return server


@pytest.fixture
def client(models: Any) -> Any:
    with triton.InferenceServerClient(f"{models.host}:{models.port}") as client:
        yield client


def given(name: str, array: Any, datatype: str, *, binary: bool) -> Any:
    tensor = triton.InferInput(name, list(array.shape), datatype)
    tensor.set_data_from_numpy(array, binary_data=binary)
    return tensor


def test_server_and_model_say_what_they_are(client: Any) -> None:
    assert client.is_server_live() and client.is_server_ready()
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    assert client.is_model_ready("oip-double") and client.is_model_ready("oip-double", "1")
    assert not client.is_model_ready("oip-nothing") and not client.is_model_ready("oip-double", "7")
    found = client.get_model_metadata("oip-pair")
    assert found["name"] == "oip-pair" and found["versions"] == ["1"] and found["platform"]
    assert found["inputs"] == [
        {"name": "a", "datatype": "INT64", "shape": [-1, 2]}, {"name": "b", "datatype": "FP64", "shape": [-1, 2]},
    ]  # fmt: skip
    assert found["outputs"][1] == {"name": "big", "datatype": "BOOL", "shape": [-1, 2]}


@pytest.mark.parametrize("sent", [True, False], ids=["binary-in", "json-in"])
@pytest.mark.parametrize("got", [True, False], ids=["binary-out", "json-out"])
def test_infer_in_json_and_binary(client: Any, sent: bool, got: bool) -> None:
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    wanted = [triton.InferRequestedOutput("y", binary_data=got)]
    answer = client.infer("oip-double", [given("x", x, "FP32", binary=sent)], outputs=wanted, request_id="a-1")
    np.testing.assert_array_equal(answer.as_numpy("y"), x * 2)
    head = answer.get_response()
    assert head["id"] == "a-1" and head["model_name"] == "oip-double" and head["model_version"] == "1"
    assert ("parameters" in head["outputs"][0]) is got


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
def test_several_inputs_and_outputs_of_several_types(client: Any, binary: bool) -> None:
    a, b = np.array([[1, 2**60], [-5, 7]]), np.array([[0.5, 1.0], [2.5, -1.5]])
    inputs = [given("b", b, "FP64", binary=binary), given("a", a, "INT64", binary=binary)]
    outputs = [triton.InferRequestedOutput(name, binary_data=binary) for name in ("big", "total")]
    answer = client.infer("oip-pair", inputs, model_version="1", outputs=outputs)
    np.testing.assert_array_equal(answer.as_numpy("total"), a + b)
    np.testing.assert_array_equal(answer.as_numpy("big"), a > b)
    assert [output["name"] for output in answer.get_response()["outputs"]] == ["big", "total"]


def test_only_the_outputs_that_were_asked_for(client: Any) -> None:
    inputs = [given("a", np.ones((1, 2), np.int64), "INT64", binary=True),
              given("b", np.ones((1, 2)), "FP64", binary=False)]  # fmt: skip
    answer = client.infer("oip-pair", inputs, outputs=[triton.InferRequestedOutput("total")])
    assert answer.as_numpy("total").tolist() == [[2.0, 2.0]] and answer.as_numpy("big") is None


@pytest.mark.parametrize("sent", [True, False], ids=["binary-in", "json-in"])
@pytest.mark.parametrize("got", [True, False], ids=["binary-out", "json-out"])
def test_strings(client: Any, sent: bool, got: bool) -> None:
    words = np.array([["grün"], ["ab"], [""]], dtype=object)
    wanted = [triton.InferRequestedOutput("upper", binary_data=got)]
    answer = client.infer("oip-upper", [given("text", words, "BYTES", binary=sent)], outputs=wanted)
    found = [v.decode() if isinstance(v, bytes) else v for v in answer.as_numpy("upper").ravel()]
    assert found == ["GRÜN", "AB", ""]


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
def test_booleans(client: Any, binary: bool) -> None:
    flags = np.array([[True, False, True], [False, False, True]])
    wanted = [triton.InferRequestedOutput("not_flag", binary_data=binary)]
    answer = client.infer("oip-invert", [given("flag", flags, "BOOL", binary=binary)], outputs=wanted)
    np.testing.assert_array_equal(answer.as_numpy("not_flag"), ~flags)


@pytest.mark.parametrize("datatype", ["UINT8", "INT16", "UINT32", "INT64", "FP16", "FP32", "FP64"])
def test_undeclared_inputs_take_any_number(client: Any, datatype: str) -> None:
    kinds = {"FP16": "float16", "FP32": "float32", "FP64": "float64"}
    x = np.array([[1, 2, 3], [4, 5, 6]], dtype=kinds.get(datatype, datatype.lower()))
    for binary in (True, False) if datatype != "FP16" else (True,):  # the client has no JSON for FP16
        answer = client.infer("oip-anything", [given("x", x, datatype, binary=binary)])
        assert answer.as_numpy("output").tolist() == [6.0, 15.0]


@pytest.mark.parametrize(
    ("name", "array", "datatype", "complaint"),
    [
        ("z", np.ones((1, 4), np.float32), "FP32", "no input 'z'"),
        ("x", np.ones((1, 4), np.float64), "FP64", "is FP32, not FP64"),
        ("x", np.ones((1, 5), np.float32), "FP32", r"has shape \[1, 5\]"),
        ("x", np.ones((4,), np.float32), "FP32", r"has shape \[4\]"),
    ],
    ids=["name", "dtype", "shape", "no batch axis"],
)
@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
def test_wrong_tensors_are_refused(
    client: Any, name: str, array: Any, datatype: str, complaint: str, binary: bool
) -> None:
    with pytest.raises(InferenceServerException, match=complaint) as caught:
        client.infer("oip-double", [given(name, array, datatype, binary=binary)])
    assert caught.value.status() == "400"
    good = client.infer("oip-double", [given("x", np.ones((1, 4), np.float32), "FP32", binary=True)])
    assert good.as_numpy("y").tolist() == [[2.0] * 4]


def test_unknown_output_model_and_version_are_refused(client: Any) -> None:
    x = [given("x", np.ones((1, 4), np.float32), "FP32", binary=True)]
    with pytest.raises(InferenceServerException, match="no output 'q'") as caught:
        client.infer("oip-double", x, outputs=[triton.InferRequestedOutput("q")])
    assert caught.value.status() == "400"
    for model, version in (("oip-nothing", ""), ("oip-double", "9")):
        with pytest.raises(InferenceServerException, match="rewarm ls") as caught:
            client.infer(model, x, model_version=version)
        assert caught.value.status() == "404"
        with pytest.raises(InferenceServerException, match="rewarm ls"):
            client.get_model_metadata(model, version)


def test_model_repository(client: Any, models: Any, until: Any) -> None:
    index = {model["name"]: model for model in client.get_model_repository_index()}
    assert index["oip-double"] == {"name": "oip-double", "version": "1", "state": "READY", "reason": ""}
    client.load_model("oip-double")
    until(lambda: models.instances("oip-double", "ready"), "load gives an instance")
    client.unload_model("oip-double")
    until(lambda: not models.instances("oip-double"), "unload takes it away")
    x = [given("x", np.ones((1, 4), np.float32), "FP32", binary=True)]
    assert client.infer("oip-double", x).as_numpy("y").tolist() == [[2.0] * 4]  # and it comes back by itself
    with pytest.raises(InferenceServerException, match="no function 'oip-nothing'"):
        client.load_model("oip-nothing")


def test_mixed_callers_each_get_their_own_answer(models: Any) -> None:
    def by_triton(number: int) -> bool:
        with triton.InferenceServerClient(f"{models.host}:{models.port}") as mine:
            for turn in range(10):
                rows = 1 + (number + turn) % 3
                x = np.full((rows, 4), number * 100 + turn, np.float32)
                wanted = [triton.InferRequestedOutput("y", binary_data=turn % 2 == 0)]
                tensor = given("x", x, "FP32", binary=turn % 3 != 0)
                answer = mine.infer("oip-double", [tensor], outputs=wanted, request_id=f"{number}-{turn}")
                if answer.get_response()["id"] != f"{number}-{turn}" or (answer.as_numpy("y") != x * 2).any():
                    return False
        return True

    def plain(number: int) -> bool:
        for turn in range(10):
            row = [float(number), float(turn), 0.5, -1.0]
            if turn % 2:
                reply = models.invoke("oip-double", row)
                got = reply.json()
            else:
                raw = np.array(row, "<f4").tobytes()
                octets = {"content-type": "application/octet-stream"}
                got = np.frombuffer(models.call("POST", "/invoke/oip-double", raw, octets).body, "<f4").tolist()
            if got != [2 * value for value in row]:
                return False
        return True

    models.warm("oip-double")
    with ThreadPoolExecutor(16) as pool:
        done = [pool.submit(by_triton if number % 2 else plain, number) for number in range(16)]
        assert all(each.result() for each in done)
    assert models.stats("oip-double")["errors"] < models.stats("oip-double")["requests"]


def infer_bytes(body: bytes, *headers: str, model: str = "oip-double") -> bytes:
    lines = [f"POST /v2/models/{model}/infer HTTP/1.1", "host: localhost", f"content-length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


HEAD = json.dumps({
    "inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "parameters": {"binary_data_size": 16}}]
}).encode()  # fmt: skip
ROW = np.array([1, 2, 3, 4], "<f4").tobytes()


@pytest.mark.parametrize("length", ["0", "-1", "abc", "1e3", "99999999", str(len(HEAD) - 1), str(len(HEAD) + 1), "1 2"])
def test_lying_header_length(models: Any, length: str) -> None:
    with models.raw() as raw:
        raw.send(infer_bytes(HEAD + ROW, f"Inference-Header-Content-Length: {length}"))
        reply = raw.reply()
        assert reply.status == 400 and reply.json()["code"] in ("bad_request", "bad_tensor")
        raw.send(infer_bytes(HEAD + ROW, f"Inference-Header-Content-Length: {len(HEAD)}"))  # the connection lives
        assert raw.reply().body.endswith(np.array([2, 4, 6, 8], "<f4").tobytes()) or reply.status == 400


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (HEAD + ROW[:-1], "binary_data_size"),
        (HEAD + ROW + b"!", "1 bytes follow"),
        (HEAD.replace(b"16", b"12") + ROW[:12], "16 bytes"),
        (HEAD.replace(b"16", b"-1") + ROW, "binary_data_size"),
        (HEAD.replace(b"16", b'"16"') + ROW, "binary_data_size"),
        (HEAD.replace(b"[1, 4]", b"[0, 4]") + ROW, "no rows"),
        (HEAD.replace(b"[1, 4]", b"[-1, 4]") + ROW, "shape"),
        (HEAD.replace(b"[1, 4]", b"[1.0, 4]") + ROW, "shape"),
        (HEAD.replace(b"FP32", b"FP99") + ROW, "FP99"),
        (HEAD.replace(b'"name"', b'"nome"') + ROW, "no input"),
    ],
)
def test_truncated_or_lying_binary_tensors(models: Any, body: bytes, complaint: str) -> None:
    head_bytes = body.rindex(b"]}") + 2
    with models.raw() as raw:
        raw.send(infer_bytes(body, f"Inference-Header-Content-Length: {head_bytes}"))
        assert complaint in raw.reply().refused(400, raw_code(complaint))


def raw_code(complaint: str) -> str:
    return "bad_request" if "follow" in complaint and "bytes" in complaint else "bad_tensor"


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b"{}", b'{"inputs": 1}', b'{"inputs": []}', b'{"inputs": [1]}', b"\xff\xfe",
        b'{"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32"}]}',
        b'{"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3]}]}',
        b'{"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, [3], 4]}]}',
        b'{"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": ["a", "b", "c", "d"]}]}',
        b'{"inputs": [{"name": ["x"], "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}',
        b'{"inputs": [{"name": "x", "shape": [1, 4], "datatype": ["FP32"], "data": [1, 2, 3, 4]}]}',
        b'{"inputs": [{"name": "x", "shape": {"a": 1}, "datatype": "FP32", "data": [1, 2, 3, 4]}]}',
        b'{"inputs": [{"name": "x", "shape": [99999999999999999999], "datatype": "FP32", "data": [1]}]}',
        b'{"parameters": 7, "inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}',
        b'{"outputs": 7, "inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}',
        b'{"outputs": [7], "inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}',
        b'{"outputs": [{"name": "y", "parameters": [1]}], '
        b'"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}',
    ],
    ids=lambda body: body.decode("latin-1")[:24] or "nothing",
)  # fmt: skip
def test_malformed_inference_requests(models: Any, body: bytes) -> None:
    reply = models.call("POST", "/v2/models/oip-double/infer", body)
    assert reply.status == 400 and reply.json()["code"] in ("bad_request", "bad_tensor"), reply


def test_one_bad_request_does_not_spoil_the_batch_it_came_in(models: Any) -> None:
    good = json.dumps({"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}).encode()
    bodies = [good, b"{", good, good.replace(b"[1, 2, 3, 4]", b"[1, 2]"), good] * 6
    with ThreadPoolExecutor(10) as pool:
        replies = list(pool.map(lambda body: models.call("POST", "/v2/models/oip-double/infer", body), bodies))
    assert [reply.status for reply in replies] == [200, 400, 200, 400, 200] * 6
    assert all(r.json()["outputs"][0]["data"] == [2, 4, 6, 8] for r in replies if r.status == 200)


def test_a_handler_is_no_model(models: Any) -> None:
    models.deploy("def handler(event, context):\n    return event\n", handler="app.handler", name="oip-handler")
    body = b'{"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [1]}]}'
    reply = models.call("POST", "/v2/models/oip-handler/infer", body)
    assert "POST /invoke/oip-handler" in reply.refused(400, "bad_request")
