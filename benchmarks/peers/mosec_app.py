"""mosec at its fastest for this model; one worker process per case, batches of up to 16.

JSON is parsed by pysimdjson straight into a buffer of doubles (no Python floats) and written by msgspec, which mosec
itself depends on; raw bodies are bytes in and bytes out, joined once per batch. BENCH_CASES names the routes to open.
"""

import os
import sys
from pathlib import Path

import msgspec
import numpy as np
import simdjson
from mosec import Server, Worker

BATCH_MAX = 16


class Json784(Worker):
    """JSON list of 784 floats → JSON list of 10."""

    model = "mlp784"

    def __init__(self) -> None:
        super().__init__()
        with np.load(Path(os.environ["BENCH_WEIGHTS"]) / f"{self.model}.npz") as file:
            self.w1, self.b1, self.w2, self.b2 = (file[key] for key in ("w1", "b1", "w2", "b2"))
        self.parser = simdjson.Parser()
        self.encode = msgspec.json.Encoder().encode

    def deserialize(self, data: bytes) -> bytes:
        return self.parser.parse(data).as_buffer(of_type="d")

    def serialize(self, data: list[float]) -> bytes:
        return self.encode(data)

    def forward(self, data: list[bytes]) -> list[list[float]]:
        x = np.frombuffer(b"".join(data), np.float64).reshape(len(data), -1)
        return self.mlp(x.astype(np.float32)).tolist()

    def mlp(self, x: np.ndarray) -> np.ndarray:
        return np.maximum(x @ self.w1 + self.b1, 0) @ self.w2 + self.b2


class Json4(Json784):
    """JSON list of 4 floats → JSON list of 10."""

    model = "mlp4"


class Raw(Json784):
    """784 raw float32 → 10 raw float32."""

    req_mime_type = resp_mime_type = "application/octet-stream"

    def deserialize(self, data: bytes) -> bytes:
        return data

    def serialize(self, data: bytes) -> bytes:
        return data

    def forward(self, data: list[bytes]) -> list[bytes]:
        x = np.frombuffer(b"".join(data), np.float32).reshape(len(data), -1)
        answer = self.mlp(x).tobytes()
        width = len(answer) // len(data)
        return [answer[i : i + width] for i in range(0, len(answer), width)]


if __name__ == "__main__":
    os.environ["MOSEC_PORT"] = os.environ["BENCH_PORT"]
    os.environ["MOSEC_ADDRESS"] = "127.0.0.1"
    os.environ["MOSEC_LOG_LEVEL"] = "error"
    sys.argv += ["--wait", os.environ["BENCH_WAIT_MS"]]  # the only way to a wait of 0: max_wait_time=0 means "this"
    server = Server()
    for case in os.environ["BENCH_CASES"].split(","):
        worker = {"json784": Json784, "json4": Json4, "raw": Raw}[case]
        server.append_worker(
            worker,
            num=1,
            max_batch_size=BATCH_MAX,
            max_wait_time=int(os.environ["BENCH_WAIT_MS"]),
            route=f"/{case}",
        )
    server.run()
