"""Loops over tokens whose step is a graph: (h, y) = body(x, h, c), one token after another.

A program takes a sequence through its tokens. Its states lie in memory of its own, twice: a token
reads them where the one before wrote them, and writes the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from ...ir.dims import Dim, as_dim, product
from ...ir.graph import Graph
from ...ir.node import Node
from ...ir.types import TupleType
from .inside import Inside, Store, element_of, outer, row_of, written_out
from .kernel import Kernel, cache_of
from .loops import TooDear
from .pull import Place, Pull, reshaped
from .recurrent import settled
from .text import SCALAR, ZERO, Index, Mask, Point, Test, Writer
from .values import COMPUTED

ROW, SOURCE, TARGET = Index("row"), Index("source"), Index("target")
KNOWN = Test("known", SCALAR)
BATCH = {"token_loop": 0, "ragged_loop": 1, "state_loop": 4}
"""What stands between the values of tokens and the states that a loop begins with."""


def needs(kernel: Kernel, node: Node) -> list[Node]:
    """What a loop wants whole: where sequences begin, states, constants, and values of tokens that
    are more than loads.
    """
    tokens = node.inputs[: int(node["tokens"])]
    return [*node.inputs[len(tokens) :], *(x for x in tokens if not is_loaded(kernel, x))]


def is_loaded(kernel: Kernel, x: Node) -> bool:
    """Whether an element of a value is made where it is read, of loads alone."""
    pull = kernel.pull(Writer())
    lanes = Index("l", 0, frozenset({"lanes"}))
    try:
        pull.value(x, (*(Index("i") for _ in x.shape[1:]), lanes))
    except TooDear:
        return False
    return True


def emit_loop(kernel: Kernel, node: Node, results: dict[Node, Place]) -> None:
    """Add the launch of a loop over tokens; states are updated in place."""
    loop = _Loop.of(kernel, node)
    program, writer = loop.program, loop.program.writer
    writer.line("own = tl.program_id(0)")
    loop.begin()
    result = settled(kernel, node, results)
    lead = (ROW,) if BATCH[node.op.name] else (program.own, ROW)
    with writer.block("for t in range(begin, end):"):
        writer.line("row = tl.cast(t, tl.int32)  # an interpreted range gives plain numbers")
        loop.token(result, lead)
    loop.keep()
    program.launch("loop")


@dataclass(frozen=True)
class _Loop:
    """A loop that is being launched: its program, its step, the memory of its states, the cache
    that they come from and go to.
    """

    node: Node
    program: Inside
    body: Graph
    places: tuple[Place, ...]
    held: Place | None

    @staticmethod
    def of(kernel: Kernel, node: Node) -> _Loop:
        """The loop of a node."""
        body = written_out(node["body"], "the step of a loop over tokens")
        tokens, held = int(node["tokens"]), None
        if isinstance(node.type, TupleType):
            held = kernel.places[cache_of(node.inputs[tokens])]
        batch = BATCH[node.op.name]
        count: Dim = node.inputs[0].shape[0]
        if batch:
            starts = node.inputs[tokens + (1 if held else 0)]
            count = as_dim(starts.shape[0] - 1)
        program = Inside(kernel, count)
        begun = node.inputs[tokens + batch :][: int(node["states"])]
        places = tuple(program.memory(s.shape, s.dtype, 2) for s in begun)
        return _Loop(node, program, body, places, held)

    @property
    def given(self) -> tuple[Node, ...]:
        """What stands for the body's inputs: values of tokens, states to begin with, constants."""
        tokens = int(self.node["tokens"])
        return (*self.node.inputs[:tokens], *self.node.inputs[tokens + BATCH[self.node.op.name] :])

    @property
    def states(self) -> slice:
        """Which of the body's inputs are states."""
        tokens = int(self.node["tokens"])
        return slice(tokens, tokens + len(self.places))

    def _parts(self) -> list[int]:
        """Where each state begins among all numbers of a sequence's states."""
        sizes = [int(product(s.shape)) for s in self.body.inputs[self.states]]
        return [sum(sizes[:i]) for i in range(len(sizes))]

    def begin(self) -> None:
        """The sequence's tokens, and its states where the first one reads them."""
        writer, node = self.program.writer, self.node
        if not BATCH[node.op.name]:
            writer.line("begin = 0")
            writer.line(f"end = {writer.dim(node.inputs[0].shape[1])}")
        else:
            places = self.program.kernel.places
            at = int(node["tokens"]) + (1 if self.held else 0)
            starts, *ends = (
                writer.pointer(places[n].name)
                for n in node.inputs[at : at + (3 if self.held else 1)]
            )
            writer.line(f"begin, end = tl.load({starts} + own), tl.load({starts} + own + 1)")
            for word, pointer in zip(("source", "target"), ends, strict=False):
                writer.line(f"{word} = tl.load({pointer} + own)")
        if self.held:
            writer.line("known = source >= 0")
        wanted: dict[Node, Store] = {}
        states = self.body.inputs[self.states], self.given[self.states]
        for inner, begun, place, first in zip(*states, self.places, self._parts(), strict=True):
            self.program.sources[inner] = partial(self._begun, begun, first)
            wanted[inner] = element_of(place, self.program.own, ZERO)[1]
        self.program.emit(wanted)

    def _begun(self, begun: Node, first: int, pull: Pull, at: Point, mask: Mask) -> str:
        """A state of a step before, or what every sequence begins with."""
        plain = pull.value(begun, at, mask)
        if self.held is None:
            return plain
        (flat,) = reshaped(pull.writer, (product(begun.shape),), begun.shape, at)
        value = pull.load(self.held, (SOURCE, flat.plus(first)), (*mask, KNOWN))
        value = f"tl.where(known, {value}.to({COMPUTED[begun.dtype]}), {plain})"
        return pull.writer.value(value)

    def token(self, result: Place, lead: Point) -> None:
        """One step of the body."""
        program, inner = self.program, self.body.inputs
        program.writer.line("now = (row - begin) % 2")
        program.writer.line("after = 1 - now")
        first, last = self.states.start, self.states.stop
        for n, x in zip(inner[:first], self.given[:first], strict=True):
            program.sources[n] = outer(x, *lead, skip=1)
        for n, place in zip(inner[self.states], self.places, strict=True):
            program.sources[n] = element_of(place, program.own, Index("now"))[0]
        for n, x in zip(inner[last:], self.given[last:], strict=True):
            program.sources[n] = outer(x)
        *news, y = self.body.outputs
        wanted = {
            n: element_of(p, program.own, Index("after"))[1]
            for n, p in zip(news, self.places, strict=True)
        }
        program.run(self.body, {**wanted, y: row_of(result, *lead)})

    def keep(self) -> None:
        """Write the states to where the next step reads them."""
        if self.held is None:
            return
        program = self.program
        program.writer.line("now = (end - begin) % 2")
        wanted: dict[Node, Store] = {}
        inner = self.body.inputs[self.states]
        for n, place, first in zip(inner, self.places, self._parts(), strict=True):
            program.sources[n] = element_of(place, program.own, Index("now"))[0]
            wanted[n] = partial(self._kept, n, first)
        program.emit(wanted)

    def _kept(self, state: Node, first: int, pull: Pull, at: Point, value: str, mask: Mask) -> None:
        assert self.held is not None, self.node
        (flat,) = reshaped(pull.writer, (product(state.shape),), state.shape, at)
        wide = COMPUTED[self.held.dtype]
        pull.store(self.held, (TARGET, flat.plus(first)), f"{value}.to({wide})", mask)
