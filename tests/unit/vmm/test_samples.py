"""Calls that warm an instance up: those that a person gave, else made of the declared inputs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rewarm import wire
from rewarm.errors import BadDefinition
from rewarm.facts.function import FunctionSpec, Tensor
from rewarm.vmm.publishing import copy_sparse
from rewarm.vmm.samples import samples_of
from rewarm.worker.tensors import make_input, row_from_json


def predict(**inputs: Tensor | None) -> FunctionSpec:
    return FunctionSpec("f", "predict", "app:F", inputs=tuple(inputs.items()))


def made(spec: FunctionSpec) -> list[dict[str, Any]]:
    """As the worker reads them: each is a row that the function takes."""
    inputs = [make_input(name, tensor) for name, tensor in spec.inputs]
    return [row_from_json(body, inputs) for _, _, body in samples_of(spec, Path())]


def test_one_is_random_and_one_is_zeros() -> None:
    drawn, zeros = made(predict(image=Tensor("float32", (784,))))
    assert drawn["image"].shape == zeros["image"].shape == (1, 784)
    assert 0.4 < drawn["image"].mean() < 0.6 and drawn["image"].min() >= 0 and drawn["image"].max() <= 1
    assert not zeros["image"].any()


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int64", "float16", "float64", "object"])
def test_of_every_dtype_and_shape(dtype: str) -> None:
    for shape in ((), (3,), (2, -1), (-1, -1)):
        for row in made(predict(x=Tensor(dtype, shape), y=Tensor("float32"))):
            assert row["x"].ndim == len(shape) + 1
            assert dtype in ("object", "bool") or (row["x"] <= 1).all(), "as an index it is in any table"


def test_always_the_same() -> None:
    spec = predict(x=Tensor("float32", (8,)))
    assert samples_of(spec, Path()) == samples_of(spec, Path())


def test_none_where_nobody_can_know() -> None:
    assert samples_of(predict(x=None), Path()) == []
    assert samples_of(predict(), Path()) == []
    assert samples_of(predict(x=Tensor("float32", (1 << 12, 1 << 12))), Path()) == [], "too much to make up"
    assert samples_of(FunctionSpec("f", "handler", "app:main"), Path()) == []


def test_given_ones_go_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'{"n":1}')
    spec = FunctionSpec("f", "handler", "app:main", samples=("a.json",))
    assert samples_of(spec, tmp_path) == [wire.Item(wire.KIND_JSON, b"", b'{"n":1}')]


def test_given_ones_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "out.json").symlink_to("/etc/hostname")
    for name, said in (("none.json", "is it deployed"), ("bad.json", "is not JSON"), ("out.json", "leads out")):
        with pytest.raises(BadDefinition, match=said):
            samples_of(FunctionSpec("f", "handler", "app:main", samples=(name,)), tmp_path)


def test_a_copy_has_the_same_holes(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    with source.open("wb") as file:
        for at in (0, 5 << 20, (64 << 20) - 4096):
            file.seek(at)
            file.write(np.arange(1024, dtype="<u4").tobytes())
        file.truncate(128 << 20)
    copy_sparse(source, target)
    assert target.read_bytes() == source.read_bytes()
    assert target.stat().st_blocks == source.stat().st_blocks
    target.write_bytes(bytes([255]) * (1 << 20))  # what another attempt has written to
    copy_sparse(source, target)
    assert target.read_bytes() == source.read_bytes()
    os.truncate(source, 0)
    copy_sparse(source, tmp_path / "empty")
    assert (tmp_path / "empty").stat().st_size == 0
