"""The rows template: any group of elementwise, movement, index and reduction ops.

Each result is cut into rows, one program each, whose places are the lanes of a block; results with
the same rows share a program, the others stand side by side in one launch. What lanes would have to
compute again and again is written whole by a launch before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...ir.dims import Dim, Shape, as_dim, equal_shapes, product
from ...ir.node import Node
from ...ir.types import CacheType
from .kernel import Kernel, Start, cache_type, ceiling, environment, function
from .loops import LOOPS, MOST_LANES, TooDear, lanes_of, power_of_two, unflattened
from .pull import Place, Pull
from .text import ZERO, Index, Mask, Point, Test, Writer, divided

Wanted = Mapping[Node, Place]
CHUNK = 1024
LEAST_LANES = 64
MOST_WARPS = 8


@dataclass(frozen=True)
class Cut:
    """A shape as rows and the lanes of each; long lanes are cut into chunks, programs of their
    own.
    """

    rows: Shape
    lanes: Shape

    @property
    def count(self) -> Dim:
        """Lanes of a row."""
        return product(self.lanes)

    @property
    def is_chunked(self) -> bool:
        """Whether a row is more than one block."""
        return not isinstance(self.count, int) or self.count > MOST_LANES

    @property
    def width(self) -> int:
        """Lanes of a block."""
        return CHUNK if self.is_chunked or not isinstance(self.count, int) else self.count

    @property
    def programs(self) -> Dim:
        """Programs that all rows take."""
        return product((*self.rows, ceiling(self.count, CHUNK) if self.is_chunked else 1))


def emit_rows(kernel: Kernel, wanted: Wanted) -> None:
    """Add launches that compute every wanted node into its place."""
    while True:
        try:
            cuts = _cuts(kernel, wanted)
            break
        except TooDear as dear:
            whole = kernel.scratch_for(dear.node.shape, kept_dtype(dear.node.dtype))
            emit_rows(kernel, {dear.node: whole})
            kernel.places[dear.node] = whole
    _launch(kernel, cuts)


def kept_dtype(dtype: str) -> str:
    """Scratch holds values as wide as registers do."""
    return {"bf16": "f32", "f16": "f32", "f8e4m3": "f32", "f8e5m2": "f32"}.get(dtype, dtype)


Cuts = dict[Cut, dict[Node, Place]]


def _cuts(kernel: Kernel, wanted: Wanted) -> Cuts:
    """How each wanted node is cut, tried on text that is thrown away."""
    cuts: Cuts = {}
    loops = {n: has_loops(kernel, n) for n in wanted}
    # Those that can be cut in more ways follow those that cannot, and share their loads.
    for node in sorted(wanted, key=lambda n: not loops[n]):
        alike = [c for c in cuts if equal_shapes((*c.rows, *c.lanes), _space(node))]
        cut = _cut(kernel, node, wanted[node], [*alike, *_candidates(node, loops=loops[node])])
        cuts.setdefault(cut, {})[node] = wanted[node]
    return cuts


def _cut(kernel: Kernel, node: Node, place: Place, candidates: list[Cut]) -> Cut:
    first: TooDear | None = None
    for cut in candidates:
        try:
            _emit(kernel, Writer(), cut, {node: place}, Index("pid"))
        except TooDear as dear:
            first = first or dear
        else:
            return cut
    assert first is not None, node
    raise first


def _candidates(node: Node, *, loops: bool) -> list[Cut]:
    """From one axis of lanes to all; without loops, from as many as fill a block."""
    shape = _space(node)
    made = [Cut(shape[: len(shape) - j], shape[len(shape) - j :]) for j in range(len(shape) + 1)]
    if len(made) == 1:
        return made
    if loops:
        return made[1:]
    wide = [c for c in made[1:] if not isinstance(c.count, int) or c.count >= LEAST_LANES]
    return wide or made[-1:]


def _space(node: Node) -> Shape:
    """The index space that a node is computed over."""
    return node.inputs[1].shape if isinstance(node.type, CacheType) else node.shape


def has_loops(kernel: Kernel, node: Node) -> bool:
    """Whether making a value takes a loop along an axis, of what is not in memory."""
    stack, seen = [node], set[Node]()
    while stack:
        each = stack.pop()
        if each in seen or (each in kernel.places and each is not node):
            continue
        seen.add(each)
        if each.op.name in LOOPS:
            return True
        stack.extend(each.inputs)
    return False


def _launch(kernel: Kernel, cuts: Cuts) -> None:
    writer = Writer()
    writer.line("pid = tl.program_id(0)")
    before: Dim = 0
    for at, (cut, wanted) in enumerate(cuts.items()):
        after = as_dim(before + cut.programs)
        if len(cuts) == 1:
            _emit(kernel, writer, cut, wanted, Index("pid"))
            break
        word = "else:"
        if at + 1 < len(cuts):
            word = f"{'elif' if at else 'if'} pid < {writer.dim(after)}:"
        with writer.block(word):
            start = writer.value(f"pid - {writer.dim(before)}", prefix="i")
            _emit(kernel, writer, cut, wanted, Index(start))
        before = after
    names = environment(writer)
    name = kernel.shared("rows", function("{name}", names, writer.lines))
    dims = tuple(n for n in names if n in writer.dims)
    pointers = tuple(n for n in names if n not in writer.dims)
    widest = max(power_of_two(c.width) for c in cuts)
    warps = min(max(widest // 256, 1), MOST_WARPS)
    programs = as_dim(sum((c.programs for c in cuts), start=0))
    kernel.starts.append(Start(name, pointers, dims, (programs,), warps=warps))


def _emit(kernel: Kernel, writer: Writer, cut: Cut, wanted: Wanted, program: Index) -> None:
    """The work of one program: the places of its row, and each value at them."""
    pull = kernel.pull(writer)
    row, lanes, mask = _places(pull, cut, program)
    at = (*unflattened(pull, row, cut.rows), *unflattened(pull, lanes, cut.lanes))
    for node, place in wanted.items():
        if isinstance(node.type, CacheType):
            _append(pull, node, place, at, mask)
        else:
            pull.store(place, at, pull.value(node, at, mask), mask)


def _places(pull: Pull, cut: Cut, program: Index) -> tuple[Index, Index, Mask]:
    """The row and the lanes of a program, and which lanes are there."""
    if not cut.lanes:
        return program, ZERO, ()
    if not cut.is_chunked:
        lanes, inside = lanes_of(pull, cut.width)
        return program, lanes, () if power_of_two(cut.width) == cut.width else (inside,)
    chunks = ceiling(cut.count, CHUNK)
    row = divided(program, chunks, pull.writer, rest=False)
    chunk = divided(program, chunks, pull.writer, rest=True)
    name = pull.writer.value(f"{chunk.text} * {CHUNK} + tl.arange(0, {CHUNK})", prefix="l")
    lanes = Index(name, 0, frozenset({f"lanes{CHUNK}"}))
    return row, lanes, (pull.test(lanes, "<", cut.count),)


def _append(pull: Pull, node: Node, place: Place, at: Point, mask: Mask) -> None:
    """cache[slot // block, slot % block] = value, where the slot is not negative."""
    _, value, slots = node.inputs
    writer = pull.writer
    slot = Index(pull.value(slots, at[:1], mask), 0, at[0].axes, not at[0].axes)
    there = Test(writer.value(f"{slot.text} >= 0", prefix="m"), slot.axes)
    block = cache_type(node).block
    page, offset = (divided(slot, block, writer, rest=r) for r in (False, True))
    found = pull.value(value, at, mask)
    pull.store(place, (page, offset, *at[1:]), found, (*mask, there))
