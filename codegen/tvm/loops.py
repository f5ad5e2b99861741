"""Loops of generated kernels: nests over an index space, vectorized innermost, serial or
parallel outermost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise

import tvm
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from ...ir.dims import Dim, Shape, product
from ...ir.node import Node
from .isa import LANES
from .pull import Dims, Point, Pull, Source
from .values import Expr, bind, i64, load, stored, vectorized

SERIAL_BELOW = 20_000
"""Vector-cycle estimate under which a region runs on one thread: a parallel region costs about a
microsecond.
"""


@dataclass(frozen=True)
class Place:
    """Where a node's value goes: a buffer of a dtype, indexed by the node's index without the
    first `skip` axes.
    """

    buffer: tirx.Buffer
    dtype: str
    skip: int = 0

    def store(self, at: Sequence[Expr], value: Expr) -> None:
        """Write one element (or one vector of them, inside a vectorized loop)."""
        index = list(at[self.skip :]) or ([i64(0)] if len(self.buffer.shape) else [])
        T.buffer_store(self.buffer, stored(value, self.dtype), index)

    def read(self, at: Sequence[Expr]) -> Expr:
        """The element as a register's value."""
        index = list(at[self.skip :]) or ([i64(0)] if len(self.buffer.shape) else [])
        return load(self.buffer, self.dtype, index)


@dataclass(frozen=True)
class Work:
    """A point in a kernel under construction: dims, sources of values, the loops around it,
    whether it may go parallel. `room` has the largest values of dims that are known inside loops
    alone: scratch is as large as these say.
    """

    dims: Dims
    sources: Mapping[Node, Source]
    ranges: tuple[tuple[Expr, Expr, Expr], ...] = ()
    parallel: bool = False
    cut_variable: Expr | None = None
    cuts: set[int] = field(default_factory=set[int])
    room: Dims | None = None

    def pull(self) -> Pull:
        """A fresh evaluator that knows the ranges of the loops around."""
        facts = tvm.sym.Analyzer()
        for variable in self.dims.variables.values():
            if isinstance(variable, tirx.Var):
                facts.bind(variable, tvm.ir.Range(i64(1), i64(1 << 40)))
        for variable, low, extent in self.ranges:
            facts.bind(variable, tvm.ir.Range.from_min_extent(low, extent))
        return Pull(self.dims, self.sources, facts, self.cut_variable, self.cuts)

    def within(self, variable: Expr, low: Expr | int, extent: Expr | int) -> Work:
        """The same point inside one more loop."""
        if not isinstance(variable, tirx.Var):
            return self
        return replace(self, ranges=(*self.ranges, (variable, i64(low), i64(extent))))

    def with_sources(self, more: Mapping[Node, Source]) -> Work:
        """The same point where more nodes have a source."""
        return replace(self, sources={**self.sources, **more})


@contextmanager
def probe() -> Iterator[None]:
    """Build statements that are thrown away: to see whether, or how, they would be built."""
    with IRBuilder(), T.prim_func():
        T.func_name("probe")
        yield


@contextmanager
def nest(work: Work, shape: Shape) -> Iterator[tuple[Work, list[Expr]]]:
    """Serial loops over a shape; axes of size 1 need none."""
    with ExitStack() as stack:
        at: list[Expr] = []
        for d in shape:
            if d == 1:
                at.append(i64(0))
                continue
            extent = work.dims.expr(d)
            at.append(stack.enter_context(T.serial(i64(0), extent)))
            work = work.within(at[-1], 0, extent)
        yield work, at


def flat_index(work: Work, r: Expr, shape: Shape) -> list[Expr]:
    """The index in a shape of the r-th element in row-major order."""
    live = [i for i, d in enumerate(shape) if d != 1]
    at: list[Expr] = [i64(0)] * len(shape)
    for place, axis in enumerate(live):
        below = product(shape[i] for i in live[place + 1 :])
        part = r if below == 1 else tirx.floordiv(r, work.dims.expr(below))
        part = part if place == 0 else tirx.floormod(part, work.dims.expr(shape[axis]))
        at[axis] = part if isinstance(part, tirx.Var) else bind(part)
    return at


def over_rows(
    work: Work,
    shape: Shape,
    cost: Dim,
    body: Callable[[Work, list[Expr]], None],
    *,
    always: bool = False,
) -> None:
    """body(work, index) for each index of a shape: on all threads where rows * cost is worth it
    (`always` skips that question), on one otherwise, and without a loop where there is one
    row.
    """
    count = product(shape)
    if count == 1:
        return body(replace(work, parallel=False), [i64(0)] * len(shape))
    serial_only = (
        isinstance(count, int)
        and isinstance(cost, int)
        and count * cost < SERIAL_BELOW
        and not always
    )
    if not work.parallel or serial_only:
        return _rows(work, shape, body, T.serial)
    sure = isinstance(count, int) and isinstance(cost, int)
    if always or sure:
        return _rows(work, shape, body, T.parallel)
    enough = tirx.GE(work.dims.expr(count) * work.dims.expr(cost), i64(SERIAL_BELOW))
    with T.If(enough):
        with T.Then():
            _rows(work, shape, body, T.parallel)
        with T.Else():
            _rows(work, shape, body, T.serial)


def _rows(
    work: Work, shape: Shape, body: Callable[[Work, list[Expr]], None], kind: Callable[..., object]
) -> None:
    extent = work.dims.expr(product(shape))
    with kind(i64(0), extent) as r:
        inner = replace(work.within(r, 0, extent), parallel=False)
        at = flat_index(inner, r, shape)
        for e, d in zip(at, shape, strict=True):
            if e is not r:
                inner = inner.within(e, 0, inner.dims.expr(d))
        body(inner, at)


Element = Callable[[Work, Expr], None]


def along(
    work: Work, size: Dim, element: Element, *, probed: Callable[[Work, Expr], None] | None = None
) -> None:
    """element(work, j) for j in [0, size): vectors of LANES, then the rest; cut where a joined
    axis changes pieces.

    `probed` evaluates without effect what element evaluates; it is asked where the cuts are.
    """
    if size == 1:
        return element(work, i64(0))
    if not isinstance(size, int):
        return _span_symbolic(work, work.dims.expr(size), element)
    cuts = sorted(c for c in _find_cuts(work, size, probed) if 0 < c < size) if probed else []
    edges = [0, *cuts, size] if len(cuts) <= 8 else [0, size]
    for low, high in pairwise(edges):
        _span(work, low, high, element)


def _find_cuts(work: Work, size: int, probed: Callable[[Work, Expr], None]) -> set[int]:
    with probe():
        j = tirx.Var("j", "int64")
        found: set[int] = set()
        probed(replace(work.within(j, 0, size), cut_variable=j, cuts=found), j)
        return found


def _span(work: Work, low: int, high: int, element: Element) -> None:
    count = high - low
    whole = count // LANES
    if whole == 1:
        _vector(work, i64(low), LANES, element)
    elif whole:
        with T.serial(i64(0), i64(whole)) as o:
            _vector(work.within(o, 0, whole), o * i64(LANES) + i64(low), LANES, element)
    rest = low + whole * LANES
    left = high - rest
    if left in (2, 4, 8):
        _vector(work, i64(rest), left, element)
    elif left == 1:
        element(work, i64(rest))
    elif left:
        with T.serial(i64(rest), i64(high)) as j:
            element(work.within(j, rest, left), j)


def _vector(work: Work, base: Expr, lanes: int, element: Element) -> None:
    with vectorized(lanes) as v:
        element(work.within(v, 0, lanes), base + v)


def _span_symbolic(work: Work, size: Expr, element: Element) -> None:
    whole = bind(tirx.floordiv(size, i64(LANES)))
    with T.serial(i64(0), whole) as o:
        _vector(work.within(o, 0, whole), o * i64(LANES), LANES, element)
    with T.serial(whole * i64(LANES), size) as j:
        element(work.within(j, 0, size), j)


def point_of(prefix: Sequence[Expr], rest: Sequence[Expr]) -> Point:
    """One index of a row's and an inner one."""
    return (*prefix, *rest)
