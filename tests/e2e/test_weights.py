"""Packed weights on a live server: from the deploy to a cold start, and what may happen to the files in between."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

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
    assert first.status == 200 and first.json() == [66.0] * 256
    said = dict(part.split("=") for part in first.headers["rewarm-weights"].split(", "))
    assert float(said["ttfi-ms"]) > 0 and float(said["bubble-ms"]) >= 0 and int(said["pinned-bytes"]) == 0
    again = server.invoke("deep", [1.0] * 256)
    assert again.json() == [67.0] * 256 and "rewarm-weights" not in again.headers
    found = model(server, "deep")
    assert found["weights_bytes"] >= 12 * 257 * 256 * 4 and found["last_load"]["ttfi_ms"] == pytest.approx(
        float(said["ttfi-ms"]), abs=0.1
    )
    assert "deep" in server.cli("ps").out
    assert 'rewarm_weights_loads_total{function="deep"} 1.0' in server.call("GET", "/metrics").body.decode()


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
    until(lambda: model(server, "f")["held_bytes"] > 0, "pinned again")
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
