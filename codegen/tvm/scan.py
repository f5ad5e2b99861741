"""Scans whose state is a matrix [K, V] a head: gated linear attention, state spaces, delta rules.

    S = diag(exp(g)) S + k new^T,   y = S^T q,   new = v, or beta (v - (diag(exp(g)) S)^T k)

Columns of S do not meet: an item is a few runs of columns of one head of one sequence, which it
takes through its tokens, the columns staying in the nearest memory: whole blocks of tokens first
(scan_blocks.py), then one after another. Where S has one column, an item is a run of heads, and the
rows of S are the vectors. So a row's result depends on its own sequence alone, and, where sums are
to be made in one order, not on the steps it comes in: then there are no blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ...ir.node import Node
from .function import Anchor, Kernel
from .isa import LANES
from .loops import Place, Work
from .scan_blocks import emit_blocks, over_runs
from .scan_values import (
    Pieces,
    Scan,
    fill,
    load_decays,
    load_vector,
    sum_of_rows,
    sums_of_vectors,
)
from .sequences import Sequences, accumulated, pieces_of, wanted_whole
from .values import Expr, bind, bind_opaque, const, i64, vectorized

HEADS = LANES
"""Heads of an item where a head has one column: a vector of sums."""


def _needs(kernel: Kernel, node: Node) -> dict[Node, str]:
    states = node.op.name == "state_scan"
    return wanted_whole(kernel, (*node.inputs[:4], *node.inputs[8 if states else 4 :]))


def emit_scan(kernel: Kernel, node: Node, results: Mapping[Node, Place]) -> None:
    """Emit a linear_scan or a state_scan."""
    batch = Sequences.of(kernel, node, 4)
    place, done = batch.result(results)
    heads, columns = (int(d) for d in node.inputs[2].shape[-2:])
    groups, rows = (int(d) for d in node.inputs[0].shape[-2:])
    beta = node.inputs[4 if batch.state is None else 8 :]
    state = batch.state or _scratch(batch, (heads, rows, columns))
    decays = int(node.inputs[3].shape[-1])
    scan = Scan(
        batch, node, state, place, heads, groups, rows, columns, decays, next(iter(beta), None)
    )
    cost = heads * rows * columns // LANES
    if columns == 1:
        batch.over(-(-heads // HEADS), cost, lambda w, n, each: _heads(scan, w, n, each))
    else:
        items = -(-columns // (scan.run * scan.runs))
        batch.over(heads * items, cost, lambda w, n, each: _head(scan, w, n, each, items))
    kernel.places.update(done)


def _scratch(batch: Sequences, entry: tuple[int, ...]) -> Place:
    """Where states are that no step goes on from."""
    dtype = accumulated(batch.node.inputs[2].dtype)
    held = T.alloc_buffer([batch.count, *(i64(d) for d in entry)], dtype)
    return Place(held, "f64" if dtype == "float64" else "f32")


def _head(scan: Scan, work: Work, n: Expr, each: Expr, items: int) -> None:
    """Some runs of columns of one head of a sequence."""
    h = bind(tirx.floordiv(each, i64(items)))
    number = bind(tirx.floormod(each, i64(items)))
    size = scan.run * scan.runs
    whole, rest = divmod(scan.columns, size)
    if not rest or not whole:
        return _runs(scan, work, n, h, bind(number * i64(size)), rest or size)
    with T.If(tirx.LT(number, i64(whole))):
        with T.Then():
            _runs(scan, work, n, h, bind(number * i64(size)), size)
        with T.Else():
            _runs(scan, work, n, h, i64(whole * size), rest)


def _runs(scan: Scan, work: Work, n: Expr, h: Expr, first: Expr, count: int) -> None:
    """Columns `first` and on of one head, through all tokens of the sequence in this step: whole
    blocks of tokens with all columns, then the others run by run.
    """
    target = bind(scan.batch.target(n))
    with T.serial(i64(0), i64(scan.rows)) as i:
        _begin(scan, n, target, lambda v: (h, i, first + v), pieces_of(count))
    span = emit_blocks(scan, work, n, target, h, first, count)

    def alone(number: Expr, size: int) -> None:
        low = bind(first + number * i64(scan.run))
        _columns(scan, work, (n, target, h), low, pieces_of(size), span)

    over_runs(scan, count, alone)


def _columns(
    scan: Scan,
    work: Work,
    whose: tuple[Expr, Expr, Expr],
    first: Expr,
    pieces: Pieces,
    span: tuple[Expr, Expr],
) -> None:
    """A run of columns of a sequence's state and head through the tokens of a span, one after
    another.
    """
    n, target, h = whose
    q, k, decay = (scan.vector() for _ in range(3))
    new, held, y = (scan.sums(pieces) for _ in "nhy")
    group = scan.group(h)
    with T.serial(*span) as t:
        index = scan.batch.index(n, t)
        load_vector(scan, work, 0, [*index, group], q)
        load_vector(scan, work, 1, [*index, group], k)
        factor = _decays(scan, work, [*index, h], decay)
        _news(scan, work, [*index, h], first, pieces, (new, y))
        if scan.beta is not None:
            _correct(scan, work, (target, h, first), [*index, h], pieces, (k, factor, new, held))
        with T.serial(i64(0), i64(scan.rows)) as i:
            d, a, b = factor(i), bind_opaque(k[i]), bind_opaque(q[i])
            for p, (low, lanes) in enumerate(pieces):
                with vectorized(lanes) as v:
                    at = [target, h, i, first + i64(low) + v]
                    s = bind_opaque(scan.read(*at) * d + new[p][v] * a)
                    scan.state.store(at, s)
                    T.buffer_store(y[p], y[p][v] + s * b, [v])
        for p, (low, lanes) in enumerate(pieces):
            with vectorized(lanes) as v:
                scan.place.store([*index, h, first + i64(low) + v], y[p][v])


def _begin(
    scan: Scan, n: Expr, target: Expr, at: Callable[[Expr], tuple[Expr, ...]], pieces: Pieces
) -> None:
    """A row of the state that a sequence begins with: zeros, or a copy where it is elsewhere."""
    source = scan.batch.source(n)
    with T.If(tirx.LT(source, i64(0))):
        with T.Then():
            for low, lanes in pieces:
                with vectorized(lanes) as v:
                    scan.state.store([target, *at(i64(low) + v)], const(0, scan.dtype))
        with T.Else(), T.If(tirx.NE(source, target)), T.Then():
            for low, lanes in pieces:
                with vectorized(lanes) as v:
                    value = scan.read(source, *at(i64(low) + v))
                    scan.state.store([target, *at(i64(low) + v)], value)


def _decays(scan: Scan, work: Work, at: list[Expr], into: tirx.Buffer) -> Callable[[Expr], Expr]:
    """What each row of the state is multiplied by."""
    one = load_decays(scan, work, at, into)
    return lambda i: bind_opaque(into[i]) if one is None else one


def _news(
    scan: Scan,
    work: Work,
    at: list[Expr],
    first: Expr,
    pieces: Pieces,
    into: tuple[list[tirx.Buffer], list[tirx.Buffer]],
) -> None:
    """v of a token, and a result of zeros."""
    new, y = into
    for p, (low, lanes) in enumerate(pieces):
        with vectorized(lanes) as v:
            T.buffer_store(new[p], scan.value(work, 2, [*at, first + i64(low) + v]), [v])
    fill(y, scan.dtype)


def _correct(
    scan: Scan,
    work: Work,
    state: tuple[Expr, Expr, Expr],
    at: list[Expr],
    pieces: Pieces,
    buffers: tuple[tirx.Buffer, Callable[[Expr], Expr], list[tirx.Buffer], list[tirx.Buffer]],
) -> None:
    """The delta rule: new = beta (v - what the decayed state holds for k)."""
    (target, h, first), (k, factor, new, held) = state, buffers
    fill(held, scan.dtype)
    with T.serial(i64(0), i64(scan.rows)) as i:
        a = bind_opaque(k[i] * factor(i))
        for p, (low, lanes) in enumerate(pieces):
            with vectorized(lanes) as v:
                s = scan.read(target, h, i, first + i64(low) + v)
                T.buffer_store(held[p], held[p][v] + s * a, [v])
    assert scan.beta is not None, scan.node
    beta = bind_opaque(scan.value(work, scan.beta, at))
    for p, (_, lanes) in enumerate(pieces):
        with vectorized(lanes) as v:
            T.buffer_store(new[p], (new[p][v] - held[p][v]) * beta, [v])


def _heads(scan: Scan, work: Work, n: Expr, each: Expr) -> None:
    """Some heads of a sequence, whose states have one column."""
    target = bind(scan.batch.target(n))
    low = bind(each * i64(HEADS))
    high = bind(tirx.min(low + i64(HEADS), i64(scan.heads)))
    pieces = pieces_of(scan.rows)
    with T.serial(low, high) as h:
        _begin(scan, n, target, lambda v: (h, v, i64(0)), pieces)
    decay = scan.vector()
    with T.serial(*scan.batch.rows(n)) as t:
        index = scan.batch.index(n, t)
        if not _sums_by_transposing(scan):
            with T.serial(low, high) as h:
                value = sum_of_rows(scan, _products(scan, work, target, index, h, decay))
                scan.place.store([*index, h, i64(0)], value)
            return
        products = T.alloc_buffer((HEADS, LANES), "float32")
        with T.serial(i64(0), i64(HEADS)) as number:
            row = _products(scan, work, target, index, bind(low + number), decay)
            with vectorized(LANES) as v:
                for first in range(0, scan.rows, LANES):
                    value = row(i64(first) + v)
                    total = products[number, v] + value if first else value
                    T.buffer_store(products, total, [number, v])
        y = sums_of_vectors(scan, products)
        with vectorized(HEADS) as v:
            scan.place.store([*index, low + v, i64(0)], y[v])


def _sums_by_transposing(scan: Scan) -> bool:
    """Whether the sums of all of an item's heads are made at once."""
    return scan.dtype == "float32" and scan.heads % HEADS == 0 and scan.rows % LANES == 0


def _products(
    scan: Scan, work: Work, target: Expr, index: tuple[Expr, ...], h: Expr, decay: tirx.Buffer
) -> Callable[[Expr], Expr]:
    """What a row of a head's state, gone on by a token, adds to the token's result."""
    group = scan.group(h)
    factor = _decays(scan, work, [*index, h], decay)
    new = bind_opaque(scan.value(work, 2, [*index, h, i64(0)]))
    key = lambda j: scan.value(work, 1, [*index, group, j])  # noqa: E731
    if scan.beta is not None:
        old = sum_of_rows(scan, lambda j: scan.read(target, h, j, i64(0)) * factor(j) * key(j))
        new = bind_opaque((new - old) * scan.value(work, scan.beta, [*index, h]))

    def row(j: Expr) -> Expr:
        s = bind_opaque(scan.read(target, h, j, i64(0)) * factor(j) + key(j) * new)
        scan.state.store([target, h, j, i64(0)], s)
        return s * scan.value(work, 0, [*index, group, j])

    return row


SCAN = Anchor(_needs, emit_scan)
