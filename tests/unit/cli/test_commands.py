"""Every command against the fake server."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result

from rewarm.cli.logs import Cursor
from rewarm.cli.ls import policy_text

Cli = Callable[..., Result]

LAYERS = ("model", "bare", "lang", "user")


def node(id: str, parent: str | None, layer: str, name: str, state: str, **more: Any) -> dict[str, Any]:
    return {
        "id": id, "parent": parent, "layer": layer, "name": name, "state": state, "resident_bytes": 0, "disk_bytes": 0,
        "startup_s": 0.0, "uses": 0, "saved_s": 0.0, "idle_s": None, "expires_in_s": None, "pid": None, "version": None,
        **more,
    }  # fmt: skip


PS: dict[str, Any] = {
    "nodes": [
        node("bare", None, "bare", "bare", "0 idle"),
        node("lang:python", None, "lang", "python", "gone"),
        node("lang:python+numpy", "lang:python", "lang", "python+numpy", "alive", pid=41, resident_bytes=25 << 20,
             startup_s=0.15, uses=3, saved_s=0.3),
        node("instance:7", "lang:python+numpy", "user", "digits", "ready", pid=42, version=3, idle_s=1.5,
             resident_bytes=30 << 20, uses=12, expires_in_s=598.5),
        node("instance:8", "lang:python+numpy", "user", "digits", "busy", pid=43, version=3, resident_bytes=31 << 20),
        node("instance:9", "lang:python", "user", "words", "ready", pid=44, version=1, idle_s=0.1),
        node("lang:microvm-256mb+python", None, "lang", "microvm-256mb+python", "alive", disk_bytes=80 << 20),
        node("asleep:vision", "lang:microvm-256mb+python", "asleep", "vision", "asleep", disk_bytes=150 << 20,
             startup_s=0.28, uses=5, saved_s=7.0, idle_s=3.0),
    ],
    "ledger": {"budget_bytes": 2 << 30, "held_bytes": 86 << 20,
               "by_layer": {"model": 0, "asleep": 0, "bare": 0, "lang": 25 << 20, "user": 61 << 20},
               "disk": {"budget_bytes": 20 << 30, "held_bytes": 230 << 20}},
    "microvms": {"accelerator": "tcg", "boots": 1, "restores": 7, "retries": 1, "hung": 1, "published": 2, "lost": 0,
                 "policies": {"layered": 5, "lazy": 2}},
    "meter": {"used_mb_s": 1234.5, "wasted_mb_s": 7.0, "evictions": 2, "starts": {"cold": 1}},
    "models": [{
        "key": "7d58f63c9c9d" * 5, "functions": ["words"], "pin": "auto", "weights_bytes": 304 << 20,
        "streamed_bytes": 216 << 20, "pinned_bytes": 97 << 20, "held_bytes": 97 << 20, "locked": False,
        "bandwidth_bytes_s": 1e9, "cold_per_h": 2.0, "expected_ttfi_ms": 128.4, "read_bytes": None,
        "last_load": {"ttfi_ms": 121.8, "bubble_ms": 3.0},
    }],
}  # fmt: skip


@pytest.fixture
def handler(tmp_path: Path) -> Path:
    path = tmp_path / "handler.py"
    path.write_text("def main(event, context): return event\n")
    return path


def test_deploy_ships_the_file_with_what_was_asked_for(cli: Cli, fake: Any, handler: Path) -> None:
    found = cli(
        "deploy", str(handler), "--handler", "handler.main", "--name", "echo", "--memory", "512MB", "--slo", "200ms",
        "--batching", "dynamic:max_size=5,max_wait=300ms", "--keepalive", "fixed:ttl=1min", "--max-instances", "1",
        "--preload", "numpy, json", "--env", "A=1", "--env", "B=x=y", "--url", fake.url,
    )  # fmt: skip
    assert found.exit_code == 0, found.output
    assert found.stdout.splitlines()[0] == "deployed echo version 3 (sha256 cdcdcdcdcdcd)"
    assert "rewarm invoke echo" in found.stdout
    assert fake.functions["echo"]["files"] == ["handler.py"]
    assert fake.functions["echo"]["manifest"] == {
        "file": "handler.py", "select": None, "handler": "handler.main", "name": "echo",
        "overrides": {
            "memory": "512MB", "slo": "200ms", "batching": "dynamic:max_size=5,max_wait=300ms",
            "keepalive": "fixed:ttl=1min", "max_instances": 1, "preload": ["numpy", "json"],
            "env": {"A": "1", "B": "x=y"},
        },
    }  # fmt: skip


def test_deploy_as_json_and_unchanged(cli: Cli, fake: Any, handler: Path) -> None:
    done = {"name": "handler", "version": 2, "digest": "ef" * 32, "unchanged": True}
    fake.replies["PUT /api/v1/functions"] = lambda _: (201, {}, json.dumps(done).encode())
    args = ("deploy", str(handler), "--handler", "handler.main", "--url", fake.url)
    assert json.loads(cli(*args, "--json").stdout) == done
    assert cli(*args).stdout.startswith("unchanged handler version 2")


@pytest.mark.parametrize(
    ("inputs", "data"),
    [
        ([{"name": "x", "dtype": "float32", "shape": [3]}], "'[0,0,0]'"),
        ([{"name": "x", "dtype": "bool", "shape": [-1, 2]}], "'[[false,false]]'"),
        ([{"name": "x", "dtype": "object", "shape": []}], "'\"\"'"),
        ([{"name": n, "dtype": "int8", "shape": []} for n in "ab"], '\'{"a":0,"b":0}\''),
        ([{"name": "x", "dtype": "float32", "shape": [784]}], "…"),
        ([{"name": "x", "dtype": "float32", "shape": [1]}, {"name": "y"}], "…"),
        ([], "…"),
    ],
)
def test_deploy_shows_a_call_that_can_be_pasted(
    cli: Cli, fake: Any, handler: Path, inputs: list[Any], data: str
) -> None:
    fake.replies["GET /api/v1/functions/handler"] = lambda _: (
        200,
        {},
        json.dumps({"spec": {"inputs": inputs}}).encode(),
    )
    found = cli("deploy", str(handler), "--handler", "handler.main", "--url", fake.url)
    assert found.stdout.splitlines()[-1] == f"next: rewarm invoke handler --data {data} --url {fake.url}"


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("def main(:\n", "SyntaxError"),
        ("import no_such_package\n", "no_such_package"),
        ("def other(event, context): ...\n", "main"),
    ],
)
def test_deploy_of_what_does_not_import_is_the_callers_mistake(
    cli: Cli, fake: Any, handler: Path, source: str, complaint: str
) -> None:
    handler.write_text(source)
    found = cli("deploy", str(handler), "--handler", "handler.main", "--url", fake.url, "--json")
    assert found.exit_code == 2
    assert json.loads(found.stdout)["code"] == "start_failed"
    assert complaint in found.stderr


def test_invoke_without_a_body_points_at_data(cli: Cli, fake: Any) -> None:
    fake.fail("POST /invoke/f", 400, "bad_tensor", "the body has no input 'x'")
    assert "hint: give a body: rewarm invoke f --data JSON" in cli("invoke", "f", "--url", fake.url).stderr
    assert "hint" not in cli("invoke", "f", "--data", "[1]", "--url", fake.url).stderr


def test_invoke_prints_the_answer_and_where_the_time_went(cli: Cli, fake: Any) -> None:
    fake.deploy("f")
    found = cli("invoke", "f", "--data", '{"a": [1, 2]}', "--headers", "--url", fake.url)
    assert found.stdout == '{"a": [1, 2]}\n'
    assert "Rewarm-Run-Ms: 1.25" in found.stderr
    assert cli("invoke", "f", "--url", fake.url).stdout == "{}\n"


def test_invoke_as_json(cli: Cli, fake: Any) -> None:
    fake.deploy("f")
    found = cli("invoke", "f", "--data", "[1]", "--count", "2", "--json", "--url", fake.url)
    lines = [json.loads(line) for line in found.stdout.splitlines()]
    assert lines == 2 * [
        {"status": 200, "start": "warm", "queue_ms": 0.5, "init_ms": 0.0, "run_ms": 1.25, "batch_size": 1, "body": [1]}
    ]


def test_invoke_bodies_from_files(cli: Cli, fake: Any, tmp_path: Path) -> None:
    fake.deploy("f")
    (tmp_path / "one.json").write_text("[0.5]")
    (tmp_path / "one.bin").write_bytes(b"\x00\x01\xff")
    np.savez(tmp_path / "a.npz", images=np.array([[0, 255], [51, 102]], dtype=np.uint8))
    npz = f"{tmp_path / 'a.npz'}:images"

    def sent(*args: str, input: bytes | None = None) -> tuple[bytes, str]:
        found = cli("invoke", "f", *args, "--json", "--url", fake.url, input=input)
        assert found.exit_code == 0, found.output
        return fake.asked[-1].body, fake.asked[-1].headers["content-type"]

    assert sent("--file", str(tmp_path / "one.json")) == (b"[0.5]", "application/json")
    assert sent("--file", "-", input=b"[2]") == (b"[2]", "application/json")
    assert sent("--raw-file", str(tmp_path / "one.bin")) == (b"\x00\x01\xff", "application/octet-stream")
    assert json.loads(sent("--npz", f"{npz}[1]", "--divide", "255")[0]) == [0.2, 0.4]
    assert json.loads(sent("--npz", npz)[0]) == [[0, 255], [51, 102]]
    raw = cli("invoke", "f", "--raw-file", str(tmp_path / "one.bin"), "--url", fake.url)
    assert raw.stdout_bytes == b"\x00\x01\xff"


@pytest.mark.parametrize(("npz", "complaint"), [("labels", "no array"), ("images[9]", "2 rows"), ("", "FILE:KEY")])
def test_npz_slips_are_told(cli: Cli, tmp_path: Path, npz: str, complaint: str) -> None:
    np.savez(tmp_path / "a.npz", images=np.zeros((2, 2)))
    found = cli("invoke", "f", "--npz", f"{tmp_path / 'a.npz'}:{npz}")
    assert found.exit_code == 2
    assert complaint in found.stderr


def test_ls(cli: Cli, fake: Any) -> None:
    assert "nothing is deployed" in cli("ls", "--url", fake.url).stdout
    fake.deploy("digits", batching={"name": "dynamic", "max_size": 5, "max_wait_s": 0.3}, weights_bytes=2048)
    fake.deploy("broken", ready=False, last_error="ImportError: no module named x")
    text = cli("ls", "--url", fake.url).stdout
    assert "dynamic max_size=5 max_wait=300.0 ms" in text
    assert "2.0 KB" in text
    assert "failed: ImportError" in text
    found = json.loads(cli("ls", "--json", "--url", fake.url).stdout)
    assert [function["name"] for function in found["functions"]] == ["digits", "broken"]
    assert policy_text("fixed:ttl=1min") == "fixed:ttl=1min"


def test_ps(cli: Cli, fake: Any) -> None:
    empty = {
        "nodes": PS["nodes"][:1], "microvms": {"boots": 0, "restores": 0},
        "ledger": {**PS["ledger"], "held_bytes": 0, "by_layer": dict.fromkeys(LAYERS, 0), "disk": {"held_bytes": 0}},
        "meter": {"used_mb_s": 0.0, "wasted_mb_s": 0.0, "evictions": 0, "starts": {}}, "models": [],
    }  # fmt: skip
    fake.replies["GET /api/v1/ps"] = lambda _: (200, {}, json.dumps(empty).encode())
    assert cli("ps", "--url", fake.url).stdout == "nothing is alive\nmemory: 0 B held of 2.0 GB (0 %)\n"
    fake.replies["GET /api/v1/ps"] = lambda _: (200, {}, json.dumps(PS).encode())
    lines = cli("ps", "--url", fake.url).stdout.splitlines()
    assert [line[:35].rstrip() for line in lines[2:10]] == [
        "bare",
        "lang python",
        "├─ lang python+numpy",
        "│  ├─ digits                 7",
        "│  └─ digits                 8",
        "└─ words                     9",
        "lang microvm-256mb+python",
        "└─ asleep vision",
    ]
    assert "150.0 MB" in lines[9] and "280.0 ms" in lines[9]
    for part in ("41", "25.0 MB", "150.0 ms", "300.0 ms"):
        assert part in lines[4]
    assert "10.0 min" in lines[5] and "busy" in lines[6]
    (model,) = (line for line in lines if line.startswith("7d58f63c9c9d"))
    for part in ("words", "304.0 MB", "97.0 MB (touched)", "128 ms", "122 ms", "3 ms"):
        assert part in model
    assert lines[-4:-1] == [
        "memory: 86.0 MB held of 2.0 GB (4 %): user 61.0 MB, lang 25.0 MB",
        "disk: 230.0 MB of snapshots, 20.0 GB at most",
        "micro-VMs on TCG: 1 booted, 7 restored (layered 5, lazy 2), 1 tried again, 1 hung",
    ]
    assert lines[-1] == "idle memory so far: 1,234 MB·s used, 7 MB·s wasted, 2 layers evicted"
    assert json.loads(cli("ps", "--json", "--url", fake.url).stdout) == PS


def test_logs(cli: Cli, fake: Any) -> None:
    lines = [{"t_s": 10.25, "instance": 7, "text": "hello"}, {"t_s": 11.0, "instance": 8, "text": "[bold]as is[/bold]"}]
    fake.replies["GET /api/v1/functions/f/logs"] = lambda _: (200, {}, json.dumps({"lines": lines}).encode())
    text = cli("logs", "f", "--tail", "2", "--instance", "7", "--url", fake.url).stdout
    assert ".250 [7] hello" in text
    assert "[8] [bold]as is[/bold]" in text
    assert fake.asked[-1].query == {"tail": ["2"], "instance": ["7"]}
    assert json.loads(cli("logs", "f", "--json", "--url", fake.url).stdout) == {"lines": lines}


def test_logs_of_an_instance_that_is_not_there_and_of_what_prints_nothing(cli: Cli, fake: Any) -> None:
    fake.replies["GET /api/v1/functions/f/logs"] = lambda _: (200, {}, b'{"lines": []}')
    fake.instances["instances"] = [{"id": 7, "function": "f"}, {"id": 8, "function": "g"}]
    for args in ((), ("--instance", "7")):
        found = cli("logs", "f", *args, "--url", fake.url)
        assert (found.exit_code, found.stdout, found.stderr) == (0, "", "f has printed nothing\n")
    for unknown in ("8", "99"):
        found = cli("logs", "f", "--instance", unknown, "--url", fake.url)
        assert found.exit_code == 2
        assert found.stderr.startswith(f"error: f has no instance {unknown}; rewarm ps")


def test_a_follower_sees_every_line_once() -> None:
    def line(t_s: float, text: str) -> dict[str, Any]:
        return {"t_s": t_s, "instance": 1, "text": text}

    cursor = Cursor()
    assert len(cursor.new([line(1, "a"), line(2, "b")])) == 2
    assert cursor.new([line(1, "a"), line(2, "b")]) == []
    # The same text at the same time is another line; one that came a poll later with an equal time is new as well.
    assert cursor.new([line(2, "b"), line(2, "b"), line(2, "c")]) == [line(2, "b"), line(2, "c")]
    assert cursor.new([line(2, "b"), line(2, "b"), line(2, "c"), line(3, "d")]) == [line(3, "d")]


def test_rm(cli: Cli, fake: Any) -> None:
    fake.deploy("f")
    fake.deploy("g")
    assert cli("rm", "f", "--url", fake.url).stdout == "removed f\n"
    assert json.loads(cli("rm", "g", "--json", "--url", fake.url).stdout) == {"name": "g", "removed": True}
    assert fake.functions == {}


def test_load_measures_and_reports(cli: Cli, fake: Any) -> None:
    fake.deploy("f", slo_s=5.0)
    args = ("load", "f", "--rate", "50", "--duration", "200ms", "--data", "[1]", "--warmup", "--url", fake.url)
    report = json.loads(cli(*args, "--json").stdout)
    assert (report["sent"], report["ok"], report["errors"]) == (10, 10, {})
    assert report["slo_ms"] == 5000
    assert report["slo_pct"] == 100
    assert report["starts"] == {"warm": 10}
    assert report["batch_sizes"] == {"1": 10}
    assert 0 < report["latency_ms"]["p50"] <= report["latency_ms"]["p99"] <= report["latency_ms"]["max"]
    assert any(asked.path == "/api/v1/functions/f/load" for asked in fake.asked)
    text = cli(*args, "--pattern", "poisson").stdout
    assert "latency p99" in text
    assert "within 5000 ms" in text


def test_load_counts_errors_by_code(cli: Cli, fake: Any) -> None:
    fake.deploy("f")
    fake.fail("POST /invoke/f", 429, "queue_full", "full")
    args = ("load", "f", "--rate", "50", "--duration", "100ms", "--slo", "1s", "--url", fake.url)
    report = json.loads(cli(*args, "--json").stdout)
    assert report["errors"] == {"queue_full": 5}
    assert report["slo_pct"] == 0
    assert "error queue_full" in cli(*args).stdout


def test_load_that_fails_altogether_says_so(cli: Cli, fake: Any) -> None:
    fake.deploy("f")
    args = ("load", "f", "--rate", "50", "--duration", "100ms", "--url", fake.url)
    fake.fail("POST /invoke/f", 500, "function_error", "ValueError: no")
    found = cli(*args)
    assert found.exit_code == 5
    assert re.search(r"latency p99 +– *\n", found.stdout)
    assert "all requests failed, most with function_error\nhint: rewarm logs f" in found.stderr
    found = cli(*args, "--json")
    assert found.exit_code == 5
    assert set(json.loads(found.stdout)["latency_ms"].values()) == {None}
    fake.fail("POST /invoke/f", 429, "queue_full", "full")
    found = cli(*args)
    assert found.exit_code == 3
    assert "hint" not in found.stderr


def test_load_of_an_unknown_function_sends_nothing(cli: Cli, fake: Any) -> None:
    found = cli("load", "gone", "--url", fake.url)
    assert found.exit_code == 2
    assert not any(asked.verb == "POST" for asked in fake.asked)


def test_doctor_needs_no_server_and_leaves_nothing(cli: Cli, fake: Any, tmp_path: Path) -> None:
    home = tmp_path / "not" / "there"
    found = cli("doctor", "--home", str(home), "--url", "http://127.0.0.1:1", "--json")
    assert found.exit_code == 0
    told = json.loads(found.stdout)
    keys = {check["key"] for check in told["checks"]}
    assert {"python", "kernel", "memory", "pdeathsig", "userns", "uffd", "pidfd", "memfd", "psi", "cgroup", "kvm",
            "namespaces", "nofile", "numpy", "onnxruntime", "torch", "wrk", "disk"} <= keys  # fmt: skip
    assert told["driver"]["chosen"] == "process"
    assert told["server"]["answers"] is False
    assert list(tmp_path.iterdir()) == []
    text = cli("doctor", "--home", str(tmp_path), "--url", fake.url).stdout
    assert "driver: process: " in text
    assert f"version 0.1.0 answers at {fake.url}" in text
