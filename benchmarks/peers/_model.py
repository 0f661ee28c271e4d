"""The benchmark's networks for the optional peers: numpy only, so that it imports in any of their environments."""

import os
from pathlib import Path

import numpy as np

CASE = os.environ["BENCH_CASES"]  # one case per run for these peers
PORT = int(os.environ["BENCH_PORT"])
BATCH_MAX = 16


class Mlp:
    """Two dense layers with a ReLU between them: rows float32 [batch, n] → [batch, 10]."""

    def __init__(self) -> None:
        model = "mlp4" if CASE == "json4" else "mlp784"
        with np.load(Path(os.environ["BENCH_WEIGHTS"]) / f"{model}.npz") as file:
            self.w1, self.b1, self.w2, self.b2 = (file[key] for key in ("w1", "b1", "w2", "b2"))

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return np.maximum(x @ self.w1 + self.b1, 0) @ self.w2 + self.b2
