"""Vectors of sixteen: loaded, filled, turned round.

Each is held in a small buffer of its own, which LLVM keeps in a register.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from .isa import LANES
from .values import Expr, cast, const, i64, vectorized

ALL = T.ramp(0, 1, LANES)
"""Every lane of a vector's own buffer."""


def lanes_from(start: int | Expr, lanes: int = LANES) -> Expr:
    """The index of so many elements side by side."""
    return T.ramp(i64(start), i64(1), lanes)


def filled(value: float, dtype: str = "float32") -> tirx.Buffer:
    """A vector with one number in every lane."""
    buffer = T.alloc_buffer((LANES,), dtype)
    T.buffer_store(buffer, T.broadcast(const(value, dtype), LANES), [ALL])
    return buffer


def vector_of(element: Callable[[Expr], Expr], dtype: str = "float32") -> tirx.Buffer:
    """A vector whose lanes are computed one by one from their number."""
    buffer = T.alloc_buffer((LANES,), dtype)
    with vectorized(LANES) as lane:
        T.buffer_store(buffer, cast(element(lane), dtype), [lane])
    return buffer


def shuffled(a: Expr, b: Expr, order: Sequence[int]) -> Expr:
    """Lanes of a and b, numbered one after the other, in another order."""
    return tirx.Shuffle([a, b], [tirx.IntImm("int32", i) for i in order])


def shuffled_alone(x: Expr, order: Sequence[int]) -> Expr:
    """Lanes of x in another order."""
    return tirx.Shuffle([x], [tirx.IntImm("int32", i) for i in order])


def _in_quarters(width: int, high: int) -> list[int]:
    """The low or high halves of each quarter of two vectors, interleaved by runs of `width`."""
    found: list[int] = []
    for quarter in range(0, LANES, 4):
        for at in range(0, 2, width):
            start = quarter + 2 * high + at
            found += [*range(start, start + width), *range(16 + start, 16 + start + width)]
    return found


def _quarters(odd: int) -> list[int]:
    """The even or odd quarters of one vector, then those of the other."""
    return [v + 4 * q + i for v in (0, LANES) for q in (odd, odd + 2) for i in range(4)]


_STAGES = (
    (1, lambda half: _in_quarters(1, half)),
    (2, lambda half: _in_quarters(2, half)),
    (4, _quarters),
    (8, _quarters),
)


def turned_round(rows: Sequence[tirx.Buffer]) -> list[Expr]:
    """The columns of sixteen vectors of 32-bit elements: result k has lane k of each.

    Four stages of sixteen shuffles of two vectors, each of which is one instruction: pairs,
    then quarters of vectors.
    """
    return _in_stages(rows, _STAGES)


def turned_in_quarters(rows: Sequence[tirx.Buffer]) -> list[Expr]:
    """Four vectors of 32-bit elements turned round within each quarter: quarter q of result k has
    element k of the rows' quarters q.
    """
    return _in_stages(rows, _STAGES[:2])


def turned_halves(rows: Sequence[tirx.Buffer]) -> list[Expr]:
    """Eight vectors of 16-bit elements turned round within each half: result k has element k of the
    first halves, row after row, then of the second ones.
    """
    dtype, values = str(rows[0].dtype), [r[ALL] for r in rows]
    for width in (1, 2, 4):
        pairs = list(zip(values[0::2], values[1::2], strict=True))
        values = [
            _held(shuffled(*two, _in_halves(width, high)), dtype)
            for high in (0, 1)
            for two in pairs
        ]
    # The high halves went behind the low ones three times: the last bit of a column comes first.
    return [values[k] for k in (0, 4, 2, 6, 1, 5, 3, 7)]


def _in_halves(width: int, high: int) -> list[int]:
    """The low or high halves of each half of two vectors, interleaved by runs of `width`."""
    found: list[int] = []
    for half in range(0, LANES, 8):
        for at in range(0, 4, width):
            start = half + 4 * high + at
            found += [*range(start, start + width), *range(LANES + start, LANES + start + width)]
    return found


def _in_stages(
    rows: Sequence[tirx.Buffer], stages: Sequence[tuple[int, Callable[[int], list[int]]]]
) -> list[Expr]:
    dtype, count = str(rows[0].dtype), len(rows)
    values = [r[ALL] for r in rows]
    for distance, order in stages:
        made: dict[int, Expr] = {}
        for i in range(count):
            if not i & distance:
                a, b = values[i], values[i + distance]
                made[i], made[i + distance] = (
                    _held(shuffled(a, b, order(half)), dtype) for half in (0, 1)
                )
        values = [made[i] for i in range(count)]
    # Rows 4g..4g+3 hold columns 0, 2, 1, 3 of each quarter after two stages of halves.
    places = [i & ~3 | (i & 1) << 1 | (i & 2) >> 1 for i in range(count)]
    return [values[p] for p in places]


def _held(value: Expr, dtype: str) -> Expr:
    buffer = T.alloc_buffer((LANES,), dtype)
    T.buffer_store(buffer, value, [ALL])
    return buffer[ALL]
