"""Language models in the spellings of public code, each of one layer: attention over latents with
heads beside queries, differential attention, torch's own transformer layers, loops over tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

VOCABULARY, WIDTH, HEADS, LONGEST = 61, 32, 4, 48
Tensor = torch.Tensor


def future(length: int) -> Tensor:
    return torch.full((length, length), float("-inf")).triu_(1)


class Model(nn.Module):
    """Embedding, a mixer beside its input, a linear."""

    def __init__(self, mixer: nn.Module) -> None:
        super().__init__()
        self.words, self.mixer = nn.Embedding(VOCABULARY, WIDTH), mixer
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.words(tokens)
        return self.head(x + self.mixer(self.norm(x)))


class Named(nn.Module):
    """A forward of named arguments alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *, input_ids: Tensor, mask: Any = None) -> Any:
        return {"logits": self.model(input_ids)}


class Latent(nn.Module):
    """DeepSeek's reference: scores [B, S, H, L], keys of a latent or absorbed into the queries."""

    def __init__(self, *, absorbed: bool) -> None:
        super().__init__()
        self.absorbed, self.q = absorbed, nn.Linear(WIDTH, HEADS * 12, bias=False)
        self.down, self.norm = nn.Linear(WIDTH, 12 + 4, bias=False), nn.RMSNorm(12)
        self.up, self.o = nn.Linear(12, HEADS * 14, bias=False), nn.Linear(HEADS * 6, WIDTH)
        angles = torch.outer(torch.arange(LONGEST).float(), torch.tensor([1.0, 0.1]))
        turns = torch.polar(torch.ones_like(angles), angles)
        self.register_buffer("turns", turns, persistent=False)

    def turned(self, x: Tensor) -> Tensor:
        z = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
        return torch.view_as_real(z * self.turns[: x.shape[1]].view(1, x.shape[1], 1, -1)).flatten(
            3
        )

    def forward(self, x: Tensor) -> Tensor:
        b, s, _ = x.shape
        q, places = self.q(x).view(b, s, HEADS, 12).split([8, 4], dim=-1)
        latent, shared = self.down(x).split([12, 4], dim=-1)
        latent, places = self.norm(latent), self.turned(places)
        shared, w = self.turned(shared.unsqueeze(2)), self.up.weight.view(HEADS, 14, 12)
        if self.absorbed:
            wide = torch.einsum("bshd,hdc->bshc", q, w[:, :8])
            scores = torch.einsum("bshc,btc->bsht", wide, latent)
            scores = scores + torch.einsum("bshr,btr->bsht", places, shared.squeeze(2))
        else:
            k, v = self.up(latent).view(b, s, HEADS, 14).split([8, 6], dim=-1)
            k = torch.cat([k, shared.expand(-1, -1, HEADS, -1)], dim=-1)
            scores = torch.einsum("bshd,bthd->bsht", torch.cat([q, places], dim=-1), k)
        weights = (scores * 12**-0.5 + future(s).unsqueeze(1)).softmax(-1)
        if self.absorbed:
            mixed = torch.einsum("bsht,btc->bshc", weights, latent)
            return self.o(torch.einsum("bshc,hdc->bshd", mixed, w[:, 8:]).flatten(2))
        return self.o(torch.einsum("bsht,bthd->bshd", weights, v).flatten(2))


class Difference(nn.Module):
    """Differential attention (Ye et al., 2024): one softmax less a share of another."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.share = nn.Linear(WIDTH, 3 * WIDTH), nn.Parameter(torch.tensor(0.3))

    def forward(self, x: Tensor) -> Tensor:
        b, s, _ = x.shape
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        q, k = (z.view(b, s, 2 * HEADS, -1).transpose(1, 2) for z in (q, k))
        v = v.view(b, s, HEADS, -1).transpose(1, 2)
        weights = F.softmax(q @ k.transpose(-1, -2) * 0.5 + future(s), dim=-1)
        weights = weights.view(b, HEADS, 2, s, s)
        mixed = (weights[:, :, 0] - self.share * weights[:, :, 1]) @ v
        return F.rms_norm(mixed, (8,)).transpose(1, 2).reshape(b, s, WIDTH)


class Weighed(nn.Module):
    """torch's attention with its weights, tokens first."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, HEADS)

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(0, 1)
        mask = torch.triu(torch.ones(len(x), len(x), dtype=torch.bool), diagonal=1)
        return self.attention(x, x, x, attn_mask=mask)[0].transpose(0, 1)


class Encoder(nn.Module):
    """torch's example of a language model: a mask that is kept, its length by `len`."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 40, dropout=0.2, batch_first=True)
        self.layers, self.mask = nn.TransformerEncoder(layer, 1), None

    def forward(self, x: Tensor) -> Tensor:
        rows = x.transpose(0, 1)
        if self.mask is None or self.mask.size(0) != len(rows):
            self.mask = torch.log(torch.tril(torch.ones(len(rows), len(rows))))
        return self.layers(x, mask=self.mask)


class Decoder(nn.Module):
    """torch's decoder layer, which attends to a memory of the model's own too."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerDecoderLayer(WIDTH, HEADS, 40, batch_first=True)
        self.memory = nn.Parameter(torch.randn(1, 3, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        memory = self.memory.expand(x.shape[0], -1, -1)
        return self.layer(x, memory, tgt_mask=future(x.shape[1]), tgt_is_causal=True)


class Recurrence(nn.Module):
    """The operands of a recurrence, all of its decays and squashing inside its loop."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.rates = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, 2 * HEADS)
        self.slopes = nn.Parameter(torch.rand(HEADS))

    def parts(self, x: Tensor) -> tuple[Tensor, ...]:
        q, k, v = (z.unflatten(-1, (HEADS, -1)) for z in self.qkv(x).chunk(3, dim=-1))
        return (F.normalize(q, dim=-1), F.normalize(k, dim=-1), v, *self.rates(x).chunk(2, dim=-1))


class GatedDelta(Recurrence):
    """Heads before tokens, rows of the result written in place."""

    def forward(self, x: Tensor) -> Tensor:
        parts = (z.transpose(1, 2).contiguous().to(x) for z in self.parts(x))
        q, k, v, rate, share = parts
        state, rows = torch.zeros(x.shape[0], HEADS, 8, 8).to(x), torch.zeros_like(v)
        for i in range(q.shape[2]):
            state = state * (-F.softplus(rate[:, :, i])).exp()[..., None, None]
            held = (state * k[:, :, i].unsqueeze(-1)).sum(dim=-2)
            new = (v[:, :, i] - held) * share[:, :, i].sigmoid().unsqueeze(-1)
            state = state + k[:, :, i].unsqueeze(-1) * new.unsqueeze(-2)
            rows[:, :, i] = (state * q[:, :, i].unsqueeze(-1)).sum(dim=-2)
        return rows.transpose(1, 2).flatten(2)


class StateSpace(Recurrence):
    """Mamba 2 by tokens: a step size in the decay and beside the key, cut after its convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(WIDTH, WIDTH, 4, groups=WIDTH, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.conv(x.transpose(1, 2)).transpose(1, 2)[:, : x.shape[1], :])
        q, k, v, step, _ = self.parts(x)
        step = F.softplus(step)
        state, rows = x.new_zeros(x.shape[0], HEADS, 8, 8), []
        for i in range(x.shape[1]):
            decay = torch.exp(-step[:, i] * self.slopes.exp())
            new = torch.einsum("bh,bhn,bhp->bhpn", step[:, i], k[:, i], v[:, i])
            state = state * decay[..., None, None] + new
            rows.append(torch.einsum("bhpn,bhn->bhp", state, q[:, i]))
        return torch.stack(rows, dim=1).flatten(2)


class Cached(nn.Module):
    """Llama's reference: keys and values written into buffers of the model in its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        for name in ("keys", "values"):
            self.register_buffer(name, torch.zeros(4, LONGEST, HEADS, WIDTH // HEADS))

    def forward(self, x: Tensor, start: int = 0) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = (y.view(batch, length, HEADS, -1) for y in self.qkv(x).chunk(3, dim=-1))
        self.keys[:batch, start : start + length] = k
        self.values[:batch, start : start + length] = v
        k, v = (c[:batch, : start + length].transpose(1, 2) for c in (self.keys, self.values))
        mask = torch.hstack([torch.zeros(length, start), future(length)])
        scores = q.transpose(1, 2) @ k.transpose(2, 3) / (WIDTH // HEADS) ** 0.5 + mask
        y = torch.softmax(scores, dim=-1) @ v
        return self.out(y.transpose(1, 2).flatten(2))


class Codebook(nn.Module):
    """Rows of a codebook nearest to each token's, in a part that runs in half precision."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.into = nn.Parameter(torch.randn(16, WIDTH)), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        nearest = torch.cdist(x, self.rows[None]).argmin(-1)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = self.into(self.rows[nearest])
        return y.float()


class WithLoss(nn.Module):
    """A loss before the logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, labels: Any = None) -> Any:
        return None, self.model(ids)


PUBLIC: Mapping[str, Callable[[], nn.Module]] = {
    "named arguments": lambda: Named(Model(Difference())),
    "latents": lambda: Model(Latent(absorbed=False)),
    "absorbed latents": lambda: Model(Latent(absorbed=True)),
    "weighed": lambda: Model(Weighed()),
    "encoder": lambda: Model(Encoder()),
    "decoder": lambda: Model(Decoder()),
    "gated delta": lambda: Model(GatedDelta()),
    "state space": lambda: Model(StateSpace()),
    "cached": lambda: Model(Cached()),
    "codebook": lambda: WithLoss(Model(Codebook())),
}
