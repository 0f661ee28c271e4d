"""The model of the throughput benchmark, its request bodies, and the check that answers are numpy's own."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from _common import HOST

SEED = 20240229
TOLERANCE = 1e-4
JSON_TYPE = "application/json"
RAW_TYPE = "application/octet-stream"

#: Layer sizes by name of the weights file.
MODELS: dict[str, tuple[int, int, int]] = {"mlp784": (784, 128, 10), "mlp4": (4, 8, 10)}


@dataclass(frozen=True)
class Case:
    """One kind of request: which model, in which form; `goal` is rewarm's throughput over mosec's."""

    name: str
    title: str
    model: str
    content_type: str
    goal: float

    @property
    def width(self) -> int:
        return MODELS[self.model][0]


CASES: dict[str, Case] = {
    case.name: case
    for case in (
        Case("json784", "JSON list of 784 floats", "mlp784", JSON_TYPE, 1.3),
        Case("json4", "JSON list of 4 floats", "mlp4", JSON_TYPE, 2.0),
        Case("raw", "raw float32 [784]", "mlp784", RAW_TYPE, 1.5),
    )
}


def weights(model: str) -> dict[str, np.ndarray]:
    """The same numbers on every machine."""
    inputs, hidden, outputs = MODELS[model]
    rng = np.random.default_rng(SEED)
    return {
        "w1": (rng.standard_normal((inputs, hidden)) / inputs**0.5).astype(np.float32),
        "b1": rng.standard_normal(hidden).astype(np.float32),
        "w2": (rng.standard_normal((hidden, outputs)) / hidden**0.5).astype(np.float32),
        "b2": rng.standard_normal(outputs).astype(np.float32),
    }


def save_weights(folder: Path) -> None:
    for model in MODELS:
        np.savez(folder / f"{model}.npz", **weights(model))  # type: ignore[arg-type]


def forward(w: Mapping[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    hidden = np.maximum(x @ w["w1"] + w["b1"], 0)
    result: np.ndarray = hidden @ w["w2"] + w["b2"]
    return result


def rows(case: Case, count: int, seed: int = 1) -> np.ndarray:
    """Inputs in [0, 1) with four decimals, so that the text and the binary form are the same numbers."""
    rng = np.random.default_rng((SEED, seed))
    result: np.ndarray = (rng.integers(0, 10_000, (count, case.width)) / 10_000).astype(np.float32)
    return result


def encode(case: Case, row: np.ndarray, nested: bool = False) -> bytes:
    """784 floats: 5.4 KB as JSON, 3.1 KB raw. `nested`: a list of one row, for a server that takes batches only."""
    if case.content_type == RAW_TYPE:
        return row.astype("<f4").tobytes()
    text = "[" + ",".join(f"{value:.4f}" for value in row) + "]"
    return (f"[{text}]" if nested else text).encode()


def decode(case: Case, body: bytes) -> np.ndarray:
    """One output row; a batch of one row is taken too."""
    if case.content_type == RAW_TYPE:
        return np.frombuffer(body, "<f4")
    return np.asarray(json.loads(body), np.float32).reshape(-1)


@dataclass
class Checked:
    """What a correctness pass found."""

    answers: int = 0
    wrong: list[str] = field(default_factory=list)


def check_mixed(
    port: int, paths: Mapping[str, str], *, threads_each: int, requests: int, nested: bool = False
) -> Checked:
    """Concurrent requests of every kind in `paths` (case name → path); every answer against numpy's own."""
    found = Checked()
    lock = threading.Lock()

    def caller(case: Case, path: str, seed: int) -> None:
        inputs = rows(case, requests, seed)
        wanted = forward(weights(case.model), inputs)
        answers, wrong = ask_all(port, case, path, [encode(case, row, nested) for row in inputs], wanted)
        with lock:
            found.answers += answers
            found.wrong += wrong

    callers = [
        threading.Thread(target=caller, args=(CASES[name], path, 100 * number + index), daemon=True)
        for number, (name, path) in enumerate(paths.items(), 1)
        for index in range(threads_each)
    ]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join()
    return found


def ask_all(port: int, case: Case, path: str, bodies: Sequence[bytes], wanted: np.ndarray) -> tuple[int, list[str]]:
    """One caller on one kept-alive connection: the number of right answers, and what was wrong with the others."""
    right, wrong = 0, list[str]()
    connection = http.client.HTTPConnection(HOST, port, timeout=30.0)
    for sent, expected in zip(bodies, wanted, strict=True):
        try:
            connection.request("POST", path, sent, {"Content-Type": case.content_type})
            answer = connection.getresponse()
            body = answer.read()
            if answer.status != 200:
                raise ValueError(f"status {answer.status}: {body[:200]!r}")
            got = decode(case, body)
            if got.shape != expected.shape or not np.allclose(got, expected, rtol=0, atol=TOLERANCE):
                raise ValueError(f"got {got}, wanted {expected}")
            right += 1
        except (OSError, http.client.HTTPException, ValueError) as error:
            wrong.append(f"{case.name}: {error!r}")
            connection.close()
    connection.close()
    return right, wrong
