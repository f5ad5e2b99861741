"""Recurrent language models in spellings of their own: no scan is called by a name."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

Tensor = torch.Tensor


class Mixer(nn.Module):
    """A language model of one layer: linears, `mix` over the tokens, a linear; sizes by name."""

    def __init__(self, mix: Callable[..., Tensor], **sizes: tuple[int, ...]) -> None:
        super().__init__()
        width = 12
        self.words, self.mix, self.sizes = nn.Embedding(31, width), mix, sizes
        self.parts = nn.ModuleDict(
            {name: nn.Linear(width, torch.Size(size).numel()) for name, size in sizes.items()}
        )
        self.out = nn.LazyLinear(31)
        self.slopes = nn.Buffer(torch.tensor([0.3, 0.05, 0.7]))
        self(torch.zeros(1, 32, dtype=torch.int64))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids)
        given = {name: self.parts[name](x).unflatten(-1, size) for name, size in self.sizes.items()}
        return self.out(self.mix(self, **given).flatten(2))


def segment_sums(x: Tensor) -> Tensor:
    """sum_{j < t <= i} x_t of x[..., S] as [..., S, S], -inf above the diagonal."""
    total = x.cumsum(-1)
    apart = total[..., :, None] - total[..., None, :]
    inside = torch.ones(x.shape[-1], x.shape[-1], dtype=torch.bool).tril()
    return apart.masked_fill(~inside, -torch.inf)


def by_scores(model: Mixer, q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> Tensor:
    """State space duality as attention without a softmax; g[B, S, H], q and k of all heads."""
    decay = segment_sums(-F.softplus(g).transpose(1, 2)).exp()
    scores = torch.einsum("bin,bjn->bij", q, k)[:, None] * decay
    return torch.einsum("bhij,bjhp->bihp", scores, v)


def by_running_sums(model: Mixer, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Linear attention with a normalizer, both sums held for every token."""
    q, k = F.elu(q) + 1, F.elu(k) + 1
    states = (k[..., :, None] * v[..., None, :]).cumsum(1)
    above = torch.einsum("bshk,bshkv->bshv", q, states)
    below = (q * k.cumsum(1)).sum(-1, keepdim=True)
    return above / below


def by_powers(model: Mixer, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Retention: decays that are numbers of the model."""
    place = torch.arange(q.shape[1])
    apart = place[:, None] - place[None, :]
    decay = torch.exp(-model.slopes[:, None, None] * apart).tril()
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return ((0.25 * q @ k.transpose(-1, -2)) * decay @ v).transpose(1, 2)


def by_row_decays(model: Mixer, q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> Tensor:
    """Gated linear attention (Yang et al., 2023): a decay for each row of the state."""
    total = F.logsigmoid(g).cumsum(1)
    keys, queries = k * torch.exp(-total), q * torch.exp(total)
    scores = torch.einsum("bihk,bjhk->bhij", queries, keys).tril()
    return torch.einsum("bhij,bjhv->bihv", scores, v)


def by_products(model: Mixer, v: Tensor, a: Tensor) -> Tensor:
    """A gated linear unit's recurrence h = a h + (1 - a) v, by running products."""
    a = a.sigmoid()
    total = a.cumprod(1)
    return total * (((1 - a) * v) / total).cumsum(1)


def by_chunks(model: Mixer, q: Tensor, k: Tensor, v: Tensor, g: Tensor, size: int = 4) -> Tensor:
    """State space duality in chunks (Dao and Gu, 2024), the last one filled up with zeros."""
    length = v.shape[1]
    more = -length % size
    q, k, v = (
        F.pad(x, (0, 0) * (x.dim() - 2) + (0, more)).unflatten(1, (-1, size)) for x in (q, k, v)
    )
    g = F.pad(-F.softplus(g), (0, 0, 0, more)).unflatten(1, (-1, size)).permute(0, 3, 1, 2)
    total = g.cumsum(-1)
    inside = torch.einsum("bcln,bcsn,bhcls,bcshp->bclhp", q, k, segment_sums(g).exp(), v)
    kept = torch.exp(total[..., -1:] - total)
    states = torch.einsum("bcln,bhcl,bclhp->bchpn", k, kept, v)
    states = torch.cat([torch.zeros_like(states[:, :1]), states], dim=1)
    between = segment_sums(F.pad(total[..., -1], (1, 0))).exp()
    states = torch.einsum("bhzc,bchpn->bzhpn", between, states)[:, :-1]
    across = torch.einsum("bcln,bchpn,bhcl->bclhp", q, states, total.exp())
    return (inside + across).flatten(1, 2)[:, :length]


def by_tokens(model: Mixer, q: Tensor, k: Tensor, v: Tensor, g: Tensor, b: Tensor) -> Tensor:
    """The gated delta rule in a loop over the tokens."""
    decay, b, rows = g.sigmoid(), b.sigmoid(), []
    state = v.new_zeros(v.shape[0], v.shape[2], k.shape[2], v.shape[3])
    for t in range(v.shape[1]):
        state = state * decay[:, t, :, None, None]
        held = torch.einsum("bhkv,bk->bhv", state, k[:, t])
        new = (v[:, t] - held) * b[:, t, :, None]
        state = state + torch.einsum("bk,bhv->bhkv", k[:, t], new)
        rows.append(torch.einsum("bhkv,bk->bhv", state, q[:, t]))
    return torch.stack(rows, dim=1)


def in_place(model: Mixer, v: Tensor, a: Tensor) -> Tensor:
    """A recurrence h = a h + v whose states are written into a tensor of zeros."""
    a, state, states = a.sigmoid(), torch.zeros_like(v[:, 0]), torch.zeros_like(v)
    for t in range(v.shape[1]):
        state = a[:, t] * state + v[:, t]
        states[:, t] = state
    return states


def by_average(model: Mixer, v: Tensor) -> Tensor:
    """A running average: decays that are numbers of the model, another for each channel."""
    kept = torch.exp(-model.slopes.repeat(2))
    state = v[:, 0] * (1 - kept)
    rows = [state]
    for t in range(1, v.shape[1]):
        state = kept * state + (1 - kept) * v[:, t]
        rows.append(state)
    return torch.stack(rows, dim=1)


def by_whole_chunks(model: Mixer, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Lightning attention (Qin et al., 2024): a loop over chunks that divide the length."""
    size = 32
    assert q.shape[1] % size == 0
    place = torch.arange(size)
    apart = place[:, None] - place[None, :]
    slopes = model.slopes[:, None, None]
    inside = torch.exp(-slopes * apart).tril()
    state, rows = v.new_zeros(v.shape[0], 3, k.shape[3], v.shape[3]), []
    for each in zip(*(x.transpose(1, 2).split(size, dim=2) for x in (q, k, v)), strict=True):
        a, b, c = each
        across = (a * torch.exp(-slopes * (place + 1)[:, None])) @ state
        rows.append((a @ b.transpose(-1, -2) * inside) @ c + across)
        kept = b * torch.exp(-slopes * (size - 1 - place)[:, None])
        state = state * torch.exp(-slopes * size) + kept.transpose(-1, -2) @ c
    return torch.cat(rows, dim=2).transpose(1, 2)


def by_long_chunks(model: Mixer, q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> Tensor:
    """Gated linear attention: a loop over chunks of 16, the last one filled up with zeros."""
    size, length = 16, v.shape[1]
    more = (size - length % size) % size
    q, k, v = (F.pad(x.transpose(1, 2), (0, 0, 0, more)) for x in (q, k, v))
    g = F.pad(-F.softplus(g).transpose(1, 2), (0, more))
    count = (length + more) // size
    q, k, v = (x.unflatten(2, (count, size)) for x in (q, k, v))
    g = g.unflatten(2, (count, size)).cumsum(-1)
    inside = (g[..., :, None] - g[..., None, :]).tril().exp().tril()
    state, rows = v.new_zeros(v.shape[0], 3, k.shape[-1], v.shape[-1]), []
    for at in range(count):
        a, b, c, total = q[:, :, at], k[:, :, at], v[:, :, at], g[:, :, at, :, None]
        rows.append((a * total.exp()) @ state + (a @ b.mT * inside[:, :, at]) @ c)
        last = total[:, :, -1:]
        state = state * last.exp() + (b * (last - total).exp()).mT @ c
    return torch.cat(rows, dim=2)[:, :, :length].transpose(1, 2)


def behind_shifts(model: Mixer, v: Tensor, a: Tensor) -> Tensor:
    """RG-LRU (De et al., 2024) behind a short convolution that is a sum of shifted tokens; the
    first token has no state to keep.
    """
    length, shifted = v.shape[1], F.pad(v, (0, 0, 3, 0))
    x = sum(model.slopes[n % 3] * shifted[:, n : n + length] for n in range(4))
    a = torch.where((torch.arange(length) == 0)[:, None], 0.0, a.sigmoid())
    gated, state, rows = (1 - a * a).sqrt() * x, torch.zeros_like(v[:, 0]), []
    for t in range(length):
        state = a[:, t] * state + gated[:, t]
        rows.append(state.unsqueeze(1))
    return torch.cat(rows, dim=1)


SPELLINGS: dict[str, Callable[[], Mixer]] = {
    "scores": lambda: Mixer(by_scores, q=(5,), k=(5,), v=(3, 4), g=(3,)),
    "running sums": lambda: Mixer(by_running_sums, q=(3, 5), k=(3, 5), v=(3, 4)),
    "powers": lambda: Mixer(by_powers, q=(3, 5), k=(3, 5), v=(3, 4)),
    "row decays": lambda: Mixer(by_row_decays, q=(3, 5), k=(3, 5), v=(3, 4), g=(3, 5)),
    "products": lambda: Mixer(by_products, v=(6,), a=(6,)),
}
# These export at one length at a time.
FIXED: dict[str, Callable[[], Mixer]] = {
    "chunks": lambda: Mixer(by_chunks, q=(5,), k=(5,), v=(3, 4), g=(3,)),
    "long chunks": lambda: Mixer(by_long_chunks, q=(3, 5), k=(3, 5), v=(3, 4), g=(3,)),
    "tokens": lambda: Mixer(by_tokens, q=(5,), k=(5,), v=(3, 4), g=(3,), b=(3,)),
    "in place": lambda: Mixer(in_place, v=(6,), a=(6,)),
    "average": lambda: Mixer(by_average, v=(6,)),
    "shifts": lambda: Mixer(behind_shifts, v=(6,), a=(6,)),
    "whole chunks": lambda: Mixer(by_whole_chunks, q=(3, 5), k=(3, 5), v=(3, 4)),
}
