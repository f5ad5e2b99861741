"""Raise norms: root-mean-square and layer norms written out become one op each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..ir.dims import equal_shapes
from ..ir.graph import Graph
from ..ir.node import Node
from ..ir.ops import model
from ..ir.ops import tensor as t
from ..ir.rewrite import Pattern, Rules, any_of, hole, number, rewrite
from .rules.values import holds, reshaped, same

NORMS = Rules("norms")
x, w, y = hole("x"), hole("w"), hole("y")
eps, per, gain = number("eps"), number("per"), number("gain")


def mean(of: Pattern | Node, per: Pattern) -> Pattern:
    """sum(of) * per: the pattern of a mean, per being one over the count."""
    return t.mul(t.reduce_sum(of), per)


_square = t.mul(x, x)


def is_mean_over_last(node: Node, of: Node, per: float) -> bool:
    """Whether mul(reduce_sum(of), per) is the mean over the last axis, kept as 1."""
    total = next((i for i in node.inputs if i.op is t.reduce_sum), None)
    last = len(of.shape) - 1
    if total is None or total.inputs[0] is not of or total["axes"] != (last,):
        return False
    size = of.shape[last]
    if not total["keepdims"] or not isinstance(size, int):
        return False
    return abs(per * size - 1) < 1e-6


# -- the core: x / sqrt(mean(x^2) + eps)


@NORMS.on(
    any_of(
        t.mul(x, t.rsqrt(t.add(mean(_square, per), eps))),
        t.mul(x, t.rsqrt(mean(_square, per))),
    )
)
def rms_norm_core(root: Node, x: Node, per: float, eps: float | None) -> Node | None:
    """x * rsqrt(mean(x^2) + eps) = rms_norm(x)."""
    inverse = next(i for i in root.inputs if i.op is t.rsqrt)
    inner = inverse.inputs[0]
    total = inner if eps is None else next(i for i in inner.inputs if i.op is t.mul)
    if not is_mean_over_last(total, t.mul(x, x), per) or not equal_shapes(root.shape, x.shape):
        return None
    return model.rms_norm(x, eps=float(eps or 0.0))


_centre = mean(x, per)


@NORMS.on(any_of(model.rms_norm(t.sub(x, _centre)), model.rms_norm(t.sub(x, _centre), w)))
def layer_norm_core(root: Node, x: Node, per: float, w: Node | None) -> Node | None:
    """rms_norm(x - mean(x), w) = layer_norm(x, w)."""
    centred = root.inputs[0]
    if not is_mean_over_last(centred.inputs[1], x, per) or not equal_shapes(root.shape, x.shape):
        return None
    if w is None:
        return model.layer_norm(x, eps=root["eps"])
    gain = t.add(w, t.scalar(root["offset"], w.dtype)) if root["offset"] else w
    return model.layer_norm(x, gain, eps=root["eps"])


_spread = t.sub(mean(_square, per), t.mul(_centre, _centre))


@NORMS.on(t.mul(t.sub(x, _centre), t.rsqrt(t.add(_spread, eps))))
def layer_norm_by_squares(root: Node, x: Node, per: float, eps: float) -> Node | None:
    """(x - mean(x)) * rsqrt(mean(x^2) - mean(x)^2 + eps) = layer_norm(x)."""
    centred = next(i for i in root.inputs if i.op is t.sub)
    if not is_mean_over_last(centred.inputs[1], x, per) or not equal_shapes(root.shape, x.shape):
        return None
    return model.layer_norm(x, eps=eps)


# -- weights and biases


def vector(node: Node, like: Node) -> Node | None:
    """The node as a vector [D] along the last dim of `like`, where its other dims are 1."""
    size = like.shape[-1]
    flat = bool(node.shape) and same(node.shape[-1], size) and all(d == 1 for d in node.shape[:-1])
    return reshaped(node, (size,)) if flat and len(node.shape) <= len(like.shape) else None


def norm_of(root: Node, op: object, weights: int) -> tuple[Node, Node] | None:
    """The operand that is a norm with so many weights, and the other operand as a vector."""
    for norm, other in (root.inputs, root.inputs[::-1]):
        if norm.op is op and len(norm.inputs) == 1 + weights:
            found = vector(other, norm)
            return None if found is None else (norm, found)
    return None


@NORMS.on(t.mul(x, y))
def rms_norm_weight(root: Node) -> Node | None:
    """rms_norm(x) * w = rms_norm(x, w)."""
    found = norm_of(root, model.rms_norm, 0)
    if found is None:
        return None
    norm, w = found
    return model.rms_norm(norm.inputs[0], w, eps=norm["eps"])


@NORMS.on(t.mul(x, y))
def layer_norm_weight(root: Node) -> Node | None:
    """layer_norm(x) * w = layer_norm(x, w)."""
    found = norm_of(root, model.layer_norm, 0)
    if found is None:
        return None
    norm, w = found
    return model.layer_norm(norm.inputs[0], w, eps=norm["eps"])


@NORMS.on(t.add(x, y))
def layer_norm_bias(root: Node) -> Node | None:
    """layer_norm(x, w) + b = layer_norm(x, w, b)."""
    found = norm_of(root, model.layer_norm, 1)
    if found is None:
        return None
    norm, b = found
    return model.layer_norm(*norm.inputs, b, eps=norm["eps"])


@NORMS.on(model.rms_norm(x, t.add(w, gain)))
def rms_norm_offset(root: Node, x: Node, w: Node, gain: float) -> Node | None:
    """rms_norm(x, w + c) = rms_norm(x, w) with offset c."""
    if root["offset"] or len(w.shape) != 1:
        return None
    return model.rms_norm(x, w, eps=root["eps"], offset=float(gain))


# -- casts around them


@NORMS.on(any_of(model.rms_norm(x, t.cast(w)), model.layer_norm(x, t.cast(w))))
def norm_weight_cast(root: Node, x: Node, w: Node) -> Node | None:
    """norm(x, cast(w)) = norm(x, w) where the cast loses nothing: the op itself computes in f32."""
    if not holds(root.inputs[1].dtype, w.dtype):
        return None
    return root.with_inputs((x, w))


@NORMS.on(model.layer_norm(x, w, y))
def norm_bias_cast(root: Node, x: Node, w: Node, y: Node) -> Node | None:
    """layer_norm(x, cast(w), cast(b)) = layer_norm(x, w, b) where the casts lose nothing."""
    w, y = _unwidened(w), _unwidened(y)
    return root.with_inputs((x, w, y))


def _unwidened(value: Node) -> Node:
    inner = value.inputs[0] if value.op is t.cast else value
    return inner if holds(value.dtype, inner.dtype) else value


@NORMS.on(t.cast(hole("norm", lambda node: node.op in (model.rms_norm, model.layer_norm))))
def norm_cast_around(root: Node, norm: Node) -> Node | None:
    """cast(norm(cast(x))) = norm(x) where x has the result's dtype: f32 inside, rounded once."""
    wide, *weights = norm.inputs
    if wide.op is not t.cast or norm.dtype not in ("f32", "f64"):
        return None
    narrow = wide.inputs[0]
    if narrow.dtype != root.dtype or not holds(wide.dtype, narrow.dtype):
        return None
    return norm.with_inputs((narrow, *weights))


@dataclass(frozen=True)
class RaiseNorms:
    """Means, squares and roots over the last dim become rms_norm and layer_norm."""

    name: ClassVar[str] = "raise-norms"

    def run(self, graph: Graph) -> Graph:
        """The graph with every norm over the last dim as one op; the graph is canonical before."""
        return rewrite(graph, NORMS)
