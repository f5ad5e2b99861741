"""What to cache, as a minimum cut: the fewest bytes a token that separate the model from an
attention's keys and values.

The region behind k and v that can be redone at no real cost is movement, and linear maps by
constant weights where the caller allows them. Its nodes carry their bytes a token as capacities;
where it ends, capacities are infinite no more than elsewhere: the end itself may be what is cached.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import networkx as nx

from ..ir.dims import dim as named_dim
from ..ir.dims import exact_quotient, product
from ..ir.node import Node, walk
from ..ir.ops import model, tensor
from ..ir.types import BITS
from .trace_elements import LinearMap, is_constant_index, token_axis

_VIEWS = frozenset({"reshape", "transpose", "broadcast", "slice", "concat", "flip"})

Place = tuple[Node, str] | str  # a node's "in" or "out", or an end of the flow
Cut = Callable[[Any, Place, Place], tuple[int, tuple[set[Place], set[Place]]]]


@dataclass(frozen=True)
class Region:
    """The redoable nodes behind some values, and where they end (both in topological order), given
    the token dim.
    """

    inner: tuple[Node, ...]
    ends: tuple[Node, ...]
    linears: dict[Node, LinearMap]


def region_behind(roots: tuple[Node, ...], tokens: str, *, with_linears: bool) -> Region:
    """The region behind the roots: movement, and with with_linears linear maps of what is no such
    map itself.
    """
    linears = _absorbable(roots, tokens) if with_linears else {}
    inner, ends = _spread(roots, tokens, linears)
    return Region(inner, ends, {n: m for n, m in linears.items() if n in inner})


def _absorbable(roots: tuple[Node, ...], tokens: str) -> dict[Node, LinearMap]:
    found = {n: linear_map(n) for n in _spread(roots, tokens, {})[1]}
    maps = {n: m for n, m in found.items() if m is not None}
    behind = _spread(tuple(m.x for m in maps.values()), tokens, {})[1]
    return {n: m for n, m in maps.items() if n not in behind}


def _spread(
    roots: tuple[Node, ...], tokens: str, linears: Mapping[Node, LinearMap]
) -> tuple[tuple[Node, ...], tuple[Node, ...]]:
    """The nodes that can be redone behind the roots, and those at which that ends, each in
    topological order.
    """
    inner: set[Node] = set()
    ends: set[Node] = set()
    stack = list(roots)
    while stack:
        node = stack.pop()
        below = redone_from(node, linears)
        if not below or any(token_axis(i, tokens) is None for i in (node, *below)):
            ends.add(node)
        elif node not in inner:
            inner.add(node)
            stack.extend(below)
    order = tuple(walk((*roots,)))
    return tuple(n for n in order if n in inner), tuple(n for n in order if n in ends)


def redone_from(node: Node, linears: Mapping[Node, LinearMap]) -> list[Node]:
    """The token values that a node is redone from; none where it cannot be."""
    if node in linears:
        return [linears[node].x]
    if node.op.name in _VIEWS:
        return list(node.inputs)
    if node.op is tensor.take and is_constant_index(node.inputs[1]):
        return [node.inputs[0]]
    return []


def linear_map(node: Node) -> LinearMap | None:
    """The node as a linear map by constant weights, if it is one."""
    if node.op is model.linear and all(_is_constant(w) for w in node.inputs[1:]):
        return LinearMap(
            node, node.inputs[0], node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None
        )
    if node.op is tensor.matmul and len(node.inputs[1].shape) == 2 and _is_constant(node.inputs[1]):
        return LinearMap(
            node, node.inputs[0], tensor.transpose(node.inputs[1], permutation=(1, 0)), None
        )
    return None


def _is_constant(node: Node) -> bool:
    return all(n.op.name != "input" for n in walk((node,)))


def token_bytes(node: Node, tokens: str) -> int | None:
    """Bytes that a value takes for each token; None where that is no fixed number."""
    count = exact_quotient(product(node.shape), named_dim(tokens))
    return (count * BITS[node.dtype] + 7) // 8 if isinstance(count, int) else None


def cheapest_cut(roots: Iterable[Node], region: Region, tokens: str) -> frozenset[Node]:
    """The nodes to cache: of the cuts of the fewest bytes a token, the one nearest the roots."""
    flow: nx.DiGraph[Place] = nx.DiGraph()
    for node in (*region.ends, *region.inner):
        _add_node(flow, node, token_bytes(node, tokens))
    for node in region.ends:
        flow.add_edge("model", (node, "in"))
    for node in region.inner:
        for value in redone_from(node, region.linears):
            flow.add_edge((value, "out"), (node, "in"))
    for root in roots:
        flow.add_edge((root, "out"), "attention")
    # networkx puts on the sink's side only what still reaches the sink: the cut nearest to it
    cut = cast(Cut, nx.minimum_cut)  # pyright: ignore[reportUnknownMemberType]
    _, (outside, inside) = cut(flow, "model", "attention")
    return frozenset(
        n for n in (*region.ends, *region.inner) if (n, "in") in outside and (n, "out") in inside
    )


def _add_node(flow: nx.DiGraph[Place], node: Node, size: int | None) -> None:
    if size is None:
        flow.add_edge((node, "in"), (node, "out"))
    else:
        flow.add_edge((node, "in"), (node, "out"), capacity=size)
