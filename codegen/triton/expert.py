"""Linears by experts, by weights or by codes: a few rows one by one, more sorted by expert, so that
each expert's weights are read for all of its rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...ir.dims import Dim, as_dim, product
from ...ir.node import Node
from ...ir.ops.quantized import operands
from ...ir.target import Target
from .kernel import Call, Hook, Kernel, ceiling, emit_call, floor_by
from .linear import Epilogue, behind, dear, is_float8, load_hook, store_hook
from .loops import power_of_two
from .products import MOST, coded
from .pull import Place
from .tiles import SHARED, deep_codes

FEW = 16
"""Rows that go one by one."""

TILE = 16
"""Rows of a tile where an expert has few; four times as many where it has more."""


@dataclass(frozen=True)
class _Experts:
    """A linear by experts that is being launched: its weight's pointers, the constants that say how
    codes lie, the experts and how many there are, rows, columns of all parts, k.
    """

    weight: tuple[str | None, ...]
    form: Mapping[str, int | float | bool]
    index: str
    bias: str | None
    count: int
    rows: Dim
    n: int
    k: int
    epilogue: Epilogue
    hooks: Mapping[str, Hook]

    @property
    def suffix(self) -> str:
        """What the names of templates by codes end in."""
        return "_codes" if self.form else ""

    @property
    def constants(self) -> dict[str, int | float | bool | None]:
        """Parts, and how codes lie."""
        return {"PARTS": self.epilogue.parts, **self.form}


def ladder(node: Node) -> tuple[int, ...]:
    """The most rows of each form but the last."""
    return FEW, TILE * int(node.inputs[1].shape[0])


def needs(kernel: Kernel, node: Node) -> list[Node]:
    """What an expert linear wants whole: weights or codes, the experts, a bias, and an x that a
    load cannot make.
    """
    return [*node.inputs[1:], *dear(kernel, node.inputs[0])]


def emit_expert(kernel: Kernel, node: Node, results: dict[Node, Place]) -> None:
    """Add the launches of a linear by experts, with what is fused behind it."""
    epilogue, placed = behind(kernel, node, results)
    made = _experts(kernel, node, epilogue)
    if kernel.bucket == FEW:
        _one_by_one(kernel, made)
    else:
        _sorted(kernel, made)
    kernel.places.update(placed)


def _experts(kernel: Kernel, node: Node, epilogue: Epilogue) -> _Experts:
    hooks = {"LOAD_X": load_hook(kernel, node.inputs[0])}
    hooks["STORE"] = store_hook(kernel, node, epilogue)
    form: Mapping[str, int | float | bool] = {}
    if node.op.name == "quantized_expert_linear":
        given = operands(node)
        index, bias, count = given.experts, given.bias, int(given.codes.shape[0])
        assert index is not None, node
        if is_float8(node):
            weight, bias = (kernel.places[given.codes].name,), None  # the rest is the hook's
        else:
            _, weight, form = coded(kernel, node, epilogue.parts)
    else:
        _, w, index, *more = node.inputs
        weight, bias, count = (kernel.places[w].name,), more[0] if more else None, int(w.shape[0])
    return _Experts(
        weight, form, kernel.places[index].name,
        None if bias is None else kernel.places[bias].name, count,
        product(node.shape[:-1]), int(node.shape[-1]), int(node.inputs[0].shape[-1]), epilogue,
        hooks,
    )  # fmt: skip


def _one_by_one(kernel: Kernel, made: _Experts) -> None:
    given = (*made.weight, made.index, made.bias, made.rows, made.n, made.k)
    wide = made.epilogue.width
    chosen = {"BN": min(16, power_of_two(wide))}
    chosen["BK"] = max(16, min(256, power_of_two(made.k)))
    if made.form:
        pack = 32 // int(made.form["BITS"])
        chosen |= {"PACK": pack, "BK": max(pack, min(512, power_of_two(made.k)))}
    grid = (ceiling(wide, chosen["BN"]), made.rows)
    name = f"expert_gemv{made.suffix}"
    emit_call(kernel, Call("experts", name, given, made.hooks, made.constants, grid, chosen))


def _sorted(kernel: Kernel, made: _Experts) -> None:
    """Rows sorted by expert in a launch before, then tiles of rows of one expert each."""
    held = made.rows
    order = kernel.scratch_for((held,), "i32").name
    starts = kernel.scratch_for((made.count + 1,), "i32").name
    sort = (made.index, order, starts, made.rows, made.count)
    emit_call(kernel, Call("experts", "sort_rows", sort, {}, {}, (made.count,)))
    most = kernel.bucket or min(kernel.most(made.rows, MOST), MOST)
    down = TILE if most <= TILE * made.count else 4 * TILE
    chosen = {"BM": down, "BN": max(16, min(64, power_of_two(made.epilogue.width)))}
    chosen |= _steps(made, kernel.target)
    given = (*made.weight, order, starts, made.bias, made.rows, made.count, made.n, made.k)
    tiles = as_dim(floor_by(made.rows, down) + made.count)
    grid = (tiles, ceiling(made.epilogue.width, chosen["BN"]))
    name = f"expert_gemm{made.suffix}"
    emit_call(kernel, Call("experts", name, given, made.hooks, made.constants, grid, chosen))


def _steps(made: _Experts, target: Target) -> dict[str, int]:
    """BK, and how codes are read: weights are made whole."""
    deep = 128 if SHARED[target.arch] > 2 * SHARED["gfx942"] else 64
    deep = max(16, min(deep, power_of_two(made.k)))
    if not made.form:
        return {"BK": min(deep, 64)}
    bits, group = int(made.form["BITS"]), int(made.form["G"])
    return {"BK": deep_codes(deep, bits, group, made.k), "PACK": 8 // bits, "ROUNDED": 1}
