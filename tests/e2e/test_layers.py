"""Layers of a live server: peeled one by one, found in order, shared, raised ahead, and told by `rewarm ps`."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from rewarm.policy import registry
from rewarm.sim import costs

pytestmark = pytest.mark.e2e

HELLO = "def handler(event, context):\n    return event\n"


def start_of(server: Any, name: str) -> str:
    reply = server.invoke(name, {"n": 1})
    assert (reply.status, reply.json()) == (200, {"n": 1})
    return str(reply.headers["rewarm-start"])


def ps(server: Any) -> dict[str, Any]:
    """By id, once it is certain that everything fits together."""
    alive = server.get("/api/v1/ps")
    nodes = {node["id"]: node for node in alive["nodes"]}
    assert len(nodes) == len(alive["nodes"])
    for node in nodes.values():
        parent = nodes.get(node["parent"])
        assert (parent is None) is (node["parent"] is None)
        assert node["children"] == sum(other["parent"] == node["id"] for other in nodes.values())
        if node["layer"] == "user":
            assert parent is not None and node["key"] == parent["key"] and node["name"] == node["function"]
        elif node["layer"] == "lang" and parent is not None:
            assert set(parent["key"].split("+")) < set(node["key"].split("+"))
    ledger = alive["ledger"]
    assert sum(ledger["by_layer"].values()) == ledger["held_bytes"] <= ledger["budget_bytes"]
    assert sorted(f"instance:{one['id']}" for one in alive["instances"]) == sorted(
        id for id, node in nodes.items() if node["layer"] == "user"
    )
    return nodes


def living(server: Any) -> set[str]:
    """Layers that are there: names of functions, keys, and "bare" if one waits."""
    return {
        node["name"]
        for node in ps(server).values()
        if node["state"] in ("ready", "busy", "alive") or (node["layer"] == "bare" and node["state"] != "0 idle")
    }


def test_layers_are_peeled_in_order_and_found_in_order(start: Callable[..., Any], until: Any) -> None:
    server = start("--keepalive", "fixed:user_s=0.5,lang_s=1.5,bare_s=4")
    server.deploy(HELLO, handler="app.handler", name="hello")
    assert start_of(server, "hello") == "cold"
    ended_s = time.monotonic()
    assert start_of(server, "hello") == "warm"
    peeled_s = []
    for left in ({"python", "bare"}, {"bare"}, set()):
        until(lambda left=left: living(server) == left, f"what is left is {left}")
        peeled_s.append(time.monotonic() - ended_s)
    assert peeled_s[0] >= 0.5 and peeled_s[1] - peeled_s[0] >= 1.3 and peeled_s[2] >= 4.4, peeled_s
    until(lambda: server.processes() == [server.process.pid], "an idle server is alone")
    assert server.get("/api/v1/ps")["ledger"]["held_bytes"] == 0

    assert start_of(server, "hello") == "cold"
    until(lambda: living(server) == {"python", "bare"}, "the instance is peeled")
    assert start_of(server, "hello") == "lang"
    until(lambda: living(server) == {"bare"}, "the runtime is peeled")
    assert start_of(server, "hello") == "bare"
    meter = server.get("/api/v1/ps")["meter"]
    assert meter["starts"] == {"cold": 2, "warm": 1, "lang": 1, "bare": 1}


def test_a_runtime_is_shared_by_all_functions_with_its_key(start: Callable[..., Any], until: Any) -> None:
    server = start("--keepalive", "fixed:user_s=0.4,lang_s=60")
    for name in ("one", "two"):
        server.deploy(HELLO, handler="app.handler", name=name)
    server.deploy(HELLO, handler="app.handler", name="three", preload=["json"])
    assert start_of(server, "one") == "cold"
    assert start_of(server, "two") == "lang", "the other function's runtime serves it"
    assert start_of(server, "three") == "bare", "its runtime is a fork of the one there"
    nodes = ps(server)
    assert (nodes["lang:python"]["parent"], nodes["lang:python+json"]["parent"]) == (None, "lang:python")
    assert nodes["lang:python"]["uses"] == 2
    assert nodes["lang:python"]["saved_s"] == pytest.approx(nodes["lang:python"]["startup_s"]), "once, by two"
    until(lambda: living(server) >= {"python", "python+json"} and not server.instances(), "instances are peeled")
    assert start_of(server, "one") == start_of(server, "two") == "lang"


def test_ps_is_consistent_while_layers_come_and_go(start: Callable[..., Any], until: Any) -> None:
    server = start("--keepalive", "fixed:user_s=0.3,lang_s=0.6,bare_s=0.5")
    server.deploy(HELLO, handler="app.handler", name="one")
    server.deploy(HELLO, handler="app.handler", name="two", preload=["json"])
    server.deploy(HELLO, handler="app.handler", name="three", preload=["json", "csv"])
    for turn in range(12):
        start_of(server, ("one", "two", "three", "two")[turn % 4])
        for _ in range(turn % 5):
            ps(server)
            time.sleep(0.07)
    assert {node["layer"] for node in server.get("/api/v1/ps")["nodes"]} >= {"bare", "lang"}
    assert {"nodes", "ledger", "meter"} <= set(server.cli("ps", "--json").json())
    assert server.cli("ps").out.splitlines()[-2].startswith("memory: ")
    until(lambda: not living(server), "everything is peeled")


def test_the_meter_tells_used_from_wasted(start: Callable[..., Any], until: Any) -> None:
    server = start("--keepalive", "fixed:user_s=1.5,lang_s=0,bare_s=0")
    server.deploy(HELLO, handler="app.handler", name="hello")
    start_of(server, "hello")
    time.sleep(0.8)
    before = server.get("/api/v1/ps")["meter"]
    assert before["used_mb_s"] == before["wasted_mb_s"] == 0 and before["open_mb_s"] > 0
    start_of(server, "hello")
    used = server.get("/api/v1/ps")["meter"]
    assert used["by_layer"]["user"]["used_mb_s"] >= before["by_layer"]["user"]["open_mb_s"] > 0
    assert used["used_mb_s"] == used["by_layer"]["user"]["used_mb_s"] and used["wasted_mb_s"] == 0
    assert used["by_layer"]["lang"]["open_mb_s"] > 0, "nobody was forked from it: its idling is open"
    until(lambda: not living(server), "it is peeled")
    after = server.get("/api/v1/ps")["meter"]
    assert after["used_mb_s"] == used["used_mb_s"] and after["wasted_mb_s"] > 0 and after["open_mb_s"] == 0
    page = server.call("GET", "/metrics").body.decode()
    told = {
        (sample.labels["layer"], sample.labels["end"]): sample.value / (1 << 20)
        for family in text_string_to_metric_families(page)
        if family.name == "rewarm_idle_byte_seconds" and family.type == "counter"
        for sample in family.samples
    }
    assert told == {
        (layer, end): pytest.approx(after["by_layer"][layer][f"{end}_mb_s"])
        for layer in ("bare", "lang", "user")
        for end in ("used", "wasted")
    }
    assert "rewarm_evictions_total 0.0" in page


def test_a_policy_raises_a_function_ahead_of_its_call(start: Callable[..., Any], until: Any) -> None:
    # A start takes half a second and 32 to 70 MB: an instance is let go 0.3 to 0.8 s after its call. The next start
    # ahead of time is due three times the mean gap between calls after the last.
    slow = f"import time\n\nheld = b'x' * (60 << 20)\ntime.sleep(0.5)\n\n\n{HELLO}"
    server = start("--keepalive", "rainbowcake:alpha=0.98,p=0.95,floor=0,n=4")
    server.deploy(slow, handler="app.handler", name="hello")
    began_s = time.monotonic()
    asked = 0
    for _ in range(4):
        asked += start_of(server, "hello") != "warm"
        until(lambda: not server.instances(), "the instance is let go")
    due_s = time.monotonic() - began_s
    until(lambda: server.stats("hello")["inits"] > asked, "an instance rises and nobody asked for it", 10.0 + due_s)
    assert start_of(server, "hello") in ("warm", "user")
    assert sum(server.stats("hello")["starts"].values()) == 5


def test_what_layers_cost_is_measured_and_can_be_simulated_with(cli: Callable[..., Any], tmp_path: Path) -> None:
    file = tmp_path / "costs.toml"
    only = ("--only", "lambda", "--only", "nodejs")
    ran = cli("experiment", "starts", *only, "--repeat", "1", "--save", str(file), "--json", timeout_s=120.0)
    assert ran.code == 0, ran
    rows = {row["function"]: row for row in ran.json()["rows"]}
    assert set(rows) | set(ran.json()["left_out"]) == {"lambda", "nodejs"}
    python = rows["lambda"]
    assert python["bare"]["startup_s"] < python["lang"]["startup_s"] < 10 and 0 < python["user"]["startup_s"] < 1
    assert 1 < python["lang"]["resident_mb"] < 100 and 0 < python["user"]["resident_mb"] < 100
    found = costs.read(file)
    assert {lang.startup_s for lang in found.langs.values()} == {row["lang"]["startup_s"] for row in rows.values()}
    (tmp_path / "trace.csv").write_text("t_s,function,duration_s\n0,f,0.1\n60,g,0.1\n120,f,0.1\n")
    ran = cli("sim", str(tmp_path / "trace.csv"), "--policy", "fixed", "--layers", str(file), "--json")
    assert ran.code == 0, ran


@pytest.mark.parametrize("name", registry.keepalive_names())
def test_every_policy_serves(start: Callable[..., Any], name: str) -> None:
    server = start("--keepalive", name)
    assert server.get("/api/v1/server")["keepalive"] == name
    server.deploy(HELLO, handler="app.handler", name="hello")
    assert start_of(server, "hello") == "cold"
    assert start_of(server, "hello") in ("warm", "lang", "bare", "cold")
    ps(server)


def test_every_policy_may_be_a_function_s_own(server: Any) -> None:
    names = {f"own-{policy.replace('_', '-')}": policy for policy in registry.keepalive_names()}
    for name, policy in names.items():
        server.deploy(HELLO, handler="app.handler", name=name, keepalive=policy)
        assert start_of(server, name) in ("cold", "bare", "lang")
        assert server.function(name)["keepalive"]["name"] == policy
    for name in names:
        assert server.call("DELETE", f"/api/v1/functions/{name}").status == 200


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("hazzard", "did you mean 'hazard'"),
        ("fixed:ttl=soon", "'soon' is not a duration"),
        ("rainbowcake:alpha=2", "alpha must lie between 0 and 1"),
        ("hazard:price=0", "price must be"),
        ("lru:x=1", "no parameter 'x'"),
    ],
)
def test_a_policy_that_cannot_be_meant_is_refused_at_once(
    cli: Callable[..., Any], tmp_path: Path, text: str, told: str
) -> None:
    assert told in cli("serve", "--home", str(tmp_path), "--port", "0", "--keepalive", text).failed(2)
