"""A graph's values over parameters, made a block of rows at a time.

What quantizes a weight is some thirty ops over all of it, each row by itself: op after op, every
one of them goes through memory. Block after block what is between them stays in the cache, and
blocks go to all cores. What mixes rows is done once all rows are there.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from ..ir.dims import dim, product
from ..ir.graph import Graph
from ..ir.node import Node, input_, parameter, walk
from ..ir.target import Host
from ..ir.types import TensorType
from .reference import evaluate
from .reference import walk as walk_values
from .reference.context import DTYPES, Context

ELEMENTS = 1 << 19
"""Elements of a block: a few values of so many float32 stay in the second or third cache."""
LEAST = 4
"""Blocks from which on it is worth it."""
ROWS = dim("rows")
# What joins and turns parameters as they lie: done for all rows at once, at no great cost.
_ARRANGED = frozenset({"parameter", "concat", "transpose", "reshape", "slice"})
_REDUCTIONS = frozenset({"reduce_max", "reduce_min", "reduce_sum", "reduce_prod"})


@dataclass(frozen=True)
class _Rows:
    """What is made row by row, of so many `rows`: the nodes that it reads, those that others
    read of it, and the graph of a block of them.
    """

    rows: int
    sources: tuple[Node, ...]
    exits: tuple[Node, ...]
    block: Graph


def evaluate_by_rows(
    graph: Graph, parameters: Mapping[str, torch.Tensor]
) -> tuple[torch.Tensor, ...]:
    """The outputs of a graph without inputs, as `evaluate` has them."""
    made: dict[str, torch.Tensor] = {}
    mapping: dict[Node, Node] = {}
    for part in _parts(graph):
        values = _over_blocks(part, parameters)
        for node, value in zip(part.exits, values, strict=True):
            name = f"rows.{len(made)}"
            made[name], mapping[node] = value, parameter(name=name, type=node.type)
    rest = graph.replace(mapping) if mapping else graph
    return evaluate(rest, (), ChainMap(made, dict(_read(rest, parameters))))


def _read(
    graph: Graph, parameters: Mapping[str, torch.Tensor]
) -> Iterator[tuple[str, torch.Tensor]]:
    """The parameters that a graph reads."""
    return (
        (p["name"], parameters[p["name"]]) for p in graph.parameters() if p["name"] in parameters
    )


def _parts(graph: Graph) -> list[_Rows]:
    """The row by row parts of a graph that are worth it, by their number of rows."""
    arranged: set[Node] = set()
    sources: dict[Node, Node] = {}
    blocks: dict[Node, Node] = {}
    for node in graph.nodes():
        if node.op.name in _ARRANGED and arranged.issuperset(node.inputs):
            arranged.add(node)
            if _is_big(node):
                shape = (ROWS, *node.shape[1:])
                source = input_(name=f"n{len(sources)}", type=TensorType(node.dtype, shape))
                sources[source], blocks[node] = node, source
            continue
        block = _block_of(node, blocks)
        if block is not None:
            blocks[node] = block
    return _joined(graph, blocks, sources)


def _joined(graph: Graph, blocks: Mapping[Node, Node], sources: Mapping[Node, Node]) -> list[_Rows]:
    """The nodes that have a form for a block, together with others of as many rows."""
    made = [n for n in blocks if blocks[n] not in sources]
    outside = {i for n in graph.nodes() if n not in blocks for i in n.inputs} | set(graph.outputs)
    read = [n for n in made if n in outside]
    found: list[_Rows] = []
    for rows in dict.fromkeys(int(n.shape[0]) for n in read):
        exits = tuple(n for n in read if int(n.shape[0]) == rows)
        outputs = tuple(blocks[n] for n in exits)
        inputs = tuple(n for n in walk(outputs) if n.op.name == "input")
        block = Graph("rows", inputs, outputs)
        found.append(_Rows(rows, tuple(sources[i] for i in inputs), exits, block))
    return found


def _is_big(node: Node) -> bool:
    return len(node.shape) > 1 and int(product(node.shape)) >= LEAST * ELEMENTS


def _block_of(node: Node, blocks: Mapping[Node, Node]) -> Node | None:
    """A node's form for a block of rows; None where its rows are not made each by itself."""
    inside = [i for i in node.inputs if i in blocks]
    if not inside or not _keeps_rows(node, inside):
        return None
    if any(i not in blocks and i.shape for i in node.inputs):
        return None
    attributes = dict(node.attributes)
    if node.op.name in ("reshape", "broadcast"):
        attributes["shape"] = (ROWS, *node.shape[1:])
    outer = node.shape[0]
    inputs = tuple(blocks.get(i, i) for i in node.inputs)
    return node.op.build(inputs, attributes) if all(i.shape[0] == outer for i in inside) else None


def _keeps_rows(node: Node, inside: list[Node]) -> bool:
    """Whether the rows of a node are those of its inputs, each made of its own alone."""
    name = node.op.name
    if not isinstance(node.type, TensorType) or not node.shape:
        return False
    if node.op.has("elementwise") or name == "broadcast":
        return all(len(i.shape) == len(node.shape) for i in inside)
    if name in _REDUCTIONS:
        return 0 not in node["axes"]
    if name == "transpose":
        return node["permutation"][0] == 0
    return name == "reshape"


def _over_blocks(part: _Rows, parameters: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """The values of a part's exits."""
    arranged = Graph("sources", (), part.sources)
    given = evaluate(arranged, (), dict(_read(arranged, parameters)))
    made = tuple(torch.empty([int(d) for d in n.shape], dtype=DTYPES[n.dtype]) for n in part.exits)
    width = max(int(product(n.shape[1:])) for n in part.sources)
    count = max(1, ELEMENTS // width)

    def block(first: int) -> None:
        rows = slice(first, min(first + count, part.rows))
        values = values_of_rows(part.block, [whole[rows] for whole in given])
        for whole, value in zip(made, values, strict=True):
            whole[rows] = value

    with ThreadPoolExecutor(Host().cores()) as pool:
        list(pool.map(block, range(0, part.rows, count)))
    return made


def values_of_rows(block: Graph, given: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """The outputs of a block's graph; the types that its values have are those of all rows, which
    were inferred.
    """
    names = [str(n["name"]) for n in block.inputs]
    sizes = {str(ROWS): int(given[0].shape[0])}
    context = Context(sizes, wide=False, body=evaluate, checked=False)
    return walk_values(block, context, dict(zip(names, given, strict=True)), {})
