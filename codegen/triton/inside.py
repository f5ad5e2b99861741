"""Values that one program makes one after another, in memory of its own: the steps of a loop over
tokens, what a token makes of its context.

They are cut into blocks of lanes as the rows template cuts them, but the blocks follow one another.
What threads of a program write for one another they read behind a barrier.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from ...ir.dims import Dim, Shape, as_dim, product, substitute
from ...ir.graph import Graph
from ...ir.node import Node
from ...ir.types import TensorType
from ..bodies import apart
from ..errors import CodegenError
from ..expand import expand, sum_of_products
from .elementwise import EMIT
from .kernel import Kernel, Start, ceiling, environment, function
from .loops import LOOPS, TILED, TooDear, power_of_two, unflattened
from .pull import RULES, Place, Pull
from .rows import kept_dtype
from .text import ZERO, Index, Mask, Point, Writer, divided

Read = Callable[[Pull, Point, Mask], str]
"""The value of a node at an index, in a function's text."""
Store = Callable[[Pull, Point, str, Mask], None]
"""Puts the value of a node at an index where it is wanted."""

OWN = Index("own")
WARPS = 8
LANES = 1024
"""Lanes of a block at most, where nothing is gathered along an axis."""


def written_out(body: Graph, what: str) -> Graph:
    """The body of one token as ops that have a value by index, its outputs apart; refuses another
    op by name, with `what` it is part of.
    """
    body = apart(expand(body))
    body = body.replace({n: sum_of_products(n) for n in body.nodes() if n.op.name == "matmul"})
    for n in body.nodes():
        name = n.op.name
        known = name in RULES or name in EMIT or name in LOOPS
        if not known and name not in ("input", "topk", "sort"):
            raise CodegenError(f"{what} has {name} : {n.type}, which has no value by index")
    return body


@dataclass
class Inside:
    """The text of a program that keeps values for itself.

    `sources` say how nodes are read, `local` are dims that the program knows, with the most that
    each can be; so many `programs` share a launch.
    """

    kernel: Kernel
    programs: Dim
    local: Mapping[str, Dim] = field(default_factory=dict[str, Dim])
    writer: Writer = field(default_factory=Writer)
    sources: dict[Node, Read] = field(default_factory=dict[Node, Read])

    @property
    def own(self) -> Index:
        """The number of this program, which its text knows by that name."""
        return OWN

    def pull(self, writer: Writer | None = None) -> Pull:
        """Pulls in this program."""
        pull = self.kernel.pull(writer or self.writer)
        bound = {n: partial(read, pull) for n, read in self.sources.items()}
        pull.sources = {**pull.sources, **bound}
        pull.tiles = True
        return pull

    def memory(self, shape: Shape, dtype: str, *lead: int) -> Place:
        """Memory of this program for a value, its first index the program's own number."""
        wide = tuple(as_dim(substitute(d, self.local)) for d in shape)
        place = self.kernel.scratch_for((self.programs, *lead, *wide), kept_dtype(dtype))
        return Place(place.name, place.dtype, place.shape, wide=True)

    def run(self, body: Graph, wanted: Mapping[Node, Store]) -> None:
        """Compute outputs of a body into their places: first, each for itself, what goes along an
        axis, then the outputs. All threads see them afterwards.
        """
        kept: list[Node] = []
        for node in body.nodes():
            if node.op.name in LOOPS and isinstance(node.type, TensorType) and node not in wanted:
                place = self.memory(node.shape, node.dtype)
                self.emit({node: partial(_written, place, (self.own,))})
                self.sources[node] = partial(_read, place, (self.own,))
                kept.append(node)
        self.emit(wanted)
        for node in kept:
            del self.sources[node]

    def emit(self, wanted: Mapping[Node, Store]) -> None:
        """Compute values into their places, where all threads see them afterwards."""
        # What is read of memory now may be other than what was read before.
        with self.writer.scope():
            for node, store in wanted.items():
                _emit(self, node, store)
        self.writer.line("tl.debug_barrier()")

    def launch(self, suffix: str) -> None:
        """Add the launch of what was written."""
        for name in self.local:
            self.writer.dims.pop(name, None)
        names = environment(self.writer)
        name = self.kernel.shared(suffix, function("{name}", names, self.writer.lines))
        dims = tuple(n for n in names if n in self.writer.dims)
        pointers = tuple(n for n in names if n not in self.writer.dims)
        self.kernel.starts.append(Start(name, pointers, dims, (self.programs,), warps=WARPS))


def _read(place: Place, lead: Point, pull: Pull, at: Point, mask: Mask) -> str:
    return pull.load(place, (*lead, *at), mask)


def _written(place: Place, lead: Point, pull: Pull, at: Point, value: str, mask: Mask) -> None:
    pull.store(place, (*lead, *at), value, mask)


def element_of(place: Place, *lead: Index) -> tuple[Read, Store]:
    """How elements behind some indices of a place are read and written."""
    return partial(_read, place, lead), partial(_written, place, lead)


def outer(node: Node, *lead: Index, skip: int = 0) -> Read:
    """How a value outside of the body is read: behind some indices, which stand for so many of the
    body's own.
    """
    return lambda pull, at, mask: pull.value(node, (*lead, *at[skip:]), mask)


def row_of(place: Place, *lead: Index) -> Store:
    """How a result [1, ...] is written as the row of a place at some indices."""
    return lambda pull, at, value, mask: pull.store(place, (*lead, *at[1:]), value, mask)


def _emit(inside: Inside, node: Node, store: Store) -> None:
    """The blocks of one value; the fewest lanes that are not too dear."""
    first: TooDear | None = None
    loops = node.op.name in LOOPS
    for lanes in _candidates(node, loops=loops):
        try:
            _blocks(inside, Writer(), node, lanes, store, loops=loops)
        except TooDear as dear:
            first = first or dear
            continue
        _blocks(inside, inside.writer, node, lanes, store, loops=loops)
        return
    raise CodegenError(f"{node.op.name} : {node.type} by one program") from first


def _candidates(node: Node, *, loops: bool) -> Sequence[int]:
    """How many of the last axes are lanes: all, or where something goes along axes, from one on."""
    rank = len(node.shape)
    return range(min(rank, 1), rank + 1) if loops else (rank,)


def _blocks(
    inside: Inside, writer: Writer, node: Node, lanes: int, store: Store, *, loops: bool
) -> None:
    shape = node.shape
    rows, wide = shape[: len(shape) - lanes], product(shape[len(shape) - lanes :])
    most = TILED if loops else LANES
    width = min(power_of_two(wide), most) if isinstance(wide, int) else most
    chunks = ceiling(wide, width)
    count = as_dim(product(rows) * chunks)
    pull = inside.pull(writer)
    if count == 1:
        _block(pull, node, lanes, ZERO, ZERO, width, store)
        return
    at = writer.name("p")
    with writer.block(f"for {at} in range({writer.dim(count)}):"):
        # An interpreted range gives plain numbers.
        number = Index(writer.value(f"tl.cast({at}, tl.int32)", prefix="i"))
        row, chunk = (divided(number, chunks, writer, rest=rest) for rest in (False, True))
        _block(pull, node, lanes, row, chunk, width, store)


def _block(
    pull: Pull, node: Node, lanes: int, row: Index, chunk: Index, width: int, store: Store
) -> None:
    """One block of lanes of a value."""
    writer, last = pull.writer, len(node.shape) - lanes
    rows, inner = node.shape[:last], node.shape[last:]
    count, lane = product(inner), ZERO
    if width > 1:
        begin = "" if chunk == ZERO else f"{chunk.text} * {width} + "
        name = writer.value(f"{begin}tl.arange(0, {width})", prefix="l")
        lane = Index(name, 0, frozenset({f"lanes{width}"}))
    even = isinstance(count, int) and count % width == 0
    mask: Mask = () if even else (pull.test(lane, "<", count),)
    at = (*unflattened(pull, row, rows), *unflattened(pull, lane, inner))
    store(pull, at, pull.value(node, at, mask), mask)
