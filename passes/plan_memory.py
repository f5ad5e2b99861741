"""The plan: a graph of kernels as calls in order, over one workspace in which buffers that live at
different times share bytes.

Sizes are taken at the upper bounds of the dims, so that one plan serves every step. Caches are
appended to in place, which cache_order proves. Kernels that are equal but for the names of their
dims (a layer over all rows, and over those that need logits) are one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..ir.dims import dim, upper_bound
from ..ir.errors import IRError
from ..ir.graph import Graph
from ..ir.node import Node, item
from ..ir.plan import (
    POOL_DIM,
    STATE_DIM,
    Argument,
    CacheSpec,
    Call,
    Entry,
    Kind,
    Plan,
    TensorSpec,
)
from ..ir.plan_dims import expression
from ..ir.types import CacheType, TensorType, TupleType
from ..ir.verify import quote
from .buffers import Buffer, place_buffers
from .cache_order import CacheOrder

_SILENT = frozenset({"movement", "leaf"})


@dataclass(frozen=True)
class PlannedKernel:
    """A kernel to compile: its body and its template."""

    body: Graph
    template: str


@dataclass(frozen=True)
class Planned:
    """A plan, and the kernels that its calls name."""

    plan: Plan
    kernels: Mapping[str, PlannedKernel]


def plan_memory(
    graph: Graph,
    *,
    entries: tuple[str, ...] = ("decode", "mixed"),
    limits: Mapping[str, int] | None = None,
) -> Planned:
    """The plan of a graph of kernels; an IRError where a cache cannot be appended to in place."""
    kernels = [n for n in graph.nodes() if n.op.name == "kernel"]
    _check_grouped(graph)
    order = CacheOrder(graph)
    for kernel in kernels:
        order.call(kernel)
    order.end()
    memory = _Memory(graph, kernels)
    names = _Names()
    calls = tuple(_call(graph, memory, names, order, k) for k in kernels)
    caches = [i for i in graph.inputs if isinstance(i.type, CacheType)]
    entry = Entry(calls, inputs=_inputs(graph), results=_results(graph))
    plan = Plan(
        entries=dict.fromkeys(entries, entry),
        dims=dict(graph.bounds),
        caches=tuple(_cache_spec(c) for c in caches),
        block=_block(caches),
        workspace_bytes=memory.size,
        limits=dict(limits or {}),
    )
    plan.check()
    return Planned(plan, names.kernels)


def _check_grouped(graph: Graph) -> None:
    for node in graph.nodes():
        if node.op.name not in ("kernel", "item", "reshape", "input", "parameter"):
            raise IRError(f"{node.op.name} is in no kernel\n{quote(graph, node)}")


def _cache_spec(node: Node) -> CacheSpec:
    kind = node.type
    assert isinstance(kind, CacheType), node
    return CacheSpec(str(node["name"]), kind.dtype, kind.entry, kind.is_state)


def _block(caches: list[Node]) -> int:
    kinds = [c.type for c in caches if isinstance(c.type, CacheType)]
    blocks = {kind.block for kind in kinds if not kind.is_state}
    if len(blocks) > 1:
        raise IRError(f"blocks of {sorted(blocks)} slots: one block table serves all caches")
    return blocks.pop() if blocks else 16


def _inputs(graph: Graph) -> tuple[TensorSpec, ...]:
    return tuple(_spec(i["name"], i) for i in graph.inputs if isinstance(i.type, TensorType))


def _results(graph: Graph) -> tuple[TensorSpec, ...]:
    pairs = zip(graph.output_names, graph.outputs, strict=True)
    return tuple(_spec(n, o) for n, o in pairs if isinstance(o.type, TensorType))


def _spec(name: str, node: Node) -> TensorSpec:
    return TensorSpec(name, node.dtype, tuple(expression(d) for d in node.shape))


def base_of(node: Node) -> Node:
    """The value in memory that a node is: reshapes of it are the same bytes."""
    while node.op.name == "reshape":
        node = node.inputs[0]
    return node


class _Memory:
    """Where every value is: an input, a weight, a result, or a place in the workspace."""

    def __init__(self, graph: Graph, kernels: list[Node]) -> None:
        pairs = zip(graph.output_names, graph.outputs, strict=True)
        self.result = {base_of(o): n for n, o in pairs if isinstance(o.type, TensorType)}
        self.buffers: dict[Node, Buffer] = {}
        for at, kernel in enumerate(kernels):
            for value in kernel.inputs:
                self._read(base_of(value), at)
            for value in results_of(kernel):
                self._made(graph, value, at)
        self.place, self.size = place_buffers(list(self.buffers.values()))

    def _read(self, value: Node, at: int) -> None:
        if value in self.buffers:
            old = self.buffers[value]
            self.buffers[value] = Buffer(old.name, old.size, old.first, at)

    def _made(self, graph: Graph, value: Node, at: int) -> None:
        if isinstance(value.type, TensorType) and value not in self.result:
            size = upper_bound(value.type.nbytes(), graph.bounds)
            self.buffers[value] = Buffer(len(self.buffers), size, at, at)

    def argument(self, value: Node, cache: Mapping[Node, str]) -> Argument:
        """How a call names a value, in the shape that it is used in."""
        if isinstance(value.type, CacheType):
            count = dim(STATE_DIM if value.type.is_state else POOL_DIM)
            array = tuple(expression(d) for d in value.type.array(count))
            return Argument("cache", cache[value], 0, value.type.dtype, array)
        shape = tuple(expression(d) for d in value.shape)
        base = base_of(value)
        if base in self.buffers:
            offset = self.place[self.buffers[base].name]
            return Argument("workspace", None, offset, value.dtype, shape)
        kind: Kind = (
            "result"
            if base in self.result
            else "weight"
            if base.op.name == "parameter"
            else "input"
        )
        name = self.result[base] if base in self.result else str(base["name"])
        return Argument(kind, name, 0, value.dtype, shape)


def results_of(kernel: Node) -> list[Node]:
    """A kernel's results as nodes: itself, or its items."""
    if not isinstance(kernel.type, TupleType):
        return [kernel]
    return [item(kernel, index=i) for i in range(len(kernel.type.items))]


class _Names:
    """Names of kernels, one for each body."""

    def __init__(self) -> None:
        self.by_body: dict[tuple[Graph, str, object], str] = {}
        self.kernels: dict[str, PlannedKernel] = {}

    def of(self, kernel: Node) -> str:
        """The kernel's name: its place in the order of first use, and its template."""
        body, template = over_tokens(kernel["body"]), str(kernel["template"])
        key = (body, template, kernel["options"])
        if key not in self.by_body:
            self.by_body[key] = f"k{len(self.by_body)}_{template}"
            self.kernels[self.by_body[key]] = PlannedKernel(body, template)
        return self.by_body[key]


def over_tokens(body: Graph) -> Graph:
    """The body over T where it is over R alone: a kernel reads its dims off its arguments."""
    if "R" not in body.bounds or "T" in body.bounds:
        return body
    renamed = body.substitute({"R": dim("T")})
    return Graph(
        body.name,
        renamed.inputs,
        renamed.outputs,
        renamed.output_names,
        {**renamed.bounds, "T": body.bounds["R"]},
    )


def _call(graph: Graph, memory: _Memory, names: _Names, order: CacheOrder, kernel: Node) -> Call:
    outputs = [r for r in results_of(kernel) if isinstance(r.type, TensorType)]
    body: Graph = kernel["body"]
    told = [n for n in body.nodes() if not n.op.traits & _SILENT and n.op.name != "item"]
    ops = dict.fromkeys(n.op.name for n in told)
    return Call(
        kernel=names.of(kernel),
        arguments=tuple(memory.argument(v, order.name) for v in (*kernel.inputs, *outputs)),
        origin="; ".join(graph.origin(kernel)),
        ops="+".join(ops)
        or "+".join(dict.fromkeys(n.op.name for n in body.nodes() if not n.op.has("leaf"))),
        label=str(kernel["template"]),
    )
