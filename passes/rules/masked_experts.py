"""Experts that each compute every choice of every row, joined by masks, as the routed layer that
they stand for.

    sum_e where(index == e, f_e(x), 0) = f_index(x)

with an index[N, K] and choices x[N K, ...] of rows, where every expert that the index can name is
there, and the f_e differ in their weights alone. The sum over a row's choices may be inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ...ir.dims import Shape, equal, equal_shapes, product
from ...ir.node import Node
from ...ir.ops import tensor as t
from ...ir.rewrite import Rules, hole
from .unrolled_experts import Choices, named, summed, terms_of
from .values import literal, reshaped

MASKED_EXPERTS = Rules("masked experts")
x, y = hole("x"), hole("y")
LEAST = 2


@dataclass(frozen=True)
class _Term:
    """What an expert adds: its value[..., F] where the index is its number, in the order of the
    index's axes, or, `turned`, with the choices first; then seen in a shape and summed over axes.
    """

    index: Node
    turned: bool
    expert: int
    value: Node
    seen: Shape
    axes: tuple[int, ...]

    @property
    def place(self) -> tuple[object, ...]:
        """What the terms of one layer have in common."""
        return self.index, self.turned, self.value.shape, self.seen, self.axes


@MASKED_EXPERTS.on(t.add(x, y))
def chosen_of_masked_experts(root: Node, x: Node, y: Node) -> Node | None:
    """A sum with a masked term for each expert, with the chosen expert's value in their place."""
    terms = terms_of(root)
    found = {term: made for term in terms if (made := _masked(term)) is not None}
    if len(found) < LEAST:
        return None
    first = next(iter(found.values()))
    alike = {term: made for term, made in found.items() if made.place == first.place}
    routed = _routed(list(alike.values()))
    return None if routed is None else summed([*(n for n in terms if n not in alike), routed])


@MASKED_EXPERTS.on(hole("root", lambda node: node.op is t.where))
def chosen_of_written_experts(root: Node) -> Node | None:
    """where(index == e, f_e(x), where(index == d, f_d(x), ...)) = f_index(x)."""
    found: list[_Term] = []
    node = root
    while node.op is t.where and (made := _where(node)) is not None:
        if found and made.place != found[0].place:
            return None
        found.append(made)
        node = node.inputs[2]
    return _routed(found) if len(found) >= LEAST else None


def _masked(term: Node) -> _Term | None:
    """A term where(index == e, value, 0), or a sum of it over axes before the last."""
    axes: tuple[int, ...] = ()
    if term.op is t.reduce_sum and not term["keepdims"]:
        axes, term = term["axes"], term.inputs[0]
    seen = term.shape
    if term.op is t.reshape and equal(seen[-1], term.inputs[0].shape[-1]):
        term = term.inputs[0]
    if term.op is not t.where or literal(term.inputs[2]) != 0 or len(seen) - 1 in axes:
        return None
    found = _where(term)
    return None if found is None else replace(found, seen=seen, axes=axes)


def _where(node: Node) -> _Term | None:
    condition, value, _ = node.inputs
    rows = product(value.shape[:-1])
    named_here = _expert_of(condition) if equal_shapes(value.shape, node.shape) else None
    if named_here is None or not equal(product(named_here[0].shape), rows):
        return None
    index, turned, expert = named_here
    return _Term(index, turned, expert, value, node.shape, ())


def _expert_of(condition: Node) -> tuple[Node, bool, int] | None:
    """(index[..., K], whether its choices come first, e) where a condition is index == e."""
    node = _bare(condition)
    if node.op is t.eq:
        for index, number in (node.inputs, node.inputs[::-1]):
            expert = literal(number)
            if isinstance(expert, int):
                return _with_choices(_bare(index)), False, expert
    if node.op is t.ne and literal(node.inputs[1]) == 0:
        return _expert_of_ones(node.inputs[0])
    return None


def _expert_of_ones(node: Node) -> tuple[Node, bool, int] | None:
    """As above, of a part [.., e : e + 1, ..] of index[N, K, 1] == [0, 1, ...], moved."""
    node = _bare(node)
    if node.op is not t.slice_ or node.shape[node["axis"]] != 1:
        return None
    axis, expert, node = node["axis"], node["start"], node.inputs[0]
    order = (0, 1, 2)
    if node.op is t.transpose:
        order, node = node["permutation"], node.inputs[0]
    node = node.inputs[0] if node.op is t.cast else node
    last = len(node.shape) - 1
    if node.op is not t.eq or last != 2 or order[axis] != last or not isinstance(expert, int):
        return None
    index, numbers = node.inputs
    if numbers.op is not t.iota or len(numbers.shape) != 1 or index.shape[-1] != 1:
        return None
    turned = [a for a in order if a != last] == [1, 0]
    return _with_choices(_bare(index)), turned, expert


def _bare(node: Node) -> Node:
    while node.op in (t.reshape, t.broadcast):
        node = node.inputs[0]
    return node


def _with_choices(index: Node) -> Node:
    """An index of one choice a row with an axis for it."""
    return reshaped(index, (*index.shape, 1)) if index.op is t.argmax else index


def _count(index: Node) -> int:
    """How many experts an index can name."""
    bare = _bare(index)
    if bare.op is t.argmax:
        axis: int = bare["axis"]
        size = bare.inputs[0].shape[axis]
        return size if isinstance(size, int) else 0
    return named(index)


def _routed(terms: Sequence[_Term]) -> Node | None:
    first = terms[0]
    experts = {made.expert: made.value for made in terms}
    count = _count(first.index)
    if len(experts) != len(terms) or sorted(experts) != list(range(count)):
        return None
    if first.turned and len(first.index.shape) != 2:
        return None
    made = _FlatChoices(first.index, first.turned).of([experts[e] for e in range(count)])
    if made is None or made.op is t.broadcast:
        return None
    if first.turned:
        made = t.transpose(made, permutation=(1, 0, 2))
    made = reshaped(made, first.seen)
    return t.reduce_sum(made, axes=first.axes) if first.axes else made


class _FlatChoices(Choices):
    """Values of each choice of each row, in whatever shape, as [..., K, F]."""

    def __init__(self, index: Node, turned: bool) -> None:
        super().__init__(index, index.shape[:-1])
        self.turned = turned

    def _made(self, nodes: tuple[Node, ...]) -> Node | None:
        first = nodes[0]
        moved = first.op is t.reshape and equal(first.shape[-1], first.inputs[0].shape[-1])
        if moved and all(n.op is t.reshape for n in nodes) and len(set(nodes)) > 1:
            return self.of([n.inputs[0] for n in nodes])
        return super()._made(nodes)

    def _shared(self, node: Node) -> Node | None:
        number = literal(node)
        if number is not None:
            return t.scalar(number, node.dtype)
        if not equal(product(node.shape[:-1]), product(self.index.shape)):
            return None
        shape = self.index.shape
        if not self.turned:
            return reshaped(node, (*shape, node.shape[-1]))
        return t.transpose(reshaped(node, (*shape[::-1], node.shape[-1])), permutation=(1, 0, 2))
