"""Packed weights on a live server: from the deploy to a cold start, and what may happen to the files in between."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rewarm.core.models import REPLAN_S
from rewarm.snapshot.holes import drop_cache

pytestmark = pytest.mark.e2e

ARRAYS = """
import numpy as np
import rewarm


@rewarm.function(weights=rewarm.Weights("w.safetensors", pin="all"), inputs={"x": rewarm.Tensor("float32", [4])})
class Linear:
    def __init__(self, weights: rewarm.Weights) -> None:
        self.tensors = weights.arrays()

    def predict(self, x: np.ndarray) -> np.ndarray:
        return x @ self.tensors["a"] + self.tensors["b"]
"""
NET = """
import numpy as np
import rewarm
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(256, 256) for _ in range(12)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


@rewarm.function(
    preload=["torch"], weights="w.safetensors", inputs={"x": rewarm.Tensor("float32", [256])}, memory="2GB"
)
class Deep:
    def __init__(self, weights: rewarm.Weights) -> None:
        self.net = weights.module(Net)

    def predict(self, x: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return self.net(torch.from_numpy(x)).numpy()
"""

LOOK_UP = """
import numpy as np
import rewarm
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(4096, 512)
        self.last = nn.Linear(512, 512, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.last(self.table(ids))


@rewarm.function(
    preload=["torch"], weights=rewarm.Weights("w.safetensors", pin="all"),
    inputs={"ids": rewarm.Tensor("int64", [-1])}, memory="2GB",
)
class Look:
    def __init__(self, weights: rewarm.Weights) -> None:
        self.net = weights.module(Net)

    def predict(self, ids: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return self.net(torch.from_numpy(ids)).numpy()
"""


def safetensors(tensors: dict[str, np.ndarray]) -> bytes:
    """A checkpoint as the format's page says: a length, a JSON header, the bytes."""
    header, at = {}, 0
    for name, array in tensors.items():
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + b"".join(array.tobytes() for array in tensors.values())


def linear(b: float, seed: int = 1) -> bytes:
    a = np.random.default_rng(seed).random((4, 3), dtype=np.float32)
    large = np.arange(1 << 19, dtype=np.float32)  # less than 1 MB is not worth a pin
    return safetensors({"a": a, "b": np.full(3, b, dtype=np.float32), "large": large})


def answer(server: Any, name: str) -> list[float]:
    reply = server.invoke(name, [1.0, 0.0, 0.0, 0.0])
    assert reply.status == 200, reply
    found: list[float] = reply.json()
    return found


def data_files(server: Any) -> list[Path]:
    return sorted((server.home / "tensors").iterdir())


def found_bytes(tensors: dict[str, np.ndarray]) -> int:
    """A page at the end of each is read with it."""
    return sum(array.nbytes + 4096 for array in tensors.values())


def model(server: Any, function: str) -> Any:
    models = server.get("/api/v1/ps")["models"]
    return next((found for found in models if function in found["functions"]), None)


def test_variants_share_what_is_equal_and_the_last_one_takes_it_along(
    start: Callable[..., Any], until: Callable[..., Any]
) -> None:
    server = start("--keepalive", "none")  # what an instance maps is not collected
    server.deploy(ARRAYS, name="one", others={"w.safetensors": linear(0.0)})
    (base,) = data_files(server)
    server.deploy(ARRAYS, name="same", others={"w.safetensors": linear(0.0)})
    assert data_files(server) == [base]
    server.deploy(ARRAYS, name="tuned", others={"w.safetensors": linear(5.0)})
    tuned = next(path for path in data_files(server) if path != base)
    assert tuned.stat().st_size <= 2 * 4096 + 3 * 4, "the header and what differs"
    assert answer(server, "tuned") == pytest.approx(np.add(answer(server, "one"), 5.0))
    assert answer(server, "same") == answer(server, "one")
    assert model(server, "one")["functions"] == ["one", "same"], "one model"
    until(lambda: model(server, "one")["held_bytes"] > 0, "what was asked to be pinned is")
    until(lambda: not server.instances(), "all instances are gone")
    server.cli("rm", "tuned")
    assert data_files(server) == [base]
    server.cli("rm", "one")
    assert data_files(server) == [base]
    server.cli("rm", "same")
    assert data_files(server) == []
    assert list((server.home / "packs").iterdir()) == [] and server.get("/api/v1/ps")["models"] == []


def test_a_start_from_nothing_tells_how_the_weights_came(start: Callable[..., Any]) -> None:
    pytest.importorskip("torch")
    server = start()
    layers = {}
    for no in range(12):
        layers[f"layers.{no}.weight"] = np.roll(
            np.eye(256, dtype=np.float32), no, axis=1
        )  # equal ones would be stored once
        layers[f"layers.{no}.bias"] = np.full(256, float(no), dtype=np.float32)
    done = server.deploy(NET, name="deep", others={"w.safetensors": safetensors(layers)})
    assert done["weights"]["packed"] and done["weights"]["order"] == "traced"
    first = server.invoke("deep", [0.0] * 256)
    took_s = time.time() - server.function("deep")["created_at"]
    assert first.status == 200 and first.json() == [66.0] * 256
    said = dict(part.split("=") for part in first.headers["rewarm-weights"].split(", "))
    assert float(said["ttfi-ms"]) > 0 and float(said["bubble-ms"]) >= 0
    pinned_bytes_max = 0 if took_s < REPLAN_S else found_bytes(layers)  # no pins are planned sooner after a deploy
    assert 0 <= int(said["pinned-bytes"]) <= pinned_bytes_max
    assert int(said.get("ahead-bytes", 0)) <= found_bytes(layers), "what the keeper read, if it was done by then"
    again = server.invoke("deep", [1.0] * 256)
    assert again.json() == [67.0] * 256 and "rewarm-weights" not in again.headers
    found = model(server, "deep")
    assert found["weights_bytes"] >= 12 * 257 * 256 * 4 and found["last_load"]["ttfi_ms"] == pytest.approx(
        float(said["ttfi-ms"]), abs=0.1
    )
    assert "deep" in server.cli("ps").out
    assert 'rewarm_weights_loads_total{function="deep"} 1.0' in server.call("GET", "/metrics").body.decode()


def test_a_model_that_is_pinned_whole_reads_nothing_its_tables_neither(
    start: Callable[..., Any], until: Callable[..., Any]
) -> None:
    pytest.importorskip("torch")
    server = start("--keepalive", "none")
    rows, width = 4096, 512  # 8 MB
    table = np.arange(rows, dtype=np.float32).repeat(width).reshape(rows, width)
    weights = {"table.weight": table, "last.weight": np.eye(width, dtype=np.float32)}
    server.deploy(LOOK_UP, name="look", others={"w.safetensors": safetensors(weights)})
    until(lambda: model(server, "look")["held_bytes"] >= found_bytes(weights) - 3 * 4096, "all of it is held")
    found = model(server, "look")
    assert found["pinned_tables"] == ["table"]
    assert found["pinned_bytes"] == found["weights_bytes"] > found["streamed_bytes"]
    if not found["locked"]:
        pytest.skip("not allowed to lock memory")
    for path in data_files(server):
        drop_cache(path)
    reply = server.invoke("look", [7, 4000])
    assert reply.status == 200, reply
    assert [row[0] for row in reply.json()] == [7.0, 4000.0]
    said = dict(part.split("=") for part in reply.headers["rewarm-weights"].split(", "))
    assert int(said["read-bytes"]) == 0


def test_a_rollback_takes_the_weights_along(start: Callable[..., Any]) -> None:
    server = start("--keepalive", "none")
    for b in (0.0, 5.0):
        server.deploy(ARRAYS, name="f", others={"w.safetensors": linear(b)})
    second = answer(server, "f")
    done = server.cli("rollback", "f")
    assert (done.code, "weights packed" in done.out) == (0, True), done
    assert np.add(answer(server, "f"), 5.0) == pytest.approx(second)
    assert server.cli("rollback", "f").code == 0
    assert answer(server, "f") == second
    assert len(server.cli("versions", "f").out.splitlines()) >= 3


@pytest.mark.parametrize("damage", ["flip", "cut", "missing"])
def test_damaged_weights_are_an_error_that_another_deploy_mends(
    start: Callable[..., Any], until: Callable[..., Any], damage: str
) -> None:
    server = start("--keepalive", "none")
    server.deploy(ARRAYS, name="f", others={"w.safetensors": linear(1.0)})
    good = answer(server, "f")
    (path,) = data_files(server)
    data = bytearray(path.read_bytes())
    path.chmod(0o644)
    if damage == "flip":
        data[4096] ^= 1
        path.write_bytes(data)
    elif damage == "cut":
        os.truncate(path, 100)
    else:
        path.parent.chmod(0o755)
        path.unlink()
    until(lambda: not server.instances("f"), "the next start is one from nothing")
    message = server.invoke("f", [1.0, 0.0, 0.0, 0.0]).refused(500, "weights_corrupt")
    assert "deploy" in message
    again = server.put(ARRAYS, name="f", others={"w.safetensors": linear(1.0)})
    assert again.json()["weights"]["packed"] and answer(server, "f") == good


def test_pins_come_back_after_the_keeper_was_killed(start: Callable[..., Any], until: Callable[..., Any]) -> None:
    server = start()
    server.deploy(ARRAYS, name="f", others={"w.safetensors": linear(1.0)})
    until(lambda: model(server, "f")["held_bytes"] > 0, "pinned")
    (keeper,) = [
        pid for pid in server.processes() if b"rewarm.weights.keeper" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    os.kill(keeper, signal.SIGKILL)
    until(lambda: keeper not in server.processes(), "it is gone")
    found = model(server, "f")
    assert found["pinned_bytes"] > 0, "its memory is nobody else's meanwhile"
    until(lambda: model(server, "f")["held_bytes"] > 0, "pinned again")
    assert model(server, "f")["pinned_bytes"] == found["pinned_bytes"]
    assert answer(server, "f") == pytest.approx(answer(server, "f"))


def test_a_pickle_with_code_in_it_is_refused(start: Callable[..., Any]) -> None:
    pytest.importorskip("torch")
    import pickle

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, ("true",)

    server = start()
    code = NET.replace("w.safetensors", "w.pt")
    reply = server.put(code, name="evil", others={"w.pt": pickle.dumps(Evil())})
    assert "pickle" in reply.refused(422, "bad_definition")
    assert server.get("/api/v1/functions") == {"functions": []}


WRITES = NET.replace(
    "            return",
    "            if x[0, 0] > 5:\n                self.net.layers[0].bias.zero_()\n            return",
)


def test_what_writes_into_its_weights_is_told_so(start: Callable[..., Any]) -> None:
    """The process dies, since the memory is a file's that all instances share; the next one is as good as before."""
    pytest.importorskip("torch")
    server = start()
    layers = {}
    for no in range(12):
        layers[f"layers.{no}.weight"] = np.eye(256, dtype=np.float32)
        layers[f"layers.{no}.bias"] = np.full(256, float(no), dtype=np.float32)
    server.deploy(WRITES, name="writes", others={"w.safetensors": safetensors(layers)})
    message = server.invoke("writes", [9.0] * 256).refused(502, "instance_died")
    assert "SIGSEGV" in message and "mapped read-only" in message and "tensor.clone()" in message
    assert server.invoke("writes", [0.0] * 256).json() == [66.0] * 256


def test_how_often_a_model_was_started_is_known_after_a_restart(
    start: Callable[..., Any], until: Callable[..., Any], tmp_path: Path
) -> None:
    code = ARRAYS.replace(', pin="all"', "")
    server = start("--keepalive", "none", home=tmp_path / "home")
    server.deploy(code, name="f", others={"w.safetensors": linear(1.0)})
    for _ in range(2):
        answer(server, "f")
        until(lambda: not server.instances("f"), "the next start is one from nothing")
    before = model(server, "f")["cold_per_h"]
    server.stop()
    again = start(home=tmp_path / "home")
    assert model(again, "f")["cold_per_h"] == pytest.approx(before, rel=0.1) and before > 1.0
    again.kill()
    (tmp_path / "home" / "cold-starts.json").write_text('{"at": 0, "per_s": {"x": "often"}}')
    assert model(start(home=tmp_path / "home"), "f")["cold_per_h"] == 0.0, "damaged, it is forgotten"


LARGE = """
import numpy as np
import rewarm


@rewarm.function(weights="w.safetensors", inputs={"x": rewarm.Tensor("int64", [1])}, memory="96MB")
class Large:
    def __init__(self, weights: rewarm.Weights) -> None:
        self.table = weights.arrays()["table"]

    def predict(self, x: np.ndarray) -> np.ndarray:
        return np.array([[float(block.sum()) for block in self.table] for _ in x])
"""


def test_weights_that_are_larger_than_the_memory_are_read_as_they_are_needed(start: Callable[..., Any]) -> None:
    """Of the function, and of the whole server: 192 MB of weights, of which every byte counts."""
    server = start("--memory", "128MB")
    table = np.zeros((6, 8 << 20), dtype=np.float32)
    table[:, 0] = table[:, -1] = np.arange(6)
    server.deploy(LARGE, name="large", others={"w.safetensors": safetensors({"table": table})})
    for _ in range(2):
        reply = server.invoke("large", [0])
        assert reply.status == 200 and reply.json() == [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 32 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def test_wherever_a_deploy_meets_the_end_of_the_disk_it_says_so_and_leaves_nothing(
    small_disk: Path, start: Callable[..., Any]
) -> None:
    server = start(home=small_disk / "home")
    weights = np.random.default_rng(1).random(1 << 19, dtype=np.float32)  # 2 MB that do not compress
    file = safetensors({"a": np.ones((4, 3), np.float32), "b": np.zeros(3, np.float32), "large": weights})
    ballast = small_disk / "ballast"
    messages = []
    for free_mb in range(1, 16):
        free = shutil.disk_usage(small_disk).free
        ballast.write_bytes(bytes(free - (free_mb << 20)))
        reply = server.put(ARRAYS, name="f", others={"w.safetensors": file})
        ballast.unlink()
        if reply.status == 201:
            break
        messages.append(reply.refused(500, "system_fault"))
        assert server.get("/api/v1/functions") == {"functions": []}
        for kept in ("packs", "tensors", "weights", "artifacts", "tmp"):
            assert list((server.home / kept).iterdir()) == [], (kept, free_mb)
    assert reply.status == 201 and reply.json()["weights"]["packed"] and answer(server, "f") == [1.0, 1.0, 1.0]
    assert all("No space left" in message for message in messages), messages
    assert any("pack" in message for message in messages), messages
