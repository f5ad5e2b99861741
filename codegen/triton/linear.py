"""The hooks around linears: what makes x as it is read, and what becomes of the sums."""

from __future__ import annotations

from dataclasses import dataclass

from ...ir.dims import Dim, equal_shapes, product
from ...ir.node import Node
from ...ir.ops.quantized import operands
from ..errors import CodegenError, NotRowwise
from .kernel import Hook, Kernel
from .loops import TooDear, unflattened
from .pull import Place, Pull, as_index
from .rows import has_loops
from .text import ZERO, Index, Mask, Point, Test, Writer, axes_of
from .values import is_float


@dataclass(frozen=True)
class Epilogue:
    """What a linear's sums become: results, each over rows and `width` columns, of `parts` sums a
    column.
    """

    results: tuple[tuple[Node, Place], ...]
    parts: int
    width: int


def epilogue_of(kernel: Kernel, node: Node, left: dict[Node, Place]) -> Epilogue | None:
    """The results fused behind an anchor; None where one of them needs more than its own rows and
    columns of the sums.
    """
    stripped = [(_unwrapped(kernel, n), p) for n, p in left.items()]
    stripped = [(n, Place(p.name, n.dtype, n.shape, p.wide)) for n, p in stripped]
    total = int(node.shape[-1])
    for parts in (1, 2):
        width = total // parts
        fits = total % parts == 0 and all(
            equal_shapes(n.shape[:-1], node.shape[:-1]) and n.shape[-1] == width
            for n, _ in stripped
        )
        if not fits:
            continue
        found = Epilogue(tuple(stripped), parts, width)
        try:
            store_hook(kernel, node, found)
        except (NotRowwise, CodegenError):
            continue
        return found
    return None


def _unwrapped(kernel: Kernel, node: Node) -> Node:
    """A result without reshapes around it, which are the same memory."""
    while node.op.name == "reshape" and node not in kernel.places:
        node = node.inputs[0]
    return node


ROWS, COLS = frozenset({"rows"}), frozenset({"cols"})


def load_hook(kernel: Kernel, x: Node) -> Hook:
    """LOAD_X(env, rows, ks, mask): x at a row and a place in it, in the dtype of x."""
    writer = Writer()
    pull = kernel.pull(writer)
    rows = Index("rows", 0, ROWS)
    at = (*unflattened(pull, rows, x.shape[:-1]), Index("ks", 0, COLS))
    mask = _inside(pull, product(x.shape[:-1]), int(x.shape[-1]), "ks")
    value = pull.value(x, at, mask)
    cast = {"bf16": "tl.bfloat16", "f16": "tl.float16"}.get(x.dtype)
    writer.line(f"return {value}.to({cast})" if cast else f"return {value}")
    return Hook(("rows", "ks", "mask"), writer, pull)


def _inside(pull: Pull, rows: Dim, columns: int, name: str) -> Mask:
    """That rows and columns are there, each along its own axis; the hook's mask says both."""
    return inside(pull, (Index("rows", 0, ROWS), rows), (Index(name, 0, COLS), columns))


def inside(pull: Pull, *bounds: tuple[Index, Dim]) -> Mask:
    """The hook's mask, and what it says of each index alone."""
    parts = [pull.test(index, "<", bound) for index, bound in bounds]
    whole = Test("mask", axes_of([index for index, _ in bounds]))
    return (whole, *(Test(p.name, p.axes, whole.name) for p in parts))


def store_hook(kernel: Kernel, node: Node, epilogue: Epilogue) -> Hook:
    """STORE(env, sums, rows, cols, mask): everything behind an anchor, and its results stored."""
    writer = Writer()
    rows, cols = Index("rows", 0, ROWS), Index("cols", 0, COLS)
    columns: Point = ()

    def sums(at: Point, mask: Mask) -> str:
        if at[:-1] != columns or at[-1].base != "cols" or at[-1].offset % epilogue.width:
            raise NotRowwise
        part = at[-1].offset // epilogue.width
        value = writer.value(f"sums[{part}]")
        return _with_bias(pull, node, at, mask, value)

    pull = kernel.pull(writer, {node: sums})
    columns = tuple(unflattened(pull, rows, node.shape[:-1]))
    mask = _inside(pull, product(node.shape[:-1]), epilogue.width, "cols")
    for result, place in epilogue.results:
        value = pull.value(result, (*columns, cols), mask)
        # The address may be narrower than the sums' tile: rows and columns meet in the mask.
        writer.line(f"tl.store({pull.address(place, (*columns, cols))}, {value}, mask=mask)")
    return Hook(("sums", "rows", "cols", "mask"), writer, pull)


def _with_bias(pull: Pull, node: Node, at: Point, mask: Mask, value: str) -> str:
    """The sum by its column's scale, where weights are float8, and its bias added; both are those
    of the row's expert where there are experts.
    """
    if is_float8(node):
        given = operands(node)
        of = (expert_at(pull, node, at, mask),) if given.experts is not None else ()
        scale = pull.value(given.scale, (*of, at[-1], ZERO), mask)
        value = pull.writer.value(f"{value} * {scale}")
    bias = bias_of(node)
    if bias is None:
        return value
    of = (expert_at(pull, node, at, mask),) if len(bias.shape) > 1 else ()
    return pull.writer.value(f"{value} + {pull.value(bias, (*of, at[-1]), mask)}")


def is_float8(node: Node) -> bool:
    """Whether a linear's weights are float8 with a scale a row, which sums are multiplied by."""
    return node.op.name.startswith("quantized") and is_float(operands(node).codes.dtype)


def expert_at(pull: Pull, node: Node, at: Point, mask: Mask) -> Index:
    """The expert of a row of a linear by experts."""
    experts = operands(node).experts
    assert experts is not None, node
    rows = at[:-1]
    return as_index(pull.value(experts, rows, mask), rows)


def bias_of(node: Node) -> Node | None:
    """The bias that the hook of a linear adds; templates of experts add theirs themselves, but for
    float8, whose sums are no values yet.
    """
    if node.op.name == "quantized_linear" or is_float8(node):
        return operands(node).bias
    return node.inputs[2] if node.op.name == "linear" and len(node.inputs) > 2 else None


def dear(kernel: Kernel, x: Node) -> list[Node]:
    """The operand, where a load cannot make it: what needs its whole row, each load would go
    through anew.
    """
    if x not in kernel.places and has_loops(kernel, x):
        return [x]
    try:
        load_hook(kernel, x)
    except TooDear:
        return [x]
    return []


def behind(
    kernel: Kernel, node: Node, results: dict[Node, Place]
) -> tuple[Epilogue, dict[Node, Place]]:
    """What an anchor's sums become, and what is in its place once they did: the results fused
    behind it, or the anchor alone.
    """
    left = {n: p for n, p in results.items() if n not in kernel.places}
    epilogue = epilogue_of(kernel, node, left)
    if epilogue is None:
        place = results.get(node) or kernel.scratch_for(node.shape, _wide(node.dtype))
        return Epilogue(((node, place),), 1, int(node.shape[-1])), {node: place}
    return epilogue, left


def _wide(dtype: str) -> str:
    return "f32" if dtype in ("bf16", "f16") else dtype
