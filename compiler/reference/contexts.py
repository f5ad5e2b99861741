"""Reference values of context ops: the body, for one token after another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch

from ...ir.graph import Graph
from .context import Context
from .serving import gathered

Tensor = torch.Tensor


def _row(
    context: Context,
    body: Graph,
    own: Sequence[Tensor],
    seen: Sequence[Tensor],
    rest: Sequence[Tensor],
) -> Tensor:
    """The result [1, ...] for own [1, ...] and seen [L, ...]."""
    return context.body(body, [*own, *seen, *rest], {})[0]


def token_context(context: Context, *inputs: Tensor, body: Graph, own: int, seen: int) -> Tensor:
    """Each token of each sequence of a batch."""
    x, z, rest = inputs[:own], inputs[own : own + seen], inputs[own + seen :]
    batch, length = (x + z)[0].shape[:2]
    sequences = [
        torch.cat(
            [
                _row(context, body, [i[n, t : t + 1] for i in x], [i[n, : t + 1] for i in z], rest)
                for t in range(length)
            ]
        )
        for n in range(batch)
    ]
    return torch.stack(sequences)


def ragged_context(context: Context, *inputs: Tensor, body: Graph, own: int, seen: int) -> Tensor:
    """Each token of each sequence of ragged rows."""
    x, z = inputs[:own], inputs[own : own + seen]
    starts, *rest = inputs[own + seen :]
    rows = [
        _row(context, body, [i[t : t + 1] for i in x], [i[first : t + 1] for i in z], rest)
        for first, stop in pairwise(starts.tolist())
        for t in range(first, stop)
    ]
    return torch.cat(rows)


def paged_context(context: Context, *inputs: Tensor, body: Graph, own: int, seen: int) -> Tensor:
    """Each token of a step, with the tokens of its sequence that lie in the caches."""
    x, caches = inputs[:own], inputs[own : own + seen]
    _, table, starts, lengths, *rest = inputs[own + seen :]
    kinds = [context.dtype(i.tensor.dtype) for i in body.inputs[own : own + seen]]
    rows: list[Tensor] = []
    for n, (first, stop) in enumerate(pairwise(starts.tolist())):
        length = int(lengths[n])
        whole = [gathered(c, table[n], length).to(k) for c, k in zip(caches, kinds, strict=True)]
        for t in range(first, stop):
            z = [w[: length - (stop - 1 - t)] for w in whole]
            rows.append(_row(context, body, [i[t : t + 1] for i in x], z, rest))
    return torch.cat(rows)


TABLE: Mapping[str, Callable[..., Any]] = {
    "token_context": token_context,
    "ragged_context": ragged_context,
    "paged_context": paged_context,
}
