"""A kernel body as one TVM function: arguments, shape variables, levels of rows and anchors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import sympy
import tvm
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from ...ir.dims import Dim, Shape, as_dim, names_in
from ...ir.graph import Graph
from ...ir.node import Node
from ...ir.ops.serving import updated
from ...ir.target import Target
from ...ir.types import CacheType, TensorType, Type
from ..errors import CodegenError
from ..expand import expand
from ..space import DEFAULT, Choices, Space, V
from .hoist import hoist_buffers
from .isa import Isa
from .loops import Place, Work
from .pull import Dims, Source
from .rows import emit_rows, kept_dtype
from .values import STORED, SUBBYTE, Expr, i64


@dataclass
class Kernel:
    """A function under construction: the ISA, dims, every buffer of an argument or of a computed
    whole value; and what was chosen for it, by bucket.
    """

    isa: Isa
    body: Graph
    dims: Dims = field(default_factory=Dims)
    places: dict[Node, Place] = field(default_factory=dict[Node, Place])
    snippets: set[str] = field(default_factory=set[str])
    solved: dict[Dim, Expr] = field(default_factory=dict)
    choices: Choices = field(default_factory=dict)

    def chosen(self, bucket: str, default: V) -> V:
        """A template's own values for a bucket, with those that were chosen in their place."""
        return self.choices.get(bucket, DEFAULT).over(default)

    def work(self) -> Work:
        """The top of the function: every value with a place can be read."""
        sources: dict[Node, Source] = {
            n: p.read for n, p in self.places.items() if isinstance(n.type, TensorType)
        }
        return Work(self.dims, sources, parallel=True)

    def scratch(self, node: Node, dtype: str | None = None) -> Place:
        """A buffer for a whole value, from the runtime's workspace."""
        kept = dtype or kept_dtype(node.dtype)
        extents = [self.dims.expr(d) for d in node.shape] or [i64(1)]
        self.places[node] = Place(T.alloc_buffer(extents, STORED[kept]), kept)
        return self.places[node]

    def view(self, place: Place, shape: Shape) -> Place:
        """The same memory with another row-major shape."""
        return self.view_of(place, [self.dims.expr(d) for d in shape])

    def view_of(self, place: Place, extents: list[Expr]) -> Place:
        """The same memory with another row-major shape, as expressions."""
        return Place(
            T.decl_buffer(extents, STORED[place.dtype], data=place.buffer.data), place.dtype
        )


def _no_space(node: Node, target: Target) -> tuple[Space, ...]:
    return ()


@dataclass(frozen=True)
class Anchor:
    """A template built around one op: which operands it wants as whole buffers (and their
    dtype), what it emits, and what may be chosen in it on a target.

    `emit` puts the node, or a result that it has fused behind it, into kernel.places.
    """

    needs: Callable[[Kernel, Node], Mapping[Node, str]]
    emit: Callable[[Kernel, Node, Mapping[Node, Place]], None]
    spaces: Callable[[Node, Target], tuple[Space, ...]] = _no_space


def physical_shape(t: Type, blocks: Dim) -> Shape:
    """The shape of the array behind an argument; packed dtypes count bytes along the last axis."""
    if isinstance(t, CacheType):
        return t.array(blocks)
    if not isinstance(t, TensorType):
        raise CodegenError(f"an argument of type {t}")
    if t.dtype in SUBBYTE and t.shape:
        per = 8 // SUBBYTE[t.dtype]
        return (*t.shape[:-1], -(-t.shape[-1] // per))
    return t.shape


def build_function(
    name: str,
    body: Graph,
    isa: Isa,
    anchors: Mapping[str, Anchor],
    choices: Choices | None = None,
) -> tvm.tirx.PrimFunc:
    """The TVM function f(*inputs, *outputs) of a kernel body; a cache that is appended to is no
    further output.
    """
    body = expand(body)
    kernel = Kernel(isa, body, choices=choices or {})
    with IRBuilder() as builder, T.prim_func():
        T.func_name(name)
        T.func_attr({"global_symbol": name, "tirx.noalias": True})
        results = _arguments(kernel)
        _emit_levels(kernel, results, anchors)
    function = builder.get()
    function = function.with_body(hoist_buffers(function.body))
    for snippet in sorted(kernel.snippets):
        pragma = tirx.AttrStmt(
            tirx.IntImm("int32", 0), "pragma_import_llvm", tvm.ir.StringImm(snippet), function.body
        )
        function = function.with_body(pragma)
    return function


def _arguments(kernel: Kernel) -> dict[Node, Place]:
    """Declare the arguments and bind the dims; gives the places of the results."""
    body = kernel.body
    given = [(f"x{i}", n) for i, n in enumerate(body.inputs)]
    outputs = [n for n in body.outputs if not isinstance(n.type, CacheType)]
    repeated = len(outputs) != len(set(outputs))
    if repeated:
        raise CodegenError(f"kernel {body.name} gives one value as two results")
    blocks = {n: f"{label}_blocks" for label, n in given if isinstance(n.type, CacheType)}
    shapes = {n: physical_shape(n.type, sympy.Symbol(blocks.get(n, "C"))) for _, n in given}
    shapes.update({n: physical_shape(n.type, 1) for n in outputs})
    _declare_dims(kernel, list(shapes.values()))
    for label, n in given:
        kernel.places[n] = _argument(kernel, label, n, shapes[n])
    results = {n: _argument(kernel, f"y{i}", n, shapes[n]) for i, n in enumerate(outputs)}
    for n in body.outputs:
        if isinstance(n.type, CacheType):
            results[n] = kernel.places[cache_of(n)]
    return results


def cache_of(node: Node) -> Node:
    """The cache argument that a chain of updates goes to."""
    while not node.op.has("leaf"):
        below, _ = updated(node)
        assert below is not None, node
        node = below
    return node


def _declare_dims(kernel: Kernel, shapes: list[Shape]) -> None:
    """A variable for each dim that stands alone in a shape; the others are solved from sums and
    products that are.
    """
    known, solved = kernel.dims.variables, kernel.solved
    for d in (d for shape in shapes for d in shape if isinstance(d, sympy.Symbol)):
        known.setdefault(str(d), tirx.Var(str(d), "int64"))
    for d in (d for shape in shapes for d in shape):
        unknown = sorted(names_in(d) - known.keys())
        if len(unknown) == 1 and d not in solved:
            symbol = sympy.Symbol(unknown[0], integer=True, positive=True)
            factor, rest = (
                sympy.Poly(d, symbol).all_coeffs()
                if sympy.Poly(d, symbol).degree() == 1
                else (0, 0)
            )
            if factor != 0:
                solved[d] = tirx.Var(f"size{len(solved)}", "int64")
                above = solved[d] - kernel.dims.expr(as_dim(rest))
                known[unknown[0]] = tirx.floordiv(above, kernel.dims.expr(as_dim(factor)))
    missing = sorted({n for s in shapes for d in s for n in names_in(d)} - known.keys())
    if missing:
        raise CodegenError(f"dims {missing} follow from no shape of kernel {kernel.body.name}")


def _argument(kernel: Kernel, label: str, node: Node, shape: Shape) -> Place:
    dtype = node.type.dtype
    extents = [kernel.solved[d] if d in kernel.solved else kernel.dims.expr(d) for d in shape]
    # align=1 element: arguments may lie anywhere (a memory-mapped file, a slice of a workspace).
    stored = STORED[dtype]
    size = max(1, int(stored.lstrip("abcdefghijklmnopqrstuvwxyz")) // 8)
    return Place(T.arg(label, T.buffer(extents, stored, align=size)), dtype)


def _emit_levels(kernel: Kernel, results: dict[Node, Place], anchors: Mapping[str, Anchor]) -> None:
    """Anchors one after another, each preceded by the rows that it and the results need first."""
    body = kernel.body
    order = body.nodes()
    heavy = [n for n in order if n.op.name in anchors]
    for node in heavy:
        anchor = anchors[node.op.name]
        needed = {n: d for n, d in anchor.needs(kernel, node).items() if n not in kernel.places}
        if needed:
            emit_rows(
                kernel.work(),
                {n: results.get(n) or kernel.scratch(n, d) for n, d in needed.items()},
            )
            kernel.places.update({n: results[n] for n in needed if n in results})
        anchor.emit(kernel, node, results)
    left = {n: p for n, p in results.items() if kernel.places.get(n) is not p}
    if left:
        emit_rows(kernel.work(), left)
