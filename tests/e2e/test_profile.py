"""Measuring a function and batching with what was measured, on a real server with the real command line."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

#: 10 ms, half a millisecond more for each event, and 5 µs for each byte that padding to the longest makes.
APP = """
import time, rewarm

@rewarm.function(batched=True, memory="256MB")
def sleeper(events, contexts):
    longest = max(len(event.get("text", "")) for event in events)
    time.sleep(0.010 + 0.0005 * len(events) + 5e-6 * len(events) * longest)
    return [len(events)] * len(events)
"""
ALONE = "def handler(event, context):\n    return 1\n"


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("profile") / "app.py"
    path.write_text(APP)
    return path


def deploy(server: Any, path: Path, *options: str) -> Any:
    ran = server.cli("deploy", str(path), *options, "--json")
    assert ran.code == 0, ran
    return ran.json()


def test_from_a_measurement_to_a_policy_that_plans_with_it(start: Any, app: Path) -> None:
    server = start()
    batch = ("--batching", "batch:max_size=4", "--slo", "200ms")
    refused = server.cli("deploy", str(app), *batch).failed(2)
    assert "run: rewarm profile sleeper" in refused
    assert server.cli("ls", "--json").json()["functions"] == [], "what was refused left nothing"

    deploy(server, app, "--batching", "none")
    assert "measure one with: rewarm profile sleeper" in server.cli("profile", "sleeper", "--show").failed(2)
    ran = server.cli("profile", "sleeper", "--sizes", "8, 1,4", "--repeat", "3", "--json")
    assert ran.code == 0, ran
    found = ran.json()
    assert (found["name"], found["version"], found["stale"], found["body_bytes"]) == ("sleeper", 1, False, [2])
    assert found["sizes"] == [1, 4, 8]
    assert [(row["size"], row["run_ms"]["count"]) for row in found["rows"]] == [(1, 3), (4, 3), (8, 3)]
    for size, run_s in zip(found["sizes"], found["run_s"][0], strict=True):
        assert 0.010 + 0.0005 * size <= run_s < 0.1
    assert [f["name"] for f in server.get("/api/v1/functions")["functions"]] == ["sleeper"], "the twin is gone"
    assert server.stats("sleeper")["requests"] == 0, "the function itself was not called"

    assert deploy(server, app, *batch)["version"] == 2
    server.warm("sleeper")
    replies = server.invoke_many("sleeper", [{}] * 64)
    assert {reply.status for reply in replies} == {200}
    assert 2 <= max(int(reply.headers["rewarm-batch-size"]) for reply in replies) <= 4
    assert server.stats("sleeper")["batching"]["size"] == 4
    assert "batches with its profile" in server.cli("profile", "sleeper", "--remove").failed(2)

    home = server.home
    server.stop()
    again = start(home=home)
    assert again.function("sleeper")["batching"]["name"] == "batch", "a restart finds the profile again"
    assert again.invoke("sleeper").json() == 1
    shown = again.cli("profile", "sleeper", "--show")
    assert "measured of sleeper version 1" in shown.out and "stale" not in shown.out

    deploy(again, app, "--memory", "512MB", "--batching", "none")
    assert "stale: what is deployed now is other code" in again.cli("profile", "sleeper", "--show").out
    assert again.cli("profile", "sleeper", "--show", "--json").json()["stale"] is True
    assert "rewarm profile sleeper" in again.cli("deploy", str(app), *batch, "--memory", "512MB").failed(2)
    assert again.cli("profile", "sleeper", "--remove").out == "removed the profile of sleeper\n"
    assert "there is no profile of 'sleeper'" in again.cli("profile", "sleeper", "--remove").failed(2)


def test_mbs_sorts_by_size(start: Any, app: Path, tmp_path: Path) -> None:
    server = start()
    deploy(server, app)
    (tmp_path / "long.json").write_text(json.dumps({"text": "x" * 4000}))
    ran = server.cli(
        "profile", "sleeper", "--data", '{"text": "x"}', "--also-file", str(tmp_path / "long.json"),
        "--sizes", "1,4", "--repeat", "2", "--json",
    )  # fmt: skip
    assert ran.code == 0, ran
    found = ran.json()
    assert found["body_bytes"] == [13, 4012]
    assert found["run_s"][1][1] > found["run_s"][0][1] + 0.05

    deploy(server, app, "--batching", "mbs:buffers=2,max_size=4", "--slo", "500ms")
    server.warm("sleeper")
    texts = [{"text": "x" * (10 if i % 2 else 4000)} for i in range(160)]
    assert {reply.status for reply in server.invoke_many("sleeper", texts)} == {200}
    figures = server.stats("sleeper")["batching"]
    assert figures["buffers"] == 2
    # Blind batches of four hold a long one in 15 of 16 cases, which about doubles what is computed.
    assert figures["padding_overhead"] < 0.4
    page = server.call("GET", "/metrics").body.decode()
    assert 'rewarm_batching{figure="buffers",function="sleeper"} 2.0' in page


def test_measuring_does_not_disturb_callers_and_can_be_taken_over(server: Any) -> None:
    server.deploy(APP, select="sleeper", name="beside")
    answers: list[int] = []
    stop = threading.Event()

    def call() -> None:
        while not stop.is_set():
            answers.append(server.invoke("beside").status)

    caller = threading.Thread(target=call)
    caller.start()
    try:
        # Somebody began before and went away: his twin is replaced.
        began = server.call("POST", "/api/v1/functions/beside/profile/twin", '{"max_size": 2}')
        assert began.status == 201 and began.json()["twin"] == "beside.profiling"
        server.warm("beside.profiling")  # `ps` tells whose memory it is, `ls` what is deployed
        assert not [f for f in server.get("/api/v1/functions")["functions"] if f["name"] == "beside.profiling"]
        ran = server.cli("profile", "beside", "--sizes", "1,2", "--repeat", "2")
    finally:
        stop.set()
        caller.join()
    assert ran.code == 0 and "kept as the profile of beside version 1" in ran.out, ran
    assert set(answers) == {200}
    ended = server.call("DELETE", "/api/v1/functions/beside/profile/twin")
    assert ended.json() == {"name": "beside", "ended": False}


def test_removing_a_function_ends_its_twin(server: Any) -> None:
    server.deploy(APP, select="sleeper", name="gone")
    assert server.call("POST", "/api/v1/functions/gone/profile/twin", '{"max_size": 2}').status == 201
    assert server.invoke("gone.profiling", timeout_s=20.0, rewarm_timeout_ms="1").status == 504
    assert server.call("DELETE", "/api/v1/functions/gone").status == 200
    assert server.invoke("gone.profiling").status == 404


def test_a_profile_of_other_code_is_not_taken(server: Any) -> None:
    server.deploy(APP, select="sleeper", name="raced")
    began = server.call("POST", "/api/v1/functions/raced/profile/twin", '{"max_size": 1}').json()
    profile = {"digest": began["digest"], "sizes": [1], "body_bytes": [2], "run_s": [[0.01]]}
    path = "/api/v1/functions/raced/profile"
    assert server.call("PUT", path, json.dumps(profile)).status == 200
    server.call("DELETE", "/api/v1/functions/raced/profile/twin")
    server.deploy(APP + "\n# changed\n", select="sleeper", name="raced")
    message = server.call("PUT", path, json.dumps(profile)).refused(422, "bad_definition")
    assert "measure again: rewarm profile raced" in message
    assert server.get(path)["stale"] is True


@pytest.mark.parametrize(
    ("verb", "path", "body", "status", "code", "says"),
    [
        ("GET", "nobody/profile", None, 404, "not_found", "no function 'nobody'"),
        ("PUT", "nobody/profile", "{}", 404, "not_found", "no function 'nobody'"),
        ("POST", "nobody/profile/twin", "{}", 404, "not_found", "no function 'nobody'"),
        ("PUT", "alone/profile", "{", 400, "bad_request", "the body is not JSON"),
        ("PUT", "alone/profile", "[]", 422, "bad_definition", "sizes, body_bytes and run_s"),
        ("PUT", "alone/profile", '{"sizes": [2], "body_bytes": [1], "run_s": [[1]]}', 422, "bad_definition", "with 1"),
        ("PUT", "alone/profile", "1" * (2 << 20), 413, "body_too_large", "bytes of JSON at most"),
        ("POST", "alone/profile/twin", "{}", 422, "bad_definition", "max_size must be a whole number from 1 to 256"),
        ("POST", "alone/profile/twin", '{"max_size": 999}', 422, "bad_definition", "not 999"),
        ("POST", "alone/profile/twin", '{"max_size": 2}', 422, "bad_definition", "one event at a time"),
        ("PATCH", "alone/profile", "{}", 405, "method_not_allowed", ""),
    ],
)
def test_bad_requests(server: Any, verb: str, path: str, body: str | None, status: int, code: str, says: str) -> None:
    server.deploy(ALONE, handler="app.handler", name="alone")
    assert says in server.call(verb, f"/api/v1/functions/{path}", body).refused(status, code)


def test_what_cannot_be_measured(server: Any) -> None:
    server.deploy(ALONE, handler="app.handler", name="alone")
    assert "takes one event at a time" in server.cli("profile", "alone").failed(2)
    assert server.cli("profile", "alone", "--sizes", "1", "--repeat", "1").code == 0
    server.deploy("def handler(events, contexts):\n    return 1 / 0\n", handler="app.handler", name="bad", batched=True)
    assert "division by zero" in server.cli("profile", "bad", "--sizes", "1,2").failed(5)
    server.deploy("import os\n\n\ndef handler(events, contexts):\n    os._exit(3)\n", handler="app.handler",
                  name="dies", batched=True)  # fmt: skip
    server.cli("profile", "dies", "--sizes", "1,2").failed(5)
    assert "there is no function 'nobody'" in server.cli("profile", "nobody").failed(2)
    assert not [f for f in server.get("/api/v1/functions")["functions"] if f["name"].endswith(".profiling")]
