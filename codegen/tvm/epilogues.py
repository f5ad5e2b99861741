"""What a template makes of its op's value before it stores it: results that need of each row only
the same row, and of its columns those at fixed distances.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from tvm import tirx

from ...ir.dims import equal_shapes
from ...ir.node import Node
from ..errors import NotRowwise
from .function import Kernel
from .isa import LANES
from .loops import Place, Work, probe
from .pull import BY_INDEX
from .rows import kept_nodes
from .values import COMPUTED, Expr, const


def fused_behind(
    kernel: Kernel, node: Node, results: Mapping[Node, Place]
) -> tuple[dict[Node, Place], tuple[int, ...]] | None:
    """The results, in the node's own shape of rows, with where they go, and the column distances at
    which they read the node; None where one of them cannot be made as the node's value is.
    """
    fused = _aliased(kernel, node, results)
    offsets = None if not fused else _offsets(kernel, node, fused)
    return (fused, offsets) if fused and offsets is not None else None


def _aliased(kernel: Kernel, node: Node, results: Mapping[Node, Place]) -> dict[Node, Place] | None:
    """The results in the node's own row shape: reshapes at the end are views of the same
    memory; None if one is not.
    """
    found: dict[Node, Place] = {}
    for n, place in results.items():
        inner = n
        while inner.op.name == "reshape" and not equal_shapes(inner.shape[:-1], node.shape[:-1]):
            inner = inner.inputs[0]
        if not hasattr(inner.type, "shape") or not equal_shapes(inner.shape[:-1], node.shape[:-1]):
            return None
        found[inner] = place if inner is n else kernel.view(place, inner.shape)
    widths = {n.shape[-1] for n in found}
    return found if len(widths) == 1 and len(found) == len(results) else None


def _offsets(kernel: Kernel, node: Node, results: Mapping[Node, Place]) -> tuple[int, ...] | None:
    """The column distances at which the results read the node; None where they read it in
    another way.
    """
    if any(n is not node and n.op.name not in BY_INDEX for n in results):
        return None
    work = kernel.work()
    if kept_nodes(results, {**work.sources, node: lambda at: at[-1]}):
        return None
    found: set[int] = set()
    width = int(next(iter(results)).shape[-1])
    try:
        with probe():
            rows = [tirx.Var(f"r{i}", "int64") for i in range(len(node.shape) - 1)]
            j = tirx.Var("j", "int64")
            inside = work.within(j, 0, width)
            source = _probing_source(inside, node, rows, j, found)
            for n in results:
                inside.with_sources({node: source}).pull().value(n, [*rows, j])
    except NotRowwise:
        return None
    aligned = all(o % LANES == 0 and o >= 0 and o + width <= int(node.shape[-1]) for o in found)
    covers = width % LANES == 0 or found == {0}
    return tuple(sorted(found)) if found and aligned and covers and len(found) <= 3 else None


def _probing_source(
    work: Work, node: Node, rows: Sequence[Expr], j: Expr, found: set[int]
) -> Callable[[Sequence[Expr]], Expr]:
    facts = work.pull().facts

    def read(at: Sequence[Expr]) -> Expr:
        distance = facts.simplify(at[-1] - j)
        same = all(a is r or facts.can_prove_equal(a, r) for a, r in zip(at, rows, strict=False))
        if not same or not isinstance(distance, tirx.IntImm):
            raise NotRowwise
        found.add(int(distance.value))
        return const(0, COMPUTED[node.dtype])

    return read
