"""Sentence embeddings: all-MiniLM-L6-v2 behind one function, in plain torch.

One request carries one text. The answer is float32 [384], of length 1: the more alike two texts are in meaning, the
larger the dot product of their embeddings.
"""

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import nn
from torch.nn import functional

import rewarm

WIDTH, DEPTH, HEADS, VOCABULARY, POSITIONS = 384, 6, 12, 30522, 512
TOKENS_MAX = 256  # what the model was trained with: longer texts are cut


@rewarm.function(
    name="embeddings",
    memory="1GB",
    timeout="60s",
    preload=["numpy", "tokenizers", "torch"],
    weights="model.safetensors",
    inputs={"text": rewarm.Tensor("object")},
    outputs={"embedding": rewarm.Tensor("float32", [WIDTH])},
)
class Embeddings:
    """The model answers while its weights are still on their way from the disk."""

    def __init__(self, weights: rewarm.Weights) -> None:
        self.tokenizer = Tokenizer.from_file("tokenizer.json")
        self.tokenizer.enable_truncation(TOKENS_MAX)
        self.tokenizer.enable_padding()  # to the longest of a batch
        self.model = weights.module(MiniLM)

    def example(self) -> np.ndarray:
        """For packing: a text to run on, so that the order is seen in which weights are used."""
        return np.array(["The weather is lovely today."], object)

    def predict(self, text: np.ndarray) -> np.ndarray:
        """Strings [batch] -> embeddings float32 [batch, 384]."""
        texts = [one.decode() if isinstance(one, bytes) else str(one) for one in text]
        encoded = self.tokenizer.encode_batch(texts)
        ids = torch.tensor([one.ids for one in encoded])
        mask = torch.tensor([one.attention_mask for one in encoded])
        with torch.inference_mode():
            return self.model(ids, mask).numpy()


class MiniLM(nn.Module):
    """A small BERT, and the mean of its hidden states. Names are those of the checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = TokenEmbeddings()
        self.encoder = nn.Module()
        self.encoder.layer = nn.ModuleList(Layer() for _ in range(DEPTH))
        self.pooler = nn.Module()  # in the checkpoint, but of no use to embeddings
        self.pooler.dense = nn.Linear(WIDTH, WIDTH)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        hidden = self.embeddings(ids)
        attend = mask[:, None, None, :].bool()
        for layer in self.encoder.layer:
            hidden = layer(hidden, attend)
        weight = mask[:, :, None].float()
        return functional.normalize((hidden * weight).sum(1) / weight.sum(1), dim=1)


class TokenEmbeddings(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(VOCABULARY, WIDTH)
        self.position_embeddings = nn.Embedding(POSITIONS, WIDTH)
        self.token_type_embeddings = nn.Embedding(2, WIDTH)
        self.LayerNorm = nn.LayerNorm(WIDTH, eps=1e-12)
        self.register_buffer("position_ids", torch.arange(POSITIONS)[None])

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        places = self.position_embeddings(self.position_ids[:, : ids.shape[1]])
        return self.LayerNorm(self.word_embeddings(ids) + places + self.token_type_embeddings(torch.zeros_like(ids)))


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.Module()
        self.attention.self = SelfAttention()
        self.attention.output = Output(WIDTH)
        self.intermediate = nn.Module()
        self.intermediate.dense = nn.Linear(WIDTH, 4 * WIDTH)
        self.output = Output(4 * WIDTH)

    def forward(self, hidden: torch.Tensor, attend: torch.Tensor) -> torch.Tensor:
        hidden = self.attention.output(self.attention.self(hidden, attend), hidden)
        return self.output(functional.gelu(self.intermediate.dense(hidden)), hidden)


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, hidden: torch.Tensor, attend: torch.Tensor) -> torch.Tensor:
        parts = (self.query(hidden), self.key(hidden), self.value(hidden))
        query, key, value = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in parts)
        return functional.scaled_dot_product_attention(query, key, value, attend).transpose(1, 2).flatten(2)


class Output(nn.Module):
    def __init__(self, width_in: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width_in, WIDTH)
        self.LayerNorm = nn.LayerNorm(WIDTH, eps=1e-12)

    def forward(self, hidden: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        return self.LayerNorm(self.dense(hidden) + residual)
