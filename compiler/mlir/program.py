"""A graph as a program of torch.export: the reference interpreter, traced."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import nn
from torch.export import Dim as ExportDim
from torch.export import ExportedProgram

from ...ir.dims import Dim, names_in, substitute
from ...ir.errors import IRError
from ...ir.graph import Graph
from ...ir.node import Node
from ...ir.types import CacheType, TensorType
from ..errors import CompileError
from ..reference import walk
from ..reference.context import DTYPES, Context
from .values import TRACEABLE

_EXAMPLES = (5, 7, 11, 13, 17, 19, 23, 29)  # sizes that no constant of a model is likely to share


@dataclass(frozen=True)
class Program:
    """What a graph became: the exported program, and the graph's leaves in the order of the
    program's arguments (inputs, then parameters), and the sizes of the dims that were fixed.
    """

    exported: ExportedProgram
    arguments: tuple[Node, ...]
    graph: Graph
    fixed: Mapping[str, int]


class Tracing(Context):
    """A context whose sizes may be torch's symbolic integers."""

    def size(self, d: Dim) -> int:
        """The dim as an integer, symbolic where the sizes that it names are."""
        if isinstance(d, int):
            return d
        names = sorted(names_in(d))
        missing = [n for n in names if n not in self.sizes]
        if missing:
            raise IRError(f"no input shows the size of dim {', '.join(missing)}: give it")
        function = sympy.lambdify(names, d, modules=[_SYMBOLIC, "math"])
        return function(*(self.sizes[n] for n in names))


_SYMBOLIC = {"Min": torch.sym_min, "Max": torch.sym_max, "floor": lambda x: math.floor(x)}


class GraphModule(nn.Module):
    """A graph whose forward takes its inputs, then its parameters, and returns its outputs in
    order; `fixed` are sizes of dims that the shapes of inputs need not show.
    """

    def __init__(self, graph: Graph, fixed: Mapping[str, int]) -> None:
        super().__init__()
        self.graph, self.fixed = graph, dict(fixed)

    def forward(self, *values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The outputs, by the reference value of every op."""
        leaves = leaves_of(self.graph)
        sizes: dict[str, Any] = dict(self.fixed)
        for node, value in zip(leaves, values, strict=True):
            for d, size in zip(shape_of(node), value.shape, strict=True):
                if isinstance(d, sympy.Symbol) and str(d) not in sizes:
                    sizes[str(d)] = size
        context = Tracing(sizes, False, _no_kernels, TRACEABLE, checked=False)
        count = len(self.graph.inputs)
        inputs = {n["name"]: v for n, v in zip(leaves, values[:count], strict=False)}
        parameters = {n["name"]: v for n, v in zip(leaves[count:], values[count:], strict=True)}
        return walk(self.graph, context, inputs, parameters)


def _no_kernels(*arguments: Any) -> tuple[Any, ...]:
    raise CompileError("a graph of kernels has no form in MLIR: export it at an earlier phase")


def leaves_of(graph: Graph) -> tuple[Node, ...]:
    """The graph's inputs, then its parameters."""
    parameters = (n for n in graph.nodes() if n.op.name == "parameter")
    return (*graph.inputs, *parameters)


def shape_of(node: Node) -> tuple[Dim, ...]:
    """The shape of a leaf's array; that of a cache has its blocks first, a dim of its own name."""
    if isinstance(node.type, CacheType):
        return (sympy.Symbol("C", integer=True, positive=True), node.type.block, *node.type.entry)
    return node.shape


def program_of(graph: Graph, dims: Mapping[str, int]) -> Program:
    """A graph traced with its named dims dynamic, but for those that `dims` fixes.

    Raises CompileError where an op cannot be traced; the message names it.
    """
    if any(n.op.name == "kernel" for n in graph.nodes()):
        _no_kernels()
    leaves = leaves_of(graph)
    sizes = example_sizes(leaves, dims)
    example = tuple(example_of(n, sizes) for n in leaves)
    dynamic = tuple(
        {
            axis: ExportDim.AUTO
            for axis, d in enumerate(shape_of(n))
            if not isinstance(d, int) and names_in(d) - dims.keys()
        }
        for n in leaves
    )
    try:
        with torch.no_grad():
            exported = torch.export.export(
                GraphModule(graph, dims), example, dynamic_shapes={"values": dynamic}, strict=False
            )
    except (IRError, CompileError):
        raise
    except Exception as error:  # torch.export raises whatever an op raises
        raise CompileError(
            f"graph {graph.name!r} could not be traced with its dims open "
            f"({str(error).strip().splitlines()[0]}); fix dims, such as --dims S=16"
        ) from error
    return Program(exported, leaves, graph, dict(dims))


def example_sizes(leaves: Sequence[Node], dims: Mapping[str, int]) -> dict[str, int]:
    """A size for every dim that the leaves name: that given, or a small prime of its own."""
    unknown = dict.fromkeys(dims)
    if unknown:
        known = {name for n in leaves for d in shape_of(n) for name in names_in(d)}
        strange = [n for n in unknown if n not in known]
        if strange:
            raise CompileError(
                f"no dim {', '.join(strange)}; this graph has {', '.join(sorted(known))}"
            )
    sizes = dict(dims)
    spare = iter(_EXAMPLES)
    for node in leaves:
        for d in shape_of(node):
            for name in sorted(names_in(d)):
                if name not in sizes:
                    sizes[name] = next(spare)
    return sizes


def example_of(node: Node, sizes: Mapping[str, int]) -> torch.Tensor:
    """Zeros in a leaf's shape and dtype."""
    kind = node.type
    assert isinstance(kind, TensorType | CacheType), kind
    shape = [int(substitute(d, sizes)) for d in shape_of(node)]  # type: ignore[arg-type]
    return torch.zeros(shape, dtype=DTYPES[kind.dtype])
