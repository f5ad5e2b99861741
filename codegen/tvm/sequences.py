"""The sequences of a convolution or scan: which rows each has, and where its state is and goes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ...ir.node import Node, item
from ...ir.types import TensorType, TupleType
from .attention import result_place
from .epilogues import fused_behind
from .function import Kernel, cache_of
from .isa import LANES
from .loops import SERIAL_BELOW, Place, Work
from .rows import kept_dtype, kept_nodes
from .values import Expr, bind, i64


@dataclass(frozen=True)
class Sequences:
    """The batch of an op over [B, S, ...], or over ragged rows [T, ...] with a state for each
    sequence; `state` is None where nothing is kept.
    """

    kernel: Kernel
    node: Node
    count: Expr
    tokens: Expr
    state: Place | None
    places: tuple[Node, Node, Node] | None  # query_start, state_from, state_to

    @staticmethod
    def of(kernel: Kernel, node: Node, first: int) -> Sequences:
        """The sequences of an op whose inputs from `first` on are, where it has states, the states,
        query_start, state_from and state_to.
        """
        dims = kernel.dims
        x = node.inputs[0].shape
        if not isinstance(node.type, TupleType):
            count, length = dims.expr(x[0]), dims.expr(x[1])
            return Sequences(kernel, node, count, bind(count * length), None, None)
        state, starts, source, target = node.inputs[first : first + 4]
        place = kernel.places[cache_of(state)]
        count = dims.expr(source.shape[0])
        return Sequences(kernel, node, count, dims.expr(x[0]), place, (starts, source, target))

    def rows(self, n: Expr) -> tuple[Expr, Expr]:
        """The first token of a sequence, and the one behind its last."""
        if self.places is None:
            return i64(0), self.kernel.dims.expr(self.node.inputs[0].shape[1])
        return self._read(0, n), self._read(0, n + i64(1))

    def source(self, n: Expr) -> Expr:
        """Where the state of a sequence is read; below 0 where it begins with zeros."""
        return i64(-1) if self.places is None else self._read(1, n)

    def target(self, n: Expr) -> Expr:
        """Where the state of a sequence goes."""
        return n if self.places is None else self._read(2, n)

    def index(self, n: Expr, t: Expr) -> tuple[Expr, ...]:
        """Where a token's row lies."""
        return (n, t) if self.places is None else (t,)

    def _read(self, which: int, at: Expr) -> Expr:
        assert self.places is not None, self.node
        return bind(i64(self.kernel.work().pull().value(self.places[which], [at])))

    def over(self, items: int, cost: int, body: Callable[[Work, Expr, Expr], None]) -> None:
        """body(work, sequence, item) for so many items of each sequence, on all threads where
        they are worth it; `cost` is vector cycles of a token, all items together.
        """
        enough = tirx.GE(self.tokens * i64(max(1, cost)), i64(SERIAL_BELOW))
        with T.If(enough):
            with T.Then():
                self._loop(T.parallel, items, body)
            with T.Else():
                self._loop(T.serial, items, body)

    def _loop(
        self,
        kind: Callable[..., object],
        items: int,
        body: Callable[[Work, Expr, Expr], None],
    ) -> None:
        # Threads take runs of these: each some items of all sequences, one of which may have a
        # single token and another a whole prompt.
        with kind(i64(0), i64(items) * self.count) as at:
            each, n = bind(tirx.truncdiv(at, self.count)), bind(tirx.truncmod(at, self.count))
            body(self.kernel.work().within(n, 0, self.count).within(each, 0, items), n, each)

    @property
    def value(self) -> Node:
        """The op's rows: the op itself, or, where states leave it too, the first of its items."""
        return self.node if self.state is None else item(self.node, index=0)

    def results(self, results: Mapping[Node, Place]) -> tuple[dict[Node, Place], dict[Node, Place]]:
        """What is made of each row and where it goes, the row itself where nothing that is wanted
        can be; and which nodes are done with it: the states too.
        """
        kernel, y = self.kernel, self.value
        left = {
            n: p
            for n, p in results.items()
            if isinstance(n.type, TensorType) and kernel.places.get(n) is not p
        }
        if (found := fused_behind(kernel, y, left)) and found[1] == (0,):
            fused, done = found[0], left
        else:
            place, done = result_place(kernel, y, results)
            fused = {y: place}
        states = {} if self.state is None else {item(self.node, index=1): self.state}
        return fused, {**done, **states}

    def result(self, results: Mapping[Node, Place]) -> tuple[Place, dict[Node, Place]]:
        """Where the op's rows go, and which nodes are done with it: the states too."""
        place, done = result_place(self.kernel, self.value, results)
        states = {} if self.state is None else {item(self.node, index=1): self.state}
        return place, {**done, **states}


def wanted_whole(kernel: Kernel, nodes: tuple[Node, ...]) -> dict[Node, str]:
    """Those nodes as whole buffers whose value by index would compute something twice."""
    some = kernel.places[kernel.body.inputs[0]]
    sources = kernel.work().sources
    return {n: kept_dtype(n.dtype) for n in nodes if kept_nodes({n: some}, sources)}


def pieces_of(size: int) -> list[tuple[int, int]]:
    """(first, lanes) of vectors that cover so many elements: whole ones, then ever smaller."""
    pieces = [(at, LANES) for at in range(0, size - LANES + 1, LANES)]
    at, lanes = len(pieces) * LANES, LANES
    while at < size:
        lanes //= 2
        if size - at >= lanes:
            pieces.append((at, lanes))
            at += lanes
    return pieces


def accumulated(dtype: str) -> str:
    """The TVM dtype that a sum over an IR dtype is kept in."""
    return "float64" if dtype == "f64" else "float32"
