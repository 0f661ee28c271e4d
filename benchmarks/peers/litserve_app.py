"""LitServe: one worker, its own batching of up to 16, no wait."""

import litserve
import numpy as np
from _model import BATCH_MAX, CASE, PORT, Mlp


class Api(litserve.LitAPI):
    """JSON list in, JSON list out."""

    def setup(self, device: str) -> None:
        self.mlp = Mlp()

    def decode_request(self, request: list[float]) -> np.ndarray:
        return np.array(request, np.float32)

    def batch(self, inputs: list[np.ndarray]) -> np.ndarray:
        return np.stack(inputs)

    def predict(self, x: np.ndarray) -> np.ndarray:
        return self.mlp(x)

    def unbatch(self, output: np.ndarray) -> list[np.ndarray]:
        return list(output)

    def encode_response(self, output: np.ndarray) -> list[float]:
        return output.tolist()


if __name__ == "__main__":
    api = Api(max_batch_size=BATCH_MAX, batch_timeout=0.001, api_path=f"/{CASE}")
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=PORT, num_api_servers=1, log_level="warning", generate_client_file=False)
