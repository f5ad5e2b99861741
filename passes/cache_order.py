"""Caches in place: a proof, call by call, that every cache value is read before it is appended to,
and appended to once.
"""

from __future__ import annotations

from ..ir.errors import IRError
from ..ir.graph import Graph
from ..ir.node import Node, item
from ..ir.ops.serving import updated
from ..ir.types import CacheType, TupleType
from ..ir.verify import quote


class CacheOrder:
    """Which value each cache holds after the calls so far."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.name = {i: str(i["name"]) for i in graph.inputs if isinstance(i.type, CacheType)}
        self.current = {name: node for node, name in self.name.items()}
        self.writer: dict[str, Node] = {}

    def call(self, kernel: Node) -> None:
        """Account for one kernel; raises IRError where it reads or appends to a value that is no
        longer there.
        """
        given = [i for i in kernel.inputs if isinstance(i.type, CacheType)]
        for value in given:
            self._check(kernel, value)
        for value, appended in _appends(self.graph, kernel):
            name = self.name[value]
            self.name[appended] = name
            self.current[name] = appended
            self.writer[name] = kernel

    def end(self) -> None:
        """Check that the graph gives every appended cache back, and no value that was lost."""
        given = [o for o in self.graph.outputs if isinstance(o.type, CacheType)]
        for value in given:
            self._check(None, value)
        lost = [n for n, v in self.current.items() if n in self.writer and v not in given]
        if lost:
            raise IRError(
                f"{self.graph.name} appends to {', '.join(lost)} and does not give it back"
            )

    def _check(self, reader: Node | None, value: Node) -> None:
        name = self.name[value]
        if self.current[name] is value:
            return
        where = quote(self.graph, reader) if reader else "  as an output of the graph"
        raise IRError(
            f"{name} is appended to in place, and an older value is used afterwards\n{where}\n"
            f"appended to by\n{quote(self.graph, self.writer[name])}"
        )


def _appends(graph: Graph, kernel: Node) -> list[tuple[Node, Node]]:
    """(cache before, cache after) for each cache that a kernel appends to."""
    body: Graph = kernel["body"]
    outer = dict(zip(body.inputs, kernel.inputs, strict=True))
    results: dict[Node, Node] = {}
    writers: dict[Node, Node] = {}
    for i, o in enumerate(body.outputs):
        if isinstance(o.type, CacheType):
            base, writer = updated(o)
            if base not in outer or base in results:
                raise IRError(
                    f"a kernel appends to a cache once and gives it back\n{quote(graph, kernel)}"
                )
            results[base] = item(kernel, index=i) if isinstance(kernel.type, TupleType) else kernel
            writers[base] = writer
    for node in body.nodes():
        if any(i in results and writers[i] is not node for i in node.inputs):
            raise IRError(
                f"{node.op.name} reads a cache that its kernel appends to\n{quote(graph, kernel)}"
            )
    return [(outer[base], after) for base, after in results.items()]
