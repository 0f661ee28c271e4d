"""Two tiny networks as rewarm functions: what `throughput.py` deploys, next to weights that it writes.

A caller sends one row, float32 [784] or [4]; the answer is float32 [10].
"""

import numpy as np

import rewarm

BATCHING = rewarm.Dynamic(max_size=16, max_wait=0)
OUTPUTS = {"y": rewarm.Tensor("float32", [10])}


class Mlp:
    """Two dense layers with a ReLU between them."""

    def __init__(self, weights: rewarm.Weights) -> None:
        self.w = dict(np.load(weights.path))

    def forward(self, x: np.ndarray) -> np.ndarray:
        hidden = np.maximum(x @ self.w["w1"] + self.w["b1"], 0)
        return hidden @ self.w["w2"] + self.w["b2"]


@rewarm.function(
    name="mlp784",
    batching=BATCHING,
    max_instances=1,
    preload=["numpy"],
    weights="mlp784.npz",
    inputs={"x": rewarm.Tensor("float32", [784])},
    outputs=OUTPUTS,
)
class Mlp784(Mlp):
    """784 → 128 → 10."""

    def predict(self, x: np.ndarray) -> np.ndarray:
        """x float32 [batch, 784] → float32 [batch, 10]."""
        return self.forward(x)


@rewarm.function(
    name="mlp4",
    batching=BATCHING,
    max_instances=1,
    preload=["numpy"],
    weights="mlp4.npz",
    inputs={"x": rewarm.Tensor("float32", [4])},
    outputs=OUTPUTS,
)
class Mlp4(Mlp):
    """4 → 8 → 10."""

    def predict(self, x: np.ndarray) -> np.ndarray:
        """x float32 [batch, 4] → float32 [batch, 10]."""
        return self.forward(x)
