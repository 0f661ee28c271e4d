"""BERT's encoder in plain torch.nn, with the names that published checkpoints use. MiniLM is a small one."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional


class Bert(nn.Module):
    """Token ids int64 [batch, tokens] → hidden states float32 [batch, tokens, width]."""

    def __init__(self, width: int, depth: int, heads: int, vocabulary: int = 30522, positions: int = 512) -> None:
        super().__init__()
        self.embeddings = Embeddings(width, vocabulary, positions)
        self.encoder: Any = nn.Module()
        self.encoder.layer = nn.ModuleList(Layer(width, heads) for _ in range(depth))
        self.pooler: Any = nn.Module()  # part of every checkpoint; hidden states do not need it
        self.pooler.dense = nn.Linear(width, width)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = self.embeddings(ids)
        for layer in self.encoder.layer:
            hidden = layer(hidden)
        return hidden


class Embeddings(nn.Module):
    def __init__(self, width: int, vocabulary: int, positions: int) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(vocabulary, width)
        self.position_embeddings = nn.Embedding(positions, width)
        self.token_type_embeddings = nn.Embedding(2, width)
        self.LayerNorm = nn.LayerNorm(width, eps=1e-12)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        places = torch.arange(ids.shape[1], device=ids.device)
        types = torch.zeros_like(ids)
        hidden = self.word_embeddings(ids) + self.position_embeddings(places) + self.token_type_embeddings(types)
        return self.LayerNorm(hidden)


class Layer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention: Any = nn.Module()
        self.attention.self = SelfAttention(width, heads)
        self.attention.output = Output(width, width)
        self.intermediate: Any = nn.Module()
        self.intermediate.dense = nn.Linear(width, 4 * width)
        self.output = Output(4 * width, width)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        hidden = self.attention.output(self.attention.self(hidden), hidden)
        return self.output(functional.gelu(self.intermediate.dense(hidden)), hidden)


class SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        query, key, value = (
            part(hidden).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        return functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


class Output(nn.Module):
    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width_in, width)
        self.LayerNorm = nn.LayerNorm(width, eps=1e-12)

    def forward(self, hidden: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        return self.LayerNorm(self.dense(hidden) + residual)
