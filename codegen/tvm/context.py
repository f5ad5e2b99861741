"""Contexts: y = body(own, seen, c) for each token, the seen in paged caches or in rows of a batch.

An item is a token. The rows template emits the body with the tokens of its sequence as a dim of
the body's own, so that a token's result depends on its sequence alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ...ir.graph import Graph
from ...ir.node import Node
from ...ir.ops.contexts import LENGTH
from ..bodies import apart
from ..expand import expand
from .attention import result_place
from .function import Anchor, Kernel, cache_of
from .loop import RowPlace, check_loops
from .loops import Place, Work
from .pull import Dims, Source
from .rows import emit_rows
from .sequences import wanted_whole
from .values import Expr, bind, i64


def _needs(kernel: Kernel, node: Node) -> dict[Node, str]:
    own, seen = int(node["own"]), int(node["seen"])
    paged = node.op.name == "paged_context"
    plain = (*node.inputs[:own], *node.inputs[own + seen + (4 if paged else 0) :])
    read = node.inputs[own : own + seen]
    if not paged:
        return wanted_whole(kernel, (*plain, *read))
    appended = {c: c.type.dtype for c in read if c.op.name == "cache_append"}
    return {**wanted_whole(kernel, plain), **appended}


def emit_context(kernel: Kernel, node: Node, results: Mapping[Node, Place]) -> None:
    """Emit a token_context or a paged_context."""
    place, done = result_place(kernel, node, results)
    body = apart(expand(node["body"]))
    check_loops(body, "what a token makes of its context")
    emit = _paged if node.op.name == "paged_context" else _dense
    emit(kernel, node, body, place)
    kernel.places.update(done)


def _dense(kernel: Kernel, node: Node, body: Graph, place: Place) -> None:
    batch, length = (kernel.dims.expr(d) for d in node.shape[:2])
    own, seen = int(node["own"]), int(node["seen"])
    with T.parallel(i64(0), batch * length) as at:
        b, s = bind(tirx.floordiv(at, length)), bind(tirx.floormod(at, length))
        work = _inside(kernel, bind(s + i64(1)), length)
        sources: list[Source] = [
            lambda at, x=x: kernel.work().pull().value(x, [b, at[0], *at[1:]])
            for x in node.inputs[own : own + seen]
        ]
        _token(work, kernel, node, body, place, ((b, s), sources, own + seen))


def _paged(kernel: Kernel, node: Node, body: Graph, place: Place) -> None:
    own, seen = int(node["own"]), int(node["seen"])
    caches = node.inputs[own : own + seen]
    _, table, starts, lengths = node.inputs[own + seen : own + seen + 4]

    def read(x: Node, *at: Expr) -> Expr:
        return bind(i64(kernel.work().pull().value(x, at)))

    longest = kernel.dims.expr(table.shape[1]) * i64(int(caches[0].type.block))
    with T.parallel(i64(0), kernel.dims.expr(node.shape[0])) as t:
        count = kernel.dims.expr(lengths.shape[0])
        owner = T.alloc_buffer((1,), "int64")
        T.buffer_store(owner, i64(0), [i64(0)])
        with T.serial(i64(1), count) as n:
            passed = tirx.LE(read(starts, n), t)
            T.buffer_store(owner, tirx.Select(passed, n, owner[i64(0)]), [i64(0)])
        n = bind(owner[i64(0)])
        length = bind(read(lengths, n) - (read(starts, n + i64(1)) - i64(1) - t))
        sources = [_entry(kernel, c, table, n) for c in caches]
        work = _inside(kernel, length, longest)
        _token(work, kernel, node, body, place, ((t,), sources, own + seen + 4))


def _entry(kernel: Kernel, cache: Node, table: Node, n: Expr) -> Source:
    """A token's entry by its place in sequence n."""
    held, block = kernel.places[cache_of(cache)], i64(int(cache.type.block))

    def read(at: Sequence[Expr]) -> Expr:
        number = kernel.work().pull().value(table, [n, tirx.floordiv(at[0], block)])
        return held.read([bind(i64(number)), tirx.floormod(at[0], block), *at[1:]])

    return read


def _inside(kernel: Kernel, length: Expr, longest: Expr) -> Work:
    """The point in a token's own work: L is the tokens up to it, `longest` at most."""
    work = kernel.work()
    dims, room = (Dims({**work.dims.variables, str(LENGTH): e}) for e in (length, longest))
    return replace(work, dims=dims, room=room, parallel=False)


def _token(
    work: Work,
    kernel: Kernel,
    node: Node,
    body: Graph,
    place: Place,
    given: tuple[tuple[Expr, ...], Sequence[Source], int],
) -> None:
    """The body for one token: its index, how the seen are read, where constants begin."""
    index, seen, first = given
    own = int(node["own"])
    sources: dict[Node, Source] = {}
    for inner, outer in zip(body.inputs[:own], node.inputs[:own], strict=True):
        sources[inner] = lambda at, x=outer: kernel.work().pull().value(x, [*index, *at[1:]])
    sources.update(zip(body.inputs[own : own + len(seen)], seen, strict=True))
    for inner, outer in zip(body.inputs[own + len(seen) :], node.inputs[first:], strict=True):
        sources[inner] = lambda at, x=outer: kernel.work().pull().value(x, at)
    row = RowPlace(place.buffer, place.dtype, place.skip, index)
    emit_rows(work.with_sources(sources), {body.outputs[0]: row})


CONTEXT = Anchor(_needs, emit_context)
