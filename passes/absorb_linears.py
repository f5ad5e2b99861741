"""Attention over what keys and values are made from: q against W c is W^T q against c, and sum p (W
c) is W (sum p c).

A value y = F(c W^T) with F movement has the weights F(W^T): the movement is applied to the weight,
with its K columns in the tokens' place. That part depends on parameters alone and is evaluated when
the model is compiled.
"""

from __future__ import annotations

from typing import Any, cast

import sympy

from ..ir.dims import Dim, names_in, substitute
from ..ir.node import Node
from ..ir.ops import tensor
from .trace_elements import MOVES, LinearMap, Trace


def moved_weight(value: Node, source: LinearMap, trace: Trace) -> Node:
    """Weights [K, G, D] of value[T, G, D], which is movement of the linear map's result."""
    put = tensor.transpose(source.w, permutation=(1, 0))
    return _Movement(source.node, put, trace).applied(value)


def moved_bias(value: Node, source: LinearMap, trace: Trace) -> Node | None:
    """The bias [1, G, D] that the linear map adds to value[T, G, D]."""
    if source.bias is None:
        return None
    put = tensor.reshape(source.bias, shape=(1, source.w.shape[0]))
    return _Movement(source.node, put, trace).applied(value)


class _Movement:
    """The movement from `at` to a value, applied to put[K, N] with K in the tokens' place; zeros
    stand for other sources.
    """

    def __init__(self, at: Node, put: Node, trace: Trace) -> None:
        self.at, self.put, self.sources = at, put, trace.sources
        self.sizes: dict[str, Dim] = {trace.tokens: put.shape[0]}

    def applied(self, value: Node) -> Node:
        """The value made from `put`."""
        found = self._made(value)
        assert found is not None, f"{value!r} is no movement of {self.at!r}"
        return found

    def _made(self, node: Node) -> Node | None:
        """The node made anew; None where `at` is not behind it."""
        if node is self.at:
            return _spread(self.put, self._sized(node.shape))
        if node in self.sources or node.op.name not in MOVES:
            return None
        inputs = [self._made(i) for i in node.inputs]
        if all(i is None for i in inputs):
            return None
        attributes = {k: self._sized(v) for k, v in node.attributes.items()}
        pairs = zip(inputs, node.inputs, strict=True)
        return node.op.build(tuple(new or self._other(old) for new, old in pairs), attributes)

    def _other(self, node: Node) -> Node:
        """What stands for an input that the linear map does not reach: an index as it is, a token's
        value as zeros.
        """
        if not any(names_in(d) for d in node.shape):
            return node
        return tensor.broadcast(tensor.scalar(0.0, node.dtype), shape=self._sized(node.shape))

    def _sized(self, value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(self._sized(v) for v in cast("tuple[Any, ...]", value))
        return substitute(value, self.sizes) if isinstance(value, sympy.Expr) else value


def _spread(put: Node, shape: tuple[Dim, ...]) -> Node:
    """[K, N] as [K, ..., N]: every row of a linear map with axes between has the same weights."""
    if len(shape) == 2:
        return put
    narrow = tensor.reshape(put, shape=(shape[0], *(1,) * (len(shape) - 2), shape[-1]))
    return tensor.broadcast(narrow, shape=shape)


def by_heads(x: Node, weights: Node) -> Node:
    """y[t, h, :] = weights[h G / H]^T @ x[t, h, :] for x[T, H, D] and weights[G, D, K]; result [T,
    H, K].
    """
    tokens, heads, _ = x.shape
    groups, inner, outer = weights.shape
    assert isinstance(heads, int) and isinstance(groups, int), f"{x.type} by {weights.type}"
    if heads == groups:
        front = tensor.transpose(x, permutation=(1, 0, 2))
        return tensor.transpose(tensor.matmul(front, weights), permutation=(1, 0, 2))
    rows = tokens * (heads // groups)
    split = tensor.reshape(x, shape=(tokens, groups, heads // groups, inner))
    front = tensor.reshape(_swapped(split), shape=(groups, rows, inner))
    mapped = tensor.matmul(front, weights)
    back = tensor.reshape(mapped, shape=(groups, tokens, heads // groups, outer))
    return tensor.reshape(_swapped(back), shape=(tokens, heads, outer))


def _swapped(x: Node) -> Node:
    return tensor.transpose(x, permutation=(1, 0, 2, 3))


def on_heads(bias: Node, heads: int) -> Node:
    """bias[1, G, E] as [1, H, E]: each group's for all its heads."""
    _, groups, size = bias.shape
    assert isinstance(groups, int), str(bias.type)
    if groups == heads:
        return bias
    narrow = tensor.reshape(bias, shape=(1, groups, 1, size))
    return tensor.reshape(
        tensor.broadcast(narrow, shape=(1, groups, heads // groups, size)), shape=(1, heads, size)
    )


def narrowed(value: Node, start: int, stop: int) -> Node:
    """value[T, G, start:stop], taken from the part of a join that holds it where one does."""
    if (start, stop) == (0, value.shape[2]):
        return value
    if value.op is tensor.concat and value["axis"] == 2:
        offset = 0
        for part in value.inputs:
            size = part.shape[2]
            assert isinstance(size, int), str(part.type)
            if offset <= start and stop <= offset + size:
                return narrowed(part, start - offset, stop - offset)
            offset += size
    return tensor.slice_(value, axis=2, start=start, stop=stop)
