"""examples/digits on both engines: the same weights, the same digits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="one of the engines: pip install 'rewarm[torch]'")
pytest.importorskip("onnxruntime")

EXAMPLE = Path(__file__).resolve().parents[2] / "examples/digits"
IMAGES = 100

pytestmark = pytest.mark.e2e


def test_torch_and_onnxruntime_see_the_same_digits(start: Callable[..., Any]) -> None:
    server = start("--memory", "4GB")
    samples = np.load(EXAMPLE / "test_digits.npz")
    images = (samples["images"][:IMAGES] / np.float32(255)).astype(np.float32)
    seen = {}
    for name, file in (("digits", "app.py"), ("digits-torch", "app_torch.py")):
        done = server.cli("deploy", str(EXAMPLE / file), "--json")
        assert done.code == 0, done
        weights = done.json()["weights"]
        assert weights["packed"] and weights["order"] == "traced", weights
        replies = server.invoke_many(name, [image.tolist() for image in images], threads=4)
        assert {reply.status for reply in replies} == {200}, replies[0]
        seen[name] = np.array([reply.json() for reply in replies], np.float32)
    np.testing.assert_allclose(seen["digits"], seen["digits-torch"], atol=1e-5)
    assert (seen["digits"].argmax(1) == samples["labels"][:IMAGES]).mean() > 0.95
