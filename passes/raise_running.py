"""Raise running ops: largest values so far, logarithms of sums so far and what is made of them
become token_loop.

Sums and products so far that are linear recurrences are scans by now. What is left runs from token
to token all the same, with one number kept for each that it gives: a value made of running ops over
the tokens' own values, elementwise, is a loop whose states they are. A first value may stand before
those of the tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..ir.errors import IRError
from ..ir.graph import Graph
from ..ir.node import Node
from .build_loop import loop_of
from .raise_scans import MOST_INPUTS, post_dominators
from .running_steps import RUNNING, RunningSteps
from .scan_regions import frontier, is_whole, token_axes, tokens_back
from .token_values import B, S
from .walk_tokens import TokenWalk

MOST_TRIES = 8


@dataclass(frozen=True)
class RaiseRunning:
    """Values made of running ops over tokens become token_loop; what is none stays as it is."""

    name: ClassVar[str] = "raise-running"

    def run(self, graph: Graph) -> Graph:
        """The graph with such values as one op each."""
        if [i.shape for i in graph.inputs] != [(B, S)]:
            return graph
        while any(_runs(n) for n in graph.nodes()) and (found := _found(graph)):
            graph = graph.replace(found)
        return graph


def _runs(node: Node) -> bool:
    return node.op.name in RUNNING


def _found(graph: Graph) -> dict[Node, Node]:
    """The first value that is one, and what stands for it."""
    walk, through = TokenWalk(graph), post_dominators(graph)
    for node in graph.nodes():
        if not walk.visit(node) or walk.reads_mixed(node):
            continue
        made = [(p, m) for p in _onwards(node, through) if (m := _raised(p, walk)) is not None]
        if made:
            # The first of those with the most states: what follows needs no loop.
            place, (_, loop) = max(made, key=lambda found: found[1][0])
            return {place: loop}
    return {}


def _onwards(node: Node, through: Mapping[Node, Node]) -> Iterator[Node]:
    """A node, and the next ones that every path from it leads through."""
    place: Node | None = node
    for _ in range(MOST_TRIES):
        if place is None:
            return
        yield place
        place = through.get(place)


def _raised(node: Node, walk: TokenWalk) -> tuple[int, Node] | None:
    """A value of each token as a loop, and of how many states, where it is one."""
    axes = token_axes(node)
    if axes is None or not is_whole(axes) or not node.tensor.is_float:
        return None
    inputs = frontier(node, walk.is_token)
    places = {i: _length_axis(walk.tokens[i].axes) for i in inputs}
    if not 1 <= len(inputs) <= MOST_INPUTS or None in places.values():
        return None
    steps = RunningSteps({i: at for i, at in places.items() if at is not None})
    length = _length_axis(axes)
    try:
        if length is None:
            return None
        step, begun = steps.step(node, length)
        (made,) = loop_of(step, tuple(steps.tokens), begun, tuple(steps.constants))
    except IRError:
        return None
    return len(begun), tokens_back(made, axes, node.shape)


def _length_axis(axes: Sequence[Sequence[object]]) -> int | None:
    """Which axis is the length alone."""
    return next((at for at, axis in enumerate(axes) if tuple(axis) == (S,)), None)
