"""The linear template: y[t, n] = epilogue(sum_k prologue(x)[t, k] w[n, k] + b[n]) over packed
weights, whatever a scheme makes its sums of.

Weights lie in blocks of 16 columns. Blocks are shared out among the threads, each streaming its own
part of the weights once; rows go through register tiles inside a block, where x stays in cache.
Three variants by the number of rows: one, few, many (register_tiles.py). The sums are those of
floats.py and quantized.py; panels of columns and tile registers are other ways for many rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ...ir.dims import Shape
from ...ir.node import Node
from ..backend import Layout
from .function import Kernel
from .isa import LANES, Tile
from .loops import Place, flat_index
from .values import Expr, bind, i64, vectorized


@dataclass(frozen=True)
class Scheme:
    """How a kind of linear sums: its row tiles (one, few, many), the loops over k that fill a
    tile's sums, and which inputs come before the bias. `some` is the most rows, more than
    few's, that another tile takes by itself, and that tile: it may be few's, more than once.
    `many` is another way for more rows.
    """

    tiles: tuple[Tile, Tile, Tile]
    over_depth: Callable[[Linear, Tile, Sums, list[Expr], list[list[Expr]]], None]
    bias_from: int = 2
    some: tuple[int, Tile] | None = None
    many: Many | None = None


@dataclass(frozen=True)
class Many:
    """A way of its own for many rows, of one weight or of many: `emit` does all rows as a tiling
    lays them out in tiles of `height`. So go more rows than `above`, and of many weights `each` or
    more of one in the mean; None: these never do.
    """

    emit: Callable[[Linear, Tiling], None]
    height: int = 1
    above: int = 0
    each: int | None = 2


@dataclass(frozen=True)
class Route:
    """Which rows go to whose weights: `row(n)` is the n-th row of a tile's numbering, `expert` the
    place of its weights in a stack of them, of `blocks` blocks of columns each.
    """

    row: Callable[[Expr], Expr]
    expert: Expr
    blocks: int


class Tiling(Protocol):
    """Rows as they lie in tiles of so many rows each. A row's number is its place there, tile after
    tile; at some places there is no row.
    """

    @property
    def tiles(self) -> Expr:
        """How many tiles there are."""
        ...

    @property
    def most(self) -> tuple[Expr, Expr]:
        """How many tiles there are at most, and how many of a share's rows, by the dims alone: by
        what is read on the way no memory can be sized.
        """
        ...

    @property
    def mean(self) -> Expr:
        """Rows of a weight, in the mean."""
        ...

    def has(self, number: Expr) -> Expr:
        """Whether there is a row at a place."""
        ...

    def index(self, number: Expr) -> list[Expr]:
        """Where x has the row at a place; where there is none it is that of another one."""
        ...

    def over(self, runs: int, body: Callable[[Share], None]) -> None:
        """body(share) for all rows by all of so many runs of columns, shared out among threads."""
        ...

    def over_panels(self, panels: int, body: Callable[[Share, Expr], None]) -> None:
        """body(share, panel) for all rows by all of so many panels of columns, shared out among
        threads, those by the same weights one after another.
        """
        ...


@dataclass(frozen=True)
class Share:
    """The rows of a tiling that go by the same weights, and a run of columns: the linear that knows
    the weights, the first of the rows' tiles, how many these are, and how many the rows.
    """

    linear: Linear
    run: Expr
    base: Expr
    tiles: Expr
    rows: Expr


@dataclass(frozen=True)
class InOrder:
    """All rows of a linear one after another, by the same weights."""

    linear: Linear
    rows: Expr
    height: int

    @property
    def tiles(self) -> Expr:
        """How many tiles there are."""
        return bind(tirx.truncdiv(self.rows + i64(self.height - 1), i64(self.height)))

    @property
    def most(self) -> tuple[Expr, Expr]:
        """How many tiles there are at most, and how many of a share's rows."""
        return self.tiles, self.tiles

    @property
    def mean(self) -> Expr:
        """All rows: there is one weight."""
        return self.rows

    def has(self, number: Expr) -> Expr:
        """Whether there is a row at a place."""
        return tirx.LT(number, self.rows)

    def index(self, number: Expr) -> list[Expr]:
        """Where x has the row at a place, or the last row."""
        held = bind(tirx.min(number, self.rows - i64(1)))
        return flat_index(self.linear.kernel.work(), held, self.linear.rows)

    def over(self, runs: int, body: Callable[[Share], None]) -> None:
        """body(share) for each of so many runs of columns; threads take runs."""
        tiles = self.tiles
        with T.parallel(i64(0), i64(runs)) as run:
            body(Share(self.linear, run, i64(0), tiles, self.rows))

    def over_panels(self, panels: int, body: Callable[[Share, Expr], None]) -> None:
        """body(share, panel) for each of so many panels; threads take panels."""
        self.over(panels, lambda share: body(share, share.run))


def _same(at: list[Expr]) -> list[Expr]:
    return at


@dataclass(frozen=True)
class Linear:
    """One packed_linear of a kernel: operands, sizes, and the column groups that its results
    combine.

    `offsets` are the distances, in columns, between a result's column and the columns of y that
    it needs: (0,) for a plain linear, (0, F) where gate and up lie one after the other.
    `columns` is the width of the results. With a `route` rows are taken in its order, by one of
    many weights; `x_row` is where x has what belongs to a row of the result. Weights that are
    read once, in the order in which they lie in memory, pass `streams` rows each; 0: they are not.
    With `after` each read of a group asks for another block's, so many groups further on.
    """

    kernel: Kernel
    node: Node
    x: Node
    layout: Layout
    results: Mapping[Node, Place]
    offsets: tuple[int, ...]
    columns: int
    scheme: Scheme
    route: Route | None = None
    x_row: Callable[[list[Expr]], list[Expr]] = _same
    streams: int = 0
    after: tuple[Expr, Expr] | None = None

    def row(self, number: Expr) -> Expr:
        """A row by its number in the order in which rows are taken."""
        return number if self.route is None else bind(self.route.row(number))

    def stored(self, block: Expr, offset: int = 0) -> Expr:
        """Where the block `offset` columns behind a block lies among those of all weights."""
        place = self._in_turn(block, offset)
        if self.route is None:
            return place
        return bind(self.route.expert * i64(self.route.blocks) + place)

    def _in_turn(self, block: Expr, offset: int) -> Expr:
        sides = self.layout.sides
        side = int(self.node["n"]) // LANES // sides
        if sides == 1:
            return block + i64(offset // LANES)
        if self.columns <= side * LANES:  # no block crosses from its side into the next
            number, behind = divmod(offset // LANES, side)
            return (block + i64(behind)) * i64(sides) + i64(number)
        at = bind(block + i64(offset // LANES))
        return tirx.floormod(at, i64(side)) * i64(sides) + tirx.floordiv(at, i64(side))

    @property
    def rows(self) -> Shape:
        """The shape of the rows."""
        return self.node.shape[:-1]

    @property
    def codes(self) -> Node:
        """The packed weight, or its codes."""
        return self.node.inputs[2 if self.node.op.name.startswith("packed_integer") else 1]

    @property
    def depth(self) -> int:
        """Steps over k, or over pairs of k."""
        return -(-int(self.x.shape[-1]) // self.layout.depth)

    @property
    def sum_dtype(self) -> str:
        """The type that sums are gathered in."""
        return "float64" if self.node.dtype == "f64" else "float32"


@dataclass(frozen=True)
class Sums:
    """The accumulators of a tile, by (offset, row, column vector)."""

    parts: Mapping[tuple[int, int, int], list[tirx.Buffer]]

    def joined(self, key: tuple[int, int, int]) -> tirx.Buffer:
        """One buffer of a key's partial sums, added up into the first."""
        first, *more = self.parts[key]
        for p in more:
            with vectorized(LANES) as v:
                T.buffer_store(first, first[v] + p[v], [v])
        return first
