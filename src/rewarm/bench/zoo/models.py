"""The zoo's models by name, and an input for each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from rewarm.bench.zoo.bert import Bert
from rewarm.bench.zoo.llama import Llama
from rewarm.bench.zoo.resnet import ResNet50

_TOKENS = 32


def bert_base() -> Bert:
    return Bert(width=768, depth=12, heads=12)


def minilm() -> Bert:
    return Bert(width=384, depth=6, heads=12)


#: name → what makes the module, with whatever weights torch gives a new one.
FACTORIES: dict[str, Callable[[], Any]] = {
    "bert-base": bert_base,
    "llama-1b": Llama,
    "resnet-50": ResNet50,
    "minilm": minilm,
}


def example_input(name: str, seed: int) -> torch.Tensor:
    """What one caller sends: one image, or 32 tokens. The same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    if name == "resnet-50":
        return torch.randn((1, 3, 224, 224), generator=generator)
    vocabulary = 32000 if name == "llama-1b" else 30522
    return torch.randint(vocabulary, (1, _TOKENS), generator=generator)
