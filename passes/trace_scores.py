"""From a softmax back to the product of queries and keys: what was done to the scores on the way.

    softmax(where(allowed, c tanh(scale q k^T / c) + bias, -inf))

is traced to the product q k^T and the steps, inside out: scale, tanh, scale, add, fill. Casts and
reshapes of the leading axes are no steps; each step keeps the frame (leading axes) in which it was
done.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..ir.dims import Dim, Shape, equal, equal_shapes
from ..ir.node import Node
from ..ir.ops import tensor as t
from .rules.score_frames import one_product
from .rules.values import literal, reshaped, transposed

Kind = Literal["scale", "stretch", "select", "tanh", "add", "keep"]


@dataclass(frozen=True)
class Step:
    """One thing done to the scores.

    scale: times `factor`. stretch: times `operand`, the same for all keys. select: times `operand`,
    where it matters 1. tanh. add: plus `operand`. keep: stays where `operand` (bool) is true,
    becomes `factor` elsewhere.
    """

    kind: Kind
    frame: Shape
    operand: Node | None = None
    factor: float = 1.0


@dataclass(frozen=True)
class Scores:
    """query[..., S, D] times key[..., L, D] in a frame, and the steps from there, inside out."""

    query: Node
    key: Node
    frame: Shape
    steps: tuple[Step, ...] = ()

    def then(
        self, kind: Kind, node: Node, operand: Node | None = None, factor: float = 1.0
    ) -> Scores:
        """With one more step, whose result is `node`."""
        step = Step(kind, node.shape[:-2], operand, factor)
        return Scores(self.query, self.key, self.frame, (*self.steps, step))

    def frames(self) -> list[Shape]:
        """The frames of the product and of every step."""
        return [self.frame, *(step.frame for step in self.steps)]


@dataclass(frozen=True)
class Weights:
    """The softmax that weighs values, and the part [start, stop) of it in use (None: all)."""

    softmax: Node
    part: tuple[Dim, Dim] | None
    frames: tuple[Shape, ...]


def trace_weights(node: Node) -> Weights | None:
    """The softmax behind the left operand of a product with values; None where there is none."""
    part: tuple[Dim, Dim] | None = None
    frames: list[Shape] = []
    while node.op is not t.softmax:
        if node.op is t.slice_ and part is None and node["axis"] == len(node.shape) - 1:
            if node["step"] != 1:
                return None
            part = (node["start"], node["stop"])
        elif node.op is not t.cast and not keeps_matrices(node):
            return None
        frames.append(node.shape[:-2])
        node = node.inputs[0]
    last = node["axis"] == len(node.shape) - 1
    return Weights(node, part, (*frames, node.shape[:-2])) if last else None


def keeps_matrices(node: Node) -> bool:
    """Whether a node only regroups leading axes: a reshape that leaves the last two as they are."""
    if node.op is not t.reshape:
        return False
    source = node.inputs[0].shape
    return len(source) > 1 and len(node.shape) > 1 and equal_shapes(source[-2:], node.shape[-2:])


def split_sinks(node: Node, part: tuple[Dim, Dim] | None) -> tuple[Node, Node | None] | None:
    """The scores, and the sink logits [..., S, 1] joined to them; None where the part differs."""
    while node.op is t.cast and part is not None:
        node = node.inputs[0]
    if part is None:
        return node, None
    if node.op is not t.concat or node["axis"] != len(node.shape) - 1 or len(node.inputs) != 2:
        return None
    first, second = node.inputs
    if second.shape[-1] == 1 and _is_part(part, 0, first.shape[-1]):
        return first, second
    if first.shape[-1] == 1 and _is_part(part, 1, node.shape[-1]):
        return second, first
    return None


def _is_part(part: tuple[Dim, Dim], start: Dim, stop: Dim) -> bool:
    return equal(part[0], start) and equal(part[1], stop)


def trace_scores(node: Node) -> Scores | None:
    """The product of queries and keys behind a softmax's input; None where there is none."""
    if node.op is t.matmul:
        query, key = node.inputs
        return Scores(query, transposed(key), node.shape[:-2])
    if node.op is t.transpose:
        return _transposed_product(node)
    if node.op is t.cast or keeps_matrices(node):
        return trace_scores(node.inputs[0]) if node.inputs[0].tensor.is_float else None
    step = _STEPS.get(node.op.name)
    return step(node) if step is not None and len(node.shape) > 1 else None


def _transposed_product(node: Node) -> Scores | None:
    """(k q^T)^T."""
    product = node.inputs[0]
    rank = len(node.shape)
    if product.op is not t.matmul:
        return None
    if node["permutation"] != (*range(rank - 2), rank - 1, rank - 2):
        return None
    key, query = product.inputs
    return Scores(transposed(query), key, product.shape[:-2])


def _scale(node: Node) -> Scores | None:
    """Times, or over, a number or a tensor that all keys share."""
    orders = [node.inputs, node.inputs[::-1]] if node.op is t.mul else [node.inputs]
    for scores, by in orders:
        found = trace_scores(scores) if by.shape[-1:] in ((), (1,)) else None
        if found is None:
            continue
        number = literal(by)
        if number is None:
            operand = as_matrices(t.reciprocal(by) if node.op is t.div else by)
            return found.then("stretch", node, operand)
        if number == 0:
            return None
        return found.then("scale", node, factor=1 / number if node.op is t.div else float(number))
    return _select(node) if node.op is t.mul else None


def _select(node: Node) -> Scores | None:
    """Times a tensor that differs by key: a mask of ones, where an added one hides the rest."""
    for scores, by in (node.inputs, node.inputs[::-1]):
        found = trace_scores(scores)
        if found is not None:
            return found.then("select", node, as_matrices(by))
    return None


def _add(node: Node) -> Scores | None:
    both = one_product(*node.inputs)
    if both is not None:
        return trace_scores(both)
    for scores, other in (node.inputs, node.inputs[::-1]):
        found = trace_scores(scores)
        if found is not None:
            return found.then("add", node, as_matrices(other))
    return None


def _sub(node: Node) -> Scores | None:
    scores, other = node.inputs
    found = trace_scores(scores)
    return found.then("add", node, as_matrices(t.neg(other))) if found is not None else None


def _tanh(node: Node) -> Scores | None:
    found = trace_scores(node.inputs[0])
    return found.then("tanh", node) if found is not None else None


def _where(node: Node) -> Scores | None:
    allowed, kept, other = node.inputs
    for scores, fill, condition in ((kept, other, allowed), (other, kept, t.logical_not(allowed))):
        number = literal(fill)
        found = trace_scores(scores) if number is not None and number < -1e3 else None
        if found is not None:
            return found.then("keep", node, as_matrices(condition), float(number or 0.0))
    return None


def _maximum(node: Node) -> Scores | None:
    """A floor that only -inf falls below changes nothing but rows in which nothing is visible."""
    for scores, floor in (node.inputs, node.inputs[::-1]):
        number = literal(floor)
        if number is not None and number < -6e4:
            return trace_scores(scores)
    return None


_STEPS = {
    "mul": _scale, "div": _scale, "add": _add, "sub": _sub, "tanh": _tanh, "where": _where,
    "maximum": _maximum,
}  # fmt: skip


def as_matrices(node: Node) -> Node:
    """The node with at least two axes."""
    missing = 2 - len(node.shape)
    return reshaped(node, ((1,) * missing + tuple(node.shape))) if missing > 0 else node


# -- sinks beside the softmax


def trace_gate(gate: Node) -> tuple[Node, Node] | None:
    """(z, sinks[..., H, 1, 1]) where a node [..., S, 1] is sigmoid(logsumexp(z) - sinks)."""
    sigmoid = _bare(gate)
    difference = _bare(sigmoid.inputs[0]) if sigmoid.op is t.sigmoid else sigmoid
    if difference.op is not t.sub:
        return None
    scores = _summed_exponents(_bare(difference.inputs[0]))
    if scores is None or not equal_shapes(gate.shape, (*scores.shape[:-1], 1)):
        return None
    sinks = difference.inputs[1]
    flat = len(difference.shape) < len(scores.shape)
    return scores, reshaped(sinks, (*sinks.shape, 1)) if flat else sinks


def _summed_exponents(node: Node) -> Node | None:
    """z where a node is log(sum(e^z)), or log(sum(e^(z - max(z)))) + max(z), over the last axis."""
    top: Node | None = None
    if node.op is t.add:
        first, second = (_bare(i) for i in node.inputs)
        node, top = (first, second) if first.op is t.log else (second, first)
    total = _bare(node.inputs[0]) if node.op is t.log else node
    exponents = _bare(total.inputs[0]) if total.op is t.reduce_sum else total
    if exponents.op is not t.exp or total["axes"] != (len(exponents.shape) - 1,):
        return None
    scores = exponents.inputs[0]
    if top is None:
        return scores
    shifted = scores.op is t.sub and _bare(scores.inputs[1]) is top and top.op is t.reduce_max
    own = shifted and top["axes"] == total["axes"] and top.inputs[0] is scores.inputs[0]
    return scores.inputs[0] if own else None


def _bare(node: Node) -> Node:
    """The node below casts and reshapes."""
    while node.op in (t.cast, t.reshape):
        node = node.inputs[0]
    return node
