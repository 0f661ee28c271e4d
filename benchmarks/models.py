"""More models than memory: eight functions whose weights total 3 GB behind `rewarm serve --memory 1GB`.

    python benchmarks/models.py            a table
    python benchmarks/models.py --json     the same, as the last line of standard output
    python benchmarks/models.py --quick    a quarter of the bytes and of the memory, and fewer rounds

Every instance ends with its call (keep-alive `none`), so every call is a cold start of its model. The r-th function is
called about 1/r as often as the first. Asked is: do all answer, with the right answers; is anything killed; does the
ledger stay within its budget; and do pins go to the models with the most cold starts per second of read time.

Then four instances of one model at once: what they hold together, over what one holds (PSS). Of such a model, and of
one in the shape of BERT-base on torch (--quick: of MiniLM), if torch is installed.

The JSON: {"answers", "errors", "killed", "budget_bytes", "held_bytes_max", "functions": [{"function", "starts",
"cold_per_h", "pinned_bytes", "streamed_bytes"}], "in_order", "pss_one_mb", "pss_four_mb", "four_over_one",
"extra_private_mb", "torch": {"model", "pss_one_mb", "pss_four_mb", "four_over_one", "extra_private_mb"} or null}.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from _common import BenchmarkError, finish, machine, print_table, say

from rewarm.bench.api import Api
from rewarm.bench.local_server import local_server
from rewarm.bench.shipping import Wish, of_target, upload

FUNCTIONS = 8
WEIGHTS_BYTES = 384 << 20
MEMORY = "1GB"
ROUNDS = 6
LAYERS = 12
TRIES_MAX = 5

APP = '''
import time

import numpy as np
import rewarm


@rewarm.function(name="{name}", weights="w.safetensors", memory="1GB", max_instances=4, keepalive="{keepalive}")
class Model:
    def __init__(self, weights: rewarm.Weights) -> None:
        self.layers = weights.arrays()

    def predict(self, x: np.ndarray) -> np.ndarray:
        """All layers are read; the answer says whose they are. Takes as long as the caller says."""
        time.sleep(float(x.max()))
        total = sum(float(layer.sum(dtype=np.float64)) for layer in self.layers.values())
        return np.full((len(x), 1), round(total), np.float64)
'''

TORCH_APP = '''
import time

import numpy as np
import rewarm
import torch
from rewarm.bench.zoo.models import FACTORIES


@rewarm.function(
    name="model", preload=["torch"], weights="{model}-0.safetensors", memory="2GB", max_instances=4,
    inputs={{"tokens": rewarm.Tensor("int64", [32])}}, keepalive="fixed:ttl=10min",
)
class Model:
    def __init__(self, weights: rewarm.Weights) -> None:
        self.net = weights.module(FACTORIES["{model}"])

    def predict(self, tokens: np.ndarray) -> np.ndarray:
        """Long enough for others to start beside it."""
        time.sleep(2.0)
        with torch.inference_mode():
            return self.net(torch.from_numpy(tokens)).float().numpy().reshape(len(tokens), -1)[:, :4]
'''
# In a process of its own: torch stays out of this one.
WRITE_TORCH = """
import sys
from pathlib import Path
from rewarm.bench.zoo.generate import weights_file
weights_file(sys.argv[1], Path(sys.argv[2]), 0)
"""


def write_weights(path: Path, number: int, size_bytes: int) -> int:
    """A checkpoint of LAYERS layers, all their values a small number of the model's own → their sum."""
    count = size_bytes // LAYERS // 4
    header, at = {}, 0
    for layer in range(LAYERS):
        header[f"layer.{layer}"] = {"dtype": "F32", "shape": [count], "data_offsets": [at, at + 4 * count]}
        at += 4 * count
    text = json.dumps(header).encode()
    total = 0
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for layer in range(LAYERS):
            values = np.full(count, number + 1, np.float32)
            values[0] = layer + 1  # else equal layers would be stored once
            total += (number + 1) * (count - 1) + layer + 1
            file.write(values.tobytes())
    return total


def deploy(api: Api, name: str, number: int, size_bytes: int, keepalive: str) -> int:
    with tempfile.TemporaryDirectory(prefix="rewarm-models-") as folder:
        total = write_weights(Path(folder, "w.safetensors"), number, size_bytes)
        _publish(api, Path(folder), APP.format(name=name, keepalive=keepalive))
    return total


def deploy_torch(api: Api, model: str) -> None:
    with tempfile.TemporaryDirectory(prefix="rewarm-models-") as folder:
        subprocess.run([sys.executable, "-c", WRITE_TORCH, model, folder], check=True)
        _publish(api, Path(folder), TORCH_APP.format(model=model))


def _publish(api: Api, folder: Path, code: str) -> None:
    Path(folder, "app.py").write_text(code, encoding="utf-8")
    done = upload(api, of_target(str(Path(folder, "app.py")), Wish()))
    if not done["weights"]["packed"]:
        raise SystemExit(f"{done['name']} was not packed: {done['weights']['why']}")


def under_pressure(size_bytes: int, memory: str, rounds: int) -> dict[str, Any]:
    with local_server(["--memory", memory]) as url, Api(url) as api:
        sums = {}
        for number in range(FUNCTIONS):
            name = f"model-{number + 1}"
            sums[name] = deploy(api, name, number, size_bytes, "none")
            say(f"deployed {name}")
        names = list(sums)
        turns = range(rounds * FUNCTIONS)
        calls = [name for turn in turns for rank, name in enumerate(names) if turn % (rank + 1) == 0]
        errors, wrong, held_max = 0, 0, 0
        for name in calls:
            answer = api.invoke(name, b"[0.0]")
            errors += answer.status != 200
            wrong += answer.status == 200 and answer.json() != [float(sums[name])]
            held_max = max(held_max, api.ps()["ledger"]["held_bytes"])
        time.sleep(3.0)  # the last plan follows the last start by two seconds
        alive = api.ps()
        killed = sum("SIGKILL" in line["text"] for name in names for line in api.logs(name))
        stats = {name: api.stats(name) for name in names}
    rows = []
    for name in names:
        model = next(found for found in alive["models"] if name in found["functions"])
        rows.append({
            "function": name, "starts": stats[name]["inits"], "cold_per_h": round(model["cold_per_h"], 1),
            "pinned_bytes": model["pinned_bytes"], "streamed_bytes": model["streamed_bytes"],
        })  # fmt: skip
    shares = [row["pinned_bytes"] / row["streamed_bytes"] for row in rows]
    return {
        "answers": len(calls), "errors": errors + wrong, "killed": killed,
        "budget_bytes": alive["ledger"]["budget_bytes"], "held_bytes_max": held_max, "functions": rows,
        "in_order": all(a >= b for a, b in itertools.pairwise(shares)),
    }  # fmt: skip


def shared(publish: Callable[[Api], object], body: bytes) -> dict[str, Any]:
    """One instance of the function `model`, then four at once."""
    with local_server(["--memory", "8GB"]) as url, Api(url) as api:
        publish(api)
        found: dict[int, tuple[float, float]] = {}
        for count in (1, 4):
            for _ in range(TRIES_MAX):
                with ThreadPoolExecutor(count) as pool:
                    list(pool.map(lambda _: _call(url, body), range(count)))
                pids = [entry["pid"] for entry in api.instances()["instances"]]
                if len(pids) >= count:
                    break
            else:
                raise BenchmarkError(f"{len(pids)} instances after {TRIES_MAX} bursts of {count} calls")
            found[count] = (sum(_smaps(pid, "Pss") for pid in pids), max(_smaps(pid, "Private_Dirty") for pid in pids))
    return {
        "pss_one_mb": round(found[1][0], 1), "pss_four_mb": round(found[4][0], 1),
        "four_over_one": round(found[4][0] / found[1][0], 3), "extra_private_mb": round(found[4][1], 1),
    }  # fmt: skip


def shared_torch(model: str) -> dict[str, Any] | None:
    if importlib.util.find_spec("torch") is None:
        return None
    return {"model": model, **shared(lambda api: deploy_torch(api, model), json.dumps(list(range(32))).encode())}


def _call(url: str, body: bytes) -> None:
    with Api(url) as api:
        answer = api.invoke("model", body)
        if answer.status != 200:
            raise BenchmarkError(f"the call was answered with {answer.status}")


def _smaps(pid: int, name: str) -> float:
    text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8")
    match = re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)
    return int(match[1]) / 1024 if match else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON on the last line of standard output")
    parser.add_argument("--quick", action="store_true", help="a quarter of the bytes and of the memory")
    args = parser.parse_args()
    size_bytes, memory = (WEIGHTS_BYTES // 4, "256MB") if args.quick else (WEIGHTS_BYTES, MEMORY)
    result = {
        **under_pressure(size_bytes, memory, 2 if args.quick else ROUNDS),
        **shared(lambda api: deploy(api, "model", 0, size_bytes, "fixed:ttl=10min"), b"[1.0]"),
        "torch": shared_torch("minilm" if args.quick else "bert-base"),
        "machine": machine(),
    }
    print_table(f"behind --memory {memory}", ["function", "starts", "cold/h", "pinned MB", "of MB"], [
        [row["function"], row["starts"], row["cold_per_h"], row["pinned_bytes"] >> 20, row["streamed_bytes"] >> 20]
        for row in result["functions"]
    ])  # fmt: skip
    print(
        f"{result['answers']} answers, {result['errors']} errors, {result['killed']} killed; at most "
        f"{result['held_bytes_max'] / 2**20:.0f} MB of {result['budget_bytes'] / 2**20:.0f} held; pins in order of "
        f"cold starts: {'yes' if result['in_order'] else 'no'}"
    )
    for name, found in (("arrays", result), (f"torch, {(result['torch'] or {}).get('model')}", result["torch"])):
        if found is not None:
            print(
                f"{name}: PSS of one instance {found['pss_one_mb']} MB, of four {found['pss_four_mb']} MB "
                f"({found['four_over_one']} x); private {found['extra_private_mb']} MB each"
            )
    finish(result, args.json)


if __name__ == "__main__":
    sys.exit(main())
