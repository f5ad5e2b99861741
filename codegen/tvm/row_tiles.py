"""The tuning space of register tiles: rows x columns vectors of sums, by the number of rows.

One row is bound by memory, and the tile decides how many streams it is read in; with more rows the
tile decides how often a loaded vector is used before it is loaded again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ...ir.dims import product
from ...ir.node import Node
from ...ir.target import Target
from ..space import DEFAULT, Bucket, Burden, Choice, Sample, Space
from .function import Kernel
from .isa import LANES, Isa, Tile, isa_of

ONE = Bucket("1", 1, 1, (Sample(1),))
FEW = Bucket("2-4", 2, 4, (Sample(2), Sample(4)))
SOME = Bucket("5-16", 5, 16, (Sample(8), Sample(16)))
MANY = Bucket("17-", 17, None, (Sample(64), Sample(512)))
BUCKETS = (ONE, FEW, SOME, MANY)
Tiles = tuple[Tile, Tile, Tile]
Limited = list[tuple[int, Tile]]

_ROWS = {
    ONE.name: (1,),
    FEW.name: (2, 3, 4),
    SOME.name: (2, 3, 4, 5, 6, 8),
    MANY.name: (4, 5, 6, 8, 10, 12),
}
_COLUMNS = (1, 2, 3, 4, 6, 8)
_PANELS = {"chunk": (4, 8, 16, 24), "run": (4, 8, 16)}
_LATENCY = 8  # multiply-adds in flight that keep the units busy: two a cycle, four cycles each


@dataclass(frozen=True)
class Panels:
    """How many rows are done by tile registers: steps of k in a chunk, 1 KiB of weights each for a
    column vector of a panel, and panels of a run, where there are enough of them for all threads.
    """

    chunk: int = 8
    run: int = 8


def variants(
    kernel: Kernel,
    tiles: Tiles,
    above: int | None,
    some: tuple[int, Tile] | None = None,
) -> tuple[Limited, Tile]:
    """The row variants of a linear's code: (most rows, tile) in order, and the tile of more rows.

    By itself the template has one row, the rows of few's tile, up to so many by the tile of `some`,
    where there is one, and more, which tile registers do from `above` rows on, if they do at all.
    SOME is a variant where a tile is chosen for it.
    """
    one, few, many = tiles
    limit = 4 if FEW.name in kernel.choices else few.rows
    found = [(1, kernel.chosen(ONE.name, one)), (limit, kernel.chosen(FEW.name, few))]
    if SOME.name in kernel.choices:
        found.append((16, kernel.chosen(SOME.name, many)))
    elif some is not None and some[0] > limit:
        found.append(some)
    if above is not None and above > found[-1][0]:
        found.append((above, many))
    return found, many if above is not None else kernel.chosen(MANY.name, many)


def tile_spaces(
    node: Node,
    target: Target,
    tiles: Tiles,
    dtype: str,
    *,
    unrolls: tuple[int, ...] = (1,),
    by_tiles: bool = False,
    panels: tuple[Tile, Mapping[str, tuple[int, ...]]] | None = None,
) -> tuple[Space, ...]:
    """The spaces of a linear's row variants, given the template's own tiles and the dtype of its
    products; `unrolls` are the partial sums that its loops over k know, and with `by_tiles` many
    rows are done by tile registers; `panels` are another way's own tile for them and what it may
    be.
    """
    isa, rows = isa_of(target), product(node.shape[:-1])
    # For some rows the template's own is what it does for many, and few's end where its tile does.
    own = {ONE: _choice(tiles[0], unrolls), FEW: DEFAULT, SOME: DEFAULT}
    found = [
        Space(
            bucket=bucket,
            rows=rows,
            default=own.get(bucket, _choice(tiles[2], unrolls)),
            values=_values(bucket, unrolls),
            fits=stays_in_registers(isa),
            burden=_burden(node, target),
            dtype=dtype,
        )
        for bucket in (BUCKETS[:-1] if by_tiles or panels else BUCKETS)
    ]
    if by_tiles:
        found.append(Space(MANY, rows, Choice.of(vars(Panels())), _PANELS, dtype=dtype))
    elif panels is not None:
        found.append(Space(MANY, rows, _choice(panels[0], (1,)), panels[1], dtype=dtype))
    return tuple(
        s
        for s in found
        if not isinstance(rows, int) or s.bucket.low <= rows <= (s.bucket.high or rows)
    )


def _choice(tile: Tile, unrolls: tuple[int, ...]) -> Choice:
    values = {"rows": tile.rows, "columns": tile.columns}
    return Choice.of(values if unrolls == (1,) else values | {"unroll": tile.unroll})


def _values(bucket: Bucket, unrolls: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    values = {"rows": _ROWS[bucket.name], "columns": _COLUMNS}
    return values if unrolls == (1,) else values | {"unroll": unrolls}


def _sums(choice: Choice) -> int:
    return choice["rows"] * choice["columns"] * dict(choice.values).get("unroll", 1)


def stays_in_registers(isa: Isa) -> Callable[[Choice], bool]:
    """Sums, the weights of all columns (or x of all rows, where those are fewer) and one vector of
    the other stay in registers.
    """
    vectors = isa.registers if isa.registers >= 32 else isa.registers // 2
    return lambda c: _sums(c) + min(c["columns"], c["rows"]) + 1 <= vectors


def _burden(node: Node, target: Target) -> Callable[[Choice, int], Burden]:
    """Weights come from memory again for each row tile where a group of columns outgrows the
    second cache; units idle while rows are missing from a tile, while sums wait for each other, and
    while more is loaded than multiplied.
    """
    weights = max(_bytes_of_column(i) for i in node.inputs)

    def burden(choice: Choice, tokens: int) -> Burden:
        rows, columns = choice["rows"], choice["columns"]
        tiles = -(-tokens // rows)
        again = tiles if weights * columns > target.l2_bytes // 2 else 1
        loads = (rows + columns) / (rows * columns)
        idle = max(1.0, loads, _LATENCY / _sums(choice))
        return Burden(float(again), tiles * rows / tokens * idle)

    return burden


def _bytes_of_column(node: Node) -> int:
    """Bytes of a block of sixteen columns of a packed operand; 0 of what is no weight."""
    sizes = node.shape
    if len(sizes) < 3 or not all(isinstance(d, int) for d in sizes) or LANES not in sizes[2:]:
        return 0
    bits = {"u4": 4, "u8": 8, "bf16": 16, "f16": 16}.get(node.dtype, 32)
    return int(product(sizes[1:])) * bits // 8
