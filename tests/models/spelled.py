"""Language models of one layer in more spellings of people: grouped heads by einsum, heads mixed by
a convolution, masks and embeddings made of tokens before, experts picked by boolean rows.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from .public import HEADS, VOCABULARY, WIDTH, Model, future

Tensor = torch.Tensor
SIZE, GROUPS = WIDTH // HEADS, 2


class Grouped(nn.Module):
    """Grouped heads as an axis of their own, a learned sink beside the scores, a soft cap."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups, self.sinks = groups, nn.Parameter(torch.zeros(HEADS))
        self.q, self.out = nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, WIDTH)
        self.kv = nn.Linear(WIDTH, 2 * groups * SIZE)

    def forward(self, x: Tensor) -> Tensor:
        b, s, _ = x.shape
        q = self.q(x).view(b, s, self.groups, -1, SIZE)
        k, v = self.kv(x).view(b, s, self.groups, 2 * SIZE).chunk(2, dim=-1)
        scores = torch.einsum("bikgd,bjkd->bkgij", q, k) * SIZE**-0.5
        scores = 20.0 * torch.tanh(scores / 20.0) + future(s)
        sinks = self.sinks.view(1, self.groups, -1, 1, 1).expand(b, -1, -1, s, 1)
        weights = torch.cat([scores, sinks], dim=-1).softmax(dim=-1)[..., :-1]
        mixed = torch.einsum("bkgij,bjkd->bikgd", weights, v)
        return self.out(mixed.reshape(b, s, WIDTH))


class Projected(nn.Module):
    """Queries, keys and values [B, H, S, D] of one linear, mixed by `attend`."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        b, s, _ = x.shape
        parts = self.qkv(x).view(b, s, 3, HEADS, SIZE).permute(2, 0, 3, 1, 4)
        return self.out(self.attend(*parts).transpose(1, 2).reshape(b, s, WIDTH))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        raise NotImplementedError


class Talking(Projected):
    """Talking heads (Shazeer et al., 2020) by a matrix before the softmax, a convolution after."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = (
            nn.Parameter(torch.randn(HEADS, HEADS)),
            nn.Conv2d(HEADS, HEADS, 1, bias=False),
        )

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = torch.einsum("bhid,bhjd->bhij", q, k) * SIZE**-0.5
        scores = torch.einsum("bhij,hg->bgij", scores, self.before)
        lowest = torch.finfo(scores.dtype).min
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        weights = scores.masked_fill(hidden, lowest).softmax(dim=-1)
        return torch.einsum("bhij,bhjd->bhid", self.after(weights), v)


class StickBreaking(Projected):
    """Stick-breaking attention (Tan et al., 2024): a key takes its part of what later ones left."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = q @ k.transpose(-1, -2) * SIZE**-0.5
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool).tril(-1)
        left = F.logsigmoid(-scores).masked_fill(~seen, 0.0)
        after = left.flip(-1).cumsum(-1).flip(-1) - left
        return (F.logsigmoid(scores) + after).exp().masked_fill(~seen, 0.0) @ v


class Blocks(Projected):
    """Attention within a block of four and the one before, the last filled up with zeros."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        length, size = q.shape[2], 4
        blocks = (F.pad(x, (0, 0, 0, -length % size)).unflatten(2, (-1, size)) for x in (q, k, v))
        q, *both = blocks
        k, v = (torch.cat([F.pad(x, (0, 0, 0, 0, 1, 0))[:, :, :-1], x], dim=3) for x in both)
        row, column = torch.arange(size)[:, None] + size, torch.arange(2 * size)
        seen = (column <= row) & (row - column < size)
        first = torch.arange(q.shape[2])[:, None, None] == 0
        scores = (q @ k.mT * SIZE**-0.5).masked_fill(~seen | first & (column < size), -torch.inf)
        return (scores.softmax(dim=-1) @ v).flatten(2, 3)[:, :, :length]


class Flexible(Projected):
    """torch's flex_attention: scores less a slope times the distance, under a soft cap, of keys in
    a window.
    """

    def __init__(self) -> None:
        super().__init__()
        self.slopes = nn.Parameter(torch.rand(HEADS))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        length = q.shape[2]
        mask = create_block_mask(
            lambda b, h, i, j: (i >= j) & (i - j < 7), None, None, length, length, device="cpu"
        )

        def changed(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return 9.0 * torch.tanh((score - self.slopes[h] * (i - j)) / 9.0)

        plain = flex_attention(q, k[:, ::2], v[:, ::2], block_mask=mask, enable_gqa=True)
        return plain + flex_attention(q, k, v, score_mod=changed, block_mask=mask)


class Separate(Projected):
    """Attention under a mask that was made before."""

    mask: Tensor

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask)


class Documents(nn.Module):
    """Tokens see those of their own document, which a separator begins."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, VOCABULARY)
        self.mixer = Separate()

    def forward(self, ids: Tensor) -> Tensor:
        document, place = (ids < 9).cumsum(1), torch.arange(ids.shape[1])
        alike = document[:, :, None] == document[:, None, :]
        self.mixer.mask = (alike & (place[:, None] >= place[None, :]))[:, None]
        x = self.words(ids)
        return self.head(x + self.mixer(x))


class Before(nn.Module):
    """Tokens before a token beside it: hashed pairs, ids rolled, flags, a learned first row."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.pairs = nn.Embedding(VOCABULARY + 1, WIDTH), nn.Embedding(97, WIDTH)
        self.flags, self.first = nn.Embedding(2, WIDTH), nn.Parameter(torch.randn(1, 1, WIDTH))
        self.up, self.head = nn.Linear(3 * WIDTH, WIDTH), nn.Linear(WIDTH, VOCABULARY)

    def forward(self, ids: Tensor) -> Tensor:
        pairs = self.pairs((ids * 31 + F.pad(ids, (1, 0))[:, :-1] * 17) % 97)
        low = ids < 9
        flags = self.flags(torch.cat([torch.ones_like(low[:, :1]), low[:, :-1]], dim=1).long())
        rows, rolled = [], ids
        for _ in range(3):
            rows.append(self.words(rolled))
            rolled = torch.roll(rolled, 1, 1)
            rolled[:, 0] = VOCABULARY
        shifted = torch.cat([self.first.expand(ids.shape[0], -1, -1), pairs[:, :-1]], dim=1)
        rows = torch.cat(rows, dim=-1) + torch.cat([pairs, flags, shifted], dim=-1)
        return self.head(torch.tanh(self.up(rows)))


class Experts(nn.Module):
    """Experts of a gate's two best, each behind a nonlinearity."""

    def __init__(self, count: int = 5) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, count)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, 24), nn.ReLU(), nn.Linear(24, WIDTH))
            for _ in range(count)
        )


class BooleanRows(Experts):
    """Rows picked and added to by masks, weighed by a softmax of what was scattered."""

    def forward(self, x: Tensor) -> Tensor:
        best, index = self.gate(x).topk(2, dim=-1)
        empty = torch.full((*x.shape[:-1], len(self.experts)), float("-inf"))
        shares = F.softmax(empty.scatter(-1, index, best), dim=-1).flatten(0, 1)
        rows, y = x.flatten(0, 1), torch.zeros_like(x)
        for at, expert in enumerate(self.experts):
            mask = (index == at).any(dim=-1)
            flat = mask.view(-1)
            if flat.any():
                y[mask] += expert(rows[flat]) * shares[flat, at].unsqueeze(1)
        return y


class SortedRows(Experts):
    """Rows sorted by expert, counted, joined again and added where they came from."""

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, WIDTH)
        best, index = self.gate(rows).topk(2, dim=-1)
        flat = index.view(-1)
        order, counts = flat.argsort(), torch.bincount(flat, minlength=len(self.experts)).tolist()
        given, made, start = rows[order // 2], [], 0
        for expert, count in zip(self.experts, counts, strict=True):
            made.append(expert(given[start : start + count]))
            start += count
        weighed = torch.cat(made) * best.softmax(dim=-1).view(-1)[order, None]
        return torch.zeros_like(rows).index_add(0, order // 2, weighed).view(x.shape)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "grouped": lambda: Model(Grouped(GROUPS)),
    "one group": lambda: Model(Grouped(1)),
    "talking": lambda: Model(Talking()),
    "stick breaking": lambda: Model(StickBreaking()),
    "blocks": lambda: Model(Blocks()),
    "flexible": lambda: Model(Flexible()),
    "documents": Documents,
    "before": Before,
    "boolean rows": lambda: Model(BooleanRows()),
    "sorted rows": lambda: Model(SortedRows()),
}
