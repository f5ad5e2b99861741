"""Recurrences that are not linear, in the spellings of people: layers of torch, loops in Python,
torch's scan.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch._higher_order_ops.associative_scan import associative_scan
from torch._higher_order_ops.scan import scan
from torch.nn import functional as F

Tensor = torch.Tensor
VOCABULARY, WIDTH = 31, 12


class Looping(nn.Module):
    """A language model of one layer: linears of the tokens, `mix` over them, a linear."""

    def __init__(self, mix: Callable[..., Tensor], **sizes: int) -> None:
        super().__init__()
        self.words, self.mix = nn.Embedding(VOCABULARY, WIDTH), mix
        self.parts = nn.ModuleDict({n: nn.Linear(WIDTH, size) for n, size in sizes.items()})
        self.back = nn.Linear(WIDTH, WIDTH)
        self.gates = nn.Linear(WIDTH, 4 * WIDTH, bias=False)
        self.norm, self.cell = nn.LayerNorm(WIDTH), nn.LSTMCell(WIDTH, WIDTH)
        self.bonus = nn.Parameter(torch.randn(WIDTH))
        self.out = nn.LazyLinear(VOCABULARY)
        self(torch.zeros(1, 5, dtype=torch.int64))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids)
        return self.out(self.mix(self, x, **{n: part(x) for n, part in self.parts.items()}))


class Layers(nn.Module):
    """Recurrent layers of torch, from a state that was learned where `learned`."""

    def __init__(self, kind: Any, *, learned: bool = False, **options: Any) -> None:
        super().__init__()
        self.words, self.layers = nn.Embedding(VOCABULARY, WIDTH), kind(WIDTH, 20, **options)
        self.first = nn.Parameter(torch.randn(self.layers.num_layers, 1, 20)) if learned else None
        width = self.layers.proj_size or 20
        self.out = nn.Linear(width, VOCABULARY)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids)
        first = None if self.first is None else self.first.expand(-1, ids.shape[0], -1).contiguous()
        if self.layers.batch_first:
            return self.out(self.layers(x, first)[0])
        return self.out(self.layers(x.transpose(0, 1), first)[0].transpose(0, 1))


def by_scan(model: Looping, x: Tensor, h: Tensor) -> Tensor:
    """torch's scan, two states and two results."""

    def step(states: tuple[Tensor, Tensor], row: Tensor) -> tuple[Any, Any]:
        a, b = states
        a = torch.tanh(model.back(a) + row)
        b = torch.maximum(b, a)
        return (a, b), (a * 2, b.clone())

    begun = x.new_zeros(x.shape[0], WIDTH), x.new_full((x.shape[0], WIDTH), -1.0)
    _, (a, b) = scan(step, begun, h, dim=1)
    return torch.cat([a, b], dim=-1)


def by_cell(model: Looping, x: Tensor) -> Tensor:
    """A cell of torch for each token, rows written into a tensor."""
    h, c, rows = x.new_zeros(x.shape[0], WIDTH), x.new_zeros(x.shape[0], WIDTH), torch.zeros_like(x)
    for t in range(x.shape[1]):
        h, c = model.cell(x[:, t], (h, c))
        rows[:, t] = h
    return rows


def without_a_first_state(model: Looping, x: Tensor, h: Tensor) -> Tensor:
    """Elman's recurrence, whose first step reads no state."""
    state, rows = None, []
    for t in range(x.shape[1]):
        state = torch.tanh(h[:, t] if state is None else h[:, t] + model.back(state))
        rows.append(state)
    return torch.stack(rows, dim=1)


def stabilized(model: Looping, x: Tensor, g: Tensor) -> Tensor:
    """sLSTM (Beck et al., 2024): exponential gates over their largest so far."""
    h = c = n = m = x.new_zeros(x.shape[0], WIDTH)
    rows = []
    for t in range(x.shape[1]):
        i, f, z, o = (g[:, t] + model.gates(h)).chunk(4, dim=-1)
        kept = F.logsigmoid(f) + m
        m = torch.maximum(kept, i)
        i, f = torch.exp(i - m), torch.exp(kept - m)
        c, n = f * c + i * torch.tanh(z), f * n + i
        h = torch.sigmoid(o) * c / n
        rows.append(h)
    return torch.stack(rows, dim=1)


def with_a_bonus(model: Looping, x: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """WKV of RWKV 4 (Peng et al., 2023) over the largest key so far, its own token by a bonus."""
    fades = torch.exp(0.3 * model.bonus)
    above = below = x.new_zeros(x.shape[0], WIDTH)
    most, rows = torch.full_like(above, -1e30), []
    for t in range(x.shape[1]):
        now = model.bonus + k[:, t]
        top = torch.maximum(most, now)
        old, new = torch.exp(most - top), torch.exp(now - top)
        rows.append((old * above + new * v[:, t]) / (old * below + new))
        top = torch.maximum(most - fades, k[:, t])
        old, new = torch.exp(most - fades - top), torch.exp(k[:, t] - top)
        above, below, most = old * above + new * v[:, t], old * below + new, top
    return torch.stack(rows, dim=1)


def transition(
    model: Looping, x: Tensor, r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor
) -> Tensor:
    """RWKV 7 (Peng et al., 2025): a state that is turned by a matrix of rank one a token."""
    r, w, k, v, a = (y.unflatten(-1, (3, 4)) for y in (r, w, k, v, a))
    key, a, w = F.normalize(k, dim=-1), a.sigmoid(), torch.exp(-0.6 * w.sigmoid())
    state, rows = x.new_zeros(x.shape[0], 3, 4, 4), []
    for t in range(x.shape[1]):
        turned = (state @ -key[:, t, :, :, None]) @ (key * a)[:, t, :, None]
        state = state * w[:, t, :, None] + turned + v[:, t, :, :, None] @ k[:, t, :, None]
        rows.append((state @ r[:, t, :, :, None]).flatten(1))
    return torch.stack(rows, dim=1)


def layers_inside(model: Looping, x: Tensor) -> Tensor:
    """Layers inside the loop over the tokens, and the token before beside each."""
    states, before, rows = [x.new_zeros(x.shape[0], WIDTH) for _ in range(2)], None, []
    for t in range(x.shape[1]):
        y = x[:, t] if before is None else x[:, t] + 0.5 * before
        for at in range(2):
            states[at] = torch.tanh(model.back(states[at]) + y)
            y = model.norm(states[at] + y)
        before = x[:, t]
        rows.append(y)
    return torch.stack(rows, dim=1)


def two_results(model: Looping, x: Tensor, h: Tensor) -> Tensor:
    """Two states, both kept for every token; time comes first."""
    h = h.transpose(0, 1)
    a, b, rows = h.new_zeros(h.shape[1:]), h.new_zeros(h.shape[1:]), ([], [])
    for row in h.unbind(0):
        a = torch.relu(model.back(a) + row)
        b = torch.maximum(0.5 * b, a)
        rows[0].append(a)
        rows[1].append(b)
    return torch.cat([torch.stack(r) for r in rows], dim=-1).transpose(0, 1)


def in_logarithms(model: Looping, x: Tensor, g: Tensor, v: Tensor) -> Tensor:
    """minLSTM (Feng et al., 2024): a scan of logarithms, the largest so far beside it."""
    kept, new = -F.softplus(-9 * g), -F.softplus(9 * g)
    total = F.pad(kept.cumsum(dim=1), (0, 0, 1, 0))
    value = torch.where(v >= 0, (F.relu(v) + 0.5).log(), -F.softplus(-v)) + new
    first = model.bonus.expand(x.shape[0], 1, -1)
    sums = (torch.cat([first, value], dim=1) - total).logcumsumexp(dim=1)
    return torch.cat([(total + sums).exp()[:, 1:], v.cummax(dim=1).values], dim=-1)


def in_pairs(model: Looping, x: Tensor, g: Tensor) -> Tensor:
    """torch's associative scans: of a gated sum, of the largest so far with time last, and of
    numbers of each token.
    """

    def joined(a: dict[str, Tensor], b: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"kept": a["kept"] * b["kept"], "sum": b["kept"] * a["sum"] + b["sum"]}

    sums = associative_scan(joined, {"kept": g.sigmoid(), "sum": x}, 1, combine_mode="generic")
    most = associative_scan(torch.maximum, g.transpose(1, 2), -1, combine_mode="generic")
    within = associative_scan(torch.mul, g.unflatten(-1, (3, 4)), 2, combine_mode="generic")
    return torch.cat([sums["sum"], most.transpose(1, 2), within.flatten(2)], dim=-1)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "gru": lambda: Layers(nn.GRU, num_layers=2, batch_first=True, learned=True),
    "lstm": lambda: Layers(nn.LSTM, proj_size=7, bias=False),
    "rnn": lambda: Layers(nn.RNN, nonlinearity="relu", batch_first=True),
    "scan": lambda: Looping(by_scan, h=WIDTH),
    "cell": lambda: Looping(by_cell),
    "first step": lambda: Looping(without_a_first_state, h=WIDTH),
    "stabilized": lambda: Looping(stabilized, g=4 * WIDTH),
    "bonus": lambda: Looping(with_a_bonus, k=WIDTH, v=WIDTH),
    "transition": lambda: Looping(transition, **dict.fromkeys("rwkva", WIDTH)),
    "layers": lambda: Looping(layers_inside),
    "two results": lambda: Looping(two_results, h=WIDTH),
    "pairs": lambda: Looping(in_pairs, g=WIDTH),
    "logarithms": lambda: Looping(in_logarithms, g=WIDTH, v=WIDTH),
}
