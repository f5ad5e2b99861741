"""Loops over tokens whose step is a graph: (h, y) = body(x, h, c), one token after another.

An item is a sequence. Its states lie in memory of the item's own while it passes through its
tokens; the body is emitted by the rows template, with the token's values, the states and the
constants as what it reads. New states are written beside the old ones, which the whole step reads,
and copied over them at its end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ...ir.dims import product
from ...ir.graph import Graph
from ...ir.node import Node
from ...ir.types import TupleType
from ..bodies import apart
from ..cost import cost_of
from ..errors import CodegenError
from ..expand import expand
from .function import Anchor, Kernel
from .isa import LANES
from .loops import Place, Work, along, nest
from .pull import BY_INDEX, Source
from .rows import LOOPS, emit_rows, kept_dtype
from .sequences import Sequences, wanted_whole
from .values import COMPUTED, Expr, bind, cast, i64


@dataclass(frozen=True)
class RowPlace(Place):
    """A result [1, ...] that is a row of a larger one."""

    row: tuple[Expr, ...] = ()

    def store(self, at: Sequence[Expr], value: Expr) -> None:
        """Write an element of the row."""
        super().store([*self.row, *at[1:]], value)

    def read(self, at: Sequence[Expr]) -> Expr:
        """An element of the row."""
        return super().read([*self.row, *at[1:]])


@dataclass(frozen=True)
class _Loop:
    """A loop op: its sequences, its step, what it reads."""

    batch: Sequences
    body: Graph
    given: tuple[Node, ...]
    begun: tuple[Node, ...]
    constants: tuple[Node, ...]
    place: Place

    @property
    def inputs(self) -> tuple[tuple[Node, ...], tuple[Node, ...], tuple[Node, ...]]:
        """The body's inputs: those of a token, states, constants."""
        first, second = len(self.given), len(self.given) + len(self.begun)
        inner = self.body.inputs
        return inner[:first], inner[first:second], inner[second:]


def _needs(kernel: Kernel, node: Node) -> dict[Node, str]:
    plain = (*node.inputs[: node["tokens"]], *_rest(node))
    return wanted_whole(kernel, plain)


def _rest(node: Node) -> tuple[Node, ...]:
    """The states that a loop begins with, and its constants."""
    return node.inputs[node["tokens"] + (4 if isinstance(node.type, TupleType) else 0) :]


def emit_loop(kernel: Kernel, node: Node, results: Mapping[Node, Place]) -> None:
    """Emit a token_loop or a state_loop."""
    tokens, states = int(node["tokens"]), int(node["states"])
    batch = Sequences.of(kernel, node, tokens)
    place, done = batch.result(results)
    rest, body = _rest(node), apart(expand(node["body"]))
    check_loops(body, "the step of a loop over tokens")
    loop = _Loop(batch, body, node.inputs[:tokens], rest[:states], rest[states:], place)
    cost = cost_of(body).operations
    cycles = int(cost) // LANES + 1 if isinstance(cost, int) else 1
    batch.over(1, cycles, lambda work, n, _: _sequence(loop, work, n))
    kernel.places.update(done)


def check_loops(body: Graph, what: str) -> None:
    """Refuse a body with an op that the rows template has no loops for; `what` it is."""
    for n in body.nodes():
        known = n.op.name in BY_INDEX or n.op.name in LOOPS or n.op.name in ("input", "item")
        if not known:
            raise CodegenError(f"{what} has {n.op.name} : {n.type}")


def _sequence(loop: _Loop, work: Work, n: Expr) -> None:
    """All tokens of one sequence in this step."""
    work = replace(work, parallel=False)
    target, source = bind(loop.batch.target(n)), bind(loop.batch.source(n))
    now, after = (tuple(_scratch(s) for s in loop.begun) for _ in range(2))
    if loop.batch.state is None:
        _begin(loop, work, now)
    else:
        with T.If(tirx.LT(source, i64(0))):
            with T.Then():
                _begin(loop, work, now)
            with T.Else():
                _restore(loop, work, source, now)
    low, high = loop.batch.rows(n)
    with T.serial(low, high) as t:
        _token(loop, work.within(t, 0, high), loop.batch.index(n, t), now, after)
    if loop.batch.state is not None:
        _keep(loop, work, target, now)


def _begin(loop: _Loop, work: Work, now: Sequence[Place]) -> None:
    """The states that every sequence begins with."""
    for node, place in zip(loop.begun, now, strict=True):
        _copy(work, place, node, lambda w, at, node=node: w.pull().value(node, at))


def _scratch(node: Node) -> Place:
    kept = kept_dtype(node.dtype)
    stored = "uint8" if kept == "bool" else COMPUTED[kept]
    return Place(T.alloc_buffer([i64(int(d)) for d in node.shape], stored), kept)


def _copy(work: Work, place: Place, node: Node, value: Callable[[Work, list[Expr]], Expr]) -> None:
    """Fill a place with a state's shape, element by element."""
    with nest(work, node.shape[:-1]) as (inside, at):
        along(inside, node.shape[-1], lambda w, j: place.store([*at, j], value(w, [*at, j])))


def _parts(loop: _Loop) -> list[tuple[int, Node]]:
    """Where each state begins among all numbers of a sequence's states."""
    found: list[tuple[int, Node]] = []
    first = 0
    for node in loop.begun:
        found.append((first, node))
        first += int(product(node.shape))
    return found


def _flat(node: Node, first: int, at: Sequence[Expr]) -> Expr:
    """The place of an element of a state among all numbers."""
    flat: Expr = i64(0)
    for d, e in zip(node.shape, at, strict=True):
        flat = flat * i64(int(d)) + e
    return flat + i64(first)


def _restore(loop: _Loop, work: Work, source: Expr, now: Sequence[Place]) -> None:
    """The states that a step before left."""
    held = loop.batch.state
    assert held is not None, loop.batch.node
    for (first, node), place in zip(_parts(loop), now, strict=True):
        _copy(work, place, node, _reader(held, source, first, node))


def _reader(
    held: Place, source: Expr, first: int, node: Node
) -> Callable[[Work, list[Expr]], Expr]:
    def value(work: Work, at: list[Expr]) -> Expr:
        return cast(held.read([source, _flat(node, first, at)]), COMPUTED[node.dtype])

    return value


def _keep(loop: _Loop, work: Work, target: Expr, now: Sequence[Place]) -> None:
    """Write the states to where the next step reads them."""
    held = loop.batch.state
    assert held is not None, loop.batch.node
    for (first, node), place in zip(_parts(loop), now, strict=True):
        with nest(work, node.shape[:-1]) as (inside, at):
            along(inside, node.shape[-1], _writer(held, target, first, node, place, at))


def _writer(
    held: Place, target: Expr, first: int, node: Node, place: Place, at: list[Expr]
) -> Callable[[Work, Expr], None]:
    def element(work: Work, j: Expr) -> None:
        value = cast(place.read([*at, j]), COMPUTED[held.dtype])
        held.store([target, _flat(node, first, [*at, j])], value)

    return element


def _token(
    loop: _Loop,
    work: Work,
    index: tuple[Expr, ...],
    now: Sequence[Place],
    after: Sequence[Place],
) -> None:
    """One step of the body."""
    rows, states, constants = loop.inputs
    sources: dict[Node, Source] = {s: p.read for s, p in zip(states, now, strict=True)}
    for inner, outer in zip(rows, loop.given, strict=True):
        sources[inner] = lambda at, outer=outer: work.pull().value(outer, [*index, *at[1:]])
    for inner, outer in zip(constants, loop.constants, strict=True):
        sources[inner] = lambda at, outer=outer: work.pull().value(outer, at)
    *news, result = loop.body.outputs
    row = RowPlace(loop.place.buffer, loop.place.dtype, loop.place.skip, index)
    emit_rows(work.with_sources(sources), {**dict(zip(news, after, strict=True)), result: row})
    for node, old, new in zip(loop.begun, now, after, strict=True):
        _copy(work, old, node, lambda _, at, new=new: new.read(at))


LOOP = Anchor(_needs, emit_loop)
