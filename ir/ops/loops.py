"""Loop ops: any step from token to token whose state has a fixed size, as a graph.

In three forms, as the recurrent ops: over a batch [B, S], over ragged sequences [T], and over
ragged sequences that go on from states. What the step computes is its `body`, over one token of
one sequence: f(tokens [1, ...], states, constants) -> (states, a result [1, ...]). The first
`tokens` inputs of an op are values of each token, then come the `states` that a sequence begins
with, then constants.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..dims import Shape, equal_shapes, product
from ..errors import IRError
from ..node import op
from ..types import CacheType, TensorType, TupleType, Type
from .recurrent import check_starts

if TYPE_CHECKING:
    from ..graph import Graph

FAMILY = "loops"


@op("contraction", "mixes")
def token_loop(*inputs: TensorType, body: Graph, tokens: int, states: int) -> TensorType:
    """y_t, where (h_t, y_t) = body(x_t, h_{t-1}, c).

    Inputs: x[B, S, ...], h_{-1}, c -> y[B, S, ...]; h is several states of any shapes and dtypes,
    which are the same at any length.
    """
    given = inputs[:tokens]
    if any(x.rank < 2 or not equal_shapes(x.shape[:2], given[0].shape[:2]) for x in given):
        raise IRError(f"values x[B, S, ...] of the same tokens were wanted, not {given}")
    return _result(given, 2, inputs[tokens:], body, states)


@op("contraction", "mixes")
def ragged_loop(*inputs: TensorType, body: Graph, tokens: int, states: int) -> TensorType:
    """token_loop inside each of N sequences that stand one after another.

    Inputs: x[T, ...], query_start[N + 1], h_{-1}, c -> y[T, ...].
    """
    given, rest = inputs[:tokens], inputs[tokens + 1 :]
    check_starts(*inputs[tokens : tokens + 1])
    _check_rows(given)
    return _result(given, 1, rest, body, states)


@op("contraction", "mixes")
def state_loop(*inputs: Type, body: Graph, tokens: int, states: int) -> TupleType:
    """ragged_loop that goes on where a step before ended: (y[T, ...], the states behind the step).

    Inputs: x[T, ...], the states, query_start, state_from, state_to, h_{-1}, c. A state holds every
    number of h, one state after the other; it is read and written as in state_conv, and begins
    with h_{-1}.
    """
    plain = [i for i in inputs if isinstance(i, TensorType)]
    given, rest = tuple(plain[:tokens]), tuple(plain[tokens + 3 :])
    (cache,) = (i for i in inputs[tokens : tokens + 1] if isinstance(i, CacheType))
    check_starts(*plain[tokens : tokens + 3])
    _check_rows(given)
    result = _result(given, 1, rest, body, states)
    wanted = state_of(rest[:states])
    if cache != wanted:
        raise IRError(f"{wanted} was wanted, not {cache}")
    return TupleType((result, cache))


def state_of(states: tuple[TensorType, ...]) -> CacheType:
    """What holds every number of a loop's states, in float32, or float64 where one of them is."""
    sizes = [product(s.shape) for s in states]
    wide = any(s.dtype == "f64" for s in states)
    return CacheType("f64" if wide else "f32", 0, (sum(map(int, sizes)),))


def _check_rows(given: tuple[TensorType, ...]) -> None:
    if any(x.rank < 1 or not equal_shapes(x.shape[:1], given[0].shape[:1]) for x in given):
        raise IRError(f"values x[T, ...] of the same tokens were wanted, not {given}")


def _result(
    given: tuple[TensorType, ...], lead: int, rest: tuple[TensorType, ...], body: Graph, states: int
) -> TensorType:
    """The type of y, for values of each token with so many axes of tokens."""
    if not given or not 1 <= states <= len(rest):
        raise IRError(f"values of each token and {states} states were wanted, not {given}, {rest}")
    one: Shape = (1,)
    wanted = (*(x.with_shape((*one, *x.shape[lead:])) for x in given), *rest)
    if [i.type for i in body.inputs] != list(wanted):
        found = ", ".join(str(i.type) for i in body.inputs)
        raise IRError(f"the body takes ({found}), not ({', '.join(map(str, wanted))})")
    types = [o.tensor for o in body.outputs]
    if types[:-1] != list(rest[:states]):
        raise IRError(f"the body gives the states {types[:-1]}, not {list(rest[:states])}")
    check_numbers((*rest[:states], types[-1]))
    if not types[-1].rank or types[-1].shape[0] != 1:
        raise IRError(f"a result [1, ...] was wanted, not {types[-1]}")
    return types[-1].with_shape((*given[0].shape[:lead], *types[-1].shape[1:]))


def check_numbers(types: Iterable[TensorType]) -> None:
    """Refuse states and results whose sizes are no numbers."""
    for t in types:
        if not all(isinstance(d, int) for d in t.shape):
            raise IRError(f"states and results of fixed sizes were wanted, not {t}")
