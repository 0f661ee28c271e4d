"""Helpers of the store's tests, handed out as fixtures."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rewarm.facts.function import FunctionSpec, Revision
from rewarm.store.artifacts import tree_digest
from rewarm.store.home import Home
from rewarm.store.store import Store, revision_digest

Deploy = Callable[..., tuple[Revision, bool]]


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    with Home.open(tmp_path / "home") as opened:
        yield opened


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "home", wall_clock=lambda: 1_700_000_000.0) as opened:
        yield opened


@pytest.fixture
def make_spec() -> Callable[..., FunctionSpec]:
    def make(name: str = "digits", **fields: Any) -> FunctionSpec:
        return FunctionSpec(**{"name": name, "kind": "predict", "entry": "app:App", **fields})

    return make


@pytest.fixture
def deploy(make_spec: Callable[..., FunctionSpec]) -> Deploy:
    """deploy(store, text, name, weights bytes): stages app.py with the text and deploys it."""

    def run(store: Store, text: str = "one", name: str = "digits", weights: bytes | None = b"w") -> Any:
        staged = store.stage()
        (staged / "app.py").write_text(text)
        (staged / "lib").mkdir()
        (staged / "lib" / "util.py").write_text("shared")
        if weights is not None:
            (staged / "model.onnx").write_bytes(weights)
        return store.deploy(staged, make_spec(name, weights=None if weights is None else "model.onnx"))

    return run


@pytest.fixture
def check_whole() -> Callable[[Store], list[Revision]]:
    """Every listed revision has all its files with the digests it was stored under, and nothing is half done."""

    def check(store: Store) -> list[Revision]:
        assert store.broken() == []
        assert list(store.home.tmp_dir.iterdir()) == []
        for folder in store.home.artifacts_dir.iterdir():
            assert tree_digest(folder) == folder.name
        for folder in store.home.weights_dir.iterdir():
            for file in folder.iterdir():
                assert hashlib.sha256(file.read_bytes()).hexdigest() == folder.name
        revisions = store.revisions()
        for revision in revisions:
            weights_sha = None
            if revision.weights_path is not None:
                weights = Path(revision.weights_path)
                assert weights.stat().st_size == revision.weights_bytes
                weights_sha = weights.parent.name
            assert revision.digest == revision_digest(revision.spec, Path(revision.code_dir).name, weights_sha)
        return revisions

    return check
