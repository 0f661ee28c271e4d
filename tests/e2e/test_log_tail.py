"""X-Amz-Log-Type: Tail is for the caller's own lines."""

from __future__ import annotations

import base64
import http.client
import threading
from typing import Any

APP = """
import time

def main(event, context):
    print("line of", event["who"], flush=True)
    time.sleep(event.get("sleep", 0))
    return event["who"]
"""


def tail(server: Any, name: str, who: str, sleep_s: float = 0.0) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    body = f'{{"who": "{who}", "sleep": {sleep_s}}}'
    connection.request("POST", f"/2015-03-31/functions/{name}/invocations", body, {"X-Amz-Log-Type": "Tail"})
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return base64.b64decode(answer.headers["X-Amz-Log-Result"]).decode()


def test_nobody_reads_the_lines_of_another_caller(server: Any) -> None:
    name = server.deploy(APP, handler="app.main", name="tails", max_instances=3)["name"]
    found: dict[str, str] = {}

    def call(who: str, sleep_s: float) -> None:
        found[who] = tail(server, name, who, sleep_s)

    callers = [threading.Thread(target=call, args=(f"caller{n}", 0.2)) for n in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    for who, text in found.items():
        assert f"line of {who}" in text and "REPORT RequestId" in text
        assert text.count("line of") == 1, text
