"""Attention by other functions of the scores than softmax, or with masks of no known family."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

Tensor = torch.Tensor
VOCABULARY, HEADS, SIZE, LONGEST = 31, 3, 8, 40
WIDTH = HEADS * SIZE


class Scoring(nn.Module):
    """Two layers of attention by `attend(model, q, k, v, mask, x)` over [B, H, S, D]."""

    def __init__(self, attend: Callable[..., Tensor]) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(LONGEST, WIDTH)
        self.attend = attend
        self.qkv = nn.ModuleList(nn.Linear(WIDTH, 3 * WIDTH) for _ in range(2))
        self.out = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))
        self.before, self.after = (nn.Linear(HEADS, HEADS, bias=False) for _ in range(2))
        self.near, self.there = nn.Embedding(9, SIZE), nn.Embedding(9, SIZE)
        self.gate, self.head = nn.Linear(WIDTH, HEADS), nn.Linear(WIDTH, VOCABULARY)
        self.register_buffer("mask", torch.ones(LONGEST, LONGEST, dtype=torch.bool).tril())

    def forward(self, ids: Tensor) -> Tensor:
        batch, length = ids.shape
        x = self.words(ids) + self.places(torch.arange(length))
        mask = self.mask[:length, :length]
        for qkv, out in zip(self.qkv, self.out, strict=True):
            parts = qkv(x).view(batch, length, 3, HEADS, SIZE).permute(2, 0, 3, 1, 4)
            y = self.attend(self, *parts, mask, x)
            x = x + out(y.transpose(1, 2).reshape(batch, length, WIDTH))
        return self.head(x)


def scores_of(q: Tensor, k: Tensor) -> Tensor:
    return q @ k.transpose(-1, -2) / math.sqrt(SIZE)


def by_sigmoid(model: Scoring, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, x: Tensor) -> Tensor:
    """Sigmoid attention (Ramapuram et al., 2024)."""
    return torch.sigmoid((scores_of(q, k) - 2).masked_fill(~mask, -torch.inf)) @ v


def by_squares(model: Scoring, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, x: Tensor) -> Tensor:
    """Squared ReLU over the number of keys (Hua et al., 2022)."""
    weights = F.relu(scores_of(q, k)).square() * mask
    return weights @ v / torch.arange(1, q.shape[2] + 1)[:, None]


def with_one_more(
    model: Scoring, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, x: Tensor
) -> Tensor:
    """Softmax with one more in its sum."""
    scores = scores_of(q, k).masked_fill(~mask, -torch.inf)
    most = scores.amax(-1, keepdim=True).clamp(min=0)
    weights = torch.exp(scores - most)
    return weights / (torch.exp(-most) + weights.sum(-1, keepdim=True)) @ v


def talking(model: Scoring, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, x: Tensor) -> Tensor:
    """Talking heads (Shazeer et al., 2020): heads are mixed before and after the softmax."""
    mixed = model.before(scores_of(q, k).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    weights = F.softmax(mixed.masked_fill(~mask, -torch.inf), dim=-1)
    return model.after(weights.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) @ v


def relative(model: Scoring, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, x: Tensor) -> Tensor:
    """Keys and values of the distance (Shaw et al., 2018)."""
    place = torch.arange(q.shape[2])
    apart = (place[None, :] - place[:, None]).clamp(-4, 4) + 4
    scores = q @ k.transpose(-1, -2) + torch.einsum("bhid,ijd->bhij", q, model.near(apart))
    weights = F.softmax((scores / math.sqrt(SIZE)).masked_fill(~mask, -torch.inf), dim=-1)
    return weights @ v + torch.einsum("bhij,ijd->bhid", weights, model.there(apart))


def strided(model: Scoring, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, x: Tensor) -> Tensor:
    """A mask with holes (Child et al., 2019)."""
    place = torch.arange(q.shape[2])
    apart = place[:, None] - place[None, :]
    seen = (apart >= 0) & ((apart < 4) | (apart % 4 == 0))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen)


def forgetting(model: Scoring, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, x: Tensor) -> Tensor:
    """Gates of the tokens in the scores (Lin et al., 2025)."""
    kept = F.logsigmoid(model.gate(x)).transpose(1, 2).cumsum(-1)
    scores = scores_of(q, k) + kept[..., :, None] - kept[..., None, :]
    return F.softmax(scores.masked_fill(~mask, -torch.inf), dim=-1) @ v


def windowed(model: Scoring, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, x: Tensor) -> Tensor:
    """Means of whole windows of four beside the tokens of a window (DeepSeek-V4's, in the main),
    the two best of them.
    """
    batch, length = q.shape[0], q.shape[2]
    count = length // 4
    place = torch.arange(length)
    near = mask & (place[:, None] - place[None, :] < 4)
    scores = scores_of(q, k).masked_fill(~near, -torch.inf)
    if count > 0:
        parts = [y[:, :, : 4 * count].reshape(batch, HEADS, count, 4, SIZE) for y in (k, v)]
        keys, values = (y.mean(3) for y in parts)
        ended = torch.arange(count)[None, :] < (place[:, None] + 1) // 4
        far = scores_of(q, keys).masked_fill(~ended, -torch.inf)
        best = far.topk(min(2, count), dim=-1).indices
        chosen = torch.full_like(far, -torch.inf).scatter(-1, best, 0.0)
        scores, v = torch.cat([scores, far + chosen], dim=-1), torch.cat([v, values], dim=2)
    return F.softmax(scores, dim=-1) @ v


def by_distance(model: Scoring, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, x: Tensor) -> Tensor:
    """Scores that are distances of queries and keys."""
    scores = -(q[:, :, :, None] - k[:, :, None]).square().sum(-1)
    return F.softmax(scores.masked_fill(~mask, -1e9), dim=-1) @ v


def with_memory(model: Scoring, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, x: Tensor) -> Tensor:
    """Keys and values that are the model's own before those of the tokens."""
    own = model.near.weight[:2].expand(*q.shape[:2], 2, SIZE)
    k, v = torch.cat([own, k], dim=2), torch.cat([own.flip(2), v], dim=2)
    seen = F.pad(mask, (2, 0), value=True)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen)


def by_place(model: Scoring, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, x: Tensor) -> Tensor:
    """Spatial gating (Liu et al., 2021): tokens are summed by weights of their places."""
    places, length = model.places.weight @ model.places.weight.T, q.shape[2]
    weights = places.tril()[:length, :length] / 8
    return q * torch.einsum("bhnd,mn->bhmd", v, weights)


def by_transform(
    model: Scoring, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, x: Tensor
) -> Tensor:
    """A convolution as long as the sequence, by Fourier transforms (Gu et al., 2022)."""
    length = q.shape[2]
    rates = torch.complex(-model.near.weight.exp(), model.there.weight)[:HEADS]
    taps = torch.exp(rates[..., None] * torch.arange(length) / 4).real
    size = 2 * length
    y = torch.fft.rfft(v.mT, n=size) * torch.fft.rfft(taps, n=size)
    return q * torch.fft.irfft(y, n=size)[..., :length].mT


MODELS: dict[str, Callable[[], nn.Module]] = {
    "sigmoid": lambda: Scoring(by_sigmoid),
    "squares": lambda: Scoring(by_squares),
    "one more": lambda: Scoring(with_one_more),
    "talking": lambda: Scoring(talking),
    "relative": lambda: Scoring(relative),
    "strided": lambda: Scoring(strided),
    "forgetting": lambda: Scoring(forgetting),
    "windowed": lambda: Scoring(windowed),
    "distance": lambda: Scoring(by_distance),
    "memory": lambda: Scoring(with_memory),
    "place": lambda: Scoring(by_place),
    "transform": lambda: Scoring(by_transform),
}
