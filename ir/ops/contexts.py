"""Context ops: any value that a token makes of all tokens up to it, as a graph.

In three forms, as attention: over a batch [B, S], over ragged sequences [T], and over paged caches.
What a token computes is the `body`, for one token whose sequence has L tokens with it:
f(own [1, ...], seen [L, ...], constants) -> y [1, ...]. The first `own` inputs of an op are values
of each token that it reads of itself alone, then come the `seen` that it reads of every token up to
it, then constants. Every token pays for its own body: what attention's templates can do is done by
them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..dims import dim, equal, equal_shapes
from ..errors import IRError
from ..node import op
from ..types import CacheType, TensorType, Type
from .recurrent import check_starts

if TYPE_CHECKING:
    from ..graph import Graph

FAMILY = "contexts"
LENGTH = dim("L")
"""The tokens of a sequence up to one of them, itself included."""


@op("contraction", "mixes")
def token_context(*inputs: TensorType, body: Graph, own: int, seen: int) -> TensorType:
    """y[b, s] = body(x[b, s], z[b, : s + 1], c): inputs x, z [B, S, ...], c -> y[B, S, ...]."""
    given = _tokens(inputs[: own + seen], 2)
    wanted = [*_ones(given[:own], 2), *_all(given[own:], 2), *inputs[own + seen :]]
    return _result(body, wanted, given[0].shape[:2])


@op("contraction", "mixes")
def ragged_context(*inputs: TensorType, body: Graph, own: int, seen: int) -> TensorType:
    """token_context inside each of N sequences that stand one after another.

    Inputs: x, z [T, ...], query_start[N + 1], c -> y[T, ...].
    """
    given = _tokens(inputs[: own + seen], 1)
    check_starts(*inputs[own + seen : own + seen + 1])
    wanted = [*_ones(given[:own], 1), *_all(given[own:], 1), *inputs[own + seen + 1 :]]
    return _result(body, wanted, given[0].shape[:1])


@op("contraction", "mixes")
def paged_context(*inputs: Type, body: Graph, own: int, seen: int) -> TensorType:
    """ragged_context whose z lie in paged caches, in the dtype that these have.

    Inputs: x[T, ...], the caches, slots[T], block_table[N, M], query_start[N + 1],
    context_length[N], c -> y[T, ...]; block_table and context_length as in paged_attention.
    """
    plain = [i for i in inputs if isinstance(i, TensorType)]
    caches = [i for i in inputs[own : own + seen] if isinstance(i, CacheType)]
    if len(caches) != seen or len(plain) + seen != len(inputs) or len(plain) < own + 4:
        raise IRError(f"{own} values of each token and {seen} caches were wanted, not {inputs}")
    slots, table, starts, lengths, *rest = plain[own:]
    given = _tokens((*plain[:own], slots), 1)
    check_starts(starts, lengths)
    if table.rank != 2 or not equal(table.shape[0], lengths.shape[0]):
        raise IRError(f"a block_table[N, M] for {lengths} was wanted, not {table}")
    zs = [i.type for i in body.inputs[own : own + seen]]
    fits = all(
        isinstance(z, TensorType) and equal_shapes(z.shape, (LENGTH, *c.entry))
        for z, c in zip(zs, caches, strict=False)
    )
    if not fits:
        raise IRError(f"the body reads {zs}, not entries of {caches}")
    return _result(body, [*_ones(given[:own], 1), *zs, *rest], given[0].shape[:1])


def _tokens(given: tuple[TensorType, ...], lead: int) -> tuple[TensorType, ...]:
    if not given or any(
        x.rank < lead or not equal_shapes(x.shape[:lead], given[0].shape[:lead]) for x in given
    ):
        raise IRError(f"values of the same tokens were wanted, not {given}")
    return given


def _ones(given: tuple[TensorType, ...], lead: int) -> list[Type]:
    return [x.with_shape((1, *x.shape[lead:])) for x in given]


def _all(given: tuple[TensorType, ...], lead: int) -> list[Type]:
    return [x.with_shape((LENGTH, *x.shape[lead:])) for x in given]


def _result(body: Graph, wanted: list[Type], lead: tuple[object, ...]) -> TensorType:
    found = [i.type for i in body.inputs]
    if [str(t) for t in found] != [str(t) for t in wanted] or len(body.outputs) != 1:
        given, right = (", ".join(map(str, types)) for types in (found, wanted))
        raise IRError(f"the body takes ({given}), not ({right})")
    y = body.outputs[0].tensor
    if not y.rank or y.shape[0] != 1 or not all(isinstance(d, int) for d in y.shape):
        raise IRError(f"a result [1, numbers...] was wanted, not {y}")
    return y.with_shape((*lead, *y.shape[1:]))  # type: ignore[arg-type]
