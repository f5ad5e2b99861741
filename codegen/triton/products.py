"""Linears by weights or by codes: what they want whole, and the launches of the template that is
taken for a form's rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import sympy

from ...ir.dims import Dim, as_dim, product
from ...ir.node import Node
from ...ir.ops.quantized import operands
from ...ir.types import BITS
from ..space import DEFAULT, Choice
from .burdens import processors
from .candidates import LADDER, LIBRARY, ONE, Problem, default, template_of, tile_of
from .factored import Factored, factor_hook, factored
from .factored import load_hook as factored_load
from .kernel import Call, Hook, Kernel, Start, ceiling, emit_call
from .linear import Epilogue, behind, bias_of, dear, is_float8, load_hook, store_hook
from .pull import Place
from .rows import emit_rows
from .spaces import linear_space
from .tiles import DESCRIPTOR

MOST = 2048
"""Rows that any number stands for, where a model's limits allow as many."""


@dataclass(frozen=True)
class Linear:
    """A linear that is being launched: `weight` are the pointers that its template addresses,
    `form` the constants that say how codes lie, `tile` what was taken.
    """

    problem: Problem
    rows: Dim
    epilogue: Epilogue
    weight: tuple[str | None, ...]
    form: Mapping[str, int | float | bool]
    hooks: Mapping[str, Hook] = field(default_factory=dict[str, Hook])
    tile: Choice = DEFAULT

    @property
    def constants(self) -> dict[str, int | float | bool]:
        """Parts, and how codes lie."""
        return {"PARTS": self.problem.parts, **self.form}

    @property
    def sizes(self) -> tuple[Dim, int, int]:
        """Rows, columns of all parts, and k."""
        return self.rows, self.problem.n, self.problem.k


def needs(kernel: Kernel, node: Node) -> list[Node]:
    """What a linear wants whole: its weight or its codes, and an x that a load cannot make, but for
    what a template of one row sums up on its way.
    """
    if node.op.name == "quantized_linear":
        given = operands(node)
        weight = [n for n in (given.codes, given.scale, given.zeros) if n is not None]
    else:
        weight = [node.inputs[1]]
    x = node.inputs[0]
    return weight if _summed(kernel, x) else [*weight, *dear(kernel, x)]


def _summed(kernel: Kernel, x: Node) -> Factored | None:
    """x as a product by a factor of its row, where the form is for one row."""
    return factored(kernel, x) if kernel.bucket == 1 and dear(kernel, x) else None


def emit_linear(kernel: Kernel, node: Node, results: dict[Node, Place]) -> None:
    """Add the launches of a linear; it, or what is fused behind it, is in its place afterwards."""
    epilogue, placed = behind(kernel, node, results)
    made = _linear(kernel, node, epilogue)
    most = min(kernel.most(made.rows, MOST), MOST)
    refused = kernel.refused.get(kernel.bucket, ())
    own = default(made.problem, kernel.bucket, most, kernel.target, refused)
    space = linear_space(made.problem, kernel.rows, made.rows, kernel.target, own)
    taken = kernel.choose(space)
    name, values = template_of(taken)
    hooks = _loads(kernel, node, name) | {"STORE": store_hook(kernel, node, epilogue)}
    made = replace(made, tile=tile_of(taken), hooks=hooks)
    _EMIT[name](kernel, node, made, name, values)
    kernel.places.update(placed)


def _loads(kernel: Kernel, node: Node, template: str) -> dict[str, Hook]:
    """How a template reads x: by what makes it, or, where it needs its whole row and the template
    does not go through it first, from memory, to which a launch before brings it.
    """
    x = node.inputs[0]
    found = _summed(kernel, x)
    if found is None:
        return {"LOAD_X": load_hook(kernel, x)}
    if template in ONE:
        return {"LOAD_X": factored_load(kernel, found), "FACTOR": factor_hook(kernel, found)}
    _whole(kernel, x)
    return {"LOAD_X": load_hook(kernel, x)}


def _linear(kernel: Kernel, node: Node, epilogue: Epilogue) -> Linear:
    x = node.inputs[0]
    n, k = int(node.shape[-1]), int(x.shape[-1])
    rows, item = product(node.shape[:-1]), BITS[x.dtype] // 8
    if node.op.name == "quantized_linear" and not is_float8(node):
        problem, pointers, form = coded(kernel, node, epilogue.parts)
        return Linear(problem, rows, epilogue, pointers, form)
    w = node.inputs[1]  # of float8 as it is: its scales are the hook's
    problem = Problem(n, k, epilogue.parts, item, BITS[w.dtype])
    return Linear(problem, rows, epilogue, (kernel.places[w].name,), {})


def coded(
    kernel: Kernel, node: Node, parts: int
) -> tuple[Problem, tuple[str | None, ...], dict[str, int | float | bool]]:
    """A linear by codes as templates see it: its sizes, its codes, scales and zeros, and how the
    codes lie.
    """
    given = operands(node)
    k, item = int(given.x.shape[-1]), BITS[given.x.dtype] // 8
    bits, group = BITS[given.codes.dtype], int(given.codes.shape[-1])
    problem = Problem(int(node.shape[-1]), k, parts, item, bits, group, given.zeros is not None)
    zeros = kernel.places[given.zeros].name if given.zeros is not None else None
    pointers = (kernel.places[given.codes].name, kernel.places[given.scale].name, zeros)
    return problem, pointers, {"BITS": bits, "G": group, "OFFSET": int(node["offset"])}


def _call(
    made: Linear,
    file: str,
    function: str,
    between: tuple[str | None, ...],
    grid: tuple[Dim, ...],
    values: dict[str, int],
    more: Mapping[str, bool] | None = None,
) -> Call:
    """A call of a template by a linear's weight, what stands between it and the sizes, sizes."""
    left = dict(values)
    warps, stages = left.pop("WARPS"), left.pop("STAGES")
    constants = {**made.constants, **(more or {})}
    given = (*made.weight, *between, *made.sizes)
    return Call(
        file, function, given, made.hooks, constants, grid, left, warps, stages, tile=made.tile
    )  # fmt: skip


def _one(kernel: Kernel, node: Node, made: Linear, template: str, values: dict[str, int]) -> None:
    grid = (ceiling(made.epilogue.width, values["BN"]), made.rows)
    emit_call(kernel, _call(made, template, template, (), grid, values))


def _many(kernel: Kernel, node: Node, made: Linear, template: str, values: dict[str, int]) -> None:
    down, across = ceiling(made.rows, values["BM"]), ceiling(made.epilogue.width, values["BN"])
    if template == "gemm":
        emit_call(kernel, _call(made, "gemm", "gemm", (), (product((down, across)),), values))
        return
    most = processors(kernel.target)
    programs = as_dim(sympy.Min(most, product((down, across))))
    tma = template == "gemm_tma"
    call = _call(made, "gemm_persistent", "gemm_persistent", (), (programs,), values, {"TMA": tma})
    emit_call(kernel, call, hidden=DESCRIPTOR * most if tma else 0)


def _split(kernel: Kernel, node: Node, made: Linear, template: str, values: dict[str, int]) -> None:
    split, (rows, n, _) = values["SPLIT"], made.sizes
    held = rows if kernel.bucket is None else as_dim(sympy.Min(rows, kernel.bucket))
    partial = kernel.scratch_for((split, held, n), "f32").name if split > 1 else None
    down, across = ceiling(rows, values["BM"]), ceiling(made.epilogue.width, values["BN"])
    if template == "gemm_few":
        call = _call(made, "gemm", template, (partial,), (across, down, split), values)
    else:
        grid = (product((down, across)), split)
        call = _call(made, "codes", template, (partial,), grid, values)
    emit_call(kernel, call)
    if partial is not None:
        store = {"STORE": store_hook(kernel, node, made.epilogue)}
        grid = (rows, ceiling(made.epilogue.width, 256))
        parts = {"PARTS": made.problem.parts}
        emit_call(kernel, Call("gemm", "gather_splits", (partial, rows, n), store, parts, grid,
                               {"SPLIT": split}))  # fmt: skip


def _by_library(
    kernel: Kernel, node: Node, made: Linear, template: str, values: dict[str, int]
) -> None:
    """The product by the vendor's library, rounded to the dtype of the linear, and in a launch
    behind it everything else: bias, what is fused, the results in their places.
    """
    x, w = (_whole(kernel, n) for n in node.inputs[:2])
    plain = _plain_place(node, made.epilogue)
    y = plain or kernel.scratch_for(node.shape, node.dtype)
    kernel.starts.append(Start("", (x.name, w.name, y.name), (), (1,), product=made.sizes))
    if plain is not None:
        return
    store = {"STORE": store_hook(kernel, node, made.epilogue)}
    grid, parts = (made.rows, ceiling(made.epilogue.width, 256)), {"PARTS": made.problem.parts}
    emit_call(kernel, Call("gemm", "gather_splits", (y.name, made.rows, made.problem.n), store,
                           parts, grid, {"SPLIT": 1}))  # fmt: skip


def _plain_place(node: Node, epilogue: Epilogue) -> Place | None:
    """The place of a linear's result, where that is all there is to store."""
    (result, place), *more = epilogue.results
    alone = result is node and not more and bias_of(node) is None
    return place if alone and place.dtype == node.dtype else None


def _whole(kernel: Kernel, node: Node) -> Place:
    """Where a value lies whole in memory; it is put there where it does not."""
    while node.op.name == "reshape" and node not in kernel.places:
        node = node.inputs[0]
    if node not in kernel.places:
        place = kernel.scratch_for(node.shape, node.dtype)
        emit_rows(kernel, {node: place})
        kernel.places[node] = place
    return kernel.places[node]


_EMIT = {
    "gemv": _one,
    "gemv_codes": _one,
    "gemm": _many,
    "gemm_persistent": _many,
    "gemm_tma": _many,
    "gemm_few": _split,
    "gemm_codes": _split,
    LIBRARY: _by_library,
}

__all__ = ["LADDER", "emit_linear", "needs"]
