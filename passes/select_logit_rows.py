"""Rows that need logits: the gather of R rows rises through every token-wise op.

It stops at the last op that mixes tokens, and at values that the caches or such an op need for
every token anyway. What lies between runs on R rows: the last layer's output projection, its MLP,
the final norm, the head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import sympy

from ..ir.dims import Dim, dim, names_in, substitute
from ..ir.errors import IRError
from ..ir.graph import Graph
from ..ir.node import Node, input_, walk
from ..ir.ops import tensor
from ..ir.types import TensorType, TupleType, Type
from .follow_rows import follow

TOKENS, ROWS = "T", "R"


@dataclass(frozen=True)
class SelectLogitRows:
    """Compute logits f32[R, V] of the rows that `logit_rows` names, and argmax i32[R], in place of
    logits [T, V]; -1 where a row's largest is no finite number.
    """

    name: ClassVar[str] = "select-logit-rows"
    output: str = "logits"

    def run(self, graph: Graph) -> Graph:
        """The graph with the input logit_rows i32[R]; its other outputs are kept as they are."""
        logits = graph.output(self.output)
        if len(logits.shape) != 2 or logits.shape[0] != dim(TOKENS):
            raise IRError(f"output {self.output!r} is {logits.type}, [{TOKENS}, V] was wanted")
        rows = input_(name="logit_rows", type=TensorType("i32", (dim(ROWS),)))
        others = tuple(o for o in graph.outputs if o is not logits)
        rise = _Rise(rows, _needed_whole(logits, others))
        selected = _as_float(rise.selected(logits, 0))
        best = tensor.cast(tensor.argmax(selected, axis=1, checked=True), dtype="i32")
        names = tuple(n for n in graph.output_names if n != self.output)
        return replace(
            graph,
            inputs=_before_caches(graph.inputs, rows),
            outputs=(selected, best, *others),
            output_names=(self.output, "argmax", *names),
            bounds={**graph.bounds, ROWS: graph.bounds.get(ROWS, graph.bounds[TOKENS])},
            origins={**graph.origins, **rise.origins(graph)},
        )


def _as_float(logits: Node) -> Node:
    return logits if logits.dtype == "f32" else tensor.cast(logits, dtype="f32")


def _before_caches(inputs: tuple[Node, ...], rows: Node) -> tuple[Node, ...]:
    plain = tuple(i for i in inputs if isinstance(i.type, TensorType))
    return (*plain, rows, *(i for i in inputs if i not in plain))


def _token_axis(node: Node) -> int | None:
    """The one axis that is T, None where no dim depends on T; -1 where T stands otherwise (T * k,
    or twice).
    """
    return _axis_of(node.type)


def _axis_of(t: Type) -> int | None:
    if isinstance(t, TupleType):
        found = {_axis_of(i) for i in t.items}
        return found.pop() if len(found) == 1 else -1
    if not isinstance(t, TensorType):
        return -1
    depends = [i for i, d in enumerate(t.shape) if TOKENS in names_in(d)]
    if not depends:
        return None
    return depends[0] if len(depends) == 1 and t.shape[depends[0]] == dim(TOKENS) else -1


def _is_token_wise(node: Node, axis: int) -> bool:
    """Whether row r of `axis` needs only row r of each input that has tokens."""
    for at, value in enumerate(node.inputs):
        found = _token_axis(value)
        if found is not None and (found < 0 or follow(node, at, found) != axis):
            return False
    return not node.op.has("leaf")


def _tokens_in(node: Node) -> list[Node]:
    return [i for i in node.inputs if _token_axis(i) is not None]


def _needed_whole(logits: Node, others: tuple[Node, ...]) -> frozenset[Node]:
    """What other outputs, and the ops that mix tokens below the logits, read: computed for all T
    rows in any case.
    """
    mixing: list[Node] = []
    stack, seen = [logits], {logits}
    while stack:
        node = stack.pop()
        axis = _token_axis(node)
        if axis is None or axis < 0 or not _is_token_wise(node, axis):
            mixing.append(node)
            continue
        fresh = [i for i in _tokens_in(node) if i not in seen]
        seen.update(fresh)
        stack.extend(fresh)
    return frozenset(walk((*mixing, *others)))


class _Rise:
    """Rebuilds token-wise nodes on the selected rows, from the logits up."""

    def __init__(self, rows: Node, whole: frozenset[Node]) -> None:
        self.rows, self.whole = rows, whole
        self.done: dict[Node, Node] = {}

    def selected(self, node: Node, axis: int) -> Node:
        """The node with the R rows alone along its token axis."""
        for each in walk((node,)):
            if self._is_whole(each) or _token_axis(each) is None:
                self.done[each] = self._leaf(each)
            elif (at := _token_axis(each)) is not None and _is_token_wise(each, at):
                inputs = tuple(self.done[i] for i in each.inputs)
                self.done[each] = each.op.build(inputs, _with_rows(each.attributes))
        return self.done[node]

    def _is_whole(self, node: Node) -> bool:
        """Whether all T rows of the node are there; rows of a tuple are taken from its items."""
        return node in self.whole or (node.op.name == "item" and node.inputs[0] in self.whole)

    def _leaf(self, node: Node) -> Node:
        axis = _token_axis(node)
        if axis is None or axis < 0 or isinstance(node.type, TupleType):
            return node
        return tensor.take(node, self.rows, axis=axis)

    def origins(self, graph: Graph) -> dict[Node, tuple[str, ...]]:
        """Where the rebuilt nodes came from."""
        return {new: graph.origin(old) for old, new in self.done.items() if graph.origin(old)}


def _with_rows(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _value_with_rows(v) for k, v in attributes.items()}


def _value_with_rows(value: object) -> object:
    if isinstance(value, tuple):
        return tuple(_value_with_rows(v) for v in cast("tuple[object, ...]", value))
    rows: dict[str, Dim] = {TOKENS: dim(ROWS)}
    return substitute(value, rows) if isinstance(value, sympy.Expr) else value
