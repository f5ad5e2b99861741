"""Spell out: what a backend has no template for, and other ops can say, is said by them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from ..ir.dims import as_dim
from ..ir.graph import Graph
from ..ir.node import Node, input_
from ..ir.ops import loops
from ..ir.ops import tensor as t
from .backends import Template, Templates
from .rules.repeats import repeated
from .rules.values import spread
from .spell_attention import spelled_attention


@dataclass(frozen=True)
class SpellOut:
    """Ops that no template is built around become others that some are, where there is a way: it
    is slower than a template, and as exact.
    """

    name: ClassVar[str] = "spell-out"
    templates: Templates = field(default_factory=dict[str, Template])

    def run(self, graph: Graph) -> Graph:
        """The graph without those of SPELLED that the backend lacks."""
        known = frozenset[str]().union(*(t.anchors for t in self.templates.values()))
        mapping: dict[Node, Node] = {}
        for node in graph.nodes():
            if node.op.name in SPELLED and node.op.name not in known:
                made = SPELLED[node.op.name](node)
                if made is not None:
                    mapping[node] = made
        return graph.replace(mapping)


def _wide(x: Node) -> Node:
    return x if x.dtype in ("f32", "f64") else t.cast(x, dtype="f32")


def _rounded(x: Node, dtype: str) -> Node:
    return x if x.dtype == dtype else t.cast(x, dtype=dtype)


def spelled_conv(node: Node) -> Node:
    """causal_conv: the sum over taps of w[c, j] x[b, s - K + 1 + j, c]."""
    x, w = (_wide(n) for n in node.inputs)
    length, taps = x.shape[1], int(w.shape[1])
    padded = t.pad(x, before=(0, taps - 1, 0), after=(0, 0, 0), value=0.0)
    total: Node | None = None
    for j in range(taps):
        part = t.slice_(padded, axis=1, start=j, stop=as_dim(j + length))
        tap = t.reshape(t.slice_(w, axis=1, start=j, stop=j + 1), shape=(w.shape[0],))
        made = t.mul(part, tap)
        total = made if total is None else t.add(total, made)
    assert total is not None, node
    return _rounded(total, node.dtype)


def spelled_conv1d(node: Node) -> Node:
    """conv1d: w[O, C / groups K] by the windows of x, a product of matrices for each group."""
    x, w, *bias = (_wide(n) for n in node.inputs)
    groups, stride, dilation = (int(node[n]) for n in ("groups", "stride", "dilation"))
    ends = (0, 0, int(node["padding"]))
    padded = t.pad(x, before=ends, after=ends, value=0.0) if any(ends) else x
    batch, channels, length = x.shape[0], int(x.shape[1]) // groups, node.shape[2]
    wide, taps = int(w.shape[0]) // groups, int(w.shape[2])
    windows: list[Node] = []
    for j in range(taps):
        begin = j * dilation
        last = as_dim(begin + (length - 1) * stride + 1)
        part = t.slice_(padded, axis=2, start=begin, stop=last, step=stride)
        windows.append(t.reshape(part, shape=(batch, groups, channels, 1, length)))
    joined = t.concat(*windows, axis=3) if taps > 1 else windows[0]
    columns = t.reshape(joined, shape=(batch, groups, channels * taps, length))
    matrix = t.reshape(w, shape=(1, groups, wide, channels * taps))
    y = t.reshape(t.matmul(matrix, columns), shape=node.shape)
    for b in bias:
        y = t.add(y, t.reshape(b, shape=(1, wide * groups, 1)))
    return _rounded(y, node.dtype)


def spelled_scan(node: Node) -> Node:
    """linear_scan as the loop over tokens that it is; see the op."""
    given = [_wide(n) for n in node.inputs]
    tokens = [input_(name=f"x{i}", type=n.tensor.with_shape((1, *n.shape[2:])))
              for i, n in enumerate(given)]  # fmt: skip
    q, k, v, decay, *beta = tokens
    heads, wide, deep = int(v.shape[1]), int(v.shape[2]), int(q.shape[2])
    held = input_(name="h", type=v.tensor.with_shape((heads, deep, wide)))

    def column(x: Node) -> Node:
        """x[1, G, K] as [H, K, 1]."""
        return t.reshape(repeated(x, heads), shape=(heads, x.shape[2], 1))

    keys, kept = column(k), t.mul(held, column(t.exp(decay)))
    new = t.reshape(v, shape=(heads, 1, wide))
    for b in beta:
        known = t.reduce_sum(t.mul(kept, keys), axes=(1,), keepdims=True)
        new = t.mul(t.reshape(b, shape=(heads, 1, 1)), t.sub(new, known))
    after = t.add(kept, t.mul(keys, new))
    y = t.reduce_sum(t.mul(after, column(q)), axes=(1,))
    body = Graph("step", (*tokens, held), (after, t.reshape(y, shape=(1, heads, wide))))
    begun = spread(t.scalar(0.0, v.dtype), (heads, deep, wide))
    made = loops.token_loop(*given, begun, body=body, tokens=len(given), states=1)
    return _rounded(made, node.dtype)


SPELLED: Mapping[str, Callable[[Node], Node | None]] = {
    "attention": spelled_attention,
    "causal_conv": spelled_conv,
    "conv1d": spelled_conv1d,
    "linear_scan": spelled_scan,
}
"""Op name -> what says the same by other ops, None where that is not known."""
