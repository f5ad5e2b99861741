"""Linears by many weights of which each row takes one: rows of one expert stand together, so that
its weights are read once, and experts that no row takes are not read at all.

Rows are put in the order of their experts first (a counting sort: rows of an expert stay in
order). The work is then units of one expert, one group of columns and one tile of rows, in this
order of significance; threads take even runs of units, so that a group of columns stays in a
thread's cache for all rows of its expert.

Where a linear has another way for many rows and experts have some rows each, they go that way, each
expert's in tiles of their own. Threads take runs of columns then, of all experts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ...ir.dims import product
from ...ir.node import Node
from ...ir.ops import tensor as t
from ...ir.target import Target
from ..backend import Layout
from ..space import Bucket, Choice, Sample, Space
from .function import Kernel
from .isa import LANES, Tile, isa_of
from .linear import Linear, Route, Scheme, Share
from .loops import Place, Work, flat_index
from .register_tiles import emit_tile, with_epilogue
from .row_tiles import Tiles, stays_in_registers
from .values import Expr, bind, i64

ANY = Bucket("1-", 1, None, (Sample(1), Sample(64)))
VALUES = {"rows": (2, 4, 6, 8, 12), "columns": (1, 2, 3, 4)}
"""What may be chosen: the largest tile. How many rows an expert has is known in the step alone."""


def routed_spaces(node: Node, target: Target, tiles: Tiles, dtype: str) -> tuple[Space, ...]:
    """The space of an expert linear whose scheme has these row tiles."""
    default = Choice.of({"rows": tiles[2].rows, "columns": tiles[2].columns})
    fits = stays_in_registers(isa_of(target))
    rows = product(node.shape[:-1])
    return (Space(ANY, rows, default, VALUES, fits=fits, dtype=dtype),)


@dataclass(frozen=True)
class Stack:
    """What a routed linear multiplies by: the weights that lie by expert and block of columns, and
    the node that names each row's expert.
    """

    weights: tuple[Node, ...]
    index: Node

    @property
    def experts(self) -> int:
        """How many there are."""
        return int(self.weights[0].shape[0])


def unspread(x: Node, inner: int = 1) -> Node:
    """x before it was repeated along axes of rows, all but the last `inner`: what all choices of a
    token have in common.
    """
    if x.op is not t.broadcast or len(x.inputs[0].shape) != len(x.shape):
        return x
    source = x.inputs[0]
    return source if source.shape[-inner:] == x.shape[-inner:] else x


def emit_routed(
    kernel: Kernel,
    node: Node,
    x: Node,
    stack: Stack,
    results: Mapping[Node, Place],
    scheme: Scheme,
) -> dict[Node, Place]:
    """Emit an expert linear whose sums are made as a scheme says; x may have dims of 1 where all
    choices of a token read the same row. Gives what is done with it.
    """
    layout = Layout.parse(node["layout"])
    inner = _over_all_experts(kernel, stack)
    linear, done = with_epilogue(inner, node, x, layout, results, scheme)
    repeated = [d == 1 for d in x.shape[: len(linear.rows)]]

    def x_row(at: list[Expr]) -> list[Expr]:
        return [i64(0) if once else e for e, once in zip(at, repeated, strict=True)]

    _emit_all(replace(linear, x_row=x_row), stack)
    return done


def _over_all_experts(kernel: Kernel, stack: Stack) -> Kernel:
    """The kernel as a linear sees it: the axes of experts and of blocks of columns are one."""
    places = dict(kernel.places)
    for weight in stack.weights:
        experts, blocks, *rest = places[weight].buffer.shape
        places[weight] = kernel.view_of(places[weight], [experts * blocks, *rest])
    return replace(kernel, places=places)


@dataclass(frozen=True)
class _Order:
    """Rows in the order of their experts: `rows`, where each expert's begin, and where its units
    begin.
    """

    rows: tirx.Buffer
    starts: tirx.Buffer
    units: tirx.Buffer


@dataclass(frozen=True)
class _Shape:
    """The tiles for one row, a few and many, and what a unit is: `columns` blocks of columns by the
    rows of the largest tile; `groups` of them make up the columns.
    """

    tiles: tuple[tuple[int, Tile], ...]
    columns: int
    groups: int

    @property
    def rows(self) -> int:
        """Rows of a unit."""
        return self.tiles[-1][0]

    @staticmethod
    def of(linear: Linear) -> _Shape:
        """The tiles of a linear, cut so that the columns of each divide a unit's."""
        one, few, many = linear.scheme.tiles
        many = linear.kernel.chosen(ANY.name, many)
        blocks = -(-linear.columns // LANES)
        smaller = [(tile.rows, tile) for tile in (one, few) if tile.rows < many.rows]
        found = [*smaller, (many.rows, many)]
        widths = [min(max(1, tile.columns // len(linear.offsets)), blocks) for _, tile in found]
        most = max(widths)
        tiles = tuple(
            (limit, replace(tile, columns=_divisor(most, width)))
            for (limit, tile), width in zip(found, widths, strict=True)
        )
        return _Shape(tiles, most, -(-blocks // most))


def _divisor(whole: int, most: int) -> int:
    """The largest divisor that is no more than a number."""
    return next(d for d in range(most, 0, -1) if whole % d == 0)


def _emit_all(linear: Linear, stack: Stack) -> None:
    shape, many = _Shape.of(linear), linear.scheme.many
    order = _in_order(linear, stack, shape)
    if many is None or many.each is None:
        return _emit_units(linear, stack, shape, order)
    rows = linear.kernel.dims.expr(product(linear.rows))
    with T.If(tirx.GE(rows, i64(many.each * stack.experts))):
        with T.Then():
            many.emit(linear, _InTiles.of(linear, stack, order, many.height))
        with T.Else():
            _emit_units(linear, stack, shape, order)


@dataclass(frozen=True)
class _InTiles:
    """Each expert's rows in tiles of their own: the row at each place, or -1, and the experts that
    have rows. `numbers` holds how many tiles there are and how many such experts.
    """

    linear: Linear
    stack: Stack
    order: _Order
    rows: tirx.Buffer
    starts: tirx.Buffer
    taken: tirx.Buffer
    numbers: tuple[Expr, Expr]
    height: int

    @staticmethod
    def of(linear: Linear, stack: Stack, order: _Order, height: int) -> _InTiles:
        """Lay rows out that are in order."""
        experts = stack.experts
        starts, taken = (T.alloc_buffer((i64(experts + 1),), "int64") for _ in range(2))
        count = T.alloc_buffer((1,), "int64")
        zero = i64(0)
        T.buffer_store(count, zero, [zero])
        T.buffer_store(starts, zero, [zero])
        with T.serial(zero, i64(experts)) as e:
            own = bind(order.starts[e + i64(1)] - order.starts[e])
            T.buffer_store(starts, starts[e] + _tiles(own, height), [e + i64(1)])
            T.buffer_store(taken, e, [count[zero]])  # written over by the next, if it has no rows
            more = tirx.Select(tirx.GT(own, zero), i64(1), zero)
            T.buffer_store(count, count[zero] + more, [zero])
        tiles = bind(starts[i64(experts)])
        most, _ = _most_tiles(linear, stack, height)
        rows = T.alloc_buffer((most * i64(height),), "int64")
        with T.serial(zero, i64(experts)) as e:
            first, own = bind(order.starts[e]), bind(order.starts[e + i64(1)] - order.starts[e])
            start = bind(starts[e] * i64(height))
            with T.serial(zero, (starts[e + i64(1)] - starts[e]) * i64(height)) as r:
                there = tirx.LT(r, own)
                held = order.rows[first + tirx.min(r, own - i64(1))]
                T.buffer_store(rows, tirx.Select(there, held, i64(-1)), [start + r])
        numbers = (tiles, bind(count[zero]))
        return _InTiles(linear, stack, order, rows, starts, taken, numbers, height)

    @property
    def tiles(self) -> Expr:
        """How many tiles there are."""
        return self.numbers[0]

    @property
    def most(self) -> tuple[Expr, Expr]:
        """How many tiles there are at most, and how many of one expert."""
        return _most_tiles(self.linear, self.stack, self.height)

    @property
    def mean(self) -> Expr:
        """Rows of an expert, in the mean."""
        rows = self.linear.kernel.dims.expr(product(self.linear.rows))
        return bind(tirx.truncdiv(rows, i64(self.stack.experts)))

    def has(self, number: Expr) -> Expr:
        """Whether there is a row at a place."""
        return tirx.GE(self.rows[number], i64(0))

    def index(self, number: Expr) -> list[Expr]:
        """Where x has the row at a place, or the first row."""
        row = bind(tirx.max(self.rows[number], i64(0)))
        return self.linear.x_row(flat_index(self.linear.kernel.work(), row, self.linear.rows))

    def over(self, runs: int, body: Callable[[Share], None]) -> None:
        """body(share) for each run of columns and expert that has rows, in this order."""
        count = self.numbers[1]
        with T.parallel(i64(0), i64(runs) * count) as unit:
            run = bind(tirx.truncdiv(unit, count))
            expert = bind(self.taken[unit - run * count])
            base = bind(self.starts[expert])
            tiles = bind(self.starts[expert + i64(1)] - base)
            own = bind(self.order.starts[expert + i64(1)] - self.order.starts[expert])
            route = Route(lambda n: self.rows[n], expert, _blocks(self.linear))
            body(Share(replace(self.linear, route=route), run, base, tiles, own))

    def over_panels(self, panels: int, body: Callable[[Share, Expr], None]) -> None:
        """body(share, panel) for each panel of each expert that has rows: an expert's are shared
        out evenly, so that its rows stay near while those of a run pass.
        """
        runs = min(panels, 4 * self.linear.kernel.isa.cores)

        def over_run(share: Share) -> None:
            first, end = (
                bind(tirx.truncdiv((share.run + i64(n)) * i64(panels), i64(runs))) for n in (0, 1)
            )
            with T.serial(i64(0), end - first) as place:
                body(share, bind(first + place))

        self.over(runs, over_run)


def _most_tiles(linear: Linear, stack: Stack, height: int) -> tuple[Expr, Expr]:
    """The most tiles of all experts together, and of one."""
    rows = linear.kernel.dims.expr(product(linear.rows))
    whole = bind(tirx.truncdiv(rows, i64(height)))
    return bind(whole + i64(stack.experts)), bind(whole + i64(1))


def _emit_units(linear: Linear, stack: Stack, shape: _Shape, order: _Order) -> None:
    work = linear.kernel.work()
    with T.parallel(i64(0), bind(order.units[i64(stack.experts)])) as unit:
        expert = _expert_of(order, stack.experts, unit)
        first = bind(order.starts[expert])
        end = bind(order.starts[expert + i64(1)])
        tiles = bind(_tiles(end - first, shape.rows))
        number = bind(unit - order.units[expert])
        group = bind(tirx.truncdiv(number, tiles))
        start = bind(first + tirx.truncmod(number, tiles) * i64(shape.rows))
        stop = bind(tirx.min(start + i64(shape.rows), end))
        route = Route(lambda n: order.rows[n], expert, _blocks(linear))
        own = replace(linear, route=route)
        _by_count(own, replace(work, parallel=False), shape, shape.tiles, group, (start, stop))


def _blocks(linear: Linear) -> int:
    return -(-int(linear.node["n"]) // LANES)


def _tiles(count: Expr, rows: int) -> Expr:
    return tirx.truncdiv(count + i64(rows - 1), i64(rows))


def _in_order(linear: Linear, stack: Stack, shape: _Shape) -> _Order:
    """Sort the rows by their experts, and count the units of each."""
    kernel, experts, work = linear.kernel, stack.experts, linear.kernel.work()
    count = kernel.dims.expr(product(linear.rows))
    order = _Order(
        T.alloc_buffer((count,), "int64"),
        T.alloc_buffer((i64(experts + 1),), "int64"),
        T.alloc_buffer((i64(experts + 1),), "int64"),
    )
    free = T.alloc_buffer((i64(experts),), "int64")
    read = kernel.places[stack.index].read
    with T.serial(i64(0), i64(experts + 1)) as e:
        T.buffer_store(order.starts, i64(0), [e])
    with T.serial(i64(0), count) as r:
        behind = bind(i64(read(flat_index(work, r, linear.rows))) + i64(1))
        T.buffer_store(order.starts, order.starts[behind] + i64(1), [behind])
    T.buffer_store(order.units, i64(0), [i64(0)])
    with T.serial(i64(0), i64(experts)) as e:
        own = bind(order.starts[e + i64(1)])
        T.buffer_store(free, order.starts[e], [e])
        T.buffer_store(order.starts, order.starts[e] + own, [e + i64(1)])
        units = _tiles(own, shape.rows) * i64(shape.groups)
        T.buffer_store(order.units, order.units[e] + units, [e + i64(1)])
    with T.serial(i64(0), count) as r:
        expert = bind(i64(read(flat_index(work, r, linear.rows))))
        T.buffer_store(order.rows, r, [free[expert]])
        T.buffer_store(free, free[expert] + i64(1), [expert])
    return order


def _expert_of(order: _Order, experts: int, unit: Expr) -> Expr:
    """The last expert whose units begin at or before one; those without rows have none."""
    low = T.alloc_buffer((1,), "int64")
    zero = i64(0)
    T.buffer_store(low, zero, [zero])
    step = 1 << max(0, experts - 1).bit_length()
    while step := step // 2:
        ahead = bind(tirx.min(low[zero] + i64(step), i64(experts)))
        passed = tirx.And(tirx.LT(ahead, i64(experts)), tirx.LE(order.units[ahead], unit))
        T.buffer_store(low, tirx.Select(passed, ahead, low[zero]), [zero])
    return bind(low[zero])


def _by_count(
    linear: Linear,
    work: Work,
    shape: _Shape,
    tiles: tuple[tuple[int, Tile], ...],
    group: Expr,
    span: tuple[Expr, Expr],
) -> None:
    """A unit by the smallest tile that holds its rows."""
    (limit, tile), *larger = tiles
    if not larger:
        return _unit(linear, work, shape, tile, group, span)
    with T.If(tirx.LE(span[1] - span[0], i64(limit))):
        with T.Then():
            _unit(linear, work, shape, tile, group, span)
        with T.Else():
            _by_count(linear, work, shape, tuple(larger), group, span)


def _unit(
    linear: Linear, work: Work, shape: _Shape, tile: Tile, group: Expr, span: tuple[Expr, Expr]
) -> None:
    """The rows of a unit, its columns a tile's at a time, none past the last."""
    parts = shape.columns // tile.columns
    blocks = -(-linear.columns // LANES)
    groups = -(-blocks // tile.columns)
    start, stop = span

    def at(part: Expr | int) -> None:
        number = bind(group * i64(parts) + i64(part))
        inside = work.within(number, 0, groups)
        if shape.groups * parts == groups:
            return emit_tile(linear, inside, tile, number, start, stop)
        with T.If(tirx.LT(number, i64(groups))), T.Then():
            emit_tile(linear, inside, tile, number, start, stop)

    if parts == 1:
        return at(0)
    with T.serial(i64(0), i64(parts)) as part:
        at(part)
