"""FastAPI on uvicorn: no batching; the body is read as it is, without pydantic, which is its quick way."""

import json

import numpy as np
import uvicorn
from _model import CASE, PORT, Mlp
from fastapi import FastAPI, Request, Response

app = FastAPI()
mlp = Mlp()


@app.get("/health")
async def health() -> Response:
    return Response("ok")


@app.post(f"/{CASE}")
async def infer(request: Request) -> Response:
    body = await request.body()
    if CASE == "raw":
        return Response(mlp(np.frombuffer(body, np.float32)).tobytes(), media_type="application/octet-stream")
    answer = mlp(np.array(json.loads(body), np.float32))
    return Response(json.dumps(answer.tolist()), media_type="application/json")


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=PORT, access_log=False, log_level="warning")
