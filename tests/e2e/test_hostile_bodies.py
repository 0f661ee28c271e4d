"""Bodies and answers that would hurt the neighbours or the server, on a real server."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.e2e

PAIRS = """
import rewarm


@rewarm.function(inputs={"x": rewarm.Tensor("float32", [4])}, batching="static:size=2", max_instances=1)
class Pairs:
    def predict(self, x):
        return x * 2
"""
LOUD = """
import os
import struct


def handler(event, context):
    if "frame" in event:
        os.write(3, struct.pack("<QBBHII", event["frame"], 2, 0, 1, 0, 1) + bytes(1000))
    return b"x" * event.get("answer", 1)
"""


@pytest.mark.parametrize("evil", [["x" * 500_000, "", "", ""], [1, None, 3, 4], "no list", [[[1, 2, 3, 4]]] * 3])
def test_the_neighbour_in_the_batch_is_answered(server: Any, evil: Any) -> None:
    server.deploy(PAIRS, name="evil-pairs")
    with ThreadPoolExecutor(2) as pool:
        bad, good = pool.map(lambda body: server.invoke("evil-pairs", body), [evil, [1, 2, 3, 4]])
    assert bad.status == 400 and bad.json()["code"] in ("bad_tensor", "bad_request")
    assert (good.status, good.json()) == (200, [2, 4, 6, 8])
    assert good.headers["rewarm-batch-size"] == "2"


def test_an_answer_that_is_too_large(server: Any) -> None:
    server.deploy(LOUD, handler="app.handler", name="evil-loud")
    whole = server.invoke("evil-loud", {"answer": 64 << 20})
    assert whole.status == 200 and len(whole.body) == 64 << 20
    assert "67108864 (64 MB)" in server.invoke("evil-loud", {"answer": (64 << 20) + 1}).refused(500, "function_error")
    assert server.invoke("evil-loud").body == b"x"


def test_a_frame_that_no_answer_fills(server: Any) -> None:
    server.deploy(LOUD, handler="app.handler", name="evil-frame")
    said = server.invoke("evil-frame", {"frame": 1 << 30}).refused(502, "instance_died")
    assert "belongs to the server" in said
    assert server.invoke("evil-frame").body == b"x"


@pytest.mark.parametrize("forked", [False, True], ids=["from nothing", "forked"])
def test_a_package_that_starts_a_thread(start: Any, tmp_path: Path, forked: bool) -> None:
    (tmp_path / "threads_at_import.py").write_text(
        "import threading, time\n"
        "for _ in range(2):\n    threading.Thread(target=time.sleep, args=(600,), daemon=True).start()\n"
    )
    (tmp_path / "threads_for_a_moment.py").write_text(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(0.05,)).start()\n"
    )
    paths = f"{Path(__file__).resolve().parents[2] / 'src'}:{tmp_path}"
    server = start(env={"PYTHONPATH": paths})
    echo = "def handler(event, context):\n    return event\n"
    if forked:
        server.deploy(echo, handler="app.handler", name="plain")
        assert server.invoke("plain", 1).json() == 1
    server.deploy(echo, handler="app.handler", name="threads", preload=["threads_at_import", "json"])
    said = server.invoke("threads").refused(500, "start_failed")
    assert "threads_at_import started 2 threads on import; a process with threads can not be forked safely" in said
    server.deploy(echo, handler="app.handler", name="moment", preload=["threads_for_a_moment"])
    assert server.invoke("moment", 2).json() == 2
