"""Everything a caller can get wrong: a status, a code, a sentence that helps, and a server that goes on."""

from __future__ import annotations

import http.client
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

import pytest

pytestmark = pytest.mark.e2e

DOUBLE = """
import numpy as np
import rewarm


@rewarm.function(inputs={"x": rewarm.Tensor("float32", [4])}, outputs={"y": rewarm.Tensor("float32", [4])})
class Double:
    def predict(self, x):
        return x * 2


@rewarm.function(inputs={"a": rewarm.Tensor("int8", [2]), "b": rewarm.Tensor("bool", [])})
class Pair:
    def predict(self, a, b):
        return a.sum(axis=1)


@rewarm.function(inputs={"x": rewarm.Tensor("float32", [1])})
class Wrong:
    def predict(self, x):
        what = x[0, 0]
        if what == 1:
            return x[:0]
        if what == 2:
            return np.concatenate([x, x])
        if what == 3:
            return 7.0
        if what == 4:
            return x, x[:0]
        if what == 5:
            return None
        if what == 6:
            raise ValueError("seven\\nlines\\nof text")
        return x
"""
ECHO = "def handler(event, context):\n    return event\n"
#: Says that it runs, then waits for a file to appear.
GATE = """
import os
import time


def handler(event, context):
    with open(event["log"], "a") as log:
        log.write(event["name"] + "\\n")
    while not os.path.exists(event["gate"]):
        time.sleep(0.005)
    return event["name"]
"""


@pytest.fixture(scope="module")
def deployed(server: Any) -> Any:
    for select in ("Double", "Pair", "Wrong"):
        server.deploy(DOUBLE, select=select, name=f"bad-{select.lower()}")
    server.deploy(ECHO, handler="app.handler", name="bad-echo")
    server.deploy(GATE, handler="app.handler", name="bad-gate", max_instances=1, queue_max=3)
    server.warm("bad-gate")
    return server


@pytest.fixture(autouse=True)
def goes_on(deployed: Any) -> Iterator[None]:
    """After every test the server still answers, and right."""
    yield
    assert deployed.invoke("bad-double", [1, 2, 3, 4]).json() == [2, 4, 6, 8]
    assert deployed.invoke("bad-echo", {"a": 1}).json() == {"a": 1}


# ---------------------------------------------------------------- what is asked


def test_unknown_function(deployed: Any) -> None:
    for path in ("/invoke/nothing", "/invoke/%2e%2e", "/invoke/a%2Fb", "/v2/models/nothing/infer"):
        reply = deployed.call("POST", path, "{}")
        assert "rewarm ls" in reply.refused(404, "not_found") and "rewarm-start" not in reply.headers
    for verb, path in (("GET", ""), ("GET", "/stats"), ("GET", "/logs"), ("POST", "/load"), ("DELETE", "")):
        reply = deployed.call(verb, f"/api/v1/functions/nothing{path}")
        assert "'nothing'" in reply.refused(404, "not_found")
    assert "rewarm ls" in deployed.cli("invoke", "nothing", "--data", "{}").failed(2)
    assert "'nothing'" in deployed.cli("rm", "nothing").failed(2)


def test_unknown_path(deployed: Any) -> None:
    for verb, path in (("GET", "/nothing"), ("POST", "/invoke"), ("POST", "/invoke/a/b"), ("GET", "/api/v2/server"),
                       ("POST", "/api/v1/functions/bad-echo/dance")):  # fmt: skip
        deployed.call(verb, path).refused(404, "not_found")


@pytest.mark.parametrize("path", [
    "/invoke/bad-echo", "/v2/models/bad-double/infer", "/2015-03-31/functions/bad-echo/invocations",
])  # fmt: skip
@pytest.mark.parametrize("verb", ["GET", "PUT", "DELETE", "PATCH"])
def test_wrong_verb_on_an_invocation(deployed: Any, verb: str, path: str) -> None:
    reply = deployed.call(verb, path, None if verb == "GET" else "{}")
    assert "POST" in reply.refused(405, "method_not_allowed") and reply.headers["allow"] == "POST"


def test_wrong_verb_elsewhere(deployed: Any) -> None:
    for verb, path in (("POST", "/api/v1/functions"), ("DELETE", "/metrics"), ("GET", "/v2/repository/index"),
                       ("PUT", "/api/v1/server"), ("BREW", "/v2")):  # fmt: skip
        if verb == "BREW":  # not a verb of HTTP at all
            deployed.call(verb, path).refused(400, "bad_request")
        else:
            reply = deployed.call(verb, path)
            assert verb in reply.refused(405, "method_not_allowed") and reply.headers["allow"]


@pytest.mark.parametrize("body", ["{", "[1, 2", "nul", "[1, 2, 3, 4] x", "{'x': 1}", "\x00", "[1, NaN, 2, 3]"])
def test_malformed_json(deployed: Any, body: str) -> None:
    for name in ("bad-double", "bad-echo"):
        reply = deployed.call("POST", f"/invoke/{name}", body)
        assert "JSON" in reply.refused(400, "bad_request") and "rewarm-start" not in reply.headers


@pytest.mark.parametrize(
    ("name", "body", "complaint"),
    [
        ("double", "[1, 2, 3]", "shape [4]"),
        ("double", "[[1, 2], [3, 4]]", "shape [4]"),
        ("double", "[[1, 2, 3, 4], [5, 6, 7, 8]]", "several rows go to POST /v2/models/NAME/infer"),
        ("double", "[1e39, 2, 3, 4]", "input 'x' holds values outside the range of float32"),
        ("double", "7", "shape [4]"),
        ("double", "[]", "shape [4]"),
        ("double", "null", "float32"),
        ("double", '["a", "b", "c", "d"]', "float32"),
        ("double", "[true, false, true, false]", "float32"),
        ("double", "[[1], [2, 3], 4, 5]", "float32"),
        ("double", '{"y": [1, 2, 3, 4]}', "['x']"),
        ("double", '{"x": [1, 2, 3, 4], "y": 1}', "['x']"),
        ("pair", "[1, 2]", "['a', 'b']"),
        ("pair", '{"a": [1, 2]}', "['a', 'b']"),
        ("pair", '{"a": [1, 200], "b": true}', "range of int8"),
        ("pair", '{"a": [1, 2.5], "b": true}', "fractions"),
        ("pair", '{"a": [1, 2], "b": 1}', "bool"),
    ],
)
def test_wrong_name_dtype_or_shape(deployed: Any, name: str, body: str, complaint: str) -> None:
    assert complaint in deployed.call("POST", f"/invoke/bad-{name}", body).refused(400, "bad_tensor")


@pytest.mark.parametrize(("size", "complaint"), [(0, "0 elements"), (15, "whole number"), (20, "5 elements")])
def test_wrong_raw_bytes(deployed: Any, size: int, complaint: str) -> None:
    octets = {"content-type": "application/octet-stream"}
    reply = deployed.call("POST", "/invoke/bad-double", bytes(size), octets)
    assert complaint in reply.refused(400, "bad_tensor")
    several = deployed.call("POST", "/invoke/bad-pair", bytes(3), octets)
    assert "one input" in several.refused(400, "bad_tensor")


@pytest.mark.parametrize("value", ["0", "-5", "soon", "nan", "inf", "1e12", ""])
def test_wrong_timeout_header(deployed: Any, value: str) -> None:
    reply = deployed.call("POST", "/invoke/bad-echo", "{}", {"rewarm-timeout-ms": value})
    assert "Rewarm-Timeout-Ms" in reply.refused(400, "bad_request")


def test_wrong_headers_of_a_call(deployed: Any) -> None:
    reply = deployed.call("POST", "/invoke/bad-echo", "{}", {"content-encoding": "gzip"})
    assert "uncompressed" in reply.refused(400, "bad_request")
    path = "/2015-03-31/functions/bad-echo/invocations"
    reply = deployed.call("POST", path, "{}", {"x-amz-invocation-type": "Sometimes"})
    assert reply.status == 400 and "DryRun" in reply.json()["Message"]
    assert reply.headers["x-amzn-errortype"] == "InvalidRequestContentException"


def test_wrong_questions(deployed: Any) -> None:
    for query in ("tail=many", "tail=-1", "instance=x", "tail=99999999999"):
        reply = deployed.call("GET", f"/api/v1/functions/bad-echo/logs?{query}")
        assert "whole number" in reply.refused(400, "bad_request")


# ---------------------------------------------------------------- sizes


def test_body_over_the_limit_is_refused_before_it_is_sent(deployed: Any) -> None:
    with deployed.raw() as raw:
        raw.send(b"POST /invoke/bad-echo HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1048577\r\n\r\n")
        reply = raw.reply()
        assert "--body-limit" in reply.refused(413, "body_too_large") and reply.headers["connection"] == "close"
        assert raw.closed()


def test_body_over_the_limit_reaches_a_client_that_sends_it_all(deployed: Any) -> None:
    for size in ((1 << 20) + 1, 8 << 20):
        reply = deployed.call("POST", "/invoke/bad-echo", b'"' + b"x" * size + b'"')
        reply.refused(413, "body_too_large")
    assert deployed.call("POST", "/invoke/bad-echo", b'"' + b"x" * ((1 << 20) - 2) + b'"').status == 200


def test_body_over_the_limit_in_chunks(deployed: Any) -> None:
    with deployed.raw() as raw:
        raw.send(b"POST /invoke/bad-echo HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n")
        chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
        for _ in range(17):
            raw.send(chunk)
        raw.reply().refused(413, "body_too_large")


@pytest.mark.parametrize("path", ["/invoke/bad-echo", "/v2"])
def test_headers_over_the_limit(deployed: Any, path: str) -> None:
    one = b"x-big: " + b"y" * 40_000 + b"\r\n"
    many = b"".join(b"x-%d: %s\r\n" % (number, b"y" * 40) for number in range(1000))
    for headers in (one, many):
        with deployed.raw() as raw:
            raw.send(b"POST %s HTTP/1.1\r\nhost: localhost\r\n%scontent-length: 2\r\n\r\n{}" % (path.encode(), headers))
            reply = raw.reply()
            assert "32768" in reply.refused(431, "headers_too_large")


@pytest.mark.parametrize("start", [b"GET /", b"GET / HTTP/1.1\r\nx: ", b"POST /invoke/bad-echo HTTP/1.1\r\nx"])
def test_an_endless_line(deployed: Any, start: bytes) -> None:
    with deployed.raw() as raw:
        raw.send(start)
        try:
            for _ in range(64):
                raw.send(b"y" * 4096)
                time.sleep(0.001)
        except OSError:
            pass  # refused already
        assert raw.reply().status in (400, 431)


# ---------------------------------------------------------------- definitions and deploys

WEIGHTS = """
import rewarm


@rewarm.function(weights="model.npz")
class Model:
    def __init__(self, weights):
        pass

    def predict(self, x):
        return x
"""


def decorated(arguments: str) -> str:
    return f"import rewarm\n\n\n@rewarm.function({arguments})\nclass F:\n    def predict(self, x):\n        return x\n"


BAD_SOURCES = [
    ("policy", decorated('batching="dinamic"'), 422, "bad_definition", "dynamic"),
    ("parameter", decorated('batching=rewarm.Static(size=0)'), 422, "bad_definition", "size"),
    ("slo without slo", decorated('batching=rewarm.Slo(mode="fast")'), 422, "bad_definition", "mode"),
    ("keepalive", decorated('keepalive="forever"'), 422, "bad_definition", "fixed"),
    ("word", decorated('memmory="1GB"'), 422, "bad_definition", "did you mean 'memory'?"),
    ("unit", decorated('timeout="60 fortnights"'), 422, "bad_definition", "fortnights"),
    ("size", decorated('memory="1 XB"'), 422, "bad_definition", "XB"),
    ("little memory", decorated("memory=100"), 422, "bad_definition", "16MB"),
    ("name", decorated('name="no spaces please"'), 422, "bad_definition", "letters"),
    ("dtype", decorated('inputs={"x": rewarm.Tensor("float31", [1])}'), 422, "bad_definition", "float31"),
    ("input", decorated('inputs={"z": rewarm.Tensor("float32", [1])}'), 422, "bad_definition", "predict takes"),
    ("does not import", "import nothing_of_that_name\n", 500, "start_failed", "nothing_of_that_name"),
    ("syntax", "def handler(:\n", 500, "start_failed", "app.py line 1"),
    ("exits", "import sys\nsys.exit(4)\n", 500, "start_failed", "sys.exit"),
    ("dies", "import os\nos._exit(4)\n", 422, "bad_definition", "app.py"),
    ("no function", "x = 1\n", 422, "bad_definition", "@rewarm.function"),
    ("two functions", DOUBLE, 422, "bad_definition", "defines 3 functions"),
    ("weights", WEIGHTS, 422, "bad_definition", "model.npz"),
    ("no predict", "import rewarm\n\n\n@rewarm.function\nclass F:\n    pass\n", 422, "bad_definition", "predict"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("source", "status", "code", "complaint"), [each[1:] for each in BAD_SOURCES], ids=[each[0] for each in BAD_SOURCES]
)
def test_deploy_of_a_bad_file(deployed: Any, source: str, status: int, code: str, complaint: str) -> None:
    before = deployed.get("/api/v1/functions")
    assert complaint in deployed.put(source).refused(status, code)
    assert [f["name"] for f in deployed.get("/api/v1/functions")["functions"]] == [
        f["name"] for f in before["functions"]
    ]
    assert list((deployed.home / "tmp").iterdir()) == []


@pytest.mark.parametrize(
    "which", ["policy", "unit", "word", "does not import", "syntax", "no function", "two functions", "weights"]
)
def test_deploy_of_a_bad_file_by_command_line(deployed: Any, tmp_path: Path, which: str) -> None:
    _, source, _, code, complaint = next(each for each in BAD_SOURCES if each[0] == which)
    (tmp_path / "app.py").write_text(source)
    ran = deployed.cli("deploy", str(tmp_path / "app.py"), "--json")
    assert complaint in ran.failed(2)
    assert ran.json()["code"] == code


def test_deploy_options_that_cannot_be_meant(deployed: Any, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(ECHO)
    plain = ("deploy", str(tmp_path / "app.py"), "--handler", "app.handler", "--name", "bad-never")
    for words, complaint in [
        (("--batching", "dynamic:max_size=4"), "batched=True"), (("--batching", "quick"), "dynamic"),
        (("--memory", "lots"), "lots"), (("--timeout", "5 parsecs"), "parsecs"), (("--env", "A"), "KEY=VALUE"),
        (("--keepalive", "fixed:tll=5"), "ttl"), (("--max-instances", "0"), "0"),
    ]:  # fmt: skip
        assert complaint in deployed.cli(*plain, *words).failed(2)
    assert "nothing.py" in deployed.cli("deploy", str(tmp_path / "nothing.py")).failed(2)
    deployed.call("GET", "/api/v1/functions/bad-never").refused(404, "not_found")


def test_deploy_of_what_is_no_archive(deployed: Any) -> None:
    for body in (b"", b"not a tar", bytes(1024), b"\x1f\x8b" + bytes(100)):
        reply = deployed.call("PUT", "/api/v1/functions", body)
        assert reply.status in (400, 422) and "Traceback" not in reply.json()["error"], reply
    for overrides in ({"colour": "red"}, {"max_instances": "many"}, {"env": "A=b"}, {"timeout": []}):
        deployed.put(ECHO, handler="app.handler", **overrides).refused(422, "bad_definition")
    deployed.put(ECHO, file="sub/../../app.py").refused(422, "bad_definition")
    deployed.put(ECHO, handler="app.nothing").refused(500, "start_failed")
    outside = deployed.put(ECHO, handler="app.handler", others={"../../escaped.py": b"x = 1\n"})
    assert outside.status == 400 and not list(deployed.home.parent.rglob("escaped.py"))


# ---------------------------------------------------------------- functions that answer nonsense


@pytest.mark.parametrize(
    ("what", "complaint"),
    [(1, "0 rows"), (2, "2 rows"), (3, "single number"), (4, "0 rows"), (5, "single number"), (6, "ValueError")],
)
def test_predict_that_returns_nonsense(deployed: Any, what: int, complaint: str) -> None:
    assert complaint in deployed.invoke("bad-wrong", [what]).refused(500, "function_error")
    assert deployed.invoke("bad-wrong", [0]).json() == [0.0]


# ---------------------------------------------------------------- queues


class Gate:
    """Keeps the one instance of bad-gate busy until it is opened."""

    def __init__(self, server: Any, folder: Path) -> None:
        self.server = server
        self.gate = folder / "gate"
        self.log = folder / "log"
        self.pool = ThreadPoolExecutor(16)

    def event(self, name: str) -> dict[str, str]:
        return {"name": name, "gate": str(self.gate), "log": str(self.log)}

    def send(self, name: str, **headers: str) -> Any:
        return self.pool.submit(self.server.invoke, "bad-gate", self.event(name), **headers)

    def ran(self) -> list[str]:
        return self.log.read_text().split() if self.log.exists() else []

    def queued(self) -> int:
        return int(self.server.function("bad-gate")["queued"])

    def open(self) -> None:
        self.gate.touch()


@pytest.fixture
def gate(deployed: Any, tmp_path: Path, until: Any) -> Iterator[Gate]:
    gate = Gate(deployed, tmp_path)
    first = gate.send("first")
    until(lambda: gate.ran() == ["first"], "the instance is busy")
    yield gate
    gate.open()
    assert first.result().json() == "first"
    gate.pool.shutdown()


def test_deadline_passed_in_the_queue(gate: Gate) -> None:
    reply = gate.send("late", Rewarm_Timeout_Ms="60").result()
    assert "not run" in reply.refused(504, "deadline_exceeded")
    assert reply.headers["rewarm-batch-size"] == "0" and "rewarm-start" not in reply.headers
    gate.open()
    assert gate.send("last").result().json() == "last"
    assert gate.ran() == ["first", "last"]


def test_deadline_by_command_line(gate: Gate) -> None:
    ran = gate.server.cli("invoke", "bad-gate", "--data", json.dumps(gate.event("late")), "--timeout", "50ms")
    assert "not run" in ran.failed(4)


def test_queue_full(gate: Gate, until: Any) -> None:
    waiting = [gate.send(f"waits-{number}") for number in range(3)]
    until(lambda: gate.queued() == 3, "the queue is full")
    reply = gate.send("refused").result()
    assert "queue_max" in reply.refused(429, "queue_full")
    assert int(reply.headers["retry-after"]) >= 1 and reply.json()["retry_after_s"] >= 1
    path = "/2015-03-31/functions/bad-gate/invocations"
    aws = gate.server.call("POST", path, json.dumps(gate.event("refused")))
    assert aws.status == 429 and aws.headers["x-amzn-errortype"] == "TooManyRequestsException"
    assert int(aws.headers["retry-after"]) >= 1 and aws.json()["Reason"]
    ran = gate.server.cli("invoke", "bad-gate", "--data", json.dumps(gate.event("refused")))
    assert "full" in ran.failed(3)
    gate.open()
    assert [each.result().json() for each in waiting] == ["waits-0", "waits-1", "waits-2"]
    assert sorted(gate.ran()) == ["first", "waits-0", "waits-1", "waits-2"]


def test_a_caller_who_hangs_up_in_the_queue_is_not_served(gate: Gate, until: Any) -> None:
    body = json.dumps(gate.event("gone")).encode()
    with gate.server.raw() as raw:
        raw.send(
            b"POST /invoke/bad-gate HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
        )
        until(lambda: gate.queued() == 1, "it is queued")
    until(lambda: gate.queued() == 0, "it leaves the queue")
    gate.open()
    assert gate.send("last").result().json() == "last"
    assert gate.ran() == ["first", "last"]


def test_a_caller_who_hangs_up_with_several_pipelined(gate: Gate, until: Any) -> None:
    def one(name: str) -> bytes:
        body = json.dumps(gate.event(name)).encode()
        return b"POST /invoke/bad-gate HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)

    with gate.server.raw() as raw:
        raw.send(b"".join(one(f"gone-{number}") for number in range(3)))
        until(lambda: gate.queued() == 1, "the first of them is queued")
    until(lambda: gate.queued() == 0, "it leaves the queue")
    gate.open()
    assert gate.send("last").result().json() == "last"
    assert gate.ran() == ["first", "last"]


def test_a_caller_who_hangs_up_while_running_costs_nobody_else(deployed: Any, tmp_path: Path, until: Any) -> None:
    gate = Gate(deployed, tmp_path)
    body = json.dumps(gate.event("gone")).encode()
    with deployed.raw() as raw:
        raw.send(
            b"POST /invoke/bad-gate HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
        )
        until(lambda: gate.ran() == ["gone"], "it runs")
    other = gate.send("other")
    gate.open()
    assert other.result().json() == "other"
    gate.pool.shutdown()


# ---------------------------------------------------------------- the wire


def post(body: bytes, *lines: bytes, path: bytes = b"/invoke/bad-echo", version: bytes = b"1.1") -> bytes:
    head = [b"POST %s HTTP/%s" % (path, version), b"host: localhost", b"content-length: %d" % len(body), *lines]
    return b"\r\n".join([*head, b"", b""]) + body


@pytest.mark.parametrize("garbage", [
    b"\x00" * 64, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x80" * 64, b"hello\r\n\r\n", b"GET\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n", b"POST /invoke/bad-echo HTTP/1.1\r\nno colon here\r\n\r\n",
    b"POST /invoke/bad-echo HTTP/1.1\r\ncontent-length: many\r\n\r\n",
    b"POST /invoke/bad-echo HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
    b"POST /invoke/bad-echo HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n{}",
    b"POST /invoke/bad-echo HTTP/1.1\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n{}",
    b"POST /invoke/bad-echo HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n",
    b"POST /invoke/bad-echo HTTP/1.1\r\nhost: localhost\r\nx-a: b\rc\r\n\r\n",
])  # fmt: skip
def test_garbage(deployed: Any, garbage: bytes) -> None:
    with deployed.raw() as raw:
        raw.send(garbage)
        reply = raw.reply()
        assert "HTTP" in reply.refused(400, "bad_request") and reply.headers["connection"] == "close"
        assert raw.closed()


def test_garbage_behind_a_good_request(deployed: Any) -> None:
    with deployed.raw() as raw:
        raw.send(post(b'{"n": 1}') + b"\x00\x01\x02\r\n\r\n")
        assert raw.reply().json() == {"n": 1}
        raw.reply().refused(400, "bad_request")
        assert raw.closed()


def test_upgrades_are_refused(deployed: Any) -> None:
    with deployed.raw() as raw:
        raw.send(b"GET /v2 HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n")
        assert raw.reply().status in (200, 400)


def test_connect_is_refused(deployed: Any) -> None:
    with deployed.raw() as raw:
        raw.send(b"CONNECT example.org:443 HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert raw.reply().status in (400, 404, 405)


def test_pipelined_requests_are_answered_in_order(deployed: Any) -> None:
    with deployed.raw() as raw:
        raw.send(b"".join(post(b'{"n": %d}' % number) for number in range(16)))
        assert [raw.reply().json() for _ in range(16)] == [{"n": number} for number in range(16)]
        raw.send(b"".join(post(b'{"n": %d}' % number, path=path) for number, path in enumerate(
            [b"/invoke/bad-echo", b"/invoke/nothing", b"/invoke/bad-echo"])))  # fmt: skip
        assert [raw.reply().status for _ in range(3)] == [200, 404, 200]


def test_pipelined_requests_of_several_kinds(deployed: Any) -> None:
    get = b"GET /v2/health/live HTTP/1.1\r\nhost: localhost\r\n\r\n"
    with deployed.raw() as raw:
        for parts in ([get, get, get], [post(b"1"), get], [get, post(b"1")], [get, post(b"1"), get, post(b"2")]):
            for part in parts:
                raw.send(part)
                time.sleep(0.1)
            assert [raw.reply().status for _ in parts] == [200] * len(parts)


def test_mixed_kinds_in_one_piece_are_refused_in_order(deployed: Any) -> None:
    get = b"GET /v2/health/live HTTP/1.1\r\nhost: localhost\r\n\r\n"
    for parts, first in (([get, get, post(b"1")], {"live": True}), ([post(b"1"), post(b"1"), get], 1)):
        with deployed.raw() as raw:
            raw.send(b"".join(parts))
            assert [raw.reply().json() for _ in range(2)] == [first, first]
            assert "pipeline" in raw.reply().refused(400, "bad_request") and raw.closed()


def some_request(random: Random, number: int) -> tuple[bytes, int, bytes | None, bool]:
    """(bytes, status, body, whether it is an invocation)"""
    body, echoed = b'{"n": %d}' % number, b'{"n":%d}' % number
    chunked = b"POST /invoke/bad-echo HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"
    aws = b"/2015-03-31/functions/bad-echo/invocations"
    return random.choice([
        (post(body), 200, echoed, True), (post(body), 200, echoed, True), (post(body, path=aws), 200, echoed, True),
        (chunked + b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body), 200, echoed, True),
        (post(body, path=b"/invoke/nothing"), 404, None, True), (post(b"{" * 8), 400, None, True),
        (b"GET /v2/health/live HTTP/1.1\r\nhost: localhost\r\n\r\n", 200, b'{"live":true}', False),
        (post(post(body)).replace(b"POST", b"PUT", 1), 405, None, False),
    ])  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
def test_any_mixture_cut_anywhere_is_answered_in_order(deployed: Any, seed: int) -> None:
    """Kinds that meet in one piece may be refused, after everything before them was answered."""
    random = Random(seed)
    for _ in range(60):
        requests = [some_request(random, random.randrange(100, 999)) for _ in range(random.randrange(1, 12))]
        mixed = len({invocation for *_, invocation in requests}) == 2
        data = b"".join(request for request, *_ in requests)
        longest = random.choice([20, 200, len(data)])
        with deployed.raw() as raw:
            while data:
                cut = random.randint(1, longest)
                try:
                    raw.send(data[:cut])
                except OSError:
                    break  # refused already
                data = data[cut:]
            for _, status, body, _ in requests:
                reply = raw.reply()
                if mixed and reply.status == 400 and b"pipeline" in reply.body:
                    break
                assert reply.status == status and body in (None, reply.body), reply


def test_a_flood_of_pipelined_requests_is_bounded(deployed: Any) -> None:
    with deployed.raw() as raw:
        raw.send(b"".join(post(b'{"n": %d}' % number) for number in range(400)))
        seen = 0
        while (reply := raw.reply()).status == 200:
            assert reply.json() == {"n": seen}
            seen += 1
            if seen == 400:
                return
        reply.refused(400, "bad_request")


@pytest.mark.parametrize("size", [1, 7, 64])
def test_requests_in_small_pieces(deployed: Any, size: int) -> None:
    data = post(b'{"n": 1}') + post(b'{"n": 2}', b"x-more: yes")
    with deployed.raw() as raw:
        raw.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at in range(0, len(data), size):
            raw.send(data[at : at + size])
        assert [raw.reply().json()["n"] for _ in range(2)] == [1, 2]


def test_the_same_head_again_means_the_same(deployed: Any) -> None:
    """Repeated heads take a shortcut; it must not change what they mean, whatever happened in between."""
    with deployed.raw() as raw, deployed.raw() as other:
        for number in range(5):
            for each in (raw, other):
                each.send(post(b'{"n": %d}' % number))
                assert each.reply().json() == {"n": number}
        raw.send(post(b'{"n": 6}')[:-3])  # head known, body not whole
        time.sleep(0.05)
        raw.send(b" 7}")
        assert raw.reply().json() == {"n": 7}
        raw.send(post(b'{"n": 8}') + post(b'{"n": 9}'))
        assert [raw.reply().json()["n"] for _ in range(2)] == [8, 9]
        raw.send(b"GET /v2/health/live HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert raw.reply().json() == {"live": True}
        raw.send(post(b'{"n": 5}'))
        assert raw.reply().json() == {"n": 5}
        raw.send(post(b'{"n": 4}', b"connection: close"))
        reply = raw.reply()
        assert reply.json() == {"n": 4} and reply.headers["connection"] == "close" and raw.closed()


def test_the_body_of_a_refused_request_is_never_a_request(deployed: Any) -> None:
    """An early answer leaves the body on its way: it must not be taken for the next request."""
    hidden = post(b'{"n": 1}')
    with deployed.raw() as warm:
        for _ in range(3):
            warm.send(hidden)
            warm.reply()
    before = deployed.stats("bad-echo")["requests"]
    with deployed.raw() as raw:
        raw.send(b"PUT /invoke/bad-echo HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % len(hidden))
        raw.reply().refused(405, "method_not_allowed")
        raw.send(hidden)
        raw.send(b"GET /v2/health/live HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert raw.reply().json() == {"live": True}
    assert deployed.stats("bad-echo")["requests"] == before


def test_http_1_0_and_connection_close(deployed: Any) -> None:
    with deployed.raw() as raw:
        raw.send(post(b'{"n": 1}', version=b"1.0"))
        assert raw.reply().json() == {"n": 1} and raw.closed()
    with deployed.raw() as raw:
        raw.send(post(b'{"n": 1}', b"connection: close"))
        reply = raw.reply()
        assert reply.json() == {"n": 1} and reply.headers["connection"] == "close" and raw.closed()


def test_expect_100_continue(deployed: Any) -> None:
    body = b'{"n": 1}'
    whole = post(body, b"expect: 100-continue")
    with deployed.raw() as raw:
        raw.send(whole[: -len(body)])
        assert raw.reply().status == 100
        raw.send(body)
        assert raw.reply().json() == {"n": 1}
        raw.send(post(b"x" * (2 << 20), b"expect: 100-continue")[:120])
        raw.reply().refused(413, "body_too_large")  # before a byte of it was sent


def test_chunked_bodies(deployed: Any) -> None:
    head = b"POST /invoke/bad-echo HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"
    with deployed.raw() as raw:
        for _ in range(2):
            raw.send(head + b'3\r\n{"n\r\n5;x=y\r\n": 1}\r\n0\r\ntrailer: yes\r\n\r\n')
            assert raw.reply().json() == {"n": 1}


def test_an_empty_line_before_a_request(deployed: Any) -> None:
    with deployed.raw() as raw:
        raw.send(b"\r\n" + post(b'{"n": 1}'))
        assert raw.reply().json() == {"n": 1}


# ---------------------------------------------------------------- slow clients and crowds

SMALL = {
    "header_timeout_s": 0.6, "body_timeout_s": 0.6, "keepalive_timeout_s": 1.2, "write_timeout_s": 0.6,
    "connections_max": 8, "header_bytes_max": 4096,
}  # fmt: skip
PATIENCE_S = 6.0


@pytest.fixture(scope="module")
def strict(server: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A server with little patience."""
    folder = tmp_path_factory.mktemp("strict")
    running = type(server)(folder / "home", folder / "server.log", limits=SMALL)
    try:
        running.deploy(ECHO, handler="app.handler", name="bad-echo")
        running.deploy("def handler(event, context):\n    return bytes(4 << 20)\n", handler="app.handler", name="big")
        yield running
        running.stop()
    finally:
        if running.process.poll() is None:
            running.kill()


@pytest.mark.parametrize("path", ["/invoke/bad-echo", "/api/v1/server"])
def test_dripping_headers(strict: Any, path: str) -> None:
    since_s = time.monotonic()
    with strict.raw() as raw:
        raw.send(b"POST %s HTTP/1.1\r\n" % path.encode())
        stop = threading.Event()

        def drip() -> None:
            while not stop.wait(0.05):
                try:
                    raw.send(b"x: y\r\n")
                except OSError:
                    return

        dripping = threading.Thread(target=drip)
        dripping.start()
        try:
            assert "headers" in raw.reply().refused(408, "request_timeout")
        finally:
            stop.set()
            dripping.join()
    assert time.monotonic() - since_s < PATIENCE_S


@pytest.mark.parametrize(("verb", "path"), [("POST", "/invoke/bad-echo"), ("PUT", "/api/v1/functions")])
def test_a_body_that_does_not_come(strict: Any, verb: str, path: str) -> None:
    since_s = time.monotonic()
    with strict.raw() as raw:
        raw.send(b"%s %s HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\n{" % (verb.encode(), path.encode()))
        assert "body" in raw.reply().refused(408, "request_timeout")
    assert time.monotonic() - since_s < PATIENCE_S


def test_connections_that_say_nothing_are_closed(strict: Any) -> None:
    strict.invoke("bad-echo")  # a start could outlast the server's patience with the others
    since_s = time.monotonic()
    with strict.raw() as silent, strict.raw() as idle, strict.raw() as admin:
        idle.send(post(b"{}"))
        assert idle.reply().status == 200
        admin.send(b"GET /v2 HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert admin.reply().status == 200
        assert silent.closed() and idle.closed() and admin.closed()
    assert time.monotonic() - since_s < PATIENCE_S


def test_a_connection_in_use_is_not_idle(strict: Any) -> None:
    """Whatever was asked first: neither our own patience nor uvicorn's may end a connection that is used."""
    with strict.raw() as raw:
        raw.send(post(b'{"n": 0}'))  # from here on its head is known
        assert raw.reply().status == 200
        raw.send(b"GET /v2 HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert raw.reply().status == 200
        for number in range(9):
            raw.send(post(b'{"n": %d}' % number))
            assert raw.reply().json() == {"n": number}
            time.sleep(0.25)


def test_a_client_that_does_not_read_is_dropped_and_bounded(strict: Any, until: Any) -> None:
    def resident() -> int:
        return int(Path(f"/proc/{strict.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    strict.invoke("big")
    before = resident()
    raw = strict.raw()
    try:
        for _ in range(40):
            try:
                raw.send(post(b"{}", path=b"/invoke/big"))
            except OSError:
                break
            time.sleep(0.01)
        assert resident() - before < 80 << 20
        until(lambda: open_connections(strict) == 0, "it is dropped", PATIENCE_S)
    finally:
        raw.close()


def open_connections(server: Any) -> int:
    """Established connections to the server, as the kernel sees them."""
    port = f":{server.port:04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[1].endswith(port) and row[3] == "01" for row in rows)


def test_too_many_connections(strict: Any, until: Any) -> None:
    until(lambda: open_connections(strict) == 0, "earlier connections are gone", PATIENCE_S)
    held = [strict.raw() for _ in range(8)]
    try:
        for each in held[1:]:
            each.send(b"GET /v2 HTTP/1.1\r\nhost: localhost\r\n\r\n")
            assert each.reply().status == 200
        with strict.raw() as refused:
            reply = refused.reply()
            assert "connections" in reply.refused(503, "unavailable") and reply.headers["retry-after"] == "1"
            assert refused.closed()
    finally:
        for each in held:
            each.close()
    until(lambda: open_connections(strict) == 0, "they are gone")
    assert strict.invoke("bad-echo", {"n": 1}).json() == {"n": 1}


# ---------------------------------------------------------------- starting a server


def test_port_in_use(deployed: Any, cli: Any, tmp_path: Path) -> None:
    ran = cli("serve", "--home", str(tmp_path / "home"), "--port", str(deployed.port))
    said = ran.failed(1)
    assert str(deployed.port) in said and "--port" in said


def test_home_locked_by_another_server(deployed: Any, cli: Any) -> None:
    said = cli("serve", "--home", str(deployed.home), "--port", "0").failed(1)
    assert str(deployed.process.pid) in said and "--home" in said


def test_home_of_a_newer_version(deployed: Any, cli: Any, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "home.json").write_text('{"format": 99}')
    said = cli("serve", "--home", str(home), "--port", "0").failed(1)
    assert "newer" in said and "upgrade" in said
    assert (home / "home.json").read_text() == '{"format": 99}'


def test_homes_that_are_none(deployed: Any, cli: Any, tmp_path: Path) -> None:
    (tmp_path / "letters.txt").write_text("dear")
    assert "--home" in cli("serve", "--home", str(tmp_path), "--port", "0").failed(1)
    assert "letters.txt" in cli("serve", "--home", str(tmp_path / "letters.txt"), "--port", "0").failed(1)
    assert (tmp_path / "letters.txt").read_text() == "dear"


def test_options_of_serve_that_cannot_be_meant(deployed: Any, cli: Any, tmp_path: Path) -> None:
    plain = ("serve", "--home", str(tmp_path / "home"))
    for words, complaint in [
        (("--keepalive", "forever"), "fixed"), (("--keepalive", "fixed:ttl=soon"), "soon"),
        (("--port", "99999"), "65535"), (("--memory", "1KB"), "64MB"), (("--memory", "much"), "much"),
        (("--drain", "-1s"), "-1s"),
    ]:  # fmt: skip
        assert complaint in cli(*plain, *words).failed(2)
    assert not (tmp_path / "home").exists()


def test_no_server_at_all(deployed: Any, cli: Any) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        for words in (("ls",), ("ps",), ("invoke", "x"), ("logs", "x"), ("rm", "x")):
            assert "rewarm serve" in cli(*words, "--url", url).failed(1)
    assert "URL" in cli("ls", "--url", "ftp://x").failed(2)


def test_what_answers_is_no_rewarm(deployed: Any, cli: Any) -> None:
    class Stranger(threading.Thread):
        def __init__(self) -> None:
            super().__init__(daemon=True)
            self.sock = socket.create_server(("127.0.0.1", 0))

        def run(self) -> None:
            connection, _ = self.sock.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nhi")

    stranger = Stranger()
    stranger.start()
    said = cli("ls", "--url", f"http://127.0.0.1:{stranger.sock.getsockname()[1]}").failed(1)
    stranger.join()
    stranger.sock.close()
    assert "not a rewarm server" in said


def test_a_wrong_answer_needs_no_new_connection(deployed: Any) -> None:
    connection = http.client.HTTPConnection(deployed.host, deployed.port, timeout=10)
    try:
        for path, body, status in [
            ("/invoke/bad-echo", "{", 400), ("/invoke/nothing", "{}", 404),
            ("/v2/models/bad-double/infer", "{}", 400), ("/invoke/bad-echo", "{}", 200),
        ]:  # fmt: skip
            connection.request("POST", path, body)
            response = connection.getresponse()
            response.read()
            assert response.status == status and not response.will_close
    finally:
        connection.close()
