"""How long a captured model's sequences may be: where a table over positions ends."""

from __future__ import annotations

from dataclasses import replace

import torch

from ..ir.graph import Graph
from ..ir.node import Node, walk
from .capture import Captured
from .checkpoint import Weights
from .errors import CompileError
from .import_aten import import_captured
from .reference import evaluate


def within_tables(captured: Captured, wanted: int | None) -> Captured:
    """The capture, its longest length cut to what every table looked up by position holds.

    A table that is too short for a length that was asked for is a CompileError that names it.
    """
    try:
        imported = import_captured(captured)
    except CompileError:
        return captured  # the import reports its own problems when its turn comes
    (low, high), why = captured.bounds["S"], captured.bounded_by
    for lookup in _lookups_by_length(imported.graph):
        limit = _longest(lookup, high, imported.weights)
        if limit >= high:
            continue
        place = ", ".join(imported.graph.origin(lookup)) or "a lookup by position"
        why = f"the table of {lookup.inputs[0].shape[0]} rows at {place}"
        if wanted is not None:
            raise CompileError(
                f"max_context {wanted} given; {why} holds for {limit} tokens at most"
            )
        high = limit
    bounds = {**captured.bounds, "S": (low, high)}
    # What was imported is not to be imported again.
    return replace(captured, bounds=bounds, imported=imported, bounded_by=why)


def _lookups_by_length(graph: Graph) -> list[Node]:
    """Rows taken from a table of known size at places that depend on the length, alone or beside
    the tokens that are counted.
    """
    found: list[Node] = []
    for node in graph.nodes():
        if node.op.name != "take" or not isinstance(node.inputs[0].shape[node["axis"]], int):
            continue
        below = {n.op.name for n in walk((node.inputs[1],))}
        if "parameter" not in below and ("input" not in below or "cumsum" in below):
            found.append(node)
    return found


TOKENS = range(4)
"""Sequences of one token over and over: of whatever one token a count leaves out, another of these
is counted at every place."""


def _longest(lookup: Node, high: int, weights: Weights) -> int:
    """The longest length up to `high` at which the places stay inside the table; they grow
    with it.
    """
    rows = lookup.inputs[0].shape[lookup["axis"]]
    reached = tuple(n for n in walk((lookup.inputs[1],)) if n.op.name == "input")
    places = Graph("places", reached, (lookup.inputs[1],))

    def fits(length: int) -> bool:
        for token in TOKENS if reached else (0,):
            ids = [torch.full((1, length), token) for _ in reached]
            (value,) = evaluate(places, ids, weights, {"B": 1, "S": length})
            if value.numel() and int(torch.max(value)) >= rows:
                return False
        return True

    if fits(high):
        return high
    low = 0
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
