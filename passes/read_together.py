"""Which columns of a linear are read together: equal parts of its result that an elementwise op
brings together again, as gate and up.
"""

from __future__ import annotations

from ..ir.graph import Graph
from ..ir.node import Node
from ..ir.ops import tensor as t

MOST = 3
"""Parts that an epilogue reads at a time."""


def parts_together(graph: Graph, linear: Node, columns: int) -> int:
    """How many equal parts, each a whole number of blocks of so many columns, all that is read of a
    linear's result [.., N] is made of, where elementwise ops join every one with the first; else 1.
    """
    axis, parts = len(linear.shape) - 1, list(graph.users(linear))
    if linear in graph.outputs or not 2 <= len(parts) <= MOST:
        return 1
    if not all(p.op is t.slice_ and p["axis"] == axis and p["step"] == 1 for p in parts):
        return 1
    width, rest = divmod(int(linear.shape[-1]), len(parts))
    starts = sorted(p["start"] for p in parts)
    even = all(p.shape[-1] == width for p in parts) and rest == 0 and width % columns == 0
    if not even or starts != [i * width for i in range(len(parts))]:
        return 1
    first, *others = (_made_of(graph, p) for p in parts)
    return len(parts) if all(first & other for other in others) else 1


def _made_of(graph: Graph, part: Node) -> set[Node]:
    """What elementwise ops make of a part."""
    found: set[Node] = set()
    left = [part]
    while left:
        for user in graph.users(left.pop()):
            if user not in found and user.op.has("elementwise"):
                found.add(user)
                left.append(user)
    return found
