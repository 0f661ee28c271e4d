"""What a deploy may meet: running calls, code that does things while it is imported, broken files, foreign pages."""

from __future__ import annotations

import json
import shutil
import signal
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.e2e

HELLO = "def handler(event, context):\n    return 'hello'\n"
PATIENT = """
import pathlib, time


def handler(event, context):
    pathlib.Path(event["began"]).touch()
    end = time.monotonic() + 30
    while not pathlib.Path(event["go"]).exists() and time.monotonic() < end:
        time.sleep(0.01)
    import late
    return late.VALUE
"""


def command_lines() -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace"))
        except OSError:
            pass
    return found


def zombies(parent: int) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = path.read_text().rpartition(")")
        except OSError:
            continue
        if rest.split()[:2] == ["Z", str(parent)]:
            found.append(name)
    return found


def test_code_stays_until_its_last_call_is_answered(
    start: Callable[..., Any], until: Callable[..., Any], tmp_path: Path
) -> None:
    server = start()
    server.deploy(PATIENT, handler="app.handler", name="f", others={"late.py": b"VALUE = 'late'\n"})
    old = list((server.home / "artifacts").iterdir())
    began, go = tmp_path / "began", tmp_path / "go"
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(server.invoke, "f", {"began": str(began), "go": str(go)})
        try:
            until(began.exists, "the call runs")
            for version in (2, 3):
                assert server.deploy(f"# {version}\n{HELLO}", handler="app.handler", name="f")["version"] == version
            assert server.invoke("f").json() == "hello"
        finally:
            go.touch()
        reply = answer.result()
    assert (reply.status, reply.json()) == (200, "late")
    until(lambda: all(i["version"] == 3 for i in server.instances("f")), "the old instance is gone")
    server.deploy(f"# 4\n{HELLO}", handler="app.handler", name="f")
    assert not old[0].exists()


def test_what_an_import_starts_ends_with_it(server: Any, until: Callable[..., Any]) -> None:
    length = f"25.{uuid.uuid4().int % 10**9}"
    source = f"""
import atexit, subprocess, threading, time

subprocess.Popen(["sleep", "{length}"])
subprocess.Popen(["sh", "-c", "sleep {length} & sleep {length}"])
subprocess.Popen(["sleep", "{length}"], start_new_session=True)
threading.Thread(target=time.sleep, args=(25,)).start()
atexit.register(print, "bye")
"""
    since = time.monotonic()
    server.deploy(source + HELLO, handler="app.handler", name="deploys-children")
    assert time.monotonic() - since < 10
    # A session of its own is not found before the next sweep, which follows the end of an instance.
    assert len([line for line in command_lines() if line.startswith(f"sleep {length}")]) <= 1
    assert zombies(server.process.pid) == []
    server.deploy(HELLO, handler="app.handler", name="deploys-sweep")
    server.warm("deploys-sweep")
    server.call("POST", "/api/v1/functions/deploys-sweep/unload")
    until(lambda: not any(length in line for line in command_lines()), "nothing is left of the import")


def test_a_killed_server_takes_the_import_with_it(start: Callable[..., Any], until: Callable[..., Any]) -> None:
    server = start()
    with ThreadPoolExecutor(1) as pool:
        deploy = pool.submit(server.put, "import time\ntime.sleep(60)\n" + HELLO, handler="app.handler")
        until(lambda: any("worker.inspect" in line and str(server.home) in line for line in command_lines()), "import")
        server.kill()
        assert server.process.returncode == -signal.SIGKILL
        assert deploy.exception() is not None
    until(lambda: not server.processes(), "no process is left")


def test_a_file_in_a_subfolder_is_refused(server: Any) -> None:
    said = server.put(HELLO, file="src/app.py", handler="app.handler", name="deploys-sub").refused(
        422, "bad_definition"
    )
    assert "deploy the folder that holds the file" in said and "src" in said
    server.call("GET", "/api/v1/functions/deploys-sub").refused(404, "not_found")


def test_a_function_without_its_files_can_be_removed(start: Callable[..., Any]) -> None:
    first = start()
    first.deploy(HELLO, handler="app.handler", name="f")
    first.stop()
    for folder in (first.home / "artifacts").iterdir():
        folder.chmod(0o700)
        shutil.rmtree(folder)
    server = start(home=first.home)
    server.invoke("f").refused(404, "not_found")
    assert server.call("DELETE", "/api/v1/functions/f").json() == {"name": "f", "removed": True}
    server.call("DELETE", "/api/v1/functions/f").refused(404, "not_found")
    server.deploy(HELLO, handler="app.handler", name="f")
    assert server.invoke("f").json() == "hello"


def test_a_foreign_page_cannot_reach_the_operators_routes(server: Any) -> None:
    server.deploy(HELLO, handler="app.handler", name="deploys-host")
    for host in ("evil.example", f"evil.example:{server.port}", "127.0.0.1.evil.example", "localhost@evil.example", ""):
        for verb, path in (
            ("GET", "/"), ("GET", "/api/v1/functions"), ("PUT", "/api/v1/functions"), ("GET", "/metrics"),
            ("DELETE", "/api/v1/functions/deploys-host"), ("POST", "/v2/repository/models/deploys-host/unload"),
        ):  # fmt: skip
            said = server.call(verb, path, headers={"Host": host}).refused(403, "forbidden_host")
            assert repr(host) in said
    for host in ("localhost", f"LOCALHOST:{server.port}", "127.0.0.1:1", "[::1]", f"[::1]:{server.port}"):
        assert server.call("GET", "/api/v1/functions", headers={"Host": host}).status == 200
    assert server.invoke("deploys-host", Host="any.example").json() == "hello"


def test_many_large_uploads_at_once(server: Any, until: Callable[..., Any]) -> None:
    source = "def handler(event, context):\n    return len(open('data', 'rb').read())\n"

    def one(number: int) -> int:
        name = f"deploys-large-{number}"
        server.deploy(source, handler="app.handler", name=name, others={"data": bytes(3_000_000 + number)})
        return int(server.invoke(name).json())

    with ThreadPoolExecutor(5) as pool:
        assert list(pool.map(one, range(5))) == [3_000_000 + number for number in range(5)]
    with server.raw() as client:
        client.send(
            b"PUT /api/v1/functions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000000\r\n\r\n" + bytes(1 << 21)
        )
        until(lambda: any((server.home / "tmp").glob("*/upload.tar")), "the upload has begun")
    until(lambda: not any((server.home / "tmp").iterdir()), "the broken upload is gone")


def test_an_earlier_version_is_served_again(server: Any) -> None:
    refused = server.cli("rollback", "again")
    assert (refused.code, "no function" in refused.err) == (2, True)
    for word in ("one", "two", "three"):
        server.deploy(HELLO.replace("hello", word), name="again", handler="app.handler")
    kept = json.loads(server.cli("versions", "again", "--json").out)["versions"]
    assert [(found["version"], found["current"]) for found in kept] == [(3, True), (2, False)]
    assert "current" in server.cli("versions", "again").out

    done = server.cli("rollback", "again")
    assert (done.code, "deployed again version 4" in done.out) == (0, True), done
    assert server.invoke("again", {}).json() == "two"
    assert server.function("again")["digest"] == kept[1]["digest"]
    server.cli("rollback", "again")
    assert server.invoke("again", {}).json() == "three", "a second one undoes the first"

    for words, text in ((("--to", "1"), "version 1 of again is not kept; there are 4, 5"), (("--to", "0"), "--to")):
        refused = server.cli("rollback", "again", *words)
        assert (refused.code, text in refused.err) == (2, True), refused
    same = server.cli("rollback", "again", "--to", "5")
    assert (same.code, same.out.startswith("unchanged")) == (0, True), same
    server.deploy(HELLO, name="only-one", handler="app.handler")
    refused = server.cli("rollback", "only-one")
    assert (refused.code, "only version 1 is kept" in refused.err) == (2, True), refused
    assert server.invoke("only-one", {}).json() == "hello"
