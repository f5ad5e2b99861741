"""Models of their own making, in the styles that public code has: tokens of eager."""

from __future__ import annotations

import inspect
import math
from typing import Any

import pytest
import torch
from ferrule.compiler.build import Options, build_in_temporary
from ferrule.compiler.results import logits_in
from ferrule.compiler.zoo_models import randomize
from ferrule.runtime.sampling import SamplingParams
from torch import nn
from torch.nn import functional as F

from .public import HEADS, LONGEST, PUBLIC, VOCABULARY, WIDTH


class Layer(nn.Module):
    """As nanoGPT's block, its mask a buffer of ones and zeros; a bias may be added to scores."""

    def __init__(self, mlp: nn.Module) -> None:
        super().__init__()
        self.n1, self.n2, self.mlp = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH), mlp
        self.qkv, self.o = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.register_buffer("bias", torch.tril(torch.ones(1, 1, LONGEST, LONGEST)))

    def forward(self, x: torch.Tensor, extra: torch.Tensor | None = None) -> torch.Tensor:
        b, t, c = x.shape
        q, k, v = (
            z.view(b, t, HEADS, c // HEADS).transpose(1, 2)
            for z in self.qkv(self.n1(x)).split(c, dim=2)
        )
        scores = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        scores = scores if extra is None else scores + extra
        scores = scores.masked_fill(self.bias[:, :, :t, :t] == 0, float("-inf"))
        y = F.softmax(scores, dim=-1) @ v
        x = x + self.o(y.transpose(1, 2).contiguous().view(b, t, c))
        return x + self.mlp(self.n2(x))


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wte, self.head = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, VOCABULARY)
        self.layers = nn.ModuleList(Layer(self.mlp()) for _ in range(2))

    def mlp(self) -> nn.Module:
        return nn.Sequential(nn.Linear(WIDTH, 72), nn.GELU(), nn.Linear(72, WIDTH))

    def hidden(self, ids: torch.Tensor, extra: torch.Tensor | None = None) -> torch.Tensor:
        x = self.wte(ids)
        for layer in self.layers:
            x = layer(x, extra)
        return x


class LastLogits(Base):
    """Learned positions; the last token's logits and a loss, as nanoGPT gives them."""

    def __init__(self) -> None:
        super().__init__()
        self.wpe = nn.Embedding(LONGEST, WIDTH)

    def forward(self, idx: torch.Tensor, targets: Any = None) -> Any:
        x = self.wte(idx) + self.wpe(torch.arange(idx.size(1), device=idx.device))
        for layer in self.layers:
            x = layer(x)
        return self.head(x[:, [-1], :]), None


class Slopes(Base):
    """ALiBi made in forward, logits under a key."""

    def forward(self, input_ids: torch.Tensor, attention_mask: Any = None) -> Any:
        t = input_ids.shape[1]
        slopes = torch.tensor([2 ** (-8 * (i + 1) / HEADS) for i in range(HEADS)])
        apart = torch.arange(t)[None, :] - torch.arange(t)[:, None]
        return {"logits": self.head(self.hidden(input_ids, slopes[:, None, None] * apart))}


class Expert(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w1, self.w3 = (nn.Linear(WIDTH, 40, bias=False) for _ in range(2))
        self.w2 = nn.Linear(40, WIDTH, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Chosen(nn.Module):
    """The expert layer of Mistral's reference: rows by `where`, sums in place."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, 5, bias=False)
        self.experts = nn.ModuleList(Expert() for _ in range(5))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        rows = inputs.view(-1, WIDTH)
        weights, chosen = torch.topk(self.gate(rows), 2)
        weights = F.softmax(weights, dim=1)
        y = torch.zeros_like(rows)
        for i, expert in enumerate(self.experts):
            row, nth = torch.where(chosen == i)
            y[row] += weights[row, nth, None] * expert(rows[row])
        return y.view_as(inputs)


class Experts(Base):
    """No positions at all: what a token sees says where it is."""

    def mlp(self) -> nn.Module:
        return Chosen()

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.hidden(tokens))


@torch.no_grad()
def eager(model: nn.Module, prompt: list[int], count: int) -> list[int]:
    ids = list(prompt)
    name = next(iter(inspect.signature(model.forward).parameters))
    for _ in range(count):
        given = torch.tensor([ids])
        logits = logits_in(model(**{name: given}), given)
        ids.append(int(logits[0, -1].argmax()))
    return ids[len(prompt) :]


KINDS = {"last logits": LastLogits, "slopes": Slopes, "experts": Experts, **PUBLIC}


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_those_of_eager(kind: str) -> None:
    torch.manual_seed(0)
    model = randomize(KINDS[kind]().eval())
    options = Options(max_context=40, max_batch=4, chunk=16, progress=False)
    artifact = build_in_temporary(model, options)
    prompts = [torch.randint(0, VOCABULARY, (n,)).tolist() for n in (5, 19, 1)]
    sampling = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
    made = [list(c.token_ids) for c in artifact.generate(prompts, sampling)]
    assert made == [eager(model, p, 12) for p in prompts]
