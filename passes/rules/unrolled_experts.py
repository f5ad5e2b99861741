"""Experts one after another, each on every row, as the routed layer that they stand for.

    sum_e p[..., e] f_e(x) = sum_k v[..., k] f_index(x)

where the shares p are zero but for the chosen experts, and the f_e differ in their weights alone:
these are stacked, and each choice of a row takes its own.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...ir.dims import Shape, equal, equal_shapes, product
from ...ir.node import Node, walk
from ...ir.ops import model
from ...ir.ops import tensor as t
from ...ir.rewrite import Rules, hole
from .choices import Choice, share_of_one
from .values import literal, reshaped, spread, transposed

UNROLLED_EXPERTS = Rules("unrolled experts")
x, y = hole("x"), hole("y")
LEAST = 2


@UNROLLED_EXPERTS.on(t.add(x, y))
def chosen_of_unrolled_experts(root: Node, x: Node, y: Node) -> Node | None:
    """A sum that holds a term for each expert, with one sum over choices in their place."""
    terms = terms_of(root)
    if len(terms) < LEAST:
        return None
    groups: dict[Choice, dict[int, Node]] = {}
    sizes: dict[Choice, int] = {}
    owners: dict[Node, Choice] = {}
    for term in terms:
        found = _weighed(term, root.shape)
        if found is None:
            continue
        choice, expert, count, result = found
        if expert in groups.setdefault(choice, {}):
            return None
        groups[choice][expert] = result
        sizes[choice], owners[term] = count, choice
    for choice, experts in groups.items():
        routed = _routed(choice, experts, sizes[choice], root.shape)
        if routed is not None:
            rest = [n for n in terms if owners.get(n) != choice]
            return summed([*rest, routed])
    return None


def terms_of(root: Node) -> list[Node]:
    """The terms of a sum of sums of one shape."""
    found: list[Node] = []
    stack = [root]
    while stack:
        node = stack.pop()
        if node.op is t.add and equal_shapes(node.shape, root.shape):
            stack.extend(reversed(node.inputs))
        else:
            found.append(node)
    return found


def summed(terms: Sequence[Node]) -> Node:
    """The terms added one after the other."""
    total = terms[0]
    for term in terms[1:]:
        total = t.add(total, term)
    return total


def _weighed(term: Node, shape: Shape) -> tuple[Choice, int, int, Node] | None:
    """(choice, expert, experts, result) of a term p_e f_e(x), which may be kept where the index
    names the expert alone: elsewhere its share is 0 anyway.
    """
    if not equal_shapes(term.shape, shape):
        return None
    kept, term = _kept(term)
    if term.op is t.reshape and equal(term.shape[-1], term.inputs[0].shape[-1]):
        term = term.inputs[0]
    if term.op is not t.mul:
        return None
    for share, result in (term.inputs, term.inputs[::-1]):
        if share.op is t.broadcast:
            share = share.inputs[0]
        one = share.shape[-1:] == (1,) and equal_shapes(share.shape[:-1], term.shape[:-1])
        found = share_of_one(share) if one and equal_shapes(result.shape, term.shape) else None
        if found is not None and kept in (None, (found[0].index, found[1])):
            return (*found, reshaped(result, shape))
    return None


def _kept(term: Node) -> tuple[tuple[Node, int] | None, Node]:
    """(index, e) and a value, where a term is where(any(index == e), value, 0); else the term."""
    if term.op is not t.where or literal(term.inputs[2]) != 0:
        return None, term
    condition, value, _ = term.inputs
    while condition.op in (t.reshape, t.broadcast):
        condition = condition.inputs[0]
    if condition.op is not t.reduce_max or condition.inputs[0].op is not t.eq:
        return None, term
    index, number = condition.inputs[0].inputs
    expert = literal(number)
    whole = isinstance(expert, int) and condition["axes"] == (len(index.shape) - 1,)
    return ((index, int(expert or 0)), value) if whole else (None, term)


def _routed(choice: Choice, experts: dict[int, Node], count: int, shape: Shape) -> Node | None:
    """sum_k of the choices' results, where every expert is there; the index says how many can be
    named where the shares do not.
    """
    count = count or named(choice.index)
    if len(experts) != count or sorted(experts) != list(range(count)):
        return None
    if not equal_shapes(choice.index.shape[:-1], shape[:-1]):
        return None
    made = Choices(choice.index, shape[:-1]).of([experts[e] for e in range(count)])
    if made is None or made.op is t.broadcast:
        return None
    values = reshaped(choice.values, (*choice.values.shape, 1))
    return t.reduce_sum(t.mul(made, values), axes=(len(shape) - 1,))


def named(index: Node) -> int:
    """How many experts an index can name: those that a topk chose among; 0 where that is open."""
    if index.op.name != "item" or index.inputs[0].op is not t.topk:
        return 0
    top = index.inputs[0]
    axis: int = top["axis"]
    size = top.inputs[0].shape[axis]
    return size if isinstance(size, int) else 0


class Choices:
    """Values that are alike for all experts but for weights, as values of each row's choices: [...,
    K, F] for [..., F].
    """

    def __init__(self, index: Node, lead: Shape) -> None:
        self.index, self.lead = index, lead
        self.done: dict[tuple[Node, ...], Node | None] = {}

    def of(self, nodes: Sequence[Node]) -> Node | None:
        """The value for the choices from those of the experts in order; None where they differ in
        more than weights.
        """
        key = tuple(nodes)
        if key not in self.done:
            self.done[key] = self._made(key)
        return self.done[key]

    def _made(self, nodes: tuple[Node, ...]) -> Node | None:
        first = nodes[0]
        if all(n is first for n in nodes):
            return self._shared(first)
        if any(n.op is not first.op or n.attributes != first.attributes for n in nodes):
            return None
        if first.op in (model.linear, t.matmul):
            return self._linear(nodes)
        last = len(first.shape) - 1
        if first.op is t.reshape and equal(first.shape[last], first.inputs[0].shape[-1]):
            return self.of([n.inputs[0] for n in nodes])
        behind = len(self.index.shape)
        if first.op is t.slice_ and first["axis"] == last:
            inner = self.of([n.inputs[0] for n in nodes])
            return (
                None if inner is None else t.slice_(inner, **{**first.attributes, "axis": behind})
            )
        if not first.op.has("elementwise"):
            return None
        operands = zip(*(n.inputs for n in nodes), strict=True)
        inputs = [self.of(list(each)) for each in operands]
        if any(i is None for i in inputs):
            return None
        return first.op.build(tuple(i for i in inputs if i is not None), first.attributes)

    def _shared(self, node: Node) -> Node | None:
        """What all experts have in common: a row of the input, or a number."""
        number = literal(node)
        if number is not None:
            return t.scalar(number, node.dtype)
        if not equal(product(node.shape[:-1]), product(self.lead)):
            return None
        width, choices = node.shape[-1], self.index.shape[-1]
        return spread(reshaped(node, (*self.lead, 1, width)), (*self.lead, choices, width))

    def _linear(self, nodes: tuple[Node, ...]) -> Node | None:
        rows = self.of([n.inputs[0] for n in nodes])
        weights = [[n.inputs[i] for n in nodes] for i in range(1, len(nodes[0].inputs))]
        if rows is None or not all(_is_constant(w) for each in weights for w in each):
            return None
        stacks = [_stacked(each) for each in weights]
        if nodes[0].op is t.matmul:
            if len(nodes[0].inputs[1].shape) != 2:
                return None
            stacks = [transposed(stacks[0])]
        return model.expert_linear(rows, stacks[0], self.index, *stacks[1:])


def _stacked(weights: Sequence[Node]) -> Node:
    """Weights of one shape as one [E, ...]."""
    return t.concat(*(reshaped(w, (1, *w.shape)) for w in weights), axis=0)


def _is_constant(node: Node) -> bool:
    return all(n.op.name != "input" for n in walk((node,)))
