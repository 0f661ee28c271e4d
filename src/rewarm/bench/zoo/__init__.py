"""Real-shaped models with random weights, for experiments: plain torch.nn, and files that a seed makes again.

`python -m rewarm.bench.zoo --help` writes the files. torch is imported by `models` and what it needs, not here.
"""

from __future__ import annotations

from typing import NamedTuple


class Entry(NamedTuple):
    """A model of the zoo: its file's bytes to a percent or so, for telling people what they need."""

    size_bytes: int
    text: str


CATALOGUE: dict[str, Entry] = {
    "bert-base": Entry(438_000_000, "BERT-base, float32, 32 tokens"),
    "llama-1b": Entry(2_200_000_000, "Llama of 1.1 billion parameters, bfloat16, 32 tokens"),
    "resnet-50": Entry(102_500_000, "ResNet-50, float32, one image of 224 × 224"),
    "minilm": Entry(91_000_000, "MiniLM-L6, float32, 32 tokens"),
}
