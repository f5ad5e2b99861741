"""Contexts: y = body(own, seen, c) for each token, the seen in paged caches or in rows of a batch.

A program takes token after token, as many programs as there are processors: what it keeps of a
token's context is as long as that may be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import sympy

from ...ir.dims import Dim, as_dim
from ...ir.node import Node
from ...ir.ops.contexts import LENGTH
from .burdens import processors
from .inside import Inside, outer, row_of, written_out
from .kernel import Kernel, cache_of, cache_type
from .loop import is_loaded
from .pull import Place, Pull
from .text import Index, Mask, Point, divided

ROW = Index("row")
L = str(LENGTH)


def needs(kernel: Kernel, node: Node) -> list[Node]:
    """What a context wants whole: all but values of the token itself that loads make."""
    own = node.inputs[: int(node["own"])]
    return [*(x for x in own if not is_loaded(kernel, x)), *node.inputs[len(own) :]]


def emit_context(kernel: Kernel, node: Node, results: dict[Node, Place]) -> None:
    """Add the launch of a token_context or a paged_context."""
    place = results.get(node) or kernel.scratch_for(node.shape, node.dtype)
    emit = _paged if node.op.name == "paged_context" else _dense
    emit(kernel, node, place)
    kernel.places[node] = place


def _program(kernel: Kernel, tokens: Dim, longest: Dim) -> Inside:
    programs = as_dim(sympy.Min(processors(kernel.target), tokens))
    program = Inside(kernel, programs, local={L: longest})
    program.writer.line("own = tl.program_id(0)")
    return program


@contextmanager
def _tokens(program: Inside, tokens: Dim) -> Iterator[None]:
    """The lines for each token that a program has: `row` is its number."""
    writer = program.writer
    with writer.block(f"for t in range(own, {writer.dim(tokens)}, tl.num_programs(0)):"):
        writer.line("row = tl.cast(t, tl.int32)  # an interpreted range gives plain numbers")
        yield


def _dense(kernel: Kernel, node: Node, place: Place) -> None:
    batch, length = node.shape[:2]
    tokens = as_dim(batch * length)
    program = _program(kernel, tokens, length)
    writer, own = program.writer, int(node["own"])
    with _tokens(program, tokens):
        lead = tuple(divided(ROW, length, writer, rest=rest) for rest in (False, True))
        writer.line(f"{L} = {lead[1].text} + 1")
        seen = node.inputs[own : own + int(node["seen"])]
        reads = [outer(x, lead[0]) for x in seen]
        _token(program, node, place, lead, reads, own + len(seen))
    program.launch("context")


def _paged(kernel: Kernel, node: Node, place: Place) -> None:
    own, seen = int(node["own"]), int(node["seen"])
    caches = node.inputs[own : own + seen]
    _, table, starts, lengths = node.inputs[own + seen : own + seen + 4]
    longest = as_dim(table.shape[1] * cache_type(caches[0]).block)
    program = _program(kernel, node.shape[0], longest)
    writer = program.writer
    first, length = (writer.pointer(kernel.places[n].name) for n in (starts, lengths))
    kernel.use("ragged", "run_of")
    count = writer.dim(lengths.shape[0])
    with _tokens(program, node.shape[0]):
        writer.line(f"n = run_of({first}, row, {count})")
        writer.line(f"{L} = tl.load({length} + n) - tl.load({first} + n + 1) + 1 + row")
        reads = [partial(_entry, kernel.places[cache_of(c)], table, c) for c in caches]
        _token(program, node, place, (ROW,), reads, own + seen + 4)
    program.launch("context")


def _entry(held: Place, table: Node, cache: Node, pull: Pull, at: Point, mask: Mask) -> str:
    """A token's entry by its place in sequence n."""
    block = cache_type(cache).block
    page, rest = (divided(at[0], block, pull.writer, rest=r) for r in (False, True))
    number = pull.value(table, (Index("n"), page), mask)
    found = Index(number, 0, at[0].axes, not at[0].axes)
    return pull.load(held, (found, rest, *at[1:]), mask)


def _token(
    program: Inside,
    node: Node,
    place: Place,
    lead: Point,
    seen: list[Callable[[Pull, Point, Mask], str]],
    first: int,
) -> None:
    """The body for the token at some indices: how the seen are read, where constants begin."""
    body = written_out(node["body"], "what a token makes of its context")
    own = int(node["own"])
    for n, x in zip(body.inputs[:own], node.inputs[:own], strict=True):
        program.sources[n] = outer(x, *lead, skip=1)
    program.sources.update(zip(body.inputs[own : own + len(seen)], seen, strict=True))
    for n, x in zip(body.inputs[own + len(seen) :], node.inputs[first:], strict=True):
        program.sources[n] = outer(x)
    program.run(body, {body.outputs[0]: row_of(place, *lead)})
