"""The command line against a live server, as programs and people use it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.e2e

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
HELLO = "def handler(event, context):\n    print('hello', event)\n    return {'hello': event.get('name', 'you')}\n"


@pytest.fixture(scope="module")
def hello(server: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("hello") / "hello.py"
    path.write_text(HELLO)
    done = server.cli("deploy", str(path), "--handler", "hello.handler", "--memory", "256MB", "--env", "A=b", "--json")
    assert done.code == 0, done
    found = done.json()
    assert found["name"] == "hello" and found["version"] == 1 and len(found["digest"]) == 64
    return server


def test_deploy_says_what_to_do_next(hello: Any, tmp_path: Path) -> None:
    (tmp_path / "other.py").write_text(HELLO)
    ran = hello.cli("deploy", str(tmp_path / "other.py"), "--handler", "other.handler", "--name", "cli-other")
    assert ran.code == 0 and "deployed cli-other version 1" in ran.out and "rewarm invoke cli-other" in ran.out
    again = hello.cli("deploy", str(tmp_path / "other.py"), "--handler", "other.handler", "--name", "cli-other")
    assert again.code == 0 and "unchanged cli-other version 1" in again.out


def test_deploy_of_a_folder(hello: Any, tmp_path: Path) -> None:
    (tmp_path / "rewarm.toml").write_text('file = "main.py"\nhandler = "main.handler"\nname = "cli-folder"\n')
    (tmp_path / "main.py").write_text(
        "from helper import answer\n\n\ndef handler(event, context):\n    return answer()\n"
    )
    (tmp_path / "helper.py").write_text(
        "def answer():\n    return open(__file__.replace('helper.py', 'data.txt')).read()\n"
    )
    (tmp_path / "data.txt").write_text("from a file")
    assert hello.cli("deploy", str(tmp_path)).code == 0
    assert hello.cli("invoke", "cli-folder").out == '"from a file"\n'


def test_a_file_goes_with_the_modules_it_imports(hello: Any, tmp_path: Path) -> None:
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "__init__.py").write_text("")
    (tmp_path / "pack" / "inner.py").write_text("VALUE = 41\n")
    (tmp_path / "app.py").write_text(
        "from pack.inner import VALUE\n\n\ndef handler(event, context):\n    return VALUE + 1\n"
    )
    ran = hello.cli("deploy", str(tmp_path / "app.py"), "--handler", "app.handler", "--name", "cli-modules")
    assert ran.code == 0, ran
    assert hello.cli("invoke", "cli-modules").out == "42\n"


def test_invoke(hello: Any, tmp_path: Path) -> None:
    assert hello.cli("invoke", "hello").json() == {"hello": "you"}
    assert hello.cli("invoke", "hello", "--data", '{"name": "Ada"}').json() == {"hello": "Ada"}
    (tmp_path / "event.json").write_text('{"name": "Grün"}')
    assert hello.cli("invoke", "hello", "--file", str(tmp_path / "event.json")).json() == {"hello": "Grün"}
    assert hello.cli("invoke", "hello", "--file", "-", input='{"name": "pipe"}').json() == {"hello": "pipe"}
    ran = hello.cli("invoke", "hello", "--count", "3", "--json")
    answers = [json.loads(line) for line in ran.out.splitlines()]
    assert [answer["status"] for answer in answers] == [200] * 3
    assert answers[-1]["start"] == "warm" and answers[-1]["body"] == {"hello": "you"}
    assert "Rewarm-Start: warm" in hello.cli("invoke", "hello", "--headers").err


def test_ls_and_ps(hello: Any) -> None:
    hello.cli("invoke", "hello")
    listed = {function["name"]: function for function in hello.cli("ls", "--json").json()["functions"]}
    assert listed["hello"]["memory_bytes"] == 256 << 20 and listed["hello"]["ready"] is True
    assert "hello" in hello.cli("ls").out
    found = hello.cli("ps", "--json").json()
    mine = [instance for instance in found["instances"] if instance["function"] == "hello"]
    assert len(mine) == 1 and mine[0]["state"] == "ready" and Path(f"/proc/{mine[0]['pid']}").exists()
    assert any(lang["key"] == "python" for lang in found["langs"])
    assert 0 < found["ledger"]["held_bytes"] <= found["ledger"]["budget_bytes"]
    table = hello.cli("ps").out
    assert "lang python" in table and "─ hello" in table and str(mine[0]["pid"]) in table and "memory:" in table


def test_logs_and_rm(hello: Any, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(HELLO)
    hello.cli("deploy", str(tmp_path / "app.py"), "--handler", "app.handler", "--name", "cli-gone")
    hello.cli("invoke", "cli-gone", "--data", '{"n": 1}')
    assert "hello {'n': 1}" in hello.cli("logs", "cli-gone").out
    ran = hello.cli("rm", "cli-gone")
    assert ran.code == 0 and "removed cli-gone" in ran.out
    assert "cli-gone" in hello.cli("logs", "cli-gone").failed(2)


def test_load(hello: Any) -> None:
    ran = hello.cli(
        "load",
        "hello",
        "--rate",
        "100",
        "--duration",
        "1s",
        "--pattern",
        "poisson",
        "--slo",
        "500ms",
        "--warmup",
        "--json",
    )
    assert ran.code == 0, ran
    found = ran.json()
    assert found["sent"] == found["ok"] > 50 and found["errors"] == {}
    assert 0 < found["latency_ms"]["p50"] <= found["latency_ms"]["p99"] <= found["latency_ms"]["max"]
    assert found["slo_pct"] > 50
    assert "latency p99" in hello.cli("load", "hello", "--rate", "20", "--duration", "0.3s").out


def test_load_on_what_fails(hello: Any, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("def handler(event, context):\n    raise ValueError('always')\n")
    hello.cli("deploy", str(tmp_path / "app.py"), "--handler", "app.handler", "--name", "cli-fails")
    found = hello.cli("load", "cli-fails", "--rate", "20", "--duration", "0.5s", "--json").json()
    assert found["ok"] == 0 and sum(found["errors"].values()) == found["sent"] == 10
    said = hello.cli("invoke", "cli-fails").failed(5)
    assert "ValueError: always (app.py line 2)" in said
    told = hello.cli("invoke", "cli-fails", "--json")
    assert told.json()["code"] == "function_error"


def test_doctor(hello: Any) -> None:
    found = hello.cli("doctor", "--home", str(hello.home.parent), "--json").json()
    assert found["server"]["answers"] is True and found["server"]["pid"] == hello.process.pid
    assert found["driver"]["chosen"] == "process" and found["checks"]
    assert "driver:" in hello.cli("doctor", "--home", str(hello.home.parent)).out


def test_help_of_every_command(cli: Any) -> None:
    said = cli("--help")
    assert said.code == 0
    for name in ("serve", "deploy", "invoke", "ls", "ps", "logs", "rm", "load", "experiment", "doctor"):
        assert name in said.out
    assert "rewarm --help" in cli("dance").err


def test_the_digits_example(server: Any) -> None:
    pytest.importorskip("onnxruntime")
    folder = EXAMPLES / "digits"
    assert server.cli("deploy", str(folder / "app.py"), "--json").json()["name"] == "digits"
    digits = np.load(folder / "test_digits.npz")
    images, labels = digits["images"].astype(np.float32) / 255, digits["labels"]
    replies = server.invoke_many("digits", images[:100].tolist(), threads=16)
    right = sum(int(np.argmax(reply.json())) == label for reply, label in zip(replies, labels, strict=False))
    assert right >= 97
    ran = server.cli("invoke", "digits", "--npz", f"{folder / 'test_digits.npz'}:images[7]", "--divide", "255")
    assert int(np.argmax(ran.json())) == labels[7]
    assert server.stats("digits")["inits"] <= 2


def test_the_lambda_example(server: Any) -> None:
    path = EXAMPLES / "lambda" / "handler.py"
    assert server.cli("deploy", str(path), "--handler", "handler.main", "--name", "words").code == 0
    found = server.cli("invoke", "words", "--data", '{"text": "to be or not to be"}').json()
    assert found["counts"]["words"] == 6 and found["counts"]["top"][0] == ["be", 2]


@pytest.mark.slow
def test_the_published_experiment(cli: Any, tmp_path: Path) -> None:
    ran = cli("experiment", "batching", "--duration", "1s", "--out", str(tmp_path), "--json", timeout_s=180.0)
    assert ran.code == 0, ran
    found = ran.json()
    assert found["experiment"] == "batching" and len(found["rows"]) == 10
    assert all(row["errors"] == 0 for row in found["rows"])
    assert {path.name for path in tmp_path.iterdir()} == {"batching.json", "batching.md", "batching.svg"}
