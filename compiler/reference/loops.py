"""Reference values of loops over the tokens: the body, one token after another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch

from ...ir.graph import Graph
from .context import Context

Tensor = torch.Tensor


def through(
    context: Context,
    body: Graph,
    rows: Sequence[Tensor],
    states: Sequence[Tensor],
    constants: Sequence[Tensor],
) -> tuple[list[Tensor], list[Tensor]]:
    """(a result [1, ...] for each token, the states behind the last) for rows x[S, ...]."""
    results: list[Tensor] = []
    now = list(states)
    for t in range(len(rows[0])):
        *now, y = context.body(body, [*(x[t : t + 1] for x in rows), *now, *constants], {})
        results.append(y)
    return results, now


def token_loop(context: Context, *inputs: Tensor, body: Graph, tokens: int, states: int) -> Tensor:
    """The loop through each sequence of a batch."""
    given, begun, rest = _parts(inputs, tokens, 0, states)
    made = [
        torch.cat(through(context, body, [x[n] for x in given], begun, rest)[0])
        for n in range(len(given[0]))
    ]
    return torch.stack(made)


def ragged_loop(context: Context, *inputs: Tensor, body: Graph, tokens: int, states: int) -> Tensor:
    """The loop through each sequence of x[T, ...]."""
    given, begun, rest = _parts(inputs, tokens, 1, states)
    parts: list[Tensor] = []
    for i, j in pairwise(inputs[tokens].tolist()):
        parts += through(context, body, [x[i:j] for x in given], begun, rest)[0]
    return torch.cat(parts)


def state_loop(
    context: Context, *inputs: Tensor, body: Graph, tokens: int, states: int
) -> tuple[Tensor, Tensor]:
    """The loop of each sequence from its state, and a copy of the states with theirs."""
    given, begun, rest = _parts(inputs, tokens, 4, states)
    held, starts, source, target = inputs[tokens : tokens + 4]
    parts: list[Tensor] = []
    after = held.clone()
    for n, (i, j) in enumerate(pairwise(starts.tolist())):
        own = begun if source[n] < 0 else _apart(held[int(source[n])], begun)
        made, left = through(context, body, [x[i:j] for x in given], own, rest)
        parts += made
        after[int(target[n])] = torch.cat([x.flatten().to(held.dtype) for x in left])
    return torch.cat(parts), after


def _parts(
    inputs: Sequence[Tensor], tokens: int, between: int, states: int
) -> tuple[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]]:
    """Values of each token, first states, constants."""
    rest = inputs[tokens + between :]
    return inputs[:tokens], rest[:states], rest[states:]


def _apart(held: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """The states in a row of their numbers."""
    each = held.split([x.numel() for x in like])
    return [x.reshape(own.shape).to(own.dtype) for x, own in zip(each, like, strict=True)]


TABLE: Mapping[str, Callable[..., Any]] = {
    "token_loop": token_loop,
    "ragged_loop": ragged_loop,
    "state_loop": state_loop,
}
