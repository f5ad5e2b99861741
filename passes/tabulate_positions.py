"""Positions: values that depend on positions alone become tables over positions, made once when the
model is compiled.

Rotary tables of any scaling, learned and sinusoidal embeddings, scales that grow with the position:
each is a subgraph over iota(S) that no token reaches. It is run at several lengths and must fall
into one of four kinds:

- *uniform*: the same at every batch entry and position up to max_context; its value at B = S = 1
  stands for it;
- *table*: the same in every batch entry, and row p the same at every length; row p of its value at
  S = max_context is taken at each token's own position;
- *own index*: the token's own row b S + s, as expert layers write it to spread tokens over their
  experts; a take at it is a broadcast;
- anything else is an error that names the node, unless its rows at S = max_context do as well: a
  scale that grows from the middle of the sequence on, for queries, and falls as much for keys
  (xPos), moves with the length and leaves every score as it is. With such tables the graph's
  values are those that it had, at some lengths that are tried.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from ..ir.dims import Dim, dim, equal, product
from ..ir.errors import IRError
from ..ir.graph import Graph
from ..ir.node import Node, input_
from ..ir.ops import tensor
from ..ir.types import TensorType
from ..ir.verify import quote
from .analyze_tokens import BATCH, LENGTH, Evaluate, analyze, need_evaluate
from .token_values import WHAT_TO_WRITE, B, MixesTokensError, S, factors_of
from .walk_tokens import TokenWalk

Array = np.ndarray[Any, Any]
SIZES = ((2, 5), (3, 9), (1, 1), (1, 6))
FEW = max(length for _, length in SIZES)
PARTS = (0.64, 0.37)  # of the longest length, which are looked at beside it
POSITIONS = "positions"
FEW_TRIED = ((2, 5), (1, 12), (1, 45))  # batch and length of whole graphs that are compared
MOST_TRIED = 4096  # tokens, of which whole graphs are tried at PARTS
NEAR = 1e-4


@dataclass(frozen=True)
class TabulatePositions:
    """Give the graph an input positions i32[S] and read position values from tables of max_context
    rows.

    Types do not change: run at positions 0, 1, ..., S - 1 the graph gives what it gave before.
    """

    name: ClassVar[str] = "tabulate-positions"
    max_context: int = 4096
    evaluate: Evaluate | None = None

    def run(self, graph: Graph) -> Graph:
        """The graph with no value left that depends on positions other than through the new
        input."""
        positions = input_(name=POSITIONS, type=TensorType("i32", (dim(LENGTH),)))
        frontier = [v for v in analyze(graph).frontier() if isinstance(v.type, TensorType)]
        try:
            lifted = self._replaced(graph, frontier, positions)
        except IRError as error:
            longest = None if (mixing := _mixing(graph)) else self._of_longest(graph, positions)
            if longest is None:
                raise mixing or error from None
            lifted = longest
        return replace(lifted, inputs=(*lifted.inputs, positions))

    def _replaced(
        self, graph: Graph, frontier: list[Node], positions: Node, *, moving: bool = False
    ) -> Graph:
        mapping: dict[Node, Node] = {}
        for value in frontier:
            mapping.update(self._lifted(graph, value, positions, moving=moving))
        return graph.replace(mapping)

    def _of_longest(self, graph: Graph, positions: Node) -> Graph | None:
        """The graph with rows of the longest length in place of values that change with it; None
        where its own values are others then, or there are more lengths than can be tried.
        """
        if self.max_context > MOST_TRIED:
            return None
        evaluate = need_evaluate(self.evaluate, self.name)
        tried = (*FEW_TRIED, *((1, max(1, int(self.max_context * part))) for part in PARTS))
        frontier = [v for v in analyze(graph).frontier() if isinstance(v.type, TensorType)]
        try:
            lifted = self._replaced(graph, frontier, positions, moving=True)
            both = (*_on_few_tokens(graph).outputs, *_on_few_tokens(lifted).outputs)
            for b, s in tried:
                found = evaluate(both, {BATCH: b, LENGTH: min(s, self.max_context)})
                half = len(found) // 2
                if not all(map(_near, found[:half], found[half:])):
                    return None
        except (IRError, IndexError, ValueError, RuntimeError):
            return None
        return lifted

    def _lifted(
        self, graph: Graph, value: Node, positions: Node, *, moving: bool = False
    ) -> dict[Node, Node]:
        evaluate = need_evaluate(self.evaluate, self.name)
        try:
            axes = _Axes(value)
            sizes = dict.fromkeys((b, min(s, self.max_context)) for b, s in SIZES)
            rows = [axes.rows(_run(evaluate, value, b, s), b, s) for b, s in sizes]
            if _is_own_index(rows):
                return axes.own_index(graph.users(value))
            long = self._long(evaluate, axes)
            if _is_uniform([*rows, *long]):
                return {value: axes.uniform()}
            self._check_table(evaluate, axes, [*rows, *long], moving=moving)
            return {value: axes.table(positions, self.max_context)}
        except _NoTableError as error:
            raise IRError(
                f"a value that depends on positions alone {error}\n{quote(graph, value)}"
            ) from None

    def _long(self, evaluate: Evaluate, axes: _Axes) -> list[Array]:
        """The value's rows at the longest length and at others between: what is one thing at few
        tokens may be another behind thousands of positions.
        """
        lengths = dict.fromkeys(max(1, int(self.max_context * part)) for part in (1.0, *PARTS))
        return [axes.rows(_run(evaluate, axes.value, 1, n), 1, n) for n in lengths]

    def _check_table(
        self, evaluate: Evaluate, axes: _Axes, rows: list[Array], *, moving: bool
    ) -> None:
        """Refuse what is no table; what moves with the length is one that others have to prove."""
        if not _agree([r[:1] for r in rows], rows):
            raise _NoTableError("differs between the sequences of a batch")
        if moving:
            return
        whole = max(rows, key=lambda r: r.shape[1])  # at the longest length
        for found in rows:
            if not _close(whole[0, : found.shape[1]], found[0]):
                count, last = found.shape[1], self._last_alike(evaluate, axes, found)
                once = FEW >= count < last
                kept = f"; a max_context of {last} keeps them" if once else ""
                raise _NoTableError(
                    f"changes with the length: its first {count} rows are others at length "
                    f"{last + 1}{kept}"
                )

    def _last_alike(self, evaluate: Evaluate, axes: _Axes, first: Array) -> int:
        """The length up to which the first rows are what they are at their own, where they change
        once.
        """
        low, high = first.shape[1], self.max_context
        while high - low > 1:
            middle = (low + high) // 2
            rows = axes.rows(_run(evaluate, axes.value, 1, middle), 1, middle)
            alike = _close(rows[0, : first.shape[1]], first[0])
            low, high = (middle, high) if alike else (low, middle)
        return low


class _NoTableError(Exception):
    """Why a value is no table over positions."""


def _mixing(graph: Graph) -> IRError | None:
    """What mixes tokens in no known way, which is why a value that it reads is no table; None where
    nothing does.
    """
    if [i.shape for i in graph.inputs] != [(B, S)]:
        return None
    walk = TokenWalk(graph)
    node = next((n for n in graph.nodes() if walk.visit(n)), None)
    if node is None:
        return None
    return MixesTokensError(f"{node.op.name} mixes tokens\n{quote(graph, node)}\n{WHAT_TO_WRITE}")


def _run(evaluate: Evaluate, value: Node, b: int, s: int) -> Array:
    """The value at a batch and a length; a table of the model that ends before is an error."""
    try:
        return evaluate((value,), {BATCH: b, LENGTH: s})[0]
    except (IndexError, ValueError) as error:
        raise _NoTableError(
            f"cannot be had at length {s}: {error}; max_context must stay within the model's own"
        ) from error


def _on_few_tokens(graph: Graph) -> Graph:
    """The graph with its inputs as values of their own: token ids of a few numbers, positions."""
    made: dict[Node, Node] = {}
    for each in [n for n in graph.nodes() if n.op.name == "input"]:
        count = product(each.shape)
        places = tensor.iota(size=count, dtype=each.dtype)
        if each["name"] != POSITIONS:
            few = (tensor.scalar(n, each.dtype) for n in (5, 7, 3, 4))
            by, more, shift, most = few
            squared = tensor.mul(places, tensor.add(places, by))
            places = tensor.add(shift, tensor.mod(tensor.add(squared, more), most))
        made[each] = tensor.reshape(places, shape=each.shape)
    return graph.replace(made)


def _near(a: Array, b: Array) -> bool:
    """Whether two results are one, but for how they were computed."""
    return bool(np.isfinite(a).all() and np.abs(a - b).max() <= NEAR * np.abs(a).max())


def _close(a: Array, b: Array) -> bool:
    if a.dtype.kind in "fc":
        return bool(np.allclose(a, b, rtol=1e-5, atol=1e-6, equal_nan=True))
    return bool((a == b).all())


def _agree(wanted: list[Array], rows: list[Array]) -> bool:
    return all(_close(np.broadcast_to(w, r.shape), r) for w, r in zip(wanted, rows, strict=True))


def _is_uniform(rows: list[Array]) -> bool:
    first = rows[0][:1, :1]
    return _agree([first] * len(rows), rows)


def _is_own_index(rows: list[Array]) -> bool:
    """Whether every row holds its own number b S + s throughout."""
    if rows[0].dtype.kind not in "iu":
        return False
    wanted: list[Array] = []
    for r in rows:
        own: Array = np.arange(r.shape[0] * r.shape[1], dtype=r.dtype)
        wanted.append(np.reshape(own, (*r.shape[:2], *(1 for _ in r.shape[2:]))))
    return _agree(wanted, rows)


class _Axes:
    """Where batch and length stand among a value's axes: each axis is a product of B, S and a
    number, in that order."""

    def __init__(self, value: Node) -> None:
        self.value = value
        self.parts = [_parts(d) for d in value.shape]
        for name in (BATCH, LENGTH):
            if sum(p.count(dim(name)) for p in self.parts) > 1:
                raise _NoTableError(
                    f"has {name} more than once in its shape {value.type}: it compares positions"
                )

    @property
    def flat(self) -> list[Dim]:
        """The factors of all the axes in order."""
        return [p for parts in self.parts for p in parts]

    def rows(self, value: Array, b: int, s: int) -> Array:
        """The value as [b or 1, s or 1, numbers...]."""
        sizes = {dim(BATCH): b, dim(LENGTH): s}
        split = value.reshape([sizes.get(p, p) if not isinstance(p, int) else p for p in self.flat])  # type: ignore[call-overload]
        order = [i for i, p in enumerate(self.flat) if isinstance(p, int)]
        lead = [self.flat.index(dim(n)) for n in (BATCH, LENGTH) if dim(n) in self.flat]
        moved = split.transpose(*lead, *order)
        for at, name in enumerate((BATCH, LENGTH)):
            if dim(name) not in self.flat:
                moved = np.expand_dims(moved, at)
        return np.broadcast_to(moved, (b, s, *moved.shape[2:]))

    def uniform(self) -> Node:
        """The value at B = S = 1, broadcast back to the shape."""
        fixed = Graph("uniform", (), (self.value,)).substitute({BATCH: 1, LENGTH: 1}).outputs[0]
        return self._spread(fixed)

    def _spread(self, fixed: Node) -> Node:
        """Broadcast a value that lacks B, or B and S, to the shape, factor by factor."""
        if fixed.shape == self.value.shape:
            return fixed
        has_length = any(dim(LENGTH) in _parts(d) for d in fixed.shape)
        narrow = tuple(
            p if isinstance(p, int) or (has_length and p == dim(LENGTH)) else 1 for p in self.flat
        )
        wide = tensor.broadcast(tensor.reshape(fixed, shape=narrow), shape=tuple(self.flat))
        return tensor.reshape(wide, shape=self.value.shape)

    def table(self, positions: Node, max_context: int) -> Node:
        """Rows of the value at S = max_context, taken at the positions, in the value's own shape
        and order."""
        fixed = (
            Graph("table", (), (self.value,)).substitute({BATCH: 1, LENGTH: max_context}).outputs[0]
        )
        kept = [p for p in self.flat if p != dim(BATCH)]
        at = kept.index(dim(LENGTH))
        split = tensor.reshape(
            fixed, shape=tuple(max_context if i == at else p for i, p in enumerate(kept))
        )
        order = (at, *(i for i in range(len(kept)) if i != at))
        taken = tensor.take(
            tensor.transpose(split, permutation=order), positions, axis=0
        )  # [S, numbers...]
        back = tensor.transpose(taken, permutation=tuple(order.index(i) for i in range(len(kept))))
        return self._spread(back)

    def own_index(self, users: tuple[Node, ...]) -> dict[Node, Node]:
        """Takes of rows at their own number, as broadcasts over the numbers that follow B and S."""
        if self.flat[:2] != [dim(BATCH), dim(LENGTH)]:
            raise _NoTableError("is the token's own number in an order other than batch, length")
        return {u: self._own_rows(u) for u in users}

    def _own_rows(self, user: Node) -> Node:
        x, axis = user.inputs[0], int(user.attributes.get("axis", 0))
        rows = product((dim(BATCH), dim(LENGTH)))
        if (
            user.op is not tensor.take
            or user.inputs[1] is not self.value
            or not equal(x.shape[axis], rows)
        ):
            raise _NoTableError(
                f"is the token's own number, which only a take of its row can read, not {user!r}"
            )
        before, after = x.shape[:axis], x.shape[axis + 1 :]
        ones = tuple(1 for _ in self.flat[2:])
        lead = (*before, dim(BATCH), dim(LENGTH))
        narrow = tensor.reshape(x, shape=(*lead, *ones, *after))
        wide = tensor.broadcast(narrow, shape=(*lead, *self.flat[2:], *after))
        return tensor.reshape(wide, shape=user.shape)


def _parts(d: Dim) -> list[Dim]:
    factors = factors_of(d)
    if factors is None:
        raise _NoTableError(f"has the dim {d}, which is no product of B, S and a number")
    return list(factors)
