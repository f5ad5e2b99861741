"""Linears: how many rows take which template, what their tiles are, and the hooks around them."""

from __future__ import annotations

from dataclasses import dataclass

from ...ir.dims import Dim, equal_shapes, product
from ...ir.node import Node
from ..errors import CodegenError, NotRowwise
from .kernel import Call, Hook, Kernel, ceiling, emit_call
from .loops import TooDear, power_of_two, unflattened
from .pull import Place, Pull
from .text import Index, Mask, Point, Test, Writer, axes_of

FEW_ROWS = 16
WAVE = 132
"""Programs that a split sum is cut for, at least."""


@dataclass(frozen=True)
class Tiles:
    """The tiles of a linear for many rows: BM rows, BN columns, BK of k."""

    bm: int = 128
    bn: int = 128
    bk: int = 64
    warps: int = 8
    stages: int = 3


@dataclass(frozen=True)
class Few:
    """The tiles of a linear for up to FEW_ROWS rows; k is cut into `split` stretches."""

    bn: int = 64
    bk: int = 128
    split: int = 1
    warps: int = 4
    stages: int = 4


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
    bias = bias_of(node)
    if bias is None:
        return value
    return pull.writer.value(f"{value} + {pull.value(bias, at[-1:], mask)}")


def bias_of(node: Node) -> Node | None:
    """The bias that the hook of a linear adds; templates of experts add theirs themselves."""
    return node.inputs[2] if node.op.name == "linear" and len(node.inputs) > 2 else None


def needs(kernel: Kernel, node: Node) -> list[Node]:
    """What a linear wants whole: its weight, and an x that a load cannot make."""
    return [node.inputs[1], *dear(kernel, node.inputs[0])]


def dear(kernel: Kernel, x: Node) -> list[Node]:
    """The operand, where a load cannot make it."""
    try:
        load_hook(kernel, x)
    except TooDear:
        return [x]
    return []


def emit_linear(kernel: Kernel, node: Node, results: dict[Node, Place]) -> None:
    """Add the launches of a linear; it, or what is fused behind it, is in its place afterwards."""
    epilogue, placed = behind(kernel, node, results)
    _launches(kernel, node, epilogue)
    kernel.places.update(placed)


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


def _launches(kernel: Kernel, node: Node, epilogue: Epilogue) -> None:
    x, w = node.inputs[:2]
    rows, (n, k) = product(node.shape[:-1]), (int(d) for d in w.shape)
    hooks = {"LOAD_X": load_hook(kernel, x), "STORE": store_hook(kernel, node, epilogue)}
    weight, parts = kernel.places[w].name, {"PARTS": epilogue.parts}
    if kernel.bucket is None or kernel.bucket > FEW_ROWS:
        tiles = kernel.chosen("many", _tiles(n // epilogue.parts, k))
        grid = (product((ceiling(rows, tiles.bm), ceiling(epilogue.width, tiles.bn))),)
        chosen = {"BM": tiles.bm, "BN": tiles.bn, "BK": tiles.bk}
        call = Call("gemm", "gemm", (weight, rows, n, k), hooks, parts, grid, chosen,
                    tiles.warps, tiles.stages)  # fmt: skip
        emit_call(kernel, call)
        return
    few = kernel.chosen("few", _few(n // epilogue.parts, k))
    partial = kernel.scratch_for((few.split, rows, n), "f32").name if few.split > 1 else None
    grid = (ceiling(epilogue.width, few.bn), ceiling(rows, FEW_ROWS), few.split)
    chosen = {"BM": FEW_ROWS, "BN": few.bn, "BK": few.bk, "SPLIT": few.split}
    emit_call(kernel, Call("gemm", "gemm_few", (weight, partial, rows, n, k), hooks, parts, grid,
                           chosen, few.warps, few.stages))  # fmt: skip
    if partial is not None:
        wide = (ceiling(epilogue.width, 256), rows)
        store = {"STORE": store_hook(kernel, node, epilogue)}
        emit_call(kernel, Call("gemm", "gather_splits", (partial, rows, n), store, parts, wide,
                               {"SPLIT": few.split}))  # fmt: skip


def _tiles(n: int, k: int) -> Tiles:
    """The template's own tiles, no wider than the sizes."""
    own = Tiles()
    return Tiles(own.bm, _fitted(own.bn, n), _fitted(own.bk, k), own.warps, own.stages)


def _few(n: int, k: int) -> Few:
    """The template's own tiles for few rows: k is cut until a wave of programs has work."""
    own = Few()
    bn, bk = _fitted(own.bn, n), _fitted(own.bk, k)
    programs, split = -(-n // bn), 1
    while programs * split < WAVE and split < 16 and -(-k // bk) >= 4 * split:
        split *= 2
    return Few(bn, bk, split, own.warps, own.stages)


def _fitted(tile: int, size: int) -> int:
    """A tile no larger than the size needs; 16 is the least that matrix units take."""
    return max(16, min(tile, power_of_two(size)))
