"""ATen ops that solve linear equations, written out for a known number of them."""

from __future__ import annotations

from ...ir.node import Node
from ...ir.ops import tensor as t
from .movement import part
from .table import Call, Table, Unsupported, broadcast, cast, transpose, widened

TABLE = Table()
MOST_EQUATIONS = 256


@TABLE("linalg_solve_triangular")
def solve_triangular(
    call: Call, a: Node, b: Node, *, upper: bool, left: bool = True, unitriangular: bool = False
) -> Node:
    """x with a x = b, or x a = b: row after row from the one with a single unknown."""
    dtype = widened(call.dtype)
    a, b = cast(a, dtype), cast(b, dtype)
    if not left:
        a, b, upper = _turned(a), _turned(b), not upper
    rank, size = len(call.shape), a.shape[-1]
    if not isinstance(size, int) or size > MOST_EQUATIONS:
        raise Unsupported(f"{size} equations to solve; at most {MOST_EQUATIONS} were wanted")
    lead = call.shape[:-2]
    a, b = (broadcast(x, (*lead, *x.shape[-2:])) for x in (a, b))
    if upper:
        a, b = t.flip(a, axes=(rank - 2, rank - 1)), t.flip(b, axes=(rank - 2,))
    x = _from_the_first(a, b, size, unitriangular)
    x = t.flip(x, axes=(rank - 2,)) if upper else x
    return cast(x if left else _turned(x), call.dtype)


def _from_the_first(a: Node, b: Node, size: int, unitriangular: bool) -> Node:
    """x_i = (b_i - sum_{j < i} a_ij x_j) / a_ii."""
    rows, columns = len(a.shape) - 2, len(a.shape) - 1
    made: list[Node] = []
    for i in range(size):
        row, at = part(b, rows, i, i + 1), part(a, rows, i, i + 1)
        if made:
            known = made[0] if i == 1 else t.concat(*made, axis=rows)
            row = t.sub(row, t.matmul(part(at, columns, 0, i), known))
        made.append(row if unitriangular else t.div(row, part(at, columns, i, i + 1)))
    return made[0] if size == 1 else t.concat(*made, axis=rows)


def _turned(x: Node) -> Node:
    rank = len(x.shape)
    return transpose(x, [*range(rank - 2), rank - 1, rank - 2])
