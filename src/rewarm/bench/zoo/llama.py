"""A Llama of 1.1 billion parameters (22 layers, as TinyLlama's) in plain torch.nn and bfloat16, without a cache."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

_VOCABULARY, _WIDTH, _DEPTH, _HEADS, _KV_HEADS, _INNER = 32000, 2048, 22, 32, 4, 5632
_THETA = 10000.0
_DTYPE = torch.bfloat16


class Llama(nn.Module):
    """Token ids int64 [batch, tokens] → scores bfloat16 [batch, vocabulary] of the token that follows."""

    def __init__(self) -> None:
        super().__init__()
        self.model: Any = nn.Module()
        self.model.embed_tokens = nn.Embedding(_VOCABULARY, _WIDTH, dtype=_DTYPE)
        self.model.layers = nn.ModuleList(Layer() for _ in range(_DEPTH))
        self.model.norm = nn.RMSNorm(_WIDTH, eps=1e-5, dtype=_DTYPE)
        self.lm_head = _linear(_WIDTH, _VOCABULARY)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = self.model.embed_tokens(ids)
        turns = _turns(ids.shape[1])
        for layer in self.model.layers:
            hidden = layer(hidden, turns)
        return self.lm_head(self.model.norm(hidden)[:, -1])


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(_WIDTH, eps=1e-5, dtype=_DTYPE)
        self.self_attn = Attention()
        self.post_attention_layernorm = nn.RMSNorm(_WIDTH, eps=1e-5, dtype=_DTYPE)
        self.mlp = Mlp()

    def forward(self, hidden: torch.Tensor, turns: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), turns)
        return hidden + self.mlp(self.post_attention_layernorm(hidden))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        kv_width = _WIDTH // _HEADS * _KV_HEADS
        self.q_proj = _linear(_WIDTH, _WIDTH)
        self.k_proj = _linear(_WIDTH, kv_width)
        self.v_proj = _linear(_WIDTH, kv_width)
        self.o_proj = _linear(_WIDTH, _WIDTH)

    def forward(self, hidden: torch.Tensor, turns: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        query = self.q_proj(hidden).unflatten(-1, (_HEADS, -1)).transpose(1, 2)
        key = self.k_proj(hidden).unflatten(-1, (_KV_HEADS, -1)).transpose(1, 2)
        value = self.v_proj(hidden).unflatten(-1, (_KV_HEADS, -1)).transpose(1, 2)
        mixed = functional.scaled_dot_product_attention(
            _rotated(query, turns), _rotated(key, turns), value, is_causal=True, enable_gqa=True
        )
        return self.o_proj(mixed.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_proj = _linear(_WIDTH, _INNER)
        self.up_proj = _linear(_WIDTH, _INNER)
        self.down_proj = _linear(_INNER, _WIDTH)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.down_proj(functional.silu(self.gate_proj(hidden)) * self.up_proj(hidden))


def _linear(width_in: int, width_out: int) -> nn.Linear:
    return nn.Linear(width_in, width_out, bias=False, dtype=_DTYPE)


def _turns(tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of the rotary embedding, [tokens, width of a head]."""
    half = _WIDTH // _HEADS // 2
    speeds = _THETA ** (-torch.arange(half, dtype=torch.float32) / half)
    angles = torch.outer(torch.arange(tokens, dtype=torch.float32), speeds).repeat(1, 2)
    return angles.cos().to(_DTYPE), angles.sin().to(_DTYPE)


def _rotated(states: torch.Tensor, turns: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    cosines, sines = turns
    first, second = states.chunk(2, dim=-1)
    return states * cosines + torch.cat((-second, first), dim=-1) * sines
