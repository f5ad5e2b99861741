"""Kernels: the serving graph becomes kernel nodes, reshapes between them (the same memory in
another shape), and nothing else.

Which ops begin a kernel and which it takes in comes from the backend's templates. Kernels with
equal bodies are equal: inputs are named p0, p1, ... in the order of their use, so that the layers
of a model share their kernels.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import ClassVar

from ..ir.dims import names_in
from ..ir.graph import Graph
from ..ir.node import Node, input_, item, walk
from ..ir.ops import serving, tensor
from ..ir.types import TensorType, TupleType, Type
from .anchor_groups import FREE, GIVEN, Anchors
from .backends import ROWS, Template, Templates
from .row_groups import Rows


@dataclass(frozen=True)
class GroupKernels:
    """Group every op into a kernel of one of the templates; an op that none takes is an error that
    names it.
    """

    name: ClassVar[str] = "group-kernels"
    templates: Templates = field(default_factory=dict[str, Template])

    def run(self, graph: Graph) -> Graph:
        """The graph of kernels; its inputs and outputs are the same."""
        graph = _with_own_outputs(graph)
        anchors = Anchors(graph, self.templates)
        return _Assembly(graph, Rows(graph, anchors)).graph()


def _with_own_outputs(graph: Graph) -> Graph:
    """Results that are inputs, weights or one another get a copy, which a kernel then writes."""
    outputs: list[Node] = []
    for node in graph.outputs:
        is_tensor = isinstance(node.type, TensorType)
        if is_tensor and (node in outputs or _behind_reshapes(node).op.name in GIVEN | FREE):
            node = tensor.broadcast(node, shape=node.shape)
        outputs.append(node)
    return graph.with_outputs(outputs)


def _behind_reshapes(node: Node) -> Node:
    while node.op.name == "reshape":
        node = node.inputs[0]
    return node


@dataclass(frozen=True)
class Group:
    """Nodes of one kernel, in topological order."""

    template: str
    members: tuple[Node, ...]


class _Assembly:
    """Builds the kernel nodes, those that a kernel reads before it."""

    def __init__(self, graph: Graph, rows: Rows) -> None:
        self.source, self.rows = graph, rows
        groups = [Group(g.template, g.members) for g in rows.anchors.groups]
        groups += [Group(ROWS, g.members) for g in rows.groups]
        self.group = {n: g for g in groups for n in g.members}
        self.results = self._results(groups)
        self.new: dict[Node, Node] = {}
        self.origins: dict[Node, tuple[str, ...]] = {}

    def graph(self) -> Graph:
        """The graph of kernels."""
        for value in self.source.outputs:
            self._ensure(value)
        outputs = tuple(self._outside(o) for o in self.source.outputs)
        return replace(self.source, outputs=outputs, origins=self.origins)

    def _results(self, groups: list[Group]) -> dict[Group, tuple[Node, ...]]:
        """What each group gives: its values, or items of them, that another group or an output
        reads.
        """
        found: dict[Group, dict[Node, None]] = {g: {} for g in groups}
        read = [(v, g) for g in groups for n in g.members for v in self._values_behind(n.inputs)]
        read += [(v, None) for v in self._values_behind(self.source.outputs)]
        for value, reader in read:
            owner = self.group.get(_owner(value))
            if owner is not None and owner is not reader:
                found[owner][value] = None
        place = self.rows.anchors.place
        return {g: tuple(sorted(v, key=place.__getitem__)) for g, v in found.items()}

    def _values_behind(self, nodes: Iterable[Node]) -> list[Node]:
        """The values in memory behind nodes: those of groups, inputs, weights; items of tuples
        count as values.
        """
        found: dict[Node, None] = {}
        stack = list(nodes)
        while stack:
            node = stack.pop()
            if node in self.group or node.op.name in GIVEN | {"item"}:
                found[node] = None
            else:
                stack.extend(node.inputs)
        return list(found)

    def _ensure(self, value: Node) -> None:
        """Build the kernels that a value needs, deepest first."""
        stack, begun = self._values_behind((value,)), set[Group]()
        while stack:
            node = stack[-1]
            group = self.group.get(_owner(node))
            if node in self.new or group is None:
                self.new.setdefault(node, node)
                stack.pop()
                continue
            needs = [v for m in group.members for v in self._values_behind(m.inputs)]
            missing = [
                v for v in needs if v not in self.new and self.group.get(_owner(v)) is not group
            ]
            if missing:
                assert group not in begun, f"kernels that need each other: {group} needs {missing}"
                begun.add(group)
                stack.extend(missing)
                continue
            self._build(group)
            stack.pop()

    def _build(self, group: Group) -> None:
        results = self.results[group]
        body = _Body(self, group)
        outputs = tuple(body.node(r) for r in results)
        inputs = tuple(body.inputs.values())
        name = f"{group.template}_{'_'.join(dict.fromkeys(n.op.name for n in group.members))}"
        inner = Graph(name[:60], inputs, outputs, bounds=_bounds(self.source, (*inputs, *outputs)))
        made = serving.kernel(*body.inputs, body=inner, template=group.template)
        origin = dict.fromkeys(o for n in group.members for o in self.source.origin(n))
        self.origins[made] = tuple(origin)
        for i, r in enumerate(results):
            self.new[r] = made if len(results) == 1 else item(made, index=i)

    def _outside(self, value: Node) -> Node:
        """The new graph's node for a value or a reshape of one."""
        if value in self.new:
            return self.new[value]
        assert value.op.name == "reshape", f"{value!r} is in no kernel"
        return tensor.reshape(self._outside(value.inputs[0]), shape=value.shape)

    def outer(self, node: Node, group: Group) -> Node | None:
        """The new graph's node that a kernel reads for a node of its body; None where the kernel
        computes it.
        """
        if self.group.get(_owner(node)) is group:
            return None
        if node in self.new:
            return self.new[node]
        # a reshape of a kernel's result is the same memory: the kernel gets it in its new shape
        base = _behind_reshapes(node)
        inside = self.group.get(_owner(base))
        return self._outside(node) if inside is not None and inside is not group else None


class _Body:
    """A kernel's body under construction: the group's nodes over inputs p0, p1, ..."""

    def __init__(self, assembly: _Assembly, group: Group) -> None:
        self.assembly, self.group = assembly, group
        self.inputs: dict[Node, Node] = {}
        self.done: dict[Node, Node] = {}

    def node(self, root: Node) -> Node:
        """The body's node for a node of the graph."""
        stack = [root]
        while stack:
            node = stack[-1]
            missing = [] if self._is_known(node) else [i for i in node.inputs if i not in self.done]
            if not missing:
                self.done.setdefault(node, self._made(node))
                stack.pop()
            stack.extend(reversed(missing))
        return self.done[root]

    def _is_known(self, node: Node) -> bool:
        return node in self.done or self.assembly.outer(node, self.group) is not None

    def _made(self, node: Node) -> Node:
        outer = self.assembly.outer(node, self.group)
        if outer is None:
            return node.op.build(tuple(self.done[i] for i in node.inputs), node.attributes)
        if outer not in self.inputs:
            self.inputs[outer] = input_(name=f"p{len(self.inputs)}", type=outer.type)
        return self.inputs[outer]


def _owner(node: Node) -> Node:
    """The node whose group a value belongs to: an item's is its tuple."""
    return node.inputs[0] if node.op.name == "item" else node


def _bounds(graph: Graph, nodes: tuple[Node, ...]) -> dict[str, tuple[int, int]]:
    names = frozenset[str]().union(*(_names(n.type) for n in walk(nodes)))
    return {n: b for n, b in graph.bounds.items() if n in names}


def _names(kind: Type) -> frozenset[str]:
    if isinstance(kind, TupleType):
        return frozenset[str]().union(*(_names(i) for i in kind.items))
    if not isinstance(kind, TensorType):
        return frozenset()
    return frozenset[str]().union(*(names_in(d) for d in kind.shape))
