"""Functions in JavaScript, as for Python: deployed, called, batched, let go; and whatever they do hurts nobody else."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config

pytestmark = [
    pytest.mark.e2e, pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed"),
]  # fmt: skip

APP = """
import fs from "node:fs";
import os from "node:os";
import { spawn, spawnSync } from "node:child_process";

const DO = {
  throw() { throw new RangeError("no such thing: grün"); },
  string() { throw "just text"; },
  function: () => () => 1,
  bigint: () => 10n,
  circular() { const a = {}; a.a = a; return a; },
  bytes: () => Buffer.from([0, 255, 1]),
  nothing() {},
  text: ({ chars }) => "x".repeat(chars),
  exit() { process.exit(0); },
  abort() { process.abort(); },
  kill() { process.kill(process.pid, "SIGKILL"); },
  loop() { for (;;); },
  never: () => new Promise(() => {}),
  reject() { Promise.reject(new Error("nobody listens")); return new Promise(() => {}); },
  later() { setTimeout(() => { throw new Error("too late"); }, 1); return new Promise(() => {}); },
  garbage() { fs.writeSync(3, "no frame at all, and longer than the head of one"); return new Promise(() => {}); },
  flood({ chunks }) { for (let n = 0; n < chunks; n++) console.log("x".repeat(1023)); return "dry"; },
  floodAndExit() { DO.flood({ chunks: 2000 }); process.exit(0); },
  allocate: ({ bytes }) => Buffer.alloc(bytes).length,
  heap() { const all = []; for (;;) all.push(new Array(1000).fill(Math.random())); },
  churn({ live, rounds }) {
    const all = [];
    for (let n = 0; n < rounds; n++) all[n % live] = new Array(1000).fill(Math.random());
    return all.length;
  },
  children() {
    for (let n = 0; n < 3; n++) spawn("sleep", ["600"]);
    spawn("sleep", ["600"], { detached: true, stdio: "ignore" });
    process.exit(0);
  },
  files() {
    for (let n = 0; n < 50; n++) {
      fs.mkdirSync(`${os.tmpdir()}/deep/${n}`, { recursive: true });
      fs.writeFileSync(`${os.tmpdir()}/deep/${n}/file`, "x");
    }
    process.exit(0);
  },
  where: () => ({
    cwd: process.cwd(), tmp: os.tmpdir(), home: os.homedir(), env: process.env.GREETING,
    name: process.env.AWS_LAMBDA_FUNCTION_NAME, empty: fs.readFileSync(0).length,
    inherited: spawnSync("ls", ["/proc/self/fd"]).stdout.toString().trim().split("\\n").length,
  }),
  log({ text }) { console.log(text); console.error("and", text); },
};

export async function handler(event, context) {
  if (event.do === "context") return { ...context, remaining: context.getRemainingTimeInMillis() };
  return event.do ? DO[event.do](event) : event;
}
"""
BATCHED = """
export async function batch(events, contexts) {
  if (events.some((event) => event.do === "throw")) throw new Error("the batch failed");
  if (events.some((event) => event.do === "short")) return [];
  const size = events.length;
  return events.map((e, n) => (e.do === "nonsense" ? () => 1 : { n: e.n, size, id: contexts[n].awsRequestId }));
}
batch.rewarm = { batched: true, max_instances: 1 };
"""


@pytest.fixture(scope="module")
def server(server: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One of this module's own, so that its instances end with it, and with the functions of most tests."""
    folder = tmp_path_factory.mktemp("nodejs")
    running = type(server)(folder / "home", folder / "server.log", ("--body-limit", "1MB"))
    try:
        running.deploy(APP, file="app.mjs", name="node", memory="64MB", env={"GREETING": "hello"})
        running.deploy(APP, file="app.mjs", name="f", memory="64MB", timeout="2s", max_instances=1)
        yield running
        running.stop()
    finally:
        if running.process.poll() is None:
            running.kill()


def deploy_batch(server: Any, name: str, **overrides: Any) -> None:
    overrides = {"batching": "dynamic:max_size=8,max_wait=50ms", **overrides}
    server.deploy(BATCHED, file="app.mjs", handler="app.batch", name=name, **overrides)


# ---------------------------------------------------------------- answers


def test_an_event_comes_back(server: Any) -> None:
    event = {"text": "grün \u2028 \U0001f600", "list": [1, 2.5, None, True], "nested": {"__proto__": 1}}
    assert server.invoke("node", event).json() == event
    assert server.call("POST", "/invoke/node").json() == {}
    assert server.invoke("node", {"do": "nothing"}).json() is None
    raw = server.call("POST", "/invoke/node", b"\0\xff", {"content-type": "application/octet-stream"})
    assert raw.body == b"\0\xff"
    assert server.invoke("node", {"do": "bytes"}).body == b"\0\xff\1"


def test_large_bodies(server: Any) -> None:
    """Longer than one read, each way; and longer than a caller may get."""
    event = {"text": "grün" * 100_000}
    assert server.invoke("node", event).json() == event
    raw = os.urandom(900_000)
    reply = server.call("POST", "/invoke/node", raw, {"content-type": "application/octet-stream"})
    assert reply.body == raw
    server.deploy(APP, file="app.mjs", name="node-large", memory="512MB")
    said = server.invoke("node-large", {"do": "text", "chars": 65 << 20}).refused(500, "function_error")
    assert "AnswerTooLarge" in said and "64 MB" in said
    assert server.invoke("node-large", {"n": 1}).json() == {"n": 1}


def test_it_takes_no_arrays(server: Any) -> None:
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}]}
    said = server.call("POST", "/v2/models/node/infer", json.dumps(body))
    assert "is a handler" in said.refused(400, "bad_request")


@pytest.mark.parametrize("body", ["{", "nonsense", b"\xff\xfe", b"\xef\xbb\xbf{}"])
def test_a_body_that_is_not_json(server: Any, body: Any) -> None:
    server.call("POST", "/invoke/node", body).refused(400, "bad_request")


@pytest.mark.parametrize(
    ("do", "said", "error_type"),
    [
        ("throw", "RangeError: no such thing: grün (app.mjs line 7)", "RangeError"),
        ("string", "string: just text", "string"),
        ("function", "not JSON", "TypeError"),
        ("bigint", "BigInt", "TypeError"),
        ("circular", "circular", "TypeError"),
        ("unknown", "is not a function", "TypeError"),
    ],
)
def test_what_is_thrown_or_is_not_json(server: Any, do: str, said: str, error_type: str) -> None:
    reply = server.invoke("node", {"do": do})
    assert said in reply.refused(500, "function_error")
    assert reply.json()["error_type"] == error_type


def test_where_the_code_runs(server: Any) -> None:
    said = server.invoke("node", {"do": "where"}).json()
    assert (said["env"], said["name"], said["empty"]) == ("hello", "node", 0)
    assert Path(said["cwd"]).parent == server.home / "artifacts" or Path(said["cwd"]).is_relative_to(server.home)
    assert said["tmp"] == said["home"] and Path(said["tmp"]).parent == server.home / "run"
    assert said["inherited"] == 4, "0, 1, 2 and the one of ls itself"


def test_what_it_prints(server: Any, until: Callable[..., Any]) -> None:
    server.invoke("node", {"do": "log", "text": "printed-once"})
    until(lambda: "and printed-once" in server.cli("logs", "node").out, "the log has it")
    server.invoke("node", {"do": "throw"})
    until(lambda: "at Object.throw" in server.cli("logs", "node").out, "the log has the stack")


def test_callbacks(server: Any) -> None:
    source = """
exports.handler = function (event, context, callback) {
  if (event.do === "promise") return Promise.resolve("promised");
  if (event.do === "throw") throw new Error("thrown");
  setTimeout(() => (event.fail ? callback(new TypeError("called back")) : callback(null, { n: event.n })), 5);
};
exports.routes = { plain: (event) => event.n };
"""
    server.deploy(source, file="app.cjs", name="node-callback")
    assert server.invoke("node-callback", {"n": 3}).json() == {"n": 3}
    assert server.invoke("node-callback", {"do": "promise"}).json() == "promised"
    assert "called back" in server.invoke("node-callback", {"fail": True}).refused(500, "function_error")
    assert "thrown" in server.invoke("node-callback", {"do": "throw"}).refused(500, "function_error")
    assert server.deploy(source, file="app.cjs", handler="app.routes.plain")["name"] == "routes.plain"
    assert server.invoke("routes.plain", {"n": 4}).json() == 4


@pytest.mark.parametrize(
    ("source", "others"),
    [
        ("exports.handler = async () => require('./two.js').two;", {"two.js": b"exports.two = 2"}),
        (
            "import { two } from './two.js'; export const handler = () => two;",
            {"two.js": b"export const two = 2", "package.json": b'{"type": "module"}'},
        ),
    ],
    ids=["CommonJS", "ES module"],
)
def test_js_is_what_its_package_says(server: Any, source: str, others: dict[str, bytes]) -> None:
    server.deploy(source, file="index.js", name="node-js", others=others)
    assert server.invoke("node-js").json() == 2


# ---------------------------------------------------------------- AWS's client


@pytest.fixture(scope="module")
def client(server: Any) -> Any:
    return boto3.client(
        "lambda", endpoint_url=server.url, region_name="eu-central-1", aws_access_key_id="nobody",
        aws_secret_access_key="nothing", config=Config(retries={"total_max_attempts": 1}),
    )  # fmt: skip


def call(client: Any, event: Any, name: str = "node", **options: Any) -> tuple[dict[str, Any], Any]:
    answer = client.invoke(FunctionName=name, Payload=json.dumps(event).encode(), **options)
    return answer, json.loads(answer["Payload"].read())


def test_lambda_context(client: Any) -> None:
    answer, said = call(client, {"do": "context"}, ClientContext="eyJhIjogMX0=")
    assert "FunctionError" not in answer
    assert (said["functionName"], said["memoryLimitInMB"]) == ("node", "64")
    assert said["functionVersion"] == answer["ExecutedVersion"]
    assert said["awsRequestId"] == answer["ResponseMetadata"]["RequestId"]
    assert said["invokedFunctionArn"].endswith(":function:node") and said["logGroupName"] == "/aws/lambda/node"
    assert said["clientContext"] == {"a": 1}
    assert 0 < said["remaining"] <= 60_000


def test_lambda_error(client: Any) -> None:
    answer, said = call(client, {"do": "throw"})
    assert answer["FunctionError"] == "Unhandled"
    assert (said["errorType"], said["errorMessage"]) == ("RangeError", "no such thing: grün")
    assert said["trace"][0] == "RangeError: no such thing: grün" and "app.mjs:7:" in said["trace"][1]
    assert call(client, {"do": "string"})[1] == {"errorType": "string", "errorMessage": "just text", "trace": []}


def test_lambda_log_tail(client: Any) -> None:
    answer, _ = call(client, {"do": "log", "text": "grün"}, LogType="Tail")
    lines = base64.b64decode(answer["LogResult"]).decode().splitlines()
    assert lines[1:3] == ["grün", "and grün"]


def test_its_runtime_is_told(client: Any, server: Any) -> None:
    assert server.function("node")["runtime"] == "nodejs"
    assert client.get_function_configuration(FunctionName="node")["Runtime"] == "nodejs20.x"


# ---------------------------------------------------------------- batches


def test_a_batch(server: Any) -> None:
    deploy_batch(server, "node-batch")
    server.warm("node-batch")
    replies = server.invoke_many("node-batch", [{"n": n} for n in range(8)], threads=8)
    assert [reply.json()["n"] for reply in replies] == list(range(8))
    assert max(reply.json()["size"] for reply in replies) > 1
    assert len({reply.json()["id"] for reply in replies}) == 8


def test_a_batch_that_fails(server: Any) -> None:
    deploy_batch(server, "node-fails")
    server.warm("node-fails")
    with ThreadPoolExecutor(2) as pool:
        good = pool.submit(server.invoke, "node-fails", {"n": 1})
        bad = pool.submit(server.invoke, "node-fails", {"do": "nonsense"})
        assert good.result().status == 200, "what is not JSON is the misfortune of its own caller"
        assert "not JSON" in bad.result().refused(500, "function_error")
    assert "the batch failed" in server.invoke("node-fails", {"do": "throw"}).refused(500, "function_error")
    assert "list of 1 answers, not 0" in server.invoke("node-fails", {"do": "short"}).refused(500, "function_error")
    server.call("POST", "/invoke/node-fails", "{").refused(400, "bad_request")
    assert server.invoke("node-fails", {"n": 2}).json()["n"] == 2


def test_a_policy_that_batches_needs_a_handler_that_does(server: Any) -> None:
    said = server.put(APP, file="app.mjs", name="node-plain", batching="dynamic:max_size=8").refused(
        422, "bad_definition"
    )
    assert "batched" in said


# ---------------------------------------------------------------- layers


def test_a_waiting_runtime_is_the_lang_layer(start: Callable[..., Any], until: Callable[..., Any]) -> None:
    server = start()
    for name in ("a", "b"):
        server.deploy(APP, file="app.mjs", name=name, max_instances=1)
    first = server.invoke("a", {"n": 1})
    assert (first.json(), first.headers["rewarm-start"]) == ({"n": 1}, "cold")
    assert server.invoke("a").headers["rewarm-start"] == "warm"
    until(lambda: [lang["state"] for lang in server.langs()] == ["alive"], "another runtime waits")
    assert server.langs()[0]["key"] == "nodejs"
    second = server.invoke("b", {"n": 2})
    assert (second.json(), second.headers["rewarm-start"]) == ({"n": 2}, "lang")
    assert float(second.headers["rewarm-init-ms"]) < float(first.headers["rewarm-init-ms"])
    for name in ("a", "b"):
        server.call("POST", f"/api/v1/functions/{name}/unload")
        until(lambda name=name: not server.instances(name), "its instance is let go")
        assert server.invoke(name, {"n": 3}).json() == {"n": 3}
    server.deploy("# 2\n".replace("#", "//") + APP, file="app.mjs", name="a", max_instances=1)
    assert server.invoke("a", {"n": 4}).json() == {"n": 4}


def test_peeled_to_its_lang_layer(start: Callable[..., Any], until: Callable[..., Any]) -> None:
    """Instances go at once, the runtime that waits stays, and every start consumes one."""
    server = start("--keepalive", "fixed:user_s=0,lang_s=600")
    server.deploy(APP, file="app.mjs", name="f")
    pids = set()
    for turn in range(3):
        reply = server.invoke("f", {"n": turn})
        assert (reply.json(), reply.headers["rewarm-start"]) == ({"n": turn}, "lang" if turn else "cold")
        until(lambda: not server.instances() and [x["state"] for x in server.langs()] == ["alive"], "it is peeled")
        pids.add(server.langs()[0]["pid"])
    assert len(pids) == 3
    assert len(server.processes()) == 2, "the server and the runtime"


def test_a_killed_server_takes_its_runtimes_along(start: Callable[..., Any], until: Callable[..., Any]) -> None:
    server = start()
    server.deploy(APP, file="app.mjs", name="f")
    server.warm("f")
    with ThreadPoolExecutor(1) as pool:
        lost = pool.submit(server.invoke, "f", {"do": "loop"})
        until(lambda: server.instances("f", "busy"), "it runs")
        server.kill()
        assert lost.exception() is not None
    until(lambda: not server.processes(), "no process is left")


# ---------------------------------------------------------------- what user code does to its process


def held(server: Any) -> Counter[str]:
    """What the server is answerable for: processes, descriptors (but those of callers), files of sandboxes."""
    callers = {f"socket:[{line.split()[9]}]" for line in Path("/proc/net/tcp").read_text().splitlines()}
    links = []
    for descriptor in Path(f"/proc/{server.process.pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            links.append(os.readlink(descriptor))
    kept = [link for link in links if link not in callers and not link.startswith("/proc/")]
    paths = sum(len(folders) + len(files) for _, folders, files in os.walk(server.home / "run"))
    return Counter(processes=len(server.processes()), descriptors=len(kept), paths=paths)


@pytest.fixture
def settled(server: Any, until: Callable[..., Any]) -> Iterator[Any]:
    """Before and after a test, the same is held: an instance of `f` that serves and one runtime that waits."""

    def calm() -> bool:
        return len(server.instances("f", "ready")) == 1 and [x["state"] for x in server.langs()] == ["alive"]

    server.warm("f")
    until(calm, "it is calm before")
    before = held(server)
    yield server
    assert server.invoke("f", {"n": 2}).json() == {"n": 2}
    until(calm, "it is calm after")
    until(lambda: not held(server) - before, f"no more than {before} is held")


@pytest.mark.parametrize(
    ("do", "status", "code", "said"),
    [
        ("exit", 502, "instance_died", "exit status 0"),
        ("abort", 502, "instance_died", "SIGABRT"),
        ("kill", 507, "out_of_memory", "SIGKILL"),
        ("loop", 504, "function_timeout", "2"),
        ("never", 504, "function_timeout", "2"),
        ("reject", 502, "instance_died", "exit status 1"),
        ("later", 502, "instance_died", "exit status 1"),
        ("garbage", 502, "instance_died", "socket that belongs to the server"),
        ("floodAndExit", 502, "instance_died", "exit status 0"),
        ("heap", 502, "instance_died", "crashed with SIG"),
        ("children", 502, "instance_died", "exit status 0"),
        ("files", 502, "instance_died", "exit status 0"),
    ],
)
def test_an_instance_that_ends_is_replaced(settled: Any, do: str, status: int, code: str, said: str) -> None:
    (before,) = settled.instances("f")
    assert said in settled.invoke("f", {"do": do}).refused(status, code)
    assert settled.invoke("f", {"n": 3}).json() == {"n": 3}
    assert settled.instances("f")[0]["id"] != before["id"]


def test_memory_beyond_the_limit_can_be_survived(settled: Any) -> None:
    (before,) = settled.instances("f")
    assert settled.invoke("f", {"do": "allocate", "bytes": 8 << 20}).json() == 8 << 20
    assert "allocation failed" in settled.invoke("f", {"do": "allocate", "bytes": 1 << 30}).refused(
        507, "out_of_memory"
    )
    # 20 MB in use, 128 MB of garbage: V8 is told to collect before the limit, which it does not see.
    assert settled.invoke("f", {"do": "churn", "live": 2500, "rounds": 16_000}).json() == 2500
    assert settled.instances("f")[0]["id"] == before["id"]


def test_a_flood_of_output(settled: Any) -> None:
    assert settled.invoke("f", {"do": "flood", "chunks": 5000}).json() == "dry"


def test_a_waiting_runtime_that_is_killed(settled: Any, until: Callable[..., Any]) -> None:
    os.kill(settled.langs()[0]["pid"], 9)
    until(lambda: not [lang for lang in settled.langs() if lang["state"] == "alive"], "it is gone")
    settled.call("POST", "/api/v1/functions/f/unload")
    until(lambda: not settled.instances("f"), "the instance is gone")
    assert settled.invoke("f", {"n": 1}).json() == {"n": 1}


# ---------------------------------------------------------------- deploying


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        path = folder / name.replace("__", ".").replace("--", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def test_the_command_line(server: Any, tmp_path: Path) -> None:
    folder = write(
        tmp_path / "file", hello__mjs='import { hi } from "./lib/hi.cjs"; export const handler = (e) => hi(e);'
    )
    write(folder / "lib", hi__cjs='exports.hi = (e) => "hi " + e.name;')
    assert "deployed hello" in server.cli("deploy", str(folder / "hello.mjs")).out
    assert server.cli("invoke", "hello", "--data", '{"name": "you"}').json() == "hi you"
    assert "unchanged hello" in server.cli("deploy", str(folder / "hello.mjs")).out
    folder = write(tmp_path / "folder", app__js='exports.handler = require("left").pad;')
    write(folder / "node_modules" / "left", index__js='exports.pad = (e) => e.n + "".padStart(2);')
    assert server.cli("deploy", str(folder), "--handler", "app.handler", "--name", "padded").code == 0
    assert server.invoke("padded", {"n": 1}).json() == "1  "
    said = server.cli("deploy", str(folder / "app.js")).failed(2)
    assert "node_modules" in said and f"rewarm deploy {folder} --handler app.handler" in said
    said = server.cli("invoke", "hello", "--data", "null").failed(5)
    assert "TypeError" in said and "lib/hi.cjs line 1" in said


@pytest.mark.parametrize(
    ("source", "code", "said"),
    [
        ("export const other = 1;", "bad_definition", "exports no function 'handler'; it exports other"),
        ("export const handler = 1 +;", "start_failed", "SyntaxError: Unexpected token ';' (app.mjs line 1)"),
        ("\nthrow new Error('no');", "start_failed", "Error: no (app.mjs line 2)"),
        ("process.exit(3);", "bad_definition", "ended with status 3"),
        ("import 'nothing-of-that-name';", "start_failed", "nothing-of-that-name"),
        ("export function handler() {}; handler.rewarm = { memori: 1 };", "bad_definition", "memori"),
        ("export function handler() {}; handler.rewarm = { memory: 'lots' };", "bad_definition", "lots"),
        ("export function handler() {}; handler.rewarm = { preload: ['numpy'] };", "bad_definition", "preload"),
        ("export function handler() {}; handler.rewarm = { env: 3 };", "bad_definition", "rewarm"),
    ],
)
def test_code_that_cannot_be_deployed(server: Any, source: str, code: str, said: str) -> None:
    assert said in server.put(source, file="app.mjs", name="node-bad").refused(
        {"start_failed": 500}.get(code, 422), code
    )
    server.call("GET", "/api/v1/functions/node-bad").refused(404, "not_found")


def test_what_an_import_starts_ends_with_it(server: Any) -> None:
    source = """
import http from "node:http";
spawn("sleep", ["600"]);
http.createServer().listen(0);
setInterval(() => {}, 1000);
"""
    before = len(server.processes())
    server.deploy(source + APP, file="app.mjs", name="node-starts")
    assert len(server.processes()) == before


def test_a_machine_without_node(start: Callable[..., Any]) -> None:
    server = start(env={"PATH": "/nonexistent"})
    said = server.put(APP, file="app.mjs", name="f").refused(500, "system_fault")
    assert "install Node.js" in said
    checks = {check["key"]: check for check in server.cli("doctor", "--json").json()["checks"]}
    assert checks["node"]["ok"] is None and "install Node.js" in checks["node"]["note"]
