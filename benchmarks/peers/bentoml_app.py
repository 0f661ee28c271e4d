"""BentoML: one worker, its adaptive batching of up to 16; a list of one row in, a list of one row out."""

import os
import sys
from pathlib import Path

import bentoml
import numpy as np
from _model import BATCH_MAX, CASE, PORT, Mlp


@bentoml.service(workers=1, traffic={"timeout": 30}, logging={"access": {"enabled": False}})
class Bench:
    """One route; the only parameter is the whole body."""

    def __init__(self) -> None:
        self.mlp = Mlp()

    @bentoml.api(route=f"/{CASE}", batchable=True, max_batch_size=BATCH_MAX, max_latency_ms=1000)
    def infer(self, rows: list[list[float]], /) -> list[list[float]]:
        return self.mlp(np.array(rows, np.float32)).tolist()


if __name__ == "__main__":
    here = str(Path(__file__).resolve().parent)
    arguments = ["-m", "bentoml", "serve", "bentoml_app:Bench", "--working-dir", here]
    os.execv(sys.executable, [sys.executable, *arguments, "--host", "127.0.0.1", "--port", str(PORT)])
