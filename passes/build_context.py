"""From a region that mixes tokens to the op: its last row at L tokens is token_context's body."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import sympy

from ..ir.dims import Dim, names_in
from ..ir.graph import Graph
from ..ir.node import Node, input_, walk
from ..ir.ops import contexts, model
from ..ir.ops import tensor as t
from ..ir.ops.recurrent import causal_conv
from ..ir.types import TensorType
from .canonicalize import Canonicalize
from .rules.values import reshaped
from .scan_regions import in_dtype, rebuild, token_axes, tokens_back, tokens_first
from .spell_attention import spelled_attention
from .spell_out import spelled_conv
from .token_slices import TokenSlices
from .token_values import Axis, B, S, numbers_of

L = contexts.LENGTH


def context_of(
    node: Node, inputs: Sequence[Node], each: Sequence[Sequence[Axis]], least: int = 1
) -> Node | None:
    """A value of each token as a context op over the values of each token that it is made of, whose
    axes are given; None where a row of it takes the square of the tokens.

    What the value is made of has these sizes from `least` tokens on. Where there are fewer, the
    last stands for those behind it as well, which a token's own value does not depend on.
    """
    axes = token_axes(node)
    assert axes is not None, f"{node} is no value of each token"
    rows = [_floats(tokens_first(x, own)) for x, own in zip(inputs, each, strict=True)]
    length = L if least == 1 else sympy.Max(L, least)
    last = _row(node, axes, rows, inputs, each, length, L - 1)
    body = _Body(last, rows, length)
    if any(_is_square(n) for n in walk((body.output,))):
        return None
    own, seen = (tuple(rows[at] for at in places) for places in (body.own, body.seen))
    own, seen = (tuple(_with_numbers(x) for x in part) for part in (own, seen))
    made = contexts.token_context(
        *own, *seen, *body.constants, body=body.graph(), own=len(own), seen=len(seen)
    )
    numbers = numbers_of(axes)
    return tokens_back(reshaped(made, (B, S, *numbers)), axes, node.shape)


def _floats(x: Node) -> Node:
    """What caches hold: whole numbers as floats."""
    return x if x.tensor.is_float else in_dtype(x, "f32")


def _is_square(node: Node) -> bool:
    shape = node.shape if isinstance(node.type, TensorType) else ()
    return sum(1 for d in shape if str(L) in names_in(d)) > 1


def _with_numbers(x: Node) -> Node:
    """[B, S] as [B, S, 1]: an entry of a cache has numbers."""
    return x if len(x.shape) > 2 else reshaped(x, (*x.shape, 1))


def row_at(
    node: Node, inputs: Sequence[Node], each: Sequence[Sequence[Axis]], length: int, place: int
) -> Node:
    """What a value of each token is [1, 1, numbers...] for one token of a sequence of `length`,
    over inputs x0, x1, ... [1, length, numbers...].
    """
    axes = token_axes(node)
    assert axes is not None, f"{node} is no value of each token"
    rows = [_floats(tokens_first(x, own)) for x, own in zip(inputs, each, strict=True)]
    return _row(node, axes, rows, inputs, each, length, place)


def _row(
    node: Node,
    axes: Sequence[Axis],
    rows: Sequence[Node],
    inputs: Sequence[Node],
    each: Sequence[Sequence[Axis]],
    length: Dim,
    place: Dim,
) -> Node:
    fresh = [_fresh(at, x) for at, x in enumerate(rows)]
    done = {
        x: in_dtype(tokens_back(made, own, x.shape), x.dtype)
        for x, made, own in zip(inputs, fresh, each, strict=True)
    }
    rebuild(node, done)
    whole = Graph("region", tuple(fresh), (tokens_first(done[node], axes),))
    whole = _in_plain_ops(whole.substitute({str(B): 1, str(S): length}))
    slices = TokenSlices()
    return slices.of(slices.at(whole.outputs[0], 1, place))


def _in_plain_ops(graph: Graph) -> Graph:
    """Convolutions and attention, of which a body has none, as sums of what they read: of tokens,
    or of blocks of them.
    """
    graph = graph.replace({n: spelled_conv(n) for n in graph.nodes() if n.op is causal_conv})
    attention = (n for n in graph.nodes() if n.op is model.attention)
    return graph.replace({n: y for n in attention if (y := spelled_attention(n)) is not None})


def _fresh(at: int, x: Node) -> Node:
    return input_(name=f"x{at}", type=x.tensor)


class _Body:
    """A row's graph on inputs of its own: rows that it reads at its own place alone, rows that it
    reads all of, constants.
    """

    def __init__(self, last: Node, rows: Sequence[Node], length: sympy.Expr) -> None:
        self.rows, self.length = rows, length
        self.names = {f"x{at}": at for at in range(len(rows))}
        self.own: list[int] = []
        self.seen: list[int] = []
        self.constants: list[Node] = []
        self.inputs: dict[tuple[str, int], Node] = {}
        done: dict[Node, Node] = {}
        for node in _reads(last):
            self._read(node, done)
        rebuild(last, done)
        numbers = last.shape[2:]
        self.output = reshaped(done[last], (1, *numbers))

    def _read(self, node: Node, done: dict[Node, Node]) -> None:
        if node.op.name == "input":
            at, kind, lead = self.names[node["name"]], "seen", L
        elif node.op is t.slice_ and node.inputs[0].op.name == "input":
            at, kind, lead = self.names[node.inputs[0]["name"]], "own", 1
        else:
            place = len(self.constants)
            self.constants.append(node)
            done[node] = self._input("constant", place, node.shape, node.dtype)
            return
        places = self.seen if kind == "seen" else self.own
        places.append(at)
        numbers = node.shape[2:] or (1,)
        made = self._input(kind, at, (lead, *numbers), node.dtype)
        if kind == "seen" and self.length is not L:
            last = t.dim_value(dim=L - 1, dtype="i64")
            made = t.take(made, t.minimum(t.iota(size=self.length, dtype="i64"), last), axis=0)
        done[node] = reshaped(made, node.shape)

    def _input(self, kind: str, at: int, shape: tuple[Dim, ...], dtype: str) -> Node:
        made = input_(name=f"{kind}{at}", type=TensorType(dtype, shape))
        return self.inputs.setdefault((kind, at), made)

    def graph(self) -> Graph:
        """The body: own, seen, constants."""
        order = [("own", at) for at in self.own] + [("seen", at) for at in self.seen]
        order += [("constant", at) for at in range(len(self.constants))]
        inputs = tuple(self.inputs[key] for key in order)
        body = Graph("row", inputs, (self.output,), bounds={str(L): (1, 1 << 30)})
        return Canonicalize().run(body)


def _reads(root: Node) -> list[Node]:
    """What a row's graph begins with: rows of inputs, inputs, and values of weights alone."""
    fixed = _fixed(root)
    found: dict[Node, None] = {}
    stack, seen = [root], {root}
    while stack:
        node = stack.pop()
        one = node.op is t.slice_ and node.inputs[0].op.name == "input"
        own = one and node["axis"] == 1 and node["start"] == L - 1 and node["stop"] == L
        if own or node.op.name == "input" or fixed.get(node):
            found[node] = None
            continue
        for i in node.inputs:
            if i not in seen:
                seen.add(i)
                stack.append(i)
    return list(found)


def _fixed(root: Node) -> dict[Node, bool]:
    """Which values are made of weights: by no token, of no length. Numbers stay in the body."""
    fixed: dict[Node, bool] = {}
    weights: dict[Node, bool] = {}
    for node in walk((root,)):
        named = _is_named(node)
        inner = all(fixed.get(i, False) or (not weights[i] and _is_number(i)) for i in node.inputs)
        weights[node] = node.op.name == "parameter" or any(weights[i] for i in node.inputs)
        fixed[node] = (
            weights[node] and inner and not named and node.op.name not in ("input", "item")
        )
    return fixed


def _is_number(node: Node) -> bool:
    """Whether a value is made of numbers alone."""
    return all(n.op.name not in ("input", "parameter") and not _is_named(n) for n in walk((node,)))


def _is_named(node: Node) -> bool:
    """Whether a node has to do with the number of tokens."""
    shape = node.shape if isinstance(node.type, TensorType) else ()
    sizes = [v for value in node.attributes.values() for v in _flat(value)]
    return any(isinstance(d, sympy.Expr) for d in (*shape, *sizes))


def _flat(value: object) -> tuple[object, ...]:
    return cast("tuple[object, ...]", value) if isinstance(value, tuple) else (value,)
