"""Handwritten digits: a small CNN behind one function, batched by the server.

One request carries one image, float32 [784]: 28 rows of 28 pixels, 0 is paper and 1 is ink. The answer is
float32 [10]: the probability of each digit, 0 to 9.
"""

import numpy as np

import rewarm


@rewarm.function(
    name="digits",
    memory="1GB",
    timeout="60s",
    slo="200ms",
    batching=rewarm.Slo(mode="latency", max_size=32),
    preload=["numpy", "onnxruntime"],
    weights="digits.onnx",
    inputs={"image": rewarm.Tensor("float32", [784])},
    outputs={"probabilities": rewarm.Tensor("float32", [10])},
)
class Digits:
    """The network of ``train.py``, loaded once and kept warm."""

    def __init__(self, weights: rewarm.Weights) -> None:
        self.session = weights.session()  # onnxruntime.InferenceSession, one thread

    def predict(self, image: np.ndarray) -> np.ndarray:
        """Images float32 [batch, 784], values 0 to 1 -> probabilities float32 [batch, 10]."""
        (probabilities,) = self.session.run(None, {"image": image})
        return probabilities
