"""The eager model as the reference: its logits, and a way to run it that never holds all its
weights.

A model read from disk stands on the meta device. Hooks bring a module's own parameters in just
before its forward and put the empty ones back just after, so that what is in memory is one
module's weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from .capture import LogitsOf, is_last_alone, prepared
from .models import copied
from .parity import Array, Logits


@contextmanager
def eager_logits(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> Iterator[Logits]:
    """A function from token ids to the logits in float32 from a position on, each call a whole
    forward without a cache.
    """
    run = LogitsOf(model, 1)

    def logits(ids: Sequence[int], first: int) -> Array:
        rows = logits_from(run, torch.tensor([list(ids)]), first)
        return np.asarray(rows[0].float().numpy())

    with prepared_eager(model, weights):
        yield logits


@torch.no_grad()
def logits_from(run: LogitsOf, ids: torch.Tensor, first: int = 0) -> torch.Tensor:
    """Logits [B, S - first, V] of ids [B, S] from a position on, a run for each token where the
    model gives the last one's alone.
    """
    logits = run(ids)
    if not is_last_alone(logits, ids):
        return logits[:, first:]
    return torch.cat([run(ids[:, : n + 1]) for n in range(first, ids.shape[1])], dim=1)


@contextmanager
def wide_logits(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> Iterator[Logits]:
    """eager_logits of a copy of the model in float32."""
    with eager_logits(copied(model).float(), _Wide(weights)) as logits:
        yield logits


class _Wide(Mapping[str, torch.Tensor]):
    """Weights in float32."""

    def __init__(self, weights: Mapping[str, torch.Tensor]) -> None:
        self._weights = weights

    def __getitem__(self, name: str) -> torch.Tensor:
        weight = self._weights[name]
        return weight.float() if weight.is_floating_point() else weight

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


@contextmanager
def prepared_eager(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """The model ready to run: parameters on the meta device come from `weights` while their
    module runs.
    """
    handles = [h for m in _owners(model) for h in _streamed(m, weights)]
    try:
        with prepared(model):
            yield
    finally:
        for handle in handles:
            handle.remove()


Owner = tuple[str, nn.Module]


def _owners(model: nn.Module) -> list[Owner]:
    """The modules that have parameters of their own on the meta device, with their paths."""
    return [
        (path, module)
        for path, module in model.named_modules()
        if any(p is not None and p.is_meta for p in module._parameters.values())
    ]


def _streamed(owner: Owner, weights: Mapping[str, torch.Tensor]) -> list[Any]:
    path, module = owner
    empty = {n: p for n, p in module._parameters.items() if p is not None and p.is_meta}
    fill = partial(_fill, module, path, tuple(empty), weights)
    leave = partial(_restore, module, empty)
    before = module.register_forward_pre_hook(lambda *_: fill())
    # The hook also runs where the forward raises: a failed run leaves nothing behind.
    after = module.register_forward_hook(lambda *_: leave(), always_call=True)
    return [before, after]


def _fill(
    module: nn.Module, path: str, names: tuple[str, ...], weights: Mapping[str, torch.Tensor]
) -> None:
    for name in names:
        full = f"{path}.{name}" if path else name
        module._parameters[name] = nn.Parameter(weights[full], requires_grad=False)


def _restore(module: nn.Module, empty: Mapping[str, nn.Parameter]) -> None:
    module._parameters.update(empty)
