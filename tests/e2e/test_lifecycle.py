"""Instances and servers that come, go, crash and are killed; nobody's request and no process may get lost."""

from __future__ import annotations

import http.client
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

pytestmark = pytest.mark.e2e

HELLO = "import os\n\n\ndef handler(event, context):\n    return {'pid': os.getpid(), 'event': event}\n"
SUM = "import rewarm\n\n\n@rewarm.function\nclass Sum:\n    def predict(self, x):\n        return x.sum(axis=1)\n"
SLOW = "import time\n\n\ndef handler(event, context):\n    time.sleep(event['s'])\n    return event\n"
BATCHES = """
import time
import rewarm

time.sleep(0.05)


@rewarm.function(inputs={"x": rewarm.Tensor("float32", [1])}, batching=rewarm.Dynamic(max_size=8, max_wait=0))
class Batches:
    def predict(self, x):
        time.sleep(0.002)
        return x + 1
"""
TROUBLE = """
import ctypes
import os
import signal
import sys
import time


def handler(event, context):
    do = event.get("do")
    if do == "exit":
        os._exit(7)
    if do == "quit":
        os._exit(0)
    if do == "sys.exit":
        sys.exit(5)
    if do == "segfault":
        ctypes.string_at(0)
    if do == "abort":
        os.abort()
    if do == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if do == "hang":
        time.sleep(600)
    if do == "spin":
        while True:
            pass
    if do == "deaf":
        signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals))
        time.sleep(600)
    if do == "memory":
        return len(bytearray(1 << 30))
    if do == "recursion":
        return handler_again(event)
    if do == "close":
        os.closerange(0, 100)
    if do == "scribble":
        os.write(3, b"x" * 4096)
        time.sleep(600)
    return os.getpid()


def handler_again(event):
    return handler_again(event)
"""


def pids(server: Any, name: str) -> list[int]:
    return [instance["pid"] for instance in server.instances(name)]


def last_line(server: Any, name: str) -> str:
    lines = server.get(f"/api/v1/functions/{name}/logs?tail=1")["lines"]
    return str(lines[0]["text"]) if lines else ""


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


# ---------------------------------------------------------------- down to zero and up again


def test_scale_to_zero_and_back(start: Callable[..., Any], until: Any) -> None:
    server = start("--keepalive", "fixed:user_s=0.3,lang_s=1.2,bare_s=0.2")
    server.deploy(HELLO, handler="app.handler", name="hello")
    server.deploy(SUM, name="sum")
    # nothing is started before anybody asks, but the probe of what the machine allows
    until(lambda: server.processes() == [server.process.pid], "an unused server is alone")
    first = server.invoke("hello")
    assert (first.status, first.headers["rewarm-start"]) == (200, "cold")
    assert float(first.headers["rewarm-init-ms"]) > 0
    again = server.invoke("hello")
    assert again.headers["rewarm-start"] == "warm" and float(again.headers["rewarm-init-ms"]) == 0
    assert again.json()["pid"] == first.json()["pid"]
    other = server.invoke("sum", [1, 2])
    assert other.headers["rewarm-start"] == "bare" and other.json() == 3  # its runtime grew out of the one there
    until(lambda: not server.instances(), "instances expire")
    assert server.langs(), "runtimes outlive instances"
    third = server.invoke("hello")
    assert third.headers["rewarm-start"] == "lang"
    assert float(third.headers["rewarm-init-ms"]) < float(first.headers["rewarm-init-ms"])
    until(lambda: not server.langs(), "runtimes expire")
    until(lambda: server.processes() == [server.process.pid], "an idle server is alone")
    assert list((server.home / "run").iterdir()) == []
    assert server.get("/api/v1/instances")["ledger"]["held_bytes"] == 0
    assert server.invoke("hello").headers["rewarm-start"] == "cold"
    assert server.stats("hello")["starts"] == {"cold": 2, "warm": 1, "lang": 1}


def test_a_peeled_instance_leaves_a_fresh_bare_behind(start: Callable[..., Any], until: Any) -> None:
    server = start("--keepalive", "fixed:user_s=0.3,lang_s=0,bare_s=60")
    server.deploy(HELLO, handler="app.handler", name="hello")
    assert server.invoke("hello").headers["rewarm-start"] == "cold"
    (used,) = (server.home / "run").iterdir()
    until(lambda: server.processes() == [server.process.pid], "an idle server is alone")
    (fresh,) = (server.home / "run").iterdir()
    assert fresh.name != used.name and list(fresh.iterdir()) == []
    assert server.invoke("hello").headers["rewarm-start"] == "bare"
    assert fresh.is_dir(), "it is the instance's now"


def test_keepalive_none_keeps_nothing(start: Callable[..., Any], until: Any) -> None:
    server = start("--keepalive", "none")
    server.deploy(HELLO, handler="app.handler", name="hello")
    assert [server.invoke("hello").status for _ in range(2)] == [200, 200]
    until(lambda: server.processes() == [server.process.pid], "nothing is kept")
    assert server.stats("hello")["inits"] == 2


@pytest.mark.parametrize("most", [1, 3])
def test_a_burst_at_zero(server: Any, until: Any, most: int) -> None:
    name = f"burst-{most}"
    server.deploy(BATCHES, name=name, max_instances=most)
    replies = server.invoke_many(name, [[number] for number in range(100)], threads=100)
    assert [reply.json() for reply in replies] == [[number + 1.0] for number in range(100)]
    until(lambda: all(i["state"] == "ready" for i in server.instances(name)), "all starts are over")
    stats = server.stats(name)
    assert stats["errors"] == 0 and stats["requests"] == 100
    assert stats["inits"] == len(server.instances(name)) <= most
    assert stats["inits"] == 1 if most == 1 else stats["inits"] >= 1
    assert stats["calls"] < 100 and sum(int(size) * n for size, n in stats["rows_per_call"].items()) == 100


def test_nothing_leaks_over_many_starts(server: Any, until: Any) -> None:
    code = "import tempfile\n\n\ndef handler(event, context):\n    return tempfile.mkstemp()[1]\n"
    server.deploy(code, handler="app.handler", name="litter")

    def open_files() -> int:
        return len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))

    def round_trip() -> None:
        path = server.invoke("litter").json()
        assert path.startswith(str(server.home / "run"))
        server.call("POST", "/api/v1/functions/litter/unload")
        until(lambda: not server.instances("litter"), "it is unloaded")
        until(lambda: not Path(path).exists(), "its directory is removed")

    round_trip()
    before = open_files(), len(server.processes())
    for _ in range(8):
        round_trip()
    until(lambda: open_files() <= before[0], f"{before[0]} descriptors, as before")
    assert len(server.processes()) == before[1]


def test_what_user_code_spawned_ends_with_it(server: Any, until: Any) -> None:
    source = (
        "import subprocess\n\n\ndef handler(event, context):\n"
        "    return [subprocess.Popen(['sleep', '600'], start_new_session=own).pid for own in (False, True)]\n"
    )
    server.deploy(source, handler="app.handler", name="parent")
    children = server.invoke("parent").json()
    assert all(alive(pid) for pid in children)
    server.call("POST", "/api/v1/functions/parent/unload")
    until(lambda: not any(alive(pid) for pid in children), "the children are gone too")


# ---------------------------------------------------------------- trouble in user code


@pytest.fixture(scope="module")
def trouble(server: Any) -> Any:
    server.deploy(TROUBLE, handler="app.handler", name="trouble", timeout="0.4s", memory="128MB", max_instances=1)
    server.deploy(HELLO, handler="app.handler", name="bystander")
    return server


@pytest.mark.parametrize(
    ("do", "status", "code", "said"),
    [
        ("exit", 502, "instance_died", "exit status 7"),
        ("quit", 502, "instance_died", "exit status 0"),
        ("sys.exit", 502, "instance_died", "exit status 5"),
        ("segfault", 502, "instance_died", "SIGSEGV"),
        ("abort", 502, "instance_died", "SIGABRT"),
        ("kill", 507, "out_of_memory", "memory"),
        ("hang", 504, "function_timeout", "0.4 s"),
        ("spin", 504, "function_timeout", "0.4 s"),
        ("deaf", 504, "function_timeout", "0.4 s"),
        ("close", 502, "instance_died", "trouble"),
        ("scribble", 502, "instance_died", "trouble"),
    ],
)
def test_an_instance_that_ends_is_replaced(
    trouble: Any, until: Any, do: str, status: int, code: str, said: str
) -> None:
    pid = trouble.invoke("trouble").json()
    with ThreadPoolExecutor(2) as pool:
        beside = pool.submit(lambda: [trouble.invoke("bystander", n).json()["event"] for n in range(20)])
        reply = trouble.invoke("trouble", {"do": do})
        assert beside.result() == list(range(20))
    if do == "scribble":  # it is ended for it: what of, is our own affair
        assert reply.status in (502, 507), reply
    else:
        assert said in reply.refused(status, code)
    until(lambda: not alive(pid), "the old process is gone")
    until(lambda: last_line(trouble, "trouble").startswith("(ended: "), "its log says that it ended")
    fresh = trouble.invoke("trouble")
    assert fresh.status == 200 and fresh.json() != pid


@pytest.mark.parametrize(
    ("do", "status", "code"), [("memory", 507, "out_of_memory"), ("recursion", 500, "function_error")]
)
def test_trouble_that_an_instance_survives(trouble: Any, do: str, status: int, code: str) -> None:
    pid = trouble.invoke("trouble").json()
    trouble.invoke("trouble", {"do": do}).refused(status, code)
    assert trouble.invoke("trouble").json() == pid


def test_a_crash_hurts_its_own_batch_only(trouble: Any) -> None:
    source = (
        "import os\nimport rewarm\n\n\n@rewarm.function(batched=True, max_instances=1)\n"
        "def all_or_none(events, contexts):\n    if 'die' in events:\n        os._exit(1)\n    return events\n"
    )
    trouble.deploy(source, name="batch-trouble")
    assert trouble.invoke("batch-trouble", 0).json() == 0
    events = ["die" if number % 20 == 7 else number for number in range(60)]
    replies = trouble.invoke_many("batch-trouble", events, threads=8)
    for event, reply in zip(events, replies, strict=True):
        if reply.status == 200:
            assert reply.json() == event != "die"
        else:
            reply.refused(502, "instance_died")
    assert sum(reply.status == 200 for reply in replies) >= 60 - 3 * 8


def test_a_failed_start_is_told_to_all_who_waited(server: Any) -> None:
    source = (
        "import rewarm\n\n\n@rewarm.function(name='broken')\nclass Broken:\n    def __init__(self):\n"
        "        raise OSError('no such accelerator')\n\n    def predict(self, x):\n        return x\n"
    )
    server.deploy(source)
    for reply in server.invoke_many("broken", [[1]] * 8, threads=8):
        said = reply.refused(500, "start_failed")
        assert "OSError: no such accelerator" in said and "app.py line" in said
    assert server.call("GET", "/v2/models/broken/ready").status == 503
    found = server.function("broken")
    assert found["ready"] is False and "accelerator" in found["last_error"]
    assert "accelerator" in server.cli("invoke", "broken", "--data", "[1]").failed(5)
    server.deploy(source.replace("raise OSError('no such accelerator')", "pass"))
    assert server.invoke("broken", [1]).json() == [1]
    assert server.call("GET", "/v2/models/broken/ready").status == 200


def test_preload_of_what_is_not_there(server: Any) -> None:
    server.deploy(HELLO, handler="app.handler", name="preloads", preload=["no_such_package"])
    assert "no_such_package" in server.invoke("preloads").refused(500, "start_failed")


# ---------------------------------------------------------------- deploys under load


def test_redeploys_under_load_lose_nothing(server: Any) -> None:
    def source(number: int) -> str:
        return f"import time\n\n\ndef handler(event, context):\n    time.sleep(0.003)\n    return [{number}, event]\n"

    server.deploy(source(1), handler="app.handler", name="changing", max_instances=2)
    server.warm("changing")
    stop = threading.Event()

    def caller(_: int) -> list[Any]:
        found = []
        while not stop.is_set():
            reply = server.invoke("changing", len(found))
            assert reply.status == 200, reply
            version, event = reply.json()
            assert event == len(found)
            found.append(version)
        return found

    with ThreadPoolExecutor(8) as pool:
        callers = [pool.submit(caller, number) for number in range(8)]
        try:
            for number in (2, 3, 4):
                time.sleep(0.15)
                assert server.deploy(source(number), handler="app.handler", name="changing")["version"] == number
            after = server.invoke("changing", 0).json()[0]
            time.sleep(0.15)
        finally:
            stop.set()
        seen = [each.result() for each in callers]
    assert after == 4 and all(versions[-1] == 4 for versions in seen)
    assert {version for versions in seen for version in versions} >= {1, 4}


def test_deploying_the_same_again_changes_nothing(server: Any) -> None:
    first = server.deploy(HELLO, handler="app.handler", name="same")
    pid = server.invoke("same").json()["pid"]
    second = server.deploy(HELLO, handler="app.handler", name="same")
    assert second == {**first, "unchanged": True} and not first["unchanged"]
    assert server.invoke("same").json()["pid"] == pid


def test_rm(server: Any, until: Any) -> None:
    server.deploy(SLOW, handler="app.handler", name="short-lived", max_instances=1)
    server.warm("short-lived")
    with ThreadPoolExecutor(3) as pool:
        running = pool.submit(server.invoke, "short-lived", {"s": 2.0})
        until(lambda: server.instances("short-lived", "busy"), "it runs")
        waiting = pool.submit(server.invoke, "short-lived", {"s": 0})
        until(lambda: server.function("short-lived")["queued"] == 1, "one waits")
        pid = pids(server, "short-lived")[0]
        assert server.cli("rm", "short-lived", "--json").json() == {"name": "short-lived", "removed": True}
        waiting.result().refused(404, "not_found")
        assert running.result().json() == {"s": 2.0}  # what runs may finish
    until(lambda: not alive(pid), "its instance is gone")
    server.invoke("short-lived").refused(404, "not_found")
    assert "short-lived" not in server.cli("ls").out


# ---------------------------------------------------------------- the end of a server


def test_kill_9_leaves_nothing_and_functions_come_back(start: Callable[..., Any], until: Any) -> None:
    server = start()
    server.deploy(HELLO, handler="app.handler", name="hello")
    server.deploy(SUM, name="sum")
    server.deploy(HELLO + "\n# second\n", handler="app.handler", name="hello")
    assert server.invoke("hello").status == server.invoke("sum", [1]).status == 200

    def cut_off() -> None:
        with pytest.raises((OSError, http.client.HTTPException)):
            server.invoke("hang", {"s": 60})

    busy = threading.Thread(target=cut_off)
    server.deploy(SLOW, handler="app.handler", name="hang")
    busy.start()
    until(lambda: server.instances("hang", "busy"), "one is busy")
    assert len(server.processes()) >= 5
    server.kill()
    until(lambda: not server.processes(), "everything dies with the server")
    busy.join()
    again = start(home=server.home)
    until(lambda: again.processes() == [again.process.pid], "its probe of what the machine allows is over")
    assert list((again.home / "run").iterdir()) == []
    assert again.function("hello")["version"] == 2
    assert again.invoke("hello", 5).json()["event"] == 5 and again.invoke("sum", [1, 2]).json() == 3


def test_sigterm_finishes_what_is_queued(start: Callable[..., Any], until: Any) -> None:
    server = start()
    server.deploy(SLOW, handler="app.handler", name="slow", max_instances=1)
    server.warm("slow")
    body = json.dumps({"s": 0.0}).encode()
    with ThreadPoolExecutor(6) as pool, server.raw() as idle, server.raw() as late:
        queued = [pool.submit(server.invoke, "slow", {"s": 0.2, "n": number}) for number in range(5)]
        until(lambda: server.function("slow")["queued"] == 4, "four wait")
        late.send(b"GET /v2/health/ready HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert late.reply().json() == {"ready": True}
        server.terminate()
        until(lambda: server.call("GET", "/v2/health/ready").status == 503, "it says that it is going")
        late.send(b"POST /invoke/slow HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))
        refused = late.reply()
        assert "try again" in refused.refused(503, "unavailable") and refused.headers["retry-after"]
        assert [each.result().json()["n"] for each in queued] == list(range(5))
        assert idle.closed()
    assert server.ended() == 0
    server.stop()


def test_sigterm_finishes_a_cold_start(start: Callable[..., Any], until: Any) -> None:
    server = start()
    server.deploy("import time\ntime.sleep(0.5)\n" + SLOW, handler="app.handler", name="slow")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(server.invoke, "slow", {"s": 0.1})
        until(lambda: server.instances("slow"), "it starts")
        server.terminate()
        assert waiting.result().json() == {"s": 0.1}
    assert server.ended() == 0


def test_sigterm_gives_up_after_the_drain_time(start: Callable[..., Any], until: Any) -> None:
    server = start("--drain", "0.3s")
    stuck_s = stop_while_it_runs(server, until, signal.SIGTERM)
    said = server.log.read_text()
    assert 0.3 <= stuck_s < 2, said  # not for as long as connections are given to close
    assert "finishing 1 request, up to 0.3 s; Ctrl-C again drops it" in said
    assert "with 1 request unfinished" in said and " ERROR " not in said, said


def test_a_second_ctrl_c_drops_what_runs(start: Callable[..., Any], until: Any) -> None:
    server = start()
    assert stop_while_it_runs(server, until, signal.SIGINT, signal.SIGINT) < 5
    assert "finishing 1 request, up to 30 s" in server.log.read_text()


def stop_while_it_runs(server: Any, until: Any, *signals: signal.Signals) -> float:
    """Seconds until the caller of a run that does not end was told that the server does."""
    server.deploy(SLOW, handler="app.handler", name="slow")
    server.warm("slow")
    with ThreadPoolExecutor(1) as pool:
        stuck = pool.submit(server.invoke, "slow", {"s": 60})
        until(lambda: server.instances("slow", "busy"), "it runs")
        since_s = time.monotonic()
        for number in signals:
            server.process.send_signal(number)
            until(lambda: "finishing 1 request" in server.log.read_text(), "it says what it waits for")
        assert "shutting down" in stuck.result().refused(503, "unavailable")
        told_s = time.monotonic() - since_s
        assert server.ended(10) == 0
    return told_s


def test_a_server_that_others_can_reach_says_so(start: Callable[..., Any]) -> None:
    assert "SECURITY.md" in start("--host", "0.0.0.0").log.read_text()
    assert "SECURITY.md" not in start().log.read_text()


def test_sigint_is_a_good_end_too(start: Callable[..., Any]) -> None:
    server = start()
    server.deploy(HELLO, handler="app.handler", name="hello")
    server.invoke("hello")
    server.process.send_signal(signal.SIGINT)
    assert server.ended() == 0
    server.stop()


def test_a_killed_zygote_is_replaced(start: Callable[..., Any], until: Any) -> None:
    server = start()
    server.deploy(HELLO, handler="app.handler", name="hello")
    server.invoke("hello")
    zygote = server.langs()[0]["pid"]
    os.kill(zygote, signal.SIGKILL)
    until(lambda: not alive(zygote), "it is gone")
    assert server.invoke("hello").headers["rewarm-start"] == "warm"  # instances do not need it
    server.call("POST", "/api/v1/functions/hello/unload")
    until(lambda: not server.instances(), "the instance goes")
    assert server.invoke("hello").status == 200


# ---------------------------------------------------------------- what an operator sees


def test_logs(server: Any, until: Any) -> None:
    source = (
        "import sys\n\n\ndef handler(event, context):\n    print('out', event)\n    print('err ü', file=sys.stderr)\n"
        "    sys.stdout.write('no end')\n    sys.stdout.flush()\n"
    )
    server.deploy(source, handler="app.handler", name="talks")
    server.invoke("talks", 1)
    until(lambda: "err ü" in server.cli("logs", "talks").out, "it is shown")
    lines = server.cli("logs", "talks", "--json").json()["lines"]
    assert [line["text"] for line in lines] == ["out 1", "err ü"]
    assert abs(lines[0]["t_s"] - time.time()) < 60
    instance = lines[0]["instance"]
    assert server.cli("logs", "talks", "--instance", str(instance + 1000)).out == ""
    assert server.cli("logs", "talks", "--instance", str(instance), "--tail", "1").out.rstrip().endswith("err ü")
    server.call("POST", "/api/v1/functions/talks/unload")
    until(lambda: not server.instances("talks"), "it ends")
    assert [line["text"] for line in server.cli("logs", "talks", "--json").json()["lines"]][-1] == "no end"


def test_a_flood_of_output_hurts_nobody(server: Any, until: Any) -> None:
    source = (
        "import os\n\n\ndef handler(event, context):\n    line = b'x' * 999 + b'\\n'\n"
        "    for _ in range(event):\n        os.write(1, line)\n    print('the end')\n    return 'done'\n"
    )
    server.deploy(source, handler="app.handler", name="flood", timeout="30s")
    server.deploy(HELLO, handler="app.handler", name="bystander-2")
    server.warm("bystander-2")
    with ThreadPoolExecutor(1) as pool:
        flooding = pool.submit(server.invoke, "flood", 6000)
        slowest = 0.0
        while not flooding.done():
            since_s = time.monotonic()
            assert server.invoke("bystander-2", 1).status == 200
            slowest = max(slowest, time.monotonic() - since_s)
        assert flooding.result().json() == "done" and slowest < 10

    def tail() -> list[str]:
        return [line["text"] for line in server.get("/api/v1/functions/flood/logs?tail=100000")["lines"]]

    until(lambda: tail()[-1:] == ["the end"], "the newest lines are kept")
    assert sum(len(text) for text in tail()) <= 1 << 20


def test_metrics_match_what_happened(server: Any) -> None:
    server.deploy(HELLO, handler="app.handler", name="measured")
    for number in range(5):
        server.invoke("measured", number)
    server.call("POST", "/invoke/measured", "{").refused(400, "bad_request")
    reply = server.call("GET", "/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = {family.name: family for family in text_string_to_metric_families(reply.body.decode())}
    found = {
        (sample.name, *sorted((k, v) for k, v in sample.labels.items() if k not in ("function",))): sample.value
        for family in families.values() for sample in family.samples if sample.labels.get("function") == "measured"
    }  # fmt: skip
    assert found[("rewarm_requests_total", ("code", "200"))] == 5
    assert found[("rewarm_requests_total", ("code", "400"))] == 1
    assert found[("rewarm_calls_total",)] == 6 and found[("rewarm_instance_starts_total",)] == 1
    assert found[("rewarm_request_duration_seconds_count",)] == 6
    assert found[("rewarm_request_duration_seconds_bucket", ("le", "+Inf"))] == 6
    assert found[("rewarm_starts_total", ("kind", "warm"))] == 5
    assert found[("rewarm_instances", ("state", "ready"))] == 1 and found[("rewarm_queue_length",)] == 0
    stats = server.stats("measured")
    assert (stats["requests"], stats["errors"], stats["calls"], stats["inits"]) == (6, 1, 6, 1)
    assert len(stats["init_ms"]) == 1 and stats["cost_usd"] > 0
    assert families["rewarm_memory_held_bytes"].samples[0].value > 0


def test_refusals_are_counted(server: Any, until: Any) -> None:
    server.deploy(SLOW, handler="app.handler", name="refuses", max_instances=1, queue_max=1)
    server.warm("refuses")
    with ThreadPoolExecutor(2) as pool:
        running = pool.submit(server.invoke, "refuses", {"s": 0.4})
        until(lambda: server.instances("refuses", "busy"), "it runs")
        late = pool.submit(server.invoke, "refuses", {"s": 0}, Rewarm_Timeout_Ms="200")
        until(lambda: server.function("refuses")["queued"] == 1, "one waits")
        server.invoke("refuses", {"s": 0}).refused(429, "queue_full")
        late.result().refused(504, "deadline_exceeded")
        assert running.result().status == 200
    text = server.call("GET", "/metrics").body.decode()
    for code in (200, 429, 504):
        assert f'rewarm_requests_total{{code="{code}",function="refuses"}} 1.0' in text
