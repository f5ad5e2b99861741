"""Values of which every element needs its whole row, as products of what a load can make and of a
factor of the row: u[k] f(sum over j of v[j]). An RMS norm is one: u = x w, v = x^2.

A template that goes through a row sums v beside what it does with u, and multiplies by f at last.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce

from ...ir.dims import product
from ...ir.node import Node, walk
from ...ir.ops import tensor as t
from .kernel import Hook, Kernel
from .linear import COLS, ROWS, inside
from .loops import LOOPS, TooDear, unflattened
from .text import ZERO, Index, Writer
from .values import is_float


@dataclass(frozen=True)
class Factored:
    """u, v, the sum of v, and f of it, [.., 1]."""

    value: Node
    term: Node
    total: Node
    factor: Node


def factored(kernel: Kernel, x: Node) -> Factored | None:
    """A value that is not in memory as such a product; None where it is none, or where a load
    cannot make its parts.
    """
    if x in kernel.places:
        return None
    leaves = list(_leaves(x))
    wide, scalars = ([n for n in leaves if (n.shape[-1:] == (1,)) is s] for s in (False, True))
    totals = {n for s in scalars for n in walk((s,)) if n.op.name in LOOPS}
    whole = [n for n in wide if n.shape == x.shape]
    if len(totals) != 1 or not whole:
        return None
    (total,) = totals
    if total.op.name != "reduce_sum" or not total["keepdims"]:
        return None
    if total["axes"] != (len(x.shape) - 1,) or total.inputs[0].shape != x.shape:
        return None
    first = whole[0]
    value = _multiplied([first, *(n for n in wide if n is not first)])
    found = Factored(value, total.inputs[0], total, _multiplied(scalars))
    try:
        load_hook(kernel, found)
    except TooDear:
        return None
    return found


def _leaves(x: Node) -> Iterator[Node]:
    """What is multiplied, through casts between floats, which registers do not do."""
    if x.op.name == "mul" and is_float(x.dtype):
        for each in x.inputs:
            yield from _leaves(each)
    elif x.op.name == "cast" and is_float(x.dtype) and x.inputs[0].op.name == "mul":
        yield from _leaves(x.inputs[0])
    else:
        yield x


def _multiplied(nodes: Sequence[Node]) -> Node:
    """The product, in float32."""
    wide = [n if n.dtype == "f32" else t.cast(n, dtype="f32") for n in nodes]
    return reduce(t.mul, wide)


def load_hook(kernel: Kernel, found: Factored) -> Hook:
    """LOAD_X(env, rows, ks, mask): u and v at a row and a place in it, in float32."""
    writer = Writer()
    pull = kernel.pull(writer)
    rows, ks = Index("rows", 0, ROWS), Index("ks", 0, COLS)
    shape = found.value.shape
    mask = inside(pull, (rows, product(shape[:-1])), (ks, shape[-1]))
    at = (*unflattened(pull, rows, shape[:-1]), ks)
    value, term = (pull.value(n, at, mask) for n in (found.value, found.term))
    writer.line(f"return {value}, {term}")
    return Hook(("rows", "ks", "mask"), writer, pull)


def factor_hook(kernel: Kernel, found: Factored) -> Hook:
    """FACTOR(env, row, total): f of a row's total."""
    writer = Writer()
    pull = kernel.pull(writer, {found.total: lambda at, mask: "total"})
    at = (*unflattened(pull, Index("row"), found.factor.shape[:-1]), ZERO)
    writer.line(f"return {pull.value(found.factor, at)}")
    return Hook(("row", "total"), writer, pull)
