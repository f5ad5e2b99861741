"""A kernel body as Triton functions and launches: anchors one after another, each preceded by the
rows that it needs, and the rows that are left.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import sympy

from ...ir.dims import Dim, Shape, as_dim, names_in, product, upper_bound
from ...ir.errors import IRError
from ...ir.graph import Graph
from ...ir.node import Node
from ...ir.target import Target
from ...ir.types import CacheType, TensorType
from ..errors import CodegenError
from ..expand import RULES, expand, sum_of_products
from ..space import Choice, Choices, Space
from . import attention, context, expert, largest, loop, products, recurrent
from .kernel import Form, Kernel, cache_of
from .pull import Place
from .rows import emit_rows


@dataclass(frozen=True)
class Anchor:
    """A template built around an op: what it wants whole in memory, and what emits it."""

    needs: Callable[[Kernel, Node], Sequence[Node]]
    emit: Callable[[Kernel, Node, dict[Node, Place]], None]


ANCHORS: Mapping[str, Anchor] = {
    "linear": Anchor(products.needs, products.emit_linear),
    "quantized_linear": Anchor(products.needs, products.emit_linear),
    "expert_linear": Anchor(expert.needs, expert.emit_expert),
    "quantized_expert_linear": Anchor(expert.needs, expert.emit_expert),
    "paged_attention": Anchor(attention.needs, attention.emit_paged),
    "ragged_attention": Anchor(attention.needs, attention.emit_ragged),
    "state_conv": Anchor(recurrent.needs, recurrent.emit_conv),
    "state_scan": Anchor(recurrent.needs, recurrent.emit_scan),
    "token_loop": Anchor(loop.needs, loop.emit_loop),
    "ragged_loop": Anchor(loop.needs, loop.emit_loop),
    "state_loop": Anchor(loop.needs, loop.emit_loop),
    "token_context": Anchor(context.needs, context.emit_context),
    "paged_context": Anchor(context.needs, context.emit_context),
    "argmax": Anchor(largest.needs, largest.emit_argmax),
}
"""Ops with a template of their own; every other op goes through the rows template."""


LADDERS: Mapping[str, Callable[[Node], tuple[int, ...]]] = {
    "linear": lambda _: products.LADDER,
    "quantized_linear": lambda _: products.LADDER,
    "expert_linear": expert.ladder,
    "quantized_expert_linear": expert.ladder,
}
"""Anchors with forms of their own for some numbers of rows, and those."""


@dataclass(frozen=True)
class Solved:
    """Where a dim is read off: the size of an axis of an argument is factor dim + rest."""

    argument: int
    axis: int
    factor: int
    rest: int


@dataclass(frozen=True)
class Lowered:
    """A kernel as text and launches: `forms` by the number of rows, the smallest first; `rows` is
    what they are chosen by. `spaces` are what could be chosen, `taken` what was, by bucket.
    """

    name: str
    body: Graph
    text: str
    pointers: Mapping[str, str]
    scratch: tuple[Dim, ...]
    forms: tuple[Form, ...]
    rows: Dim
    dims: Mapping[str, Solved]
    spaces: tuple[Space, ...]
    taken: Choices
    templates: tuple[str, ...]


def lower(
    name: str,
    body: Graph,
    target: Target,
    choices: Choices | None = None,
    refused: Mapping[int | None, Collection[Choice]] | None = None,
) -> Lowered:
    """The functions and launches of a canonical body, by buckets of rows where it has an anchor;
    without the tiles that are `refused`.
    """
    written = _expanded(body)
    rows, buckets = _buckets(written, target)
    kernel = Kernel(name, written, target, choices or {}, refused or {})
    results = _arguments(kernel)
    own = dict(kernel.places)
    forms: list[Form] = []
    for bucket, before in zip(buckets, (0, *buckets), strict=False):
        kernel.begin(bucket, own, (before or 0) + 1)
        _emit_levels(kernel, dict(results))
        if forms and forms[-1].starts == tuple(kernel.starts):
            forms.pop()
        forms.append(Form(bucket, tuple(kernel.starts)))
    return Lowered(
        name,
        body,
        kernel.text(),
        kernel.pointers,
        tuple(kernel.scratch),
        tuple(forms),
        rows,
        _solved(written),
        tuple(kernel.spaces),
        kernel.taken,
        tuple(sorted(kernel.imports)),
    )


def _expanded(body: Graph) -> Graph:
    """Norms and softmax written out, contractions that no template takes as sums of products."""
    body = body.replace({n: RULES[n.op.name](n) for n in body.nodes() if _is_wide_linear(n)})
    mapping: dict[Node, Node] = {}
    kept = {n for n in body.nodes() if is_anchor(n)}
    for n in body.nodes():
        if n.op.name in RULES and n not in kept:
            mapping[n] = RULES[n.op.name](n)
    body = body.replace(mapping)
    return body.replace({n: sum_of_products(n) for n in body.nodes() if n.op.name == "matmul"})


def _is_wide_linear(n: Node) -> bool:
    return n.op.name in ("linear", "expert_linear") and n.dtype == "f64"


def _buckets(body: Graph, target: Target) -> tuple[Dim, tuple[int | None, ...]]:
    """What the number of rows is, and its buckets within the body's bounds."""
    anchors = [n for n in body.nodes() if n.op.name in LADDERS]
    if not anchors:
        return 1, (None,)
    rows = product(anchors[0].shape[:-1])
    same = all(product(n.shape[:-1]) == rows for n in anchors)
    if target.deterministic or not same:
        return rows, (None,)
    ladder = sorted({step for n in anchors for step in LADDERS[n.op.name](n)})
    try:
        most = int(upper_bound(rows, body.bounds))
    except (IRError, KeyError):
        return rows, (*ladder, None)
    if most > ladder[-1]:
        return rows, (*ladder, None)
    end = next(i for i, step in enumerate(ladder) if step >= most)
    first = end if isinstance(rows, int) else 0
    return rows, tuple(ladder[first : end + 1])


def _arguments(kernel: Kernel) -> dict[Node, Place]:
    """Declare the arguments; gives the places of the results."""
    body = kernel.body
    for i, node in enumerate(body.inputs):
        kernel.argument(f"x{i}", node)
    outputs = [n for n in body.outputs if not isinstance(n.type, CacheType)]
    if len(outputs) != len(set(outputs)):
        raise CodegenError(f"kernel {body.name} gives one value as two results")
    results: dict[Node, Place] = {}
    for i, node in enumerate(outputs):
        place = Place.of(f"y{i}", node, body.bounds)
        kernel.pointers[place.name] = place.dtype
        results[node] = place
    for node in body.outputs:
        if isinstance(node.type, CacheType):
            results[node] = kernel.places[cache_of(node)]
    return results


def is_anchor(node: Node) -> bool:
    """Whether a node has launches of a template of its own."""
    return node.op.name in ANCHORS and (node.op.name != "argmax" or largest.is_long(node))


def _emit_levels(kernel: Kernel, results: dict[Node, Place]) -> None:
    for node in kernel.body.nodes():
        if not is_anchor(node):
            continue
        anchor = ANCHORS[node.op.name]
        needed = [n for n in dict.fromkeys(anchor.needs(kernel, node)) if n not in kernel.places]
        if needed:
            wanted = {n: _place_for(kernel, n, results) for n in needed}
            emit_rows(kernel, wanted)
            kernel.places.update(wanted)
        anchor.emit(kernel, node, results)
    left = {n: p for n, p in results.items() if kernel.places.get(n) is not p}
    if left:
        emit_rows(kernel, left)


def _place_for(kernel: Kernel, node: Node, results: Mapping[Node, Place]) -> Place:
    if node in results:
        return results[node]
    if isinstance(node.type, CacheType):
        return kernel.places[cache_of(node)]
    return kernel.scratch_for(node.shape, node.dtype)


def _solved(body: Graph) -> dict[str, Solved]:
    """Where each dim of the body is read off its arguments."""
    outputs = [n for n in body.outputs if isinstance(n.type, TensorType)]
    shapes = [_shape(n) for n in (*body.inputs, *outputs)]
    found: dict[str, Solved] = {}
    for argument, shape in enumerate(shapes):
        for axis, d in enumerate(shape):
            names = names_in(d)
            if len(names) == 1:
                (name,) = names
                solved = _linear_in(d, name)
                better = (
                    solved == (1, 0) and (found[name].factor, found[name].rest) != (1, 0)
                    if name in found
                    else solved is not None
                )
                if better and solved is not None:
                    found[name] = Solved(argument, axis, *solved)
    missing = sorted({n for s in shapes for d in s for n in names_in(d)} - found.keys())
    if missing:
        raise CodegenError(f"dims {missing} follow from no shape of kernel {body.name}")
    return found


def _shape(node: Node) -> Shape:
    return node.shape if isinstance(node.type, TensorType) else ()


def _linear_in(d: Dim, name: str) -> tuple[int, int] | None:
    symbol = next(s for s in sympy.sympify(d).free_symbols if str(s) == name)
    try:
        polynomial = sympy.Poly(as_dim(d), symbol)
    except sympy.PolynomialError:
        return None
    if polynomial.degree() != 1:
        return None
    factor, rest = polynomial.all_coeffs()
    return int(factor), int(rest)


__all__ = ["ANCHORS", "Lowered", "Solved", "expand", "is_anchor", "lower"]
