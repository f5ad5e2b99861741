"""Layers that put every row through every expert and keep a few results, as the routed layers that
they stand for.

    sum_e p[n, e] f_e(x[n])  and  sum_e f_e(p[n, e] x[n])  with p = u(scatter(b, index, values))

have terms for the chosen experts alone where u(b) = 0: in the second form because f_e(0) = 0, as
for products without a bias and activations that keep 0. With v = u(values) they are
sum_k v[n, k] f_index(x[n]) and sum_k f_index(v[n, k] x[n]). Experts come first, f_e[E, N, ...].
"""

from __future__ import annotations

from collections.abc import Iterator

from ...ir.dims import Shape, equal, equal_shapes
from ...ir.node import Node, walk
from ...ir.ops import model
from ...ir.ops import tensor as t
from ...ir.rewrite import Rules, hole
from .choices import Choice, choice_of
from .values import literal, reshaped, spread, transposed

DENSE_EXPERTS = Rules("dense experts")
y = hole("y")

_KEEP_ZERO = frozenset(
    {"silu", "gelu", "relu", "tanh", "cast", "neg", "abs", "sqrt", "erf", "sign"}
)


@DENSE_EXPERTS.on(t.reduce_sum(y))
def chosen_of_all_experts(root: Node, y: Node) -> Node | None:
    """The sum over the experts' axis as one over each row's choices."""
    if root["axes"] != (0,) or root["keepdims"] or len(y.shape) != 3 or y.shape[0] == 1:
        return None
    if not isinstance(y.shape[0], int):
        return None
    found = _weighed(y) or _scaled(y)
    return None if found is None else t.reduce_sum(found, axes=(1,))


def _weighed(y: Node) -> Node | None:
    """p f_e(x): the results of the chosen experts, times their shares."""
    if y.op is not t.mul:
        return None
    for results, shares in (y.inputs, y.inputs[::-1]):
        choice = _choice_of(shares, y.shape) if equal_shapes(results.shape, y.shape) else None
        if choice is not None:
            routed = _Routed(choice, scaled=False).of(results)
            return None if routed is None else t.mul(routed, _beside(choice.values))
    return None


def _scaled(y: Node) -> Node | None:
    """f_e(p x), where f_e keeps 0."""
    for node in _inside(y):
        if node.op is t.mul:
            choice = _choice_in_product(node, y.shape)
            if choice is not None:
                return _Routed(choice, scaled=True).of(y)
    return None


def _inside(y: Node) -> Iterator[Node]:
    """What the experts compute y[E, N, ...] from, down to their scaled input: never the layers
    before, whose choices are others.
    """
    seen, stack = {y}, [y]
    while stack:
        node = stack.pop()
        yield node
        rows = node.inputs[:1] if node.op is t.matmul else node.inputs
        for each in rows:
            of_experts = len(each.shape) == 3 and equal_shapes(each.shape[:2], y.shape[:2])
            # The scaled input may be flat: E N rows.
            if each not in seen and (of_experts or node.op is t.reshape):
                seen.add(each)
                stack.append(each)


def _beside(values: Node) -> Node:
    return reshaped(values, (*values.shape, 1))


# -- shares


def _choice_in_product(product: Node, shape: Shape) -> Choice | None:
    """The shares by which a product, of E N rows in this order, scales its rows."""
    rows = (*shape[:2], product.shape[-1])
    return next((c for i in product.inputs if (c := _choice_of(i, rows)) is not None), None)


def _choice_of(shares: Node, shape: Shape) -> Choice | None:
    """The choice behind shares [E, N, 1], however they are spread and reshaped."""
    while shares.op is t.reshape or shares.op is t.broadcast:
        shares = shares.inputs[0]
    if shares.op is not t.transpose or shares["permutation"] != (1, 0):
        return None
    experts, rows = shape[:2]
    inner = shares.inputs[0]
    return choice_of(inner) if equal_shapes(inner.shape, (rows, experts)) else None


# -- experts


class _Routed:
    """Values [E, N, ...] of every row in every expert as [N, K, ...] of each row's choices."""

    def __init__(self, choice: Choice, *, scaled: bool) -> None:
        self.choice, self.scaled = choice, scaled
        self.done: dict[Node, Node | None] = {}

    def of(self, node: Node) -> Node | None:
        """The value for the choices; None where it is computed in another way."""
        if node not in self.done:
            self.done[node] = self._made(node)
        return self.done[node]

    def _made(self, node: Node) -> Node | None:
        x = self._input(node)
        if x is not None:
            return x
        if node.op is t.matmul:
            rows, weights = node.inputs
            if len(weights.shape) != 3 or not _is_constant(weights):
                return None
            routed = self.of(rows)
            if routed is None:
                return None
            return model.expert_linear(routed, transposed(weights), self.choice.index)
        if node.op is t.slice_ and node["axis"] == 2:
            inner = self.of(node.inputs[0])
            return None if inner is None else node.with_inputs((inner,))
        return self._elementwise(node)

    def _elementwise(self, node: Node) -> Node | None:
        """An op that keeps 0, on operands that are zero together."""
        known = node.op in (t.mul, t.add, t.sub) or node.op.name in _KEEP_ZERO
        if not known and (self.scaled or not node.op.has("elementwise")):
            return None
        inputs: list[Node] = []
        for value in node.inputs:
            number = literal(value)
            if number is not None and (node.op is t.mul or not self.scaled):
                inputs.append(t.scalar(number, value.dtype))
                continue
            routed = self.of(value) if equal_shapes(value.shape, node.shape) else None
            if routed is None:
                return None
            inputs.append(routed)
        return node.op.build(tuple(inputs), node.attributes)

    def _input(self, node: Node) -> Node | None:
        """The layer's input, which each expert has whole, for every choice of a row."""
        rows, count = self.choice.index.shape
        if len(node.shape) != 3 or not equal(node.shape[1], rows):
            return None
        inner = node.inputs[0] if node.op is t.reshape else node
        if self.scaled and inner.op is t.mul:
            for value, shares in (inner.inputs, inner.inputs[::-1]):
                if _choice_of(shares, node.shape) != self.choice:
                    continue
                x = _repeated_rows(value, node.shape)
                if x is not None:
                    wide = spread(reshaped(x, (rows, 1, node.shape[2])), (rows, count, x.shape[1]))
                    return t.mul(wide, _beside(self.choice.values))
        x = None if self.scaled else _repeated_rows(node, node.shape)
        if x is None:
            return None
        return spread(reshaped(x, (rows, 1, x.shape[1])), (rows, count, x.shape[1]))


def _repeated_rows(node: Node, shape: Shape) -> Node | None:
    """x[N, F] where a node of E N rows is x repeated for each of E experts, or stands for that."""
    experts, rows, width = shape
    if node.shape[:-2] in ((), (1,)) and equal_shapes(node.shape[-2:], (rows, width)):
        return reshaped(node, (rows, width))
    while node.op is t.reshape:
        node = node.inputs[0]
    if node.op is not t.broadcast:
        return None
    source = node.inputs[0]
    lead = [d for d in source.shape if d != 1]
    spread_first = equal(node.shape[0], experts) and source.shape[:1] in ((1,), ())
    fits = len(node.shape) == len(source.shape) and spread_first
    if not fits or not equal_shapes(tuple(lead), (rows, width)):
        return None
    rest = tuple(d for d in node.shape[1:] if d != 1)
    return reshaped(source, (rows, width)) if equal_shapes(rest, (rows, width)) else None


def _is_constant(node: Node) -> bool:
    return all(n.op.name != "input" for n in walk((node,)))
