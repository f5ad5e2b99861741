"""How AMX tiles cut a linear: steps and chunks of k, and panels of columns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from . import amx
from .isa import LANES
from .linear import Linear, Tiling
from .row_tiles import Panels
from .values import Expr, bind, i64

Put = Callable[[Expr, Expr], None]
"""put(run, bytes): takes a run of four k of sixteen columns, 64 bytes."""


PANEL = 2
"""Column vectors of a panel whose weights are loaded for two row tiles at once."""


def emit_all(turns: Iterator[None]) -> None:
    """All of what an iterator emits turn by turn."""
    for _ in turns:
        pass


@dataclass(frozen=True)
class Steps:
    """How k is cut: `groups` of `length` elements, each of `count` steps of `size` elements of
    `width` bytes. `together`: a chunk holds whole groups; `cut`: the steps that it holds else.
    """

    groups: int
    length: int
    size: int
    width: int
    together: bool = False
    cut: int = Panels().chunk

    @property
    def count(self) -> int:
        """Steps of a group; the last may be short and is filled with zeros."""
        return -(-self.length // self.size)

    @property
    def bytes(self) -> int:
        """Bytes of a step's row."""
        return self.size * self.width

    @property
    def chunk(self) -> int:
        """Steps of a chunk."""
        if not self.together:
            return self.cut
        within = self.cut * amx.ROW_BYTES // (self.count * self.bytes)
        return self.count * min(self.groups, max(1, within))

    @property
    def chunks(self) -> int:
        """Chunks of all of k."""
        return max(1, -(-self.groups * self.count // self.chunk))

    def place(self, tile: Expr, step: Expr) -> list[Expr]:
        """Where a tile of x begins, of all groups' steps in a row; but for its rows."""
        chunk = i64(self.chunk)
        return [tirx.truncdiv(step, chunk), tile, tirx.truncmod(step, chunk)]


@dataclass(frozen=True)
class Panel:
    """A panel at work: the linear, steps, tiles of x [chunk, tile, step, 16, size], the column
    vectors as (offset, block), the sums [place, tile, vector, 16, 16] with its place in them, and
    room [number, 16, 16] for what leaves tiles, and what comes after it: the first
    panel of its run, its next place in the run and how many there are. Its rows are `rows` of a
    tiling, in `tiles` tiles from tile `base` on.
    """

    linear: Linear
    steps: Steps
    x: tirx.Buffer
    vectors: tuple[tuple[int, Expr], ...]
    sums: tirx.Buffer
    aside: tirx.Buffer
    place: Expr
    tiling: Tiling
    base: Expr
    tiles: Expr
    rows: Expr
    group: Expr
    after: tuple[Expr, Expr, Expr]

    @property
    def wide(self) -> int:
        """Column vectors for each offset."""
        return len(self.vectors) // len(self.linear.offsets)

    def stored(self) -> list[Expr]:
        """Where the blocks of its vectors lie among those of all weights."""
        return [bind(self.linear.stored(block, offset)) for offset, block in self.vectors]

    def aside_at(self, number: Expr | int, dtype: str) -> tirx.Buffer:
        """One of the rooms of 16 rows aside, for elements of 4 bytes."""
        place = i64(number) if isinstance(number, int) else number
        start = place * i64(amx.ROWS * LANES)
        rows = (amx.ROWS, LANES)
        return T.decl_buffer(rows, dtype, data=self.aside.data, elem_offset=start)

    def tile_of_x(self, tile: Expr, step: Expr) -> Expr:
        """The element where one of its tiles of x begins."""
        return self.x[(*self.steps.place(self.base + tile, step), i64(0), i64(0))]

    def number(self, tile: Expr, r: Expr | int = 0) -> Expr:
        """The number of a row of a tile."""
        row = i64(r) if isinstance(r, int) else r
        return bind((self.base + tile) * i64(amx.ROWS) + row)

    def row_of_sums(self, tile: Expr, vector: int, r: Expr | int = 0) -> list[Expr]:
        """The index of a row of sums, but for its lane."""
        return [self.place, tile, i64(vector), i64(r)]
