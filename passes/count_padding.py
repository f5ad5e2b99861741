"""Counts of padding over whole sequences, where no token is padding: a sequence's length.

A model that counts a sequence's tokens that are not padding, to leave out what stands behind so
many, gives a token the same value whatever comes behind it only where no token is padding. Where
the caller sees to that, a comparison of the token ids with the padding token holds nowhere, and
what is counted depends on the length alone. A running count is none of these: it is exact.

    sum_s (ids[b, s] != p)     is     S     where no ids[b, s] is p
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from ..ir.graph import Graph
from ..ir.node import Node
from ..ir.ops import tensor as t
from .rules.values import filled, literal, without_casts

TOKENS = 1  # the axis of token ids [B, S]


@dataclass(frozen=True)
class CountedPadding:
    """A graph that takes it that a token does not occur; `token` is None where none is counted, and
    `place` is where the model counts it.
    """

    graph: Graph
    token: int | None = None
    place: str = ""


def count_padding(graph: Graph, padding: Collection[int]) -> CountedPadding:
    """The graph without comparisons of token ids with one of the padding tokens, where whole
    sequences are counted by them.
    """
    for node in graph.nodes():
        if node.op is not t.reduce_sum or TOKENS not in node["axes"] or len(node["axes"]) > 1:
            continue
        found = list(_compared(node.inputs[0], graph.inputs[0]))
        tokens = {token for _, token in found}
        if len(tokens) == 1 and tokens <= set(padding):
            mapping = {each: filled(each, value=each.op is t.ne) for each, _ in found}
            place = ", ".join(graph.origin(node)) or "the model"
            return CountedPadding(graph.replace(mapping), tokens.pop(), place)
    return CountedPadding(graph)


def _compared(node: Node, ids: Node) -> Iterator[tuple[Node, int]]:
    """The comparisons of token ids with a number that a value is a cast of."""
    node = without_casts(node)
    if node.op not in (t.ne, t.eq):
        return
    for given, other in (node.inputs, node.inputs[::-1]):
        number = literal(other)
        if number is not None and without_casts(given) is ids:
            yield node, int(number)
