"""Ray Serve: one replica on one node, its own batching of up to 16, no wait to speak of."""

import json
import signal
import threading

import numpy as np
import ray
from _model import BATCH_MAX, CASE, PORT, Mlp
from ray import serve
from starlette.requests import Request
from starlette.responses import Response


@serve.deployment(num_replicas=1, max_ongoing_requests=256, ray_actor_options={"num_cpus": 0})
class Bench:
    """One route; rows are gathered before they are run."""

    def __init__(self) -> None:
        self.mlp = Mlp()

    @serve.batch(max_batch_size=BATCH_MAX, batch_wait_timeout_s=0.001)
    async def rows(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
        return list(self.mlp(np.stack(inputs)))

    async def __call__(self, request: Request) -> Response:
        body = await request.body()
        if CASE == "raw":
            return Response((await self.rows(np.frombuffer(body, np.float32))).tobytes())
        answer = await self.rows(np.array(json.loads(body), np.float32))
        return Response(json.dumps(answer.tolist()), media_type="application/json")


if __name__ == "__main__":
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100 << 20, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": PORT})
    serve.run(Bench.bind(), route_prefix=f"/{CASE}")
    stopped.wait()
    serve.shutdown()
    ray.shutdown()
