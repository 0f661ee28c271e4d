"""The group: what it imports, how it fails, what it exits with."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import Result

from rewarm.bench.local_server import free_port
from rewarm.cli.main import COMMANDS

Cli = Callable[..., Result]


def test_version_and_help_name_every_command(cli: Cli) -> None:
    assert "0." in cli("--version").stdout
    text = cli("--help").stdout
    assert all(name in text for name in COMMANDS)


@pytest.mark.parametrize("name", [*COMMANDS, "experiment batching"])
def test_every_command_has_examples_and_json(cli: Cli, name: str) -> None:
    found = cli(*name.split(), "--help")
    assert found.exit_code == 0
    assert "Examples:" in found.stdout
    assert ("--json" in found.stdout) == (name not in ("experiment", "serve"))


def test_importing_the_command_line_imports_nothing_heavy() -> None:
    heavy = ("rich", "aiohttp", "numpy", "matplotlib", "asyncio", "http.client", "uvicorn", "starlette", "orjson")
    code = f"import sys, rewarm.cli.main, rewarm.cli.serve; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_python_m_rewarm_runs_the_command_line() -> None:
    done = subprocess.run([sys.executable, "-m", "rewarm", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("rewarm, version")


def test_a_server_that_is_not_there(cli: Cli) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    found = cli("ls", "--url", url)
    assert found.exit_code == 1
    assert found.stderr == f"error: no rewarm server answers at {url}; start one with: rewarm serve\n"
    assert found.stdout == ""


def test_a_server_that_is_not_there_has_a_code_of_its_own(cli: Cli) -> None:
    for url in (f"http://127.0.0.1:{free_port()}", "http://no-such-host.invalid"):
        found = cli("ls", "--json", "--url", url)
        assert found.exit_code == 1
        assert json.loads(found.stdout)["code"] == "no_server"


@pytest.mark.parametrize("group", [(), ("experiment",), ("microvm",)])
def test_a_group_without_a_command_shows_its_help_as_it_is(cli: Cli, group: tuple[str, ...]) -> None:
    found = cli(*group)
    assert found.output.rstrip("\n") == cli(*group, "--help").stdout.rstrip("\n")
    assert "error:" not in found.output


@pytest.mark.parametrize(
    ("status", "code", "exit_code"),
    [
        (400, "bad_tensor", 2),
        (404, "not_found", 2),
        (429, "queue_full", 3),
        (503, "unavailable", 3),
        (504, "deadline_exceeded", 4),
        (500, "function_error", 5),
        (502, "instance_died", 5),
        (500, "system_fault", 1),
    ],
)
def test_error_answers_become_one_line_and_the_exit_code_of_their_type(
    cli: Cli, fake: Any, status: int, code: str, exit_code: int
) -> None:
    fake.fail("POST /invoke/f", status, code, "what went wrong", retry_after_s=2.5)
    found = cli("invoke", "f", "--url", fake.url)
    assert found.exit_code == exit_code
    assert found.stderr.splitlines()[0] == "error: what went wrong"
    as_json = cli("invoke", "f", "--url", fake.url, "--json")
    assert as_json.exit_code == exit_code
    assert json.loads(as_json.stdout) == {"error": "what went wrong", "code": code, "retry_after_s": 2.5}


def test_an_error_has_a_hint(cli: Cli, fake: Any) -> None:
    fake.fail("POST /invoke/f", 500, "function_error", "ValueError: no")
    assert cli("invoke", "f", "--url", fake.url).stderr.endswith("\nhint: rewarm logs f shows what it printed\n")
    fake.fail("POST /invoke/f", 507, "out_of_memory", "killed")
    assert "hint: deploy with more --memory" in cli("invoke", "f", "--url", fake.url).stderr
    assert "hint" not in cli("rm", "gone", "--url", fake.url).stderr
    fake.fail("GET /api/v1/functions", 503, "unavailable", "draining", retry_after_s=2)
    assert "hint: try again in 2 s" in cli("ls", "--url", fake.url).stderr


def test_wrong_words_exit_with_2_and_point_at_the_help(cli: Cli) -> None:
    found = cli("invoke", "--nonsense")
    assert found.exit_code == 2
    assert found.stderr.startswith("error: ")
    assert "rewarm invoke --help" in found.stderr
    assert cli("nonsense").exit_code == 2
    as_json = cli("load", "f", "--rate", "fast", "--json")
    assert json.loads(as_json.stdout)["code"] == "usage"


@pytest.mark.parametrize(
    "args",
    [
        ("load", "f", "--duration", "5 parsecs"),
        ("serve", "--memory", "lots"),
        ("serve", "--memory", "1MB"),
        ("serve", "--port", "70000"),
        ("deploy", "app.py", "--memory", "1XB"),
        ("deploy", "app.py", "--env", "NOVALUE"),
        ("ls", "--url", "ftp://somewhere"),
        ("ls", "--url", "http://host:port"),
        ("invoke", "f", "--data", "1", "--file", "f.json"),
        ("invoke", "f", "--data", "{not json"),
        ("invoke", "f", "--file", "/nonexistent.json"),
        ("invoke", "f", "--divide", "2"),
    ],
)
def test_bad_input_is_told_without_a_traceback(cli: Cli, args: tuple[str, ...]) -> None:
    found = cli(*args)
    assert found.exit_code == 2
    assert found.stderr.startswith("error: ")
    assert len(found.stderr.splitlines()) <= 2


def test_something_else_on_the_port_is_not_taken_for_a_server(cli: Cli, fake: Any) -> None:
    fake.replies["GET /api/v1/functions"] = lambda _: (404, {"Content-Type": "text/html"}, b"<h1>nginx</h1>")
    found = cli("ls", "--url", fake.url)
    assert found.exit_code == 1
    assert "is it a rewarm server?" in found.stderr
    fake.replies["GET /api/v1/ps"] = lambda _: (200, {}, b"<h1>hello</h1>")
    assert "is not a rewarm server" in cli("ps", "--url", fake.url).stderr


def test_a_bug_is_one_line_too(cli: Cli, fake: Any) -> None:
    fake.replies["GET /api/v1/ps"] = lambda _: (200, {}, b"{}")
    found = cli("ps", "--url", fake.url)
    assert found.exit_code == 1
    assert "a bug in rewarm: KeyError" in found.stderr
    assert "REWARM_DEBUG" in found.stderr


def test_ctrl_c_exits_with_130(cli: Cli, fake: Any) -> None:
    polls = 0

    def lines(_: Any) -> Any:
        nonlocal polls
        polls += 1
        return 200, {}, b'{"lines": []}'

    fake.replies["GET /api/v1/functions/f/logs"] = lines
    command = [sys.executable, "-m", "rewarm", "logs", "f", "--follow", "--url", fake.url]
    import signal
    import time

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run in the background
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, before)
    with process:
        until_s = time.monotonic() + 10
        while polls == 0 and time.monotonic() < until_s:
            time.sleep(0.01)
        time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        try:
            _, stderr = process.communicate(timeout=10)
        finally:
            process.kill()
    assert process.returncode == 130
    assert "Traceback" not in stderr


def test_a_reader_that_goes_away_is_no_error(fake: Any) -> None:
    for index in range(3000):
        fake.deploy(f"function-{index}")
    command = f"{sys.executable} -m rewarm ls --json --url {fake.url} | head -c 10"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False, timeout=30)
    assert done.stdout == '{\n  "funct'
    assert done.stderr == ""
