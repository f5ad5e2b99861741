"""Programs without writes: what a model writes in place becomes a value of its own.

torch makes an exported program functional by tracing it once more, at more than the cost of the
export. But the trace already says everything: which tensors lie in one storage, and how each is a
view of another. A write to a view then is a new value of the view, put back into what it is a view
of; who reads another view of that storage later reads it anew.

    w = v.add_(y), v = x[1:3]     is     w = v + y, x' = slice_scatter(x, w, 1, 3)
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, cast

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import TensorArgument
from torch.fx import Graph, Node
from torch.fx.node import map_arg

ATEN = torch.ops.aten
# What the tracer writes for sizes and for the items of a tuple.
PLAIN = frozenset({
    operator.getitem, operator.add, operator.sub, operator.mul, operator.floordiv, operator.mod,
    operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge, operator.neg,
    torch.sym_min, torch.sym_max,
})  # fmt: skip

_UNCHANGED = frozenset({ATEN.detach_.default})  # writes of no value


def functional(program: ExportedProgram) -> ExportedProgram:
    """The program with no call that changes its arguments or runs a program of its own; nothing is
    decomposed: SDPA, linear and the norms stay whole.
    """
    if not all(_is_plain_call(n) for n in _calls(program)):
        return program.run_decompositions({})
    writes = [n for n in _calls(program) if _is_write(n)]
    if not writes:
        return program
    views = _Views.of(program.graph)
    if not all(views.can_write(n) for n in writes):
        return program.run_decompositions({})
    written = {views.storages[n]: 0 for n in writes}
    _Rewriting(program.graph, views, written).run()
    _rename_results(program)
    program.graph_module.recompile()
    return program


def _rename_results(program: ExportedProgram) -> None:
    """The signature with the names of the results as they are now."""
    results: Any = program.graph.output_node().args[0]
    for spec, result in zip(program.graph_signature.output_specs, results, strict=True):
        if isinstance(result, Node):
            spec.arg = replace(cast(TensorArgument, spec.arg), name=result.name)


def _calls(program: ExportedProgram) -> list[Node]:
    return [n for n in program.graph.nodes if n.op in ("call_function", "get_attr")]


def _is_plain_call(node: Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) or node.target in PLAIN


def _is_write(node: Node) -> bool:
    op = node.target
    return isinstance(op, torch._ops.OpOverload) and op._schema.is_mutable and op not in _UNCHANGED


# -- what is a view of what


@dataclass(frozen=True)
class _Views:
    """The storage of every tensor of a graph, by number, and for a view what it is a view of."""

    storages: dict[Node, int]
    sources: dict[Node, Node]

    @staticmethod
    def of(graph: Graph) -> _Views:
        """As the trace tells: a view's tensor lies in the storage of an argument's."""
        storages: dict[Node, int] = {}
        sources: dict[Node, Node] = {}
        for node in graph.nodes:
            storage = _storage(node)
            if storage is None:
                continue
            storages[node] = storage
            given = [n for n in node.all_input_nodes if storages.get(n) == storage]
            if given:
                sources[node] = given[0]
        return _Views(storages, sources)

    @cached_property
    def owners(self) -> Counter[int]:
        """How many tensors of each storage are views of no other."""
        return Counter(s for n, s in self.storages.items() if n not in self.sources)

    def chain(self, node: Node) -> list[tuple[Node, Node]]:
        """A view and what it is a view of, that and what it is a view of, and so on."""
        found: list[tuple[Node, Node]] = []
        while node in self.sources:
            source = self.sources[node]
            if node.target is operator.getitem:  # of pieces, which are views of one tensor
                source = self.sources[source]
            found.append((node, source))
            node = source
        return found

    def can_write(self, node: Node) -> bool:
        """Whether a write is one tensor's, its first argument's, and can be put back."""
        written = node.args[0] if node.args else None
        if not isinstance(written, Node) or written not in self.storages:
            return False
        if _unwritten(node) is None or not _keeps_dtype(node, written):
            return False
        alone = self.owners[self.storages[written]] == 1
        return alone and all(_put_back(view) is not None for view, _ in self.chain(written))


def _storage(node: Node) -> int | None:
    """The storage that a node's tensor, or all of its tensors, lie in."""
    value = node.meta.get("val")
    parts = value if isinstance(value, (list, tuple)) else (value,)
    found = {p.untyped_storage()._cdata for p in parts if isinstance(p, torch.Tensor)}
    return found.pop() if len(found) == 1 else None


def _unwritten(node: Node) -> Any:
    """The op that gives what a write to its first argument writes: `add` for `add_`."""
    target: Any = node.target
    schema = target._schema
    written = [a.alias_info is not None and a.alias_info.is_write for a in schema.arguments]
    space, _, name = schema.name.partition("::")
    if written.count(True) != 1 or not written[0] or torch.Tag.inplace_view in target.tags:
        return None
    if space != "aten" or not name.endswith("_") or name.endswith("__"):
        return None
    return getattr(getattr(ATEN, name[:-1], None), target._overloadname, None)


def _keeps_dtype(node: Node, written: Node) -> bool:
    """Whether what is written is computed in the dtype that it is kept in."""
    if _name(node) in ("copy_", "fill_") or _name(node).startswith(("masked", "index", "scatter")):
        return True
    value = written.meta["val"]
    others = [a.meta.get("val") for a in node.all_input_nodes]
    tensors = [o for o in others if isinstance(o, torch.Tensor)]
    return all(torch.result_type(value, o) == value.dtype for o in tensors)


def _name(node: Node) -> str:
    """The name of an ATen op, without its overload; "" of anything else."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return ""
    return node.target._schema.name.removeprefix("aten::")


# -- how a view's new value is put back into what it is a view of

Call = tuple[Any, tuple[Any, ...]]
Put = Callable[[Node, Node], Call | Node]
_SAME = frozenset({"alias", "detach", "detach_", "to", "type_as", "contiguous", "lift_fresh"})
_RESHAPED = frozenset({
    "view", "_unsafe_view", "reshape", "squeeze", "unsqueeze", "flatten", "unflatten", "view_as",
    "reshape_as",
})  # fmt: skip
_EXCHANGED = frozenset({"transpose", "swapaxes", "t", "mT"})
_SPLIT = frozenset({"split", "split_with_sizes", "chunk"})


def _put_back(view: Node) -> Put | None:
    """What makes, of the source of a view and the view's new value, the call that gives the
    source's new value, or that value; None where there is no such way.
    """
    name = _name(view)
    if view.target is operator.getitem:
        return _put_piece(view)
    if name in _SAME or _is_write(view):
        return lambda source, value: value
    if view.kwargs:
        return None
    if name in _RESHAPED:
        return lambda source, value: (ATEN.reshape_as.default, (value, source))
    if name in _EXCHANGED:
        return lambda source, value: (view.target, (value, *view.args[1:]))
    if name == "permute":
        order: Any = view.args[1]
        back = sorted(range(len(order)), key=lambda at: order[at] % len(order))
        return lambda source, value: (view.target, (value, back))
    if name == "slice":
        return _scattered(ATEN.slice_scatter.default, view.args[1:])
    if name == "select":
        return _scattered(ATEN.select_scatter.default, view.args[1:])
    return None


def _scattered(op: Any, place: Any) -> Put:
    return lambda source, value: (op, (source, value, *place))


def _put_piece(view: Node) -> Put | None:
    """A piece of a tensor into its place."""
    pieces: Any = view.args[0]
    at: Any = view.args[1]
    if pieces.kwargs:
        return None
    if _name(pieces) == "unbind":
        axis = pieces.args[1] if len(pieces.args) > 1 else 0
        return _scattered(ATEN.select_scatter.default, (axis, at))
    if _name(pieces) not in _SPLIT:
        return None
    axis = pieces.args[2] if len(pieces.args) > 2 else 0
    sizes = [p.shape[axis] for p in pieces.meta["val"][: at + 1]]
    if not all(isinstance(size, int) for size in sizes):
        return None
    return _scattered(ATEN.slice_scatter.default, (axis, sum(sizes[:at]), sum(sizes)))


# -- the rewriting


@dataclass
class _Rewriting:
    """Goes through a graph in order. `writes` counts those that a storage has seen; `values` has,
    for a tensor in such a storage, its value and after how many writes it had it; `arguments` what
    it was called with.
    """

    graph: Graph
    views: _Views
    writes: dict[int, int]
    values: dict[Node, tuple[int, Node]] = field(default_factory=dict[Node, tuple[int, Node]])
    arguments: dict[Node, tuple[Any, Any]] = field(default_factory=dict[Node, tuple[Any, Any]])

    def run(self) -> None:
        """Put values in the place of every write, and of what is read after it."""
        for node in list(self.graph.nodes):
            self.arguments[node] = node.args, node.kwargs
            with self.graph.inserting_before(node):
                for given in node.all_input_nodes:
                    if (value := self._current(given)) is not given:
                        node.replace_input_with(given, value)
                if node.op == "call_function" and _is_write(node):
                    self._write(node)
                elif self._is_written(node):
                    self.values[node] = self._seen(node), node
        for node in reversed(self.graph.nodes):
            if node.op == "call_function" and _is_write(node):
                self.graph.erase_node(node)

    def _is_written(self, node: Node) -> bool:
        return self.views.storages.get(node) in self.writes

    def _seen(self, node: Node) -> int:
        return self.writes[self.views.storages[node]]

    def _current(self, node: Node) -> Node:
        """A tensor as it is after the writes so far."""
        if not self._is_written(node):
            return node
        seen, value = self.values[node]
        if seen != self._seen(node):
            if _is_write(node):
                value = self._current(self.views.sources[node])
            else:
                args, kwargs = map_arg(self.arguments[node], self._current)
                value = self._call(node.target, args, kwargs, like=node, by=node)
            self.values[node] = self._seen(node), value
        return value

    def _write(self, node: Node) -> None:
        """The value that is written, and with it those of all that its place is a view of."""
        written = self.views.sources[node]
        chain = [(v, s, self._current(s)) for v, s in self.views.chain(written)]
        self.writes[self.views.storages[node]] += 1
        value = self._call(_unwritten(node), node.args, node.kwargs, like=node, by=node)
        self.values[node] = self.values[written] = self._seen(node), value
        for view, source, before in chain:
            put = _put_back(view)
            assert put is not None, view
            made = put(before, value)
            if not isinstance(made, Node):
                made = self._call(*made, {}, like=source, by=node)
            value = made
            self.values[source] = self._seen(node), value

    def _call(self, target: Any, args: Any, kwargs: Any, *, like: Node, by: Node) -> Node:
        """A call that gives a tensor like another's, from the same line as a third."""
        made = self.graph.call_function(target, args, kwargs)
        made.meta = {**by.meta, "val": like.meta["val"]}
        return made
