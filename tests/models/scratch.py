"""Language models written from scratch, with no Hugging Face in them and names of their own."""

from __future__ import annotations

import ferrule.compiler.scan_op  # noqa: F401 - registers torch.ops.ferrule.linear_scan
import torch
from torch import nn
from torch.nn import functional as F


class PlainLayer(nn.Module):
    """Pre-norm attention written as matmul and softmax, then a gelu MLP."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.pre_norm, self.post_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 3 * width), nn.Linear(3 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attend(self.pre_norm(x))
        return x + self.down(F.gelu(self.up(self.post_norm(x))))

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-2, -1) / (width // self.heads) ** 0.5
        future = torch.triu(torch.ones(length, length, dtype=torch.bool, device=x.device), 1)
        weights = scores.masked_fill(future, float("-inf")).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).reshape(batch, length, width))


class PlainLM(nn.Module):
    """A GPT with learned positions and a tied output matrix; forward gives the logits
    themselves.
    """

    def __init__(
        self, vocabulary: int = 211, width: int = 40, heads: int = 5, depth: int = 2
    ) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(vocabulary, width), nn.Embedding(96, width)
        self.layers = nn.ModuleList(PlainLayer(width, heads) for _ in range(depth))
        self.last_norm = nn.LayerNorm(width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.words(tokens) + self.places(places)
        for layer in self.layers:
            x = layer(x)
        return F.linear(self.last_norm(x), self.words.weight)


class Scale(nn.Module):
    """RMS norm with a weight around zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain_norm = nn.Parameter(torch.zeros(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x.float()
        y = y * (y.square().mean(-1, keepdim=True) + 1e-5).rsqrt()
        return (y * (1.0 + self.gain_norm.float())).type_as(x)


class Blender(nn.Module):
    """Grouped heads, rotary by complex numbers, SDPA with repeated keys, gated MLP."""

    def __init__(self, width: int, heads: int, groups: int) -> None:
        super().__init__()
        self.heads, self.groups, self.size = heads, groups, 12
        self.a, self.b = Scale(width), Scale(width)
        self.ask = nn.Linear(width, heads * self.size, bias=False)
        self.tell = nn.Linear(width, 2 * groups * self.size, bias=False)
        self.merge = nn.Linear(heads * self.size, width, bias=False)
        self.gate_and_up = nn.Linear(width, 2 * 56, bias=False)
        self.shrink = nn.Linear(56, width, bias=False)

    def forward(self, x: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
        h = self.a(x)
        q = self.ask(h).unflatten(-1, (self.heads, self.size))
        k, v = self.tell(h).unflatten(-1, (2, self.groups, self.size)).unbind(2)
        q, k = rotate(q, turns), rotate(k, turns)
        k, v = (
            t.repeat_interleave(self.heads // self.groups, dim=2).transpose(1, 2) for t in (k, v)
        )
        mixed = F.scaled_dot_product_attention(q.transpose(1, 2), k, v, is_causal=True)
        x = x + self.merge(mixed.transpose(1, 2).flatten(2))
        gate, up = self.gate_and_up(self.b(x)).chunk(2, dim=-1)
        return x + self.shrink(F.silu(gate) * up)


def rotate(x: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """x[B, S, H, D] with neighbours (2 i, 2 i + 1) as complex numbers, turned by turns[S, D /
    2].
    """
    pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * turns[None, :, None]).flatten(3).type_as(x)


class InterleavedLM(nn.Module):
    """A grouped-query model whose rotary tables are complex and made at construction."""

    def __init__(
        self, vocabulary: int = 211, width: int = 44, heads: int = 6, groups: int = 2
    ) -> None:
        super().__init__()
        self.lexicon = nn.Embedding(vocabulary, width)
        self.pile = nn.ModuleList(Blender(width, heads, groups) for _ in range(2))
        self.tail = Scale(width)
        self.speak = nn.Linear(width, vocabulary, bias=False)
        angles = torch.outer(torch.arange(96), 1.0 / 500.0 ** (torch.arange(6) / 6.0))
        self.register_buffer(
            "turns", torch.polar(torch.ones_like(angles), angles), persistent=False
        )

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.lexicon(ids)
        turns = self.turns[: ids.shape[1]]
        for blender in self.pile:
            x = blender(x, turns)
        return self.speak(self.tail(x))


class RecurrentLayer(nn.Module):
    """A short convolution, then a gated delta rule whose state decays by row, then an MLP."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.groups, self.size = heads, heads // 2, 7
        self.pre_norm, self.post_norm = Scale(width), Scale(width)
        inner = 2 * self.groups * self.size + heads * self.size
        self.mix = nn.Linear(width, inner, bias=False)
        self.conv = nn.Conv1d(inner, inner, 4, groups=inner, padding=3)
        self.rates = nn.Linear(width, heads * self.size)
        self.share = nn.Linear(width, heads)
        self.out = nn.Linear(heads * self.size, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.recur(self.pre_norm(x))
        return x + self.down(F.silu(self.up(self.post_norm(x))))

    def recur(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, _ = x.shape
        mixed = self.conv(self.mix(x).transpose(1, 2))[..., :length].transpose(1, 2)
        keys = self.groups * self.size
        parts = F.silu(mixed).split([keys, keys, self.heads * self.size], dim=-1)
        q, k, v = (p.view(batch, length, -1, self.size) for p in parts)
        k = F.normalize(k, dim=-1)
        decay = -F.softplus(self.rates(x)).view(batch, length, self.heads, self.size)
        y = torch.ops.ferrule.linear_scan(q, k, v, decay, self.share(x).sigmoid())
        return self.out(y.flatten(2))


class RecurrentLM(nn.Module):
    """A model without attention: all that it knows of the past is in states of fixed size."""

    def __init__(
        self, vocabulary: int = 211, width: int = 32, heads: int = 4, depth: int = 2
    ) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, width)
        self.layers = nn.ModuleList(RecurrentLayer(width, heads) for _ in range(depth))
        self.last_norm, self.head = Scale(width), nn.Linear(width, vocabulary)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.words(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.last_norm(x))
