"""Model ops of a kernel body written out as tensor ops, so that one emitter serves them all."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ..ir.dims import Dim
from ..ir.graph import Graph
from ..ir.node import Node
from ..ir.ops import tensor as t


def _wide(x: Node) -> Node:
    """x in the dtype that its mathematics is done in."""
    return x if x.dtype in ("f32", "f64") else t.cast(x, dtype="f32")


def _mean_of(total: Node, size: Dim, dtype: str) -> Node:
    if isinstance(size, int):
        return t.mul(total, t.scalar(1.0 / size, dtype))
    return t.div(total, t.dim_value(dim=size, dtype=dtype))


def _last(x: Node) -> tuple[int, ...]:
    return (len(x.shape) - 1,)


def rms_norm(node: Node) -> Node:
    """x * rsqrt(mean(x^2) + eps) * (offset + w)."""
    x, dtype = _wide(node.inputs[0]), _wide(node.inputs[0]).dtype
    total = t.reduce_sum(t.mul(x, x), axes=_last(x), keepdims=True)
    inverse = t.rsqrt(
        t.add(_mean_of(total, x.shape[-1], dtype), t.scalar(float(node["eps"]), dtype))
    )
    y = t.mul(x, inverse)
    for w in node.inputs[1:]:
        scale = t.cast(w, dtype=dtype) if w.dtype != dtype else w
        y = t.mul(
            y, t.add(scale, t.scalar(float(node["offset"]), dtype)) if node["offset"] else scale
        )
    return t.cast(y, dtype=node.dtype) if node.dtype != dtype else y


def layer_norm(node: Node) -> Node:
    """(x - mean) * rsqrt(mean((x - mean)^2) + eps) * w + b."""
    x, dtype = _wide(node.inputs[0]), _wide(node.inputs[0]).dtype
    mean = _mean_of(t.reduce_sum(x, axes=_last(x), keepdims=True), x.shape[-1], dtype)
    centred = t.sub(x, mean)
    square = t.reduce_sum(t.mul(centred, centred), axes=_last(x), keepdims=True)
    variance = _mean_of(square, x.shape[-1], dtype)
    y = t.mul(centred, t.rsqrt(t.add(variance, t.scalar(float(node["eps"]), dtype))))
    for combine, w in zip((t.mul, t.add), node.inputs[1:], strict=False):
        y = combine(y, t.cast(w, dtype=dtype) if w.dtype != dtype else w)
    return t.cast(y, dtype=node.dtype) if node.dtype != dtype else y


def softmax(node: Node) -> Node:
    """e / sum e with e = exp(x - max x); a row that is -inf throughout gives NaN, as in torch."""
    x = _wide(node.inputs[0])
    axes = (node["axis"],)
    e = t.exp(t.sub(x, t.reduce_max(x, axes=axes, keepdims=True)))
    y = t.mul(e, t.reciprocal(t.reduce_sum(e, axes=axes, keepdims=True)))
    return t.cast(y, dtype=node.dtype) if node.dtype != x.dtype else y


def linear(node: Node) -> Node:
    """x @ w^T + b for a weight that no layout was chosen for."""
    x, w, *bias = node.inputs
    rows = x if len(x.shape) > 1 else t.reshape(x, shape=(1, *x.shape))
    y = t.matmul(rows, t.transpose(w, permutation=(1, 0)))
    y = t.reshape(y, shape=node.shape) if len(x.shape) == 1 else y
    return t.add(y, bias[0]) if bias else y


def expert_linear(node: Node) -> Node:
    """w[index] @ x + b[index] for weights that no layout was chosen for."""
    x, w, index, *bias = node.inputs
    column = t.reshape(x, shape=(*x.shape, 1))
    y = t.reshape(t.matmul(t.take(w, index, axis=0), column), shape=node.shape)
    return t.add(y, t.take(bias[0], index, axis=0)) if bias else y


def sum_of_products(node: Node) -> Node:
    """x @ y as a sum over a last axis of k."""
    x, y = node.inputs
    wide = (
        x.dtype
        if x.dtype in ("f32", "f64", "i32", "i64")
        else "f32"
        if x.tensor.is_float
        else "i32"
    )
    x, y = (v if v.dtype == wide else t.cast(v, dtype=wide) for v in (x, y))
    left = t.reshape(x, shape=(*x.shape[:-1], 1, x.shape[-1]))
    last = len(y.shape) - 1
    turned = t.transpose(y, permutation=(*range(last - 1), last, last - 1))
    right = t.reshape(turned, shape=(*turned.shape[:-2], 1, *turned.shape[-2:]))
    total = t.reduce_sum(t.mul(left, right), axes=(len(node.shape),))
    return total if wide == node.dtype else t.cast(total, dtype=node.dtype)


RULES: Mapping[str, Callable[[Node], Node]] = {
    "rms_norm": rms_norm, "layer_norm": layer_norm, "softmax": softmax, "linear": linear,
    "expert_linear": expert_linear,
}  # fmt: skip
"""Op name -> its expansion; a sum in it gathers float32 or wider."""


def expand(body: Graph) -> Graph:
    """The body with every op of RULES written out."""
    return body.replace({n: RULES[n.op.name](n) for n in body.nodes() if n.op.name in RULES})
