"""Reference values of the selection ops."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import torch

from . import model
from .context import Context
from .serving import gathered

Tensor = torch.Tensor
_MASKS = ("causal", "window", "chunk")


def select(
    q: Tensor, k: Tensor, weights: Tensor, seen: Tensor, options: Mapping[str, Any]
) -> Tensor:
    """Places [S, count] for q[S, H, D], k[L, D], weights[S, H] and what is seen, bool[S, L]."""
    count = options["count"]
    products = torch.einsum("shd,ld->shl", q, k) * options["scale"]
    if options["activation"] == "relu":
        products = products.relu()
    scores = torch.einsum("sh,shl->sl", weights, products)
    scores = scores.masked_fill(~seen, float("-inf"))
    # Stable: of equal scores the earlier key comes first.
    order = scores.sort(dim=-1, descending=True, stable=True).indices[:, :count]
    far = torch.iinfo(torch.int32).max
    places = torch.where(seen.gather(1, order), order, far).sort(dim=-1).values
    full = torch.full((len(q), count), -1, dtype=torch.int32)
    full[:, : places.shape[1]] = torch.where(places == far, -1, places).to(torch.int32)
    return full


def selected_keys(
    context: Context, q: Tensor, k: Tensor, weights: Tensor, *mask: Tensor, **options: Any
) -> Tensor:
    """The places of the keys of the highest scores."""
    a, b, c = context.math(q, k, weights)
    places = torch.arange(q.shape[1]), torch.arange(k.shape[1])
    seen = model.visible(*places, **{m: options[m] for m in _MASKS}).expand(len(q), -1, -1)
    for each in mask:
        seen = seen & each
    rows = [select(a[n], b[n], c[n], seen[n], options) for n in range(len(q))]
    return torch.stack(rows)


def ragged_selected_keys(
    context: Context, q: Tensor, k: Tensor, weights: Tensor, query_start: Tensor, **options: Any
) -> Tensor:
    """selected_keys inside each sequence."""
    a, b, c = context.math(q, k, weights)
    result = torch.full((len(q), options["count"]), -1, dtype=torch.int32)
    for start, stop in pairwise(query_start.tolist()):
        rows, places = slice(start, stop), torch.arange(stop - start)
        seen = model.visible(places, places, **{m: options[m] for m in _MASKS})
        result[rows] = select(a[rows], b[rows, 0], c[rows], seen, options)
    return result


def paged_selected_keys(
    context: Context,
    q: Tensor,
    weights: Tensor,
    cache: Tensor,
    block_table: Tensor,
    query_start: Tensor,
    context_length: Tensor,
    **options: Any,
) -> Tensor:
    """selected_keys over the tokens that each sequence has in its blocks."""
    a, c = context.math(q, weights)
    result = torch.full((len(q), options["count"]), -1, dtype=torch.int32)
    for n, (start, stop) in enumerate(pairwise(query_start.tolist())):
        total, rows = int(context_length[n]), slice(start, stop)
        (keys,) = context.math(context.widened(gathered(cache, block_table[n], total)))
        queries = torch.arange(total - (stop - start), total)
        masks = {m: options[m] for m in _MASKS}
        seen = model.visible(queries, torch.arange(total), **masks)
        result[rows] = select(a[rows], keys[:, 0], c[rows], seen, options)
    return result


TABLE: Mapping[str, Callable[..., Any]] = {
    "selected_keys": selected_keys,
    "ragged_selected_keys": ragged_selected_keys,
    "paged_selected_keys": paged_selected_keys,
}
