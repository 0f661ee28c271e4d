"""The same digits on torch: `app.py` in everything but the engine.

The weights are those of `digits.onnx`, as safetensors.
"""

import numpy as np
import torch
from torch import nn
from torch.nn import functional

import rewarm


@rewarm.function(
    name="digits-torch",
    memory="1GB",
    timeout="60s",
    slo="200ms",
    batching=rewarm.Slo(mode="latency", max_size=32),
    preload=["numpy", "torch"],
    weights="digits.safetensors",
    inputs={"image": rewarm.Tensor("float32", [784])},
    outputs={"probabilities": rewarm.Tensor("float32", [10])},
)
class DigitsTorch:
    """The network of ``train.py``, mapped from its file."""

    def __init__(self, weights: rewarm.Weights) -> None:
        self.network = weights.module(Network)

    def predict(self, image: np.ndarray) -> np.ndarray:
        """Images float32 [batch, 784], values 0 to 1 -> probabilities float32 [batch, 10]."""
        with torch.inference_mode():
            return self.network(torch.from_numpy(image)).numpy()


class Network(nn.Module):
    """Two convolutions and two dense layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 5)
        self.conv2 = nn.Conv2d(8, 24, 5)
        self.dense1 = nn.Linear(384, 64)
        self.dense2 = nn.Linear(64, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = functional.relu(functional.max_pool2d(self.conv1(image.reshape(-1, 1, 28, 28)), 2))
        x = functional.relu(functional.max_pool2d(self.conv2(x), 2))
        x = functional.relu(self.dense1(x.flatten(1)))
        return functional.softmax(self.dense2(x), dim=1)
