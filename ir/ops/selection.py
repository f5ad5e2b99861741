"""Selection ops: an indexer picks, for each query, the keys that an attention behind it reads.

The score of key j for query i is sum_h w[i, h] act(scale q[i, h] . k[j]) (the lightning indexer of
DeepSeek-V3.2). Only visible keys take part; of equal scores the earlier key is taken.
"""

from __future__ import annotations

from ..dims import equal, equal_shapes
from ..errors import IRError
from ..node import op
from ..types import CacheType, TensorType

ACTIVATIONS = ("", "relu")


def _check(q: TensorType, weights: TensorType, count: int, activation: str) -> None:
    """Refuse queries q[..., H, D] and weights[..., H] that do not fit, or a count below 1."""
    if not q.is_float or not equal_shapes(q.shape[:-1], weights.shape):
        raise IRError(f"floats q[..., H, D] and weights[..., H] were wanted, not {q}, {weights}")
    if count < 1 or activation not in ACTIVATIONS:
        raise IRError(
            f"a count of 1 or more and an activation of {ACTIVATIONS} were wanted, not {count}, "
            f"{activation!r}"
        )


@op("contraction", "mixes")
def selected_keys(
    q: TensorType,
    k: TensorType,
    weights: TensorType,
    *mask: TensorType,
    count: int,
    scale: float = 1.0,
    activation: str = "relu",
    causal: bool = False,
    window: int = 0,
    chunk: int = 0,
) -> TensorType:
    """The places of the `count` visible keys of the highest scores, ascending, then -1 for as many
    as are missing: i32[B, S, count].

    Shapes: q[B, S, H, D], k[B, L, D], weights[B, S, H]; a mask is bool and broadcasts to [B, S, L].
    Keys are visible as in `attention`, and where the mask is true.
    """
    _check(q, weights, count, activation)
    if q.rank != 4 or k.rank != 3 or not equal(q.shape[3], k.shape[2]):
        raise IRError(f"q[B, S, H, D] and k[B, L, D] were wanted, not {q}, {k}")
    if len(mask) > 1 or any(m.dtype != "bool" or m.rank > 3 for m in mask):
        raise IRError(f"one mask bool[B, S, L] at most was wanted, not {mask}")
    return TensorType("i32", (*q.shape[:2], count))


@op("contraction", "mixes")
def ragged_selected_keys(
    q: TensorType,
    k: TensorType,
    weights: TensorType,
    query_start: TensorType,
    *,
    count: int,
    scale: float = 1.0,
    activation: str = "relu",
    causal: bool = True,
    window: int = 0,
    chunk: int = 0,
) -> TensorType:
    """selected_keys inside each of N sequences that stand one after another: i32[T, count], places
    within the sequence.

    Shapes: q[T, H, D], k[T, 1, D], weights[T, H]; rows as in `ragged_attention`.
    """
    _check(q, weights, count, activation)
    if q.rank != 3 or k.rank != 3 or k.shape[1] != 1 or not equal(q.shape[2], k.shape[2]):
        raise IRError(f"q[T, H, D] and k[T, 1, D] were wanted, not {q}, {k}")
    return TensorType("i32", (q.shape[0], count))


@op("contraction", "mixes")
def paged_selected_keys(
    q: TensorType,
    weights: TensorType,
    cache: CacheType,
    block_table: TensorType,
    query_start: TensorType,
    context_length: TensorType,
    *,
    count: int,
    scale: float = 1.0,
    activation: str = "relu",
    causal: bool = True,
    window: int = 0,
    chunk: int = 0,
) -> TensorType:
    """ragged_selected_keys whose keys lie in a paged cache with an entry (1, D): positions.

    Rows, positions and pages as in `paged_attention`.
    """
    _check(q, weights, count, activation)
    if q.rank != 3 or len(cache.entry) != 2 or cache.entry != (1, q.shape[2]):
        raise IRError(f"q[T, H, D] for a cache of (1, D) was wanted, not {q}, {cache}")
    if block_table.rank != 2 or query_start.rank != 1 or context_length.rank != 1:
        given = f"{block_table}, {query_start}, {context_length}"
        raise IRError(f"block_table[N, M], query_start[N + 1], context_length[N], not {given}")
    return TensorType("i32", (q.shape[0], count))
