"""What a loop over tokens computes of one token alone, computed for all of them before the loop.

In a graph for a fixed length L, a loop reads slices [B, ..., 1, ...] of values of each token. What
is made of the slices at one place t and of constants is f(x[t]); the same f on [B L, ..., 1, ...],
all tokens of all sequences beside one another, gives the values for every t at once, and the loop
reads slices of these. So a decay exp(A dt[t]) is a value of each token, as it is where a model
writes it before its loop.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..ir.dims import Shape, equal, product
from ..ir.graph import Graph, with_dims
from ..ir.node import Node
from ..ir.ops import tensor as t
from ..ir.types import TensorType
from .rules.values import reshaped
from .token_values import B

_MOVES = (t.slice_, t.reshape, t.transpose, t.broadcast, t.cast)


@dataclass(frozen=True)
class _Step:
    """A value of the token at a place: what all tokens' values are, [B L, ...], and what of."""

    place: int
    lifted: Node
    sources: frozenset[Node]


def lift_steps(graph: Graph, length: int) -> Graph:
    """The graph, for sequences of a fixed length, with single tokens' values lifted."""
    steps = _steps(graph, length)
    places: dict[Node, set[int]] = {}
    for step in steps.values():
        places.setdefault(step.lifted, set()).add(step.place)
    # A first or last token that is read on its own is not worth computing for all, and what is
    # only moved is the same value of each token still.
    kept = {n: s for n, s in steps.items() if len(places[s.lifted]) >= length - 1}
    computed = (n for n in kept if n.op not in _MOVES)
    return graph.replace({n: _at(kept[n], n, length) for n in computed})


def _steps(graph: Graph, length: int) -> dict[Node, _Step]:
    tokens: set[Node] = set(graph.inputs)
    wide: dict[Node, Node] = {}  # constants, for B L sequences
    found: dict[Node, _Step] = {}
    for node in graph.nodes():
        if node.op.name == "input":
            continue
        if not any(i in tokens for i in node.inputs):
            wide[node] = _with_batch(node, tuple(wide[i] for i in node.inputs), length)
            continue
        tokens.add(node)
        step = _sliced(node, length) or _made(node, found, wide, length)
        if step is not None:
            found[node] = step
    return found


def _sliced(node: Node, length: int) -> _Step | None:
    """A slice of one token out of as many as the length."""
    if node.op is not t.slice_:
        return None
    x, start = node.inputs[0], node["start"]
    axis: int = node["axis"]
    batches = [at for at, d in enumerate(x.shape) if d == B]
    one = isinstance(start, int) and node["stop"] == start + 1
    if not one or len(batches) != 1 or not equal(x.shape[axis], length):
        return None
    rest = [a for a in range(len(x.shape)) if a != axis]
    rest.insert(rest.index(batches[0]) + 1, axis)
    moved = t.transpose(x, permutation=tuple(rest))
    lifted = reshaped(moved, _wide_shape(node, length))
    return _Step(int(start), lifted, frozenset({lifted}))


def _wide_shape(node: Node, length: int) -> Shape:
    return tuple(B * length if d == B else d for d in node.shape)


def _made(
    node: Node, found: Mapping[Node, _Step], wide: Mapping[Node, Node], length: int
) -> _Step | None:
    """What is made of one token's values and constants, no larger than these make it."""
    known = all(i in found or i in wide for i in node.inputs)
    if not known or not isinstance(node.type, TensorType):
        return None
    parts = list(dict.fromkeys(found[i] for i in node.inputs if i in found))
    if len({p.place for p in parts}) != 1:
        return None
    sources = frozenset[Node]().union(*(p.sources for p in parts))
    if len(parts) > 1 and not _is_small(node, [p.sources for p in parts]):
        return None
    given = node.inputs
    if node.op.has("commutative") and len(parts) == 1:
        given = tuple(sorted(given, key=lambda i: i in wide))  # c x is x c at another place
    inputs = tuple(found[i].lifted if i in found else wide[i] for i in given)
    lifted = _with_batch(node, inputs, length)
    if lifted.type != node.type.with_shape(_wide_shape(node, length)):
        return None
    return _Step(parts[0].place, lifted, sources)


def _is_small(node: Node, sources: list[frozenset[Node]]) -> bool:
    """Whether a value of several is no outer product, and no product of what may play different
    parts in a scan.
    """
    sizes = [product(i.shape) for i in node.inputs]
    grows = not any(equal(product(node.shape), size) for size in sizes)
    every = frozenset[Node]().union(*sources)
    return not grows and (node.op not in (t.mul, t.div, t.matmul) or every in sources)


def _with_batch(node: Node, inputs: tuple[Node, ...], length: int) -> Node:
    """The node on other inputs, for B L sequences."""
    return with_dims(node, inputs, {str(B): B * length})


def _at(step: _Step, node: Node, length: int) -> Node:
    """One token's value out of all."""
    shape = step.lifted.shape
    at = next(i for i, d in enumerate(node.shape) if d == B)
    apart = reshaped(step.lifted, (*shape[:at], B, length, *shape[at + 1 :]))
    one = t.slice_(apart, axis=at + 1, start=step.place, stop=step.place + 1)
    return reshaped(one, node.shape)
