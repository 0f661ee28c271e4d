"""kill -9 at any moment: what was acknowledged is there, what is there is whole, and the next start works."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import rewarm
from rewarm.facts.function import Revision
from rewarm.store.store import Store

ROUNDS = 15

#: Deploys distinct revisions of two functions as fast as it can and says so after each.
CHILD = """
import itertools, sys
from rewarm.facts.function import FunctionSpec
from rewarm.store.store import Store

store = Store.open(sys.argv[1])
print("up", 0, flush=True)
for number in itertools.count():
    name = ("one", "two")[number % 2]
    staged = store.stage()
    for part in range(4):
        (staged / f"part{part}.py").write_text(f"{sys.argv[2]} {number} {part}")
    (staged / "model.onnx").write_bytes(f"{sys.argv[2]} {number}".encode() * 20_000)
    spec = FunctionSpec(name=name, kind="predict", entry="part0:App", weights="model.onnx")
    revision, unchanged = store.deploy(staged, spec)
    assert not unchanged
    print(name, revision.version, flush=True)
    if number % 3 == 2:
        store.collect()
"""


@pytest.mark.slow
def test_a_killed_server_leaves_a_whole_home(
    tmp_path: Path, deploy: Callable[..., tuple[Revision, bool]], check_whole: Callable[[Store], list[Revision]]
) -> None:
    chance = random.Random(20)
    env = os.environ | {"PYTHONPATH": str(Path(rewarm.__file__).parents[1])}
    path = tmp_path / "home"
    acknowledged: dict[str, int] = {}
    for round_number in range(ROUNDS):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(path), str(round_number)], stdout=subprocess.PIPE, env=env, text=True
        )
        try:
            assert child.stdout is not None
            # Every fifth round is killed while it starts, the others somewhere in one of their first deploys.
            waits = chance.randint(1, 5) if round_number % 5 else 0
            heard = [child.stdout.readline() for _ in range(waits)]
            time.sleep(chance.uniform(0, 0.03 if waits else 0.15))
            child.send_signal(signal.SIGKILL)
            heard += child.communicate()[0].splitlines(keepends=True)
        finally:
            child.kill()
            child.wait()
        assert child.returncode == -signal.SIGKILL, "the child failed before it was killed"
        for line in heard:
            if line.endswith("\n") and not line.startswith("up"):
                name, number = line.split()
                acknowledged[name] = int(number)

        with Store.open(path) as store:
            found = {revision.name: revision.version for revision in check_whole(store)}
            for name, version in acknowledged.items():
                # One more may have been committed and not yet been told; an acknowledged one is never lost.
                assert version <= found[name] <= version + 1
            for name in acknowledged:
                # Also the revision before the current one: instances of it may still be running.
                for revision in store.history(name)[:2]:
                    assert Path(revision.code_dir, "part0.py").is_file()
                    assert Path(str(revision.weights_path)).is_file()
            assert not deploy(store, f"after round {round_number}")[1]
            store.collect()
            assert len(store.history("digits")) == min(2, round_number + 1)
            assert store.unreferenced() == []
        acknowledged = {name: version for name, version in found.items() if name != "digits"}
    assert max(acknowledged.values()) > 5, "the child was killed too early to test anything"
