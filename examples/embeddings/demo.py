"""Real sentences through a real server: `python examples/embeddings/demo.py`.

Starts `rewarm serve` on a free port in a temporary home, deploys the function, and compares what it answers with the
similarities that the model's authors publish. Exit code 0 if they agree; 1 with one line that says what did not.
"""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
import time
from pathlib import Path

try:
    import numpy as np
    import tokenizers  # noqa: F401 - the function needs them: better told now
    import torch  # noqa: F401
    from fetch import fetch

    from rewarm.bench import shipping
    from rewarm.bench.api import Api
    from rewarm.bench.local_server import local_server
    from rewarm.errors import RewarmError
except ImportError as missing:
    sys.exit(f"the demo needs {missing.name}; the README beside it says how to install what it needs")

SENTENCES = ("The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium.")
#: https://sbert.net/docs/sentence_transformer/usage/usage.html
PUBLISHED = {(0, 1): 0.6660, (0, 2): 0.1046, (1, 2): 0.1411}
TOLERANCE = 0.0005


def embed(api: Api, name: str) -> tuple[np.ndarray, list[str]]:
    """The sentences' embeddings, and a line about each call."""
    rows, lines = [], []
    for sentence in SENTENCES:
        since_s = time.perf_counter()
        answer = api.invoke(name, json.dumps(sentence).encode())
        took_ms = (time.perf_counter() - since_s) * 1e3
        rows.append(answer.json())
        lines.append(f"  {took_ms:8.1f} ms  {answer.headers.get('rewarm-start', ''):<5} {sentence}")
    return np.array(rows, np.float32), lines


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="rewarm-embeddings-") as folder, local_server() as url, Api(url) as api:
        found = shipping.upload(api, shipping.of_target(str(fetch(Path(folder))), shipping.Wish()))
        print(f"deployed {found['name']}; the first call finds nothing alive:")
        embeddings, lines = embed(api, str(found["name"]))
    print("\n".join(lines))
    print("\nsimilarities, measured and published:")
    wrong = 0
    for first, second in itertools.combinations(range(len(SENTENCES)), 2):
        similarity, published = float(embeddings[first] @ embeddings[second]), PUBLISHED[first, second]
        wrong += abs(similarity - published) > TOLERANCE
        print(f"  {similarity:.4f}  {published:.4f}  {SENTENCES[first]} | {SENTENCES[second]}")
    if wrong:
        print(f"demo failed: {wrong} of {len(PUBLISHED)} similarities are not the published ones", file=sys.stderr)
    return min(wrong, 1)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except RewarmError as error:
        sys.exit(f"demo failed: {error}")
