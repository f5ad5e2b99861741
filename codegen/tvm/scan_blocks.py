"""Blocks of tokens through a scan's state at once: it is read twice and written once for all of
them.

With P_t = exp(g_1 + ... + g_t) inside a block of B tokens, S the state before it and
d_ts = P_t / P_s (Dao and Gu, 2024; for the delta rule Yang et al., 2024):

    u_t = v_t,  or  beta_t (v_t - (P_t k_t)^T S - sum_{s < t} (k_t . d_ts k_s) u_s)
    y_t = (P_t q_t)^T S + sum_{s <= t} (q_t . d_ts k_s) u_s
    S   = P_B S + sum_s (d_Bs k_s) u_s^T

No decay is divided by: d_ts k_s is k_s multiplied by one decay after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from .loops import Work
from .scan_values import (
    Pieces,
    Scan,
    fill,
    load_decays,
    load_vector,
    over_rows_of,
    sum_of_rows,
)
from .sequences import pieces_of
from .values import Expr, bind, bind_opaque, i64, vectorized

Sums = list[tirx.Buffer]


@dataclass(frozen=True)
class _Head:
    """Columns of one head, from `first` on, in the state `target`; blocks have them in `held`, run
    after run, where those of a run lie together: apart from one another they would share a few sets
    of the nearest cache.
    """

    scan: Scan
    work: Work
    target: Expr
    h: Expr
    first: Expr
    held: tirx.Buffer


@dataclass(frozen=True)
class _Run:
    """Columns of a head that go through the state together, the `number`-th of them."""

    head: _Head
    number: Expr
    pieces: Pieces

    def held(self, i: Expr, column: Expr) -> Expr:
        """An element of the state."""
        return self.head.held[self.number, i, column]


@dataclass(frozen=True)
class _Block:
    """Vectors of a block's tokens: `queries` P_t q_t, `held` P_t k_t where there is a beta, `keys`
    d_Bs k_s; `total` is P_B, a number (else None, and `totals` holds one for each row).

    `seen[t][s]` is q_t . d_ts k_s, `known[t][s]` is k_t . d_ts k_s.
    """

    queries: Sums
    held: Sums
    keys: Sums
    total: Expr | None
    totals: tirx.Buffer
    seen: Sequence[Sequence[Expr]]
    known: Sequence[Sequence[Expr]]

    def factor(self, i: Expr) -> Expr:
        """What a row of the state is multiplied by."""
        return self.total if self.total is not None else bind_opaque(self.totals[i])


def emit_blocks(
    scan: Scan, work: Work, n: Expr, target: Expr, h: Expr, first: Expr, columns: int
) -> tuple[Expr, Expr]:
    """Take a sequence's whole blocks through some columns of one head; gives the first token that
    is left, and the one behind the last.
    """
    start, stop = scan.batch.rows(n)
    if scan.block == 1:
        return start, stop
    count = bind(tirx.floordiv(stop - start, i64(scan.block)))
    held = T.alloc_buffer((-(-columns // scan.run), scan.rows, scan.run), scan.dtype)
    head = _Head(scan, work, target, h, first, held)
    with T.If(tirx.GT(count, i64(0))), T.Then():
        _move(head, columns, lambda at, to: T.buffer_store(held, scan.read(*at), to))
    with T.serial(i64(0), count) as number:
        at = bind(start + number * i64(scan.block))
        tokens = [scan.batch.index(n, bind(at + i64(t))) for t in range(scan.block)]
        block = _prepare(head, tokens)

        def through(number: Expr, size: int) -> None:
            run = _Run(head, number, pieces_of(size))
            _results(run, block, tokens, _through(run, block))

        over_runs(scan, columns, through)
    with T.If(tirx.GT(count, i64(0))), T.Then():
        _move(head, columns, lambda at, to: scan.state.store(at, held[to[0], to[1], to[2]]))
    return bind(start + count * i64(scan.block)), stop


def over_runs(scan: Scan, columns: int, body: Callable[[Expr, int], None]) -> None:
    """body(number, columns) for each run of some columns."""
    whole, rest = divmod(columns, scan.run)
    if whole == 1:
        body(i64(0), scan.run)
    elif whole:
        with T.serial(i64(0), i64(whole)) as number:
            body(number, scan.run)
    if rest:
        body(i64(whole), rest)


def _move(head: _Head, columns: int, one: Callable[[list[Expr], list[Expr]], None]) -> None:
    """one(place in the state, place where it is held) for all columns of a head."""

    def run(number: Expr, size: int) -> None:
        with T.serial(i64(0), i64(head.scan.rows)) as i:
            for low, lanes in pieces_of(size):
                with vectorized(lanes) as v:
                    c = i64(low) + v
                    column = head.first + number * i64(head.scan.run) + c
                    one([head.target, head.h, i, column], [number, i, c])

    over_runs(head.scan, columns, run)


def _prepare(head: _Head, tokens: Sequence[tuple[Expr, ...]]) -> _Block:
    """Everything about a block that is no column's own."""
    scan, delta = head.scan, head.scan.beta is not None
    queries, keys = ([scan.vector() for _ in tokens] for _ in "qk")
    held = [scan.vector() for _ in tokens] if delta else []
    decay, totals = scan.vector(), scan.vector()
    total: Expr | None = None
    seen: list[list[Expr]] = []
    known: list[list[Expr]] = []
    group = scan.group(head.h)
    for t, token in enumerate(tokens):
        q, k = queries[t], keys[t]
        load_vector(scan, head.work, 0, [*token, group], q)
        load_vector(scan, head.work, 1, [*token, group], k)
        one = load_decays(scan, head.work, [*token, head.h], decay)
        for s in range(t):
            _scale(scan, keys[s], keys[s], one, decay)
        if delta:
            known.append([_dot(scan, k, keys[s]) for s in range(t)])
        seen.append([_dot(scan, q, keys[s]) for s in range(t + 1)])
        if one is None:
            _grow(scan, totals, decay, first=t == 0)
        else:
            total = one if total is None else bind_opaque(total * one)
        if delta:
            _scale(scan, held[t], k, total, totals)
        _scale(scan, q, q, total, totals)
    return _Block(queries, held, keys, total, totals, seen, known)


def _scale(
    scan: Scan, into: tirx.Buffer, x: tirx.Buffer, one: Expr | None, each: tirx.Buffer
) -> None:
    """x times one number, or times one for each row."""
    over_rows_of(
        scan, lambda j: T.buffer_store(into, x[j] * (each[j] if one is None else one), [j])
    )


def _grow(scan: Scan, totals: tirx.Buffer, decay: tirx.Buffer, *, first: bool) -> None:
    """The product of the decays so far."""
    over_rows_of(
        scan, lambda j: T.buffer_store(totals, decay[j] if first else totals[j] * decay[j], [j])
    )


def _dot(scan: Scan, x: tirx.Buffer, y: tirx.Buffer) -> Expr:
    return sum_of_rows(scan, lambda j: x[j] * y[j])


def _through(run: _Run, block: _Block) -> tuple[list[Sums], list[Sums]]:
    """Each token's query, and key where there is a beta, against the state before the block."""
    scan, pieces = run.head.scan, run.pieces
    results = [scan.sums(pieces) for _ in block.queries]
    known = [scan.sums(pieces) for _ in block.held]
    for sums in (*results, *known):
        fill(sums, scan.dtype)
    pairs = [*zip(block.queries, results, strict=True), *zip(block.held, known, strict=True)]
    with T.serial(i64(0), i64(scan.rows)) as i:
        factors = [bind_opaque(x[i]) for x, _ in pairs]
        for p, (low, lanes) in enumerate(pieces):
            with vectorized(lanes) as v:
                s = bind_opaque(run.held(i, i64(low) + v))
                for a, (_, sums) in zip(factors, pairs, strict=True):
                    T.buffer_store(sums[p], sums[p][v] + s * a, [v])
    return results, known


def _results(
    run: _Run,
    block: _Block,
    tokens: Sequence[tuple[Expr, ...]],
    sums: tuple[list[Sums], list[Sums]],
) -> None:
    """The rows of a block's tokens, and the state behind it."""
    head, (results, known) = run.head, sums
    scan = head.scan
    first = bind(head.first + run.number * i64(scan.run))
    news = [scan.sums(run.pieces) for _ in tokens]
    for t, token in enumerate(tokens):
        beta = None
        if scan.beta is not None:
            beta = bind_opaque(scan.value(head.work, scan.beta, [*token, head.h]))
        for p, (low, lanes) in enumerate(run.pieces):
            with vectorized(lanes) as v:
                column = first + i64(low) + v
                new = scan.value(head.work, 2, [*token, head.h, column])
                if beta is not None:
                    new = new - known[t][p][v]
                    for s in range(t):
                        new = new - news[s][p][v] * block.known[t][s]
                    new = new * beta
                T.buffer_store(news[t][p], new, [v])
                y = results[t][p][v]
                for s in range(t + 1):
                    y = y + news[s][p][v] * block.seen[t][s]
                scan.place.store([*token, head.h, column], y)
    with T.serial(i64(0), i64(scan.rows)) as i:
        factor, keys = block.factor(i), [bind_opaque(k[i]) for k in block.keys]
        for p, (low, lanes) in enumerate(run.pieces):
            with vectorized(lanes) as v:
                s = run.held(i, i64(low) + v) * factor
                for key, new in zip(keys, news, strict=True):
                    s = s + new[p][v] * key
                T.buffer_store(head.held, s, [run.number, i, i64(low) + v])
