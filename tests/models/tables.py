"""Language models whose masks and positions are read off tables, and off the tokens."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class MaskTableLM(nn.Module):
    """Attention under the corner of a square table of a mask, with a number that stands for
    what is masked; a model of its whole table's length too.
    """

    def __init__(self, longest: int = 24, vocabulary: int = 31, width: int = 12) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(vocabulary, width), nn.Embedding(longest, width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, vocabulary)
        seen = torch.ones(longest, longest, dtype=torch.bool).tril()
        self.register_buffer("seen", seen, persistent=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        length = ids.shape[1]
        x = self.words(ids) + self.places(torch.arange(length))
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        masked = torch.tensor(-1e9)
        scores = torch.where(self.seen[:length, :length], q @ k.transpose(1, 2), masked)
        return self.out(x[:, -length:] + scores.softmax(-1) @ v)


class CountedLM(nn.Module):
    """Positions that count the tokens that are no padding, of one layer of attention."""

    def __init__(self, longest: int = 24, vocabulary: int = 31, width: int = 12) -> None:
        super().__init__()
        self.padding = 1
        self.words, self.places = nn.Embedding(vocabulary, width), nn.Embedding(longest, width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, vocabulary)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        real = ids.ne(self.padding).int()
        x = self.words(ids) + self.places(real.cumsum(1) * real + self.padding)
        q, k, v = (t.unsqueeze(1) for t in self.qkv(x).chunk(3, dim=-1))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(x + mixed.squeeze(1))
