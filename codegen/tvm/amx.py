"""AMX: what its eight tile registers are for here, and its instructions as statements.

A tile is 16 rows of 64 bytes. `tdp*` adds to a tile of 16 x 16 sums the product of a tile of x (16
rows, 64 bytes of k each) and a tile of w (16 runs of 4 bytes of k, for 16 columns side by side),
which is how packed weights lie. Intel 64 and IA-32 Architectures Software Developer's Manual, vol.
1, chapter 18. A thread loads the configuration before it uses tiles and releases them after, so
that no switch between threads has to save them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from .values import Expr, const, i64

ROWS = 16
"""Rows of a tile."""
ROW_BYTES = 64
"""Bytes of a tile's row."""
TILES = 8
"""Tile registers."""
SUMS, X, W = (0, 1, 2, 3), (4, 5), (6, 7)
"""The tile registers of sums, of x and of w: two by two products for two loads of each."""


@dataclass(frozen=True)
class Registers:
    """The tile registers of x and w beside rows x columns sums, which come first."""

    x: tuple[int, ...]
    w: tuple[int, ...]

    @staticmethod
    def of(rows: int, columns: int) -> Registers:
        """Two by two at most, or one row tile."""
        if columns <= 2:
            return Registers(X[:rows], W[:columns])
        assert rows == 1, f"{rows} x {columns} sums do not fit"
        row = Registers.one(columns)
        return Registers(row.x, row.w[:columns])

    @staticmethod
    def one(columns: int) -> Registers:
        """One row tile by up to six columns: weights take turns in what is left."""
        return Registers((columns,), tuple(range(columns + 1, TILES)))


@contextmanager
def configured(
    depth: int = ROW_BYTES, rows: int | Expr = ROWS, roles: Registers = Registers(X, W)
) -> Iterator[None]:
    """Statements that may use tiles in their `roles`, whose products go over `depth` bytes of k, up
    to 64, for so many rows of x, up to 16.
    """
    configuration = T.alloc_buffer((ROW_BYTES,), "uint8")
    with T.serial(i64(0), i64(ROW_BYTES)) as i:
        T.buffer_store(configuration, _byte(0), [i])
    T.buffer_store(configuration, _byte(1), [i64(0)])  # palette 1
    for tile in range(TILES):
        width = depth if tile in roles.x else ROW_BYTES
        T.buffer_store(configuration, _byte(width), [i64(16 + 2 * tile)])
        height = depth // 4 if tile in roles.w else rows
        count = _byte(height) if isinstance(height, int) else tirx.Cast("uint8", height)
        T.buffer_store(configuration, count, [i64(48 + tile)])
    _statement("ldtilecfg", T.address_of(configuration[i64(0)]))
    yield
    _statement("tilerelease")


def buffer(shape: Sequence[Expr | int], dtype: str) -> tirx.Buffer:
    """Memory that tiles are loaded from or stored to.

    One element is written alone: a buffer that is only touched by vectors becomes one of vectors in
    TVM's storage rewriting, and its elements have no address.
    """
    made = T.alloc_buffer(tuple(shape), dtype)
    T.buffer_store(made, const(0, dtype), [i64(0)] * len(shape))
    return made


def zero(tile: int) -> None:
    """Fill a tile with zeros."""
    _statement("tilezero", _tile(tile))


def load(tile: int, first: Expr, stride: int | Expr = ROW_BYTES) -> None:
    """Load a tile's rows, the first at the element `first`, one every `stride` bytes."""
    _statement("tileloadd64", _tile(tile), T.address_of(first), i64(stride))


def store(tile: int, first: Expr, stride: int | Expr = ROW_BYTES) -> None:
    """Store a tile's rows, the first at the element `first`, one every `stride` bytes."""
    _statement("tilestored64", _tile(tile), T.address_of(first), i64(stride))


def multiply(kind: str, sums: int, x: int, w: int) -> None:
    """Add x times w to a tile of sums; `kind` is the instruction: tdpbf16ps, tdpbsud (x has a sign,
    w none), tdpbssd.
    """
    _statement(kind, _tile(sums), _tile(x), _tile(w))


def _statement(name: str, *operands: Expr) -> None:
    T.evaluate(T.call_llvm_intrin("void", f"llvm.x86.{name}", *operands))


def _tile(number: int) -> Expr:
    return tirx.IntImm("int8", number)


def _byte(value: int) -> Expr:
    return tirx.IntImm("uint8", value)
