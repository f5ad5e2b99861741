"""Products of the attention template in float32: queries by keys, weights by values.

Keys are turned round, sixteen at a time, so that a vector of scores holds sixteen keys; all
orders of summation are those of the single row, whatever rows share a register tile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from .attention import Attention, Item, Span
from .isa import LANES
from .loops import Work, along
from .scales import Scales
from .values import Expr, bind, cast, const, i64
from .vectors import ALL, filled, lanes_from, turned_round, vector_of


@dataclass(frozen=True)
class Rows:
    """Rows of a buffer from `first` on, so many of them (known when code is made)."""

    buffer: tirx.Buffer
    first: Expr
    count: int

    def at(self, r: int | Expr) -> Expr:
        """The index of one of them."""
        return self.first + i64(r)

    def part(self, start: int, count: int) -> Rows:
        """Some of the rows."""
        return Rows(self.buffer, bind(self.first + i64(start)), count)

    def tiles(self, size: int) -> list[tuple[int, int]]:
        """(start, count) of pieces of at most `size` rows."""
        return [(r, min(size, self.count - r)) for r in range(0, self.count, size)]


def by_tiles(size: int, x: Rows, y: Rows, body: Callable[[Rows, Rows], None]) -> None:
    """body(rows of x, rows of y) by tiles of `size` rows, and what is left."""
    whole, rest = divmod(x.count, size)
    if whole:
        with T.serial(i64(0), i64(whole)) as t:
            at = bind(t * i64(size))
            body(*(Rows(b.buffer, bind(b.first + at), size) for b in (x, y)))
    if rest:
        body(*(b.part(whole * size, rest) for b in (x, y)))


@dataclass(frozen=True)
class Floats:
    """Products of float32: elements of any kind are widened as they are read."""

    a: Attention
    weight_dtype: ClassVar[str] = "float32"
    key_step: ClassVar[int] = LANES

    @contextmanager
    def ready(self, rows: int) -> Iterator[None]:
        """Around the statements that take products of tiles of so many rows."""
        yield

    def matrix(self, rows: int | Expr, columns: int) -> tirx.Buffer:
        """Scratch of float32 for results."""
        return T.alloc_buffer((i64(rows), i64(columns)), "float32")

    def weights(self, scores: tirx.Buffer) -> tirx.Buffer:
        """Scratch for weights: where the scores are."""
        return scores

    def scales(self, groups: int) -> Scales | None:
        """Scratch for what codes of keys and values are multiplied by; None: products are of what
        the codes stand for.
        """
        return None

    def value_scratch(self, keys: int) -> tirx.Buffer | None:
        """Scratch for the values of so many keys; None: they are read as they lie."""
        return None

    def put_values(self, item: Item, to: tirx.Buffer, step: Expr, start: Expr) -> None:
        """Lay out the values of `key_step` keys from `start` on."""
        raise AssertionError(f"{self} reads values as they lie")

    def tile_of(self, rows: int) -> int:
        """Rows of a tile where there are so many; what is left is a smaller tile, by as little as
        may be.
        """
        return -(-rows // -(-rows // self.row_tile))

    def vectors_of(self, rows: int) -> int:
        """Vectors of keys that a tile of rows takes at a time: 1, 2 or 4."""
        return next(n for n in (4, 2, 1) if n * rows <= self.sums or n == 1)

    @property
    def sums(self) -> int:
        """Vectors of sums that stay in registers."""
        isa = self.a.kernel.isa
        if isa.registers >= 32:
            return 16
        return 6 if isa.vector_bytes >= 32 else 4

    @property
    def row_tile(self) -> int:
        """Rows of a register tile."""
        return min(self.a.space.register_rows, self.sums)

    def columns_of(self, rows: int) -> int:
        """Vectors of values that a tile of rows takes at a time."""
        return max(1, self.sums // rows)

    def queries(self, rows: int) -> tirx.Buffer:
        """Scratch for queries."""
        return T.alloc_buffer((rows, self.a.width), "float32")

    def put_query(
        self, work: Work, item: Item, q: tirx.Buffer, r: Expr, source: tuple[Expr, Expr] | None
    ) -> None:
        """Fill a row of queries from a (token, head), or with zeros."""

        def element(inner: Work, d: Expr) -> None:
            value = self.a.query(inner, item, *source, d) if source else const(0, "float32")
            T.buffer_store(q, cast(value, "float32"), [r, d])

        along(work, self.a.width, element)

    def keys(self, runs: int) -> tirx.Buffer:
        """Scratch for keys turned round, a run of LANES keys after another."""
        return T.alloc_buffer((runs, self.a.width, LANES), "float32")

    def turn_keys(self, work: Work, item: Item, kt: tirx.Buffer, run: Expr, start: Expr) -> None:
        """Turn round the keys start, start + 1, ... into a run."""
        a = self.a
        slot = [bind(s) for s in map(a.places(item, start), range(LANES))]
        whole = a.width // LANES * LANES
        if whole:
            with T.serial(i64(0), i64(whole // LANES)) as o:
                low = bind(o * i64(LANES))
                inside = work.within(o, 0, whole // LANES)
                rows = [
                    vector_of(lambda lane, s=s: a.key(inside, item, s, low + lane)) for s in slot
                ]
                for k, column in enumerate(turned_round(rows)):
                    T.buffer_store(kt, column, [run, low + i64(k), lanes_from(0)])
        if whole < a.width:
            with T.serial(i64(whole), i64(a.width)) as d:
                for i, s in enumerate(slot):
                    value = cast(a.key(work, item, s, d), "float32")
                    T.buffer_store(kt, value, [run, d, i64(i)])

    def score(self, q: Rows, kt: tirx.Buffer, run: Expr, vectors: int, to: Rows, at: Expr) -> None:
        """to[r, at + 16 c + lane] = q[r] . k[16 (run + c) + lane] for so many vectors."""
        sums = [[filled(0) for _ in range(vectors)] for _ in range(q.count)]
        with T.serial(i64(0), i64(self.a.width)) as d:
            k = [bind(kt[run + i64(c), d, lanes_from(0)]) for c in range(vectors)]
            for r, row in enumerate(sums):
                x = bind(T.broadcast(q.buffer[q.at(r), d], LANES))
                for total, value in zip(row, k, strict=True):
                    T.buffer_store(total, total[ALL] + x * value, [ALL])
        for r, row in enumerate(sums):
            for c, total in enumerate(row):
                T.buffer_store(to.buffer, total[ALL], [to.at(r), lanes_from(at + i64(c * LANES))])

    def accumulate(
        self,
        work: Work,
        item: Item,
        weights: Rows,
        span: Span,
        to: Rows,
        values: tirx.Buffer | None = None,
        first: Expr | int = 0,
    ) -> None:
        """to[r] += sum_j weights[r, j] v[j] over a span of keys; `values` as put_values has them,
        from key `first` of the split on.
        """
        vectors = self.columns_of(to.count)
        whole, rest = divmod(self.a.value_width, LANES)
        groups, left = divmod(whole, vectors)
        if groups:
            with T.serial(i64(0), i64(groups)) as o:
                start = bind(o * i64(vectors * LANES))
                self._columns(
                    work, item, weights, span, to, [start + i64(c * LANES) for c in range(vectors)]
                )
        if left:
            first = (whole - left) * LANES
            self._columns(
                work, item, weights, span, to, [i64(first + c * LANES) for c in range(left)]
            )
        if rest:
            with T.serial(i64(whole * LANES), i64(self.a.value_width)) as e:
                self._columns(work, item, weights, span, to, [e], lanes=1)

    def _columns(
        self,
        work: Work,
        item: Item,
        weights: Rows,
        span: Span,
        to: Rows,
        columns: list[Expr],
        lanes: int = LANES,
    ) -> None:
        a, every = self.a, (ALL if lanes > 1 else i64(0))
        place = lambda e: lanes_from(e) if lanes > 1 else e  # noqa: E731
        sums = [[T.alloc_buffer((lanes,), "float32") for _ in columns] for _ in range(to.count)]
        for r, row in enumerate(sums):
            for e, total in zip(columns, row, strict=True):
                T.buffer_store(total, to.buffer[to.at(r), place(e)], [every])

        def key(j: Expr, slot: Expr) -> None:
            values = [
                vector_of(lambda lane, e=e: a.value(work, item, slot, e + lane))[ALL]
                if lanes > 1
                else bind(cast(a.value(work, item, slot, e), "float32"))
                for e in columns
            ]
            for r, row in enumerate(sums):
                weight = weights.buffer[weights.at(r), j]
                weight = bind(T.broadcast(weight, lanes) if lanes > 1 else weight)
                for total, value in zip(row, values, strict=True):
                    T.buffer_store(total, total[every] + weight * value, [every])

        over_keys(a, item, span, key)
        for r, row in enumerate(sums):
            for e, total in zip(columns, row, strict=True):
                T.buffer_store(to.buffer, total[every], [to.at(r), place(e)])


def over_keys(a: Attention, item: Item, span: Span, body: Callable[[Expr, Expr], None]) -> None:
    """body(key within the split, slot) for each key of a span, from the run that it begins in."""
    first, last = span.blocks(LANES)
    with T.serial(first, last) as run:
        start = bind(run * i64(LANES))
        slot = a.places(item, bind(span.base + start))
        with T.serial(i64(0), tirx.min(span.end - start, i64(LANES))) as i:
            body(bind(start + i), bind(slot(i)))
