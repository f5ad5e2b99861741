"""Evaluates the graphs of a pipeline on the same tokens, whatever form they are in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ..ir.graph import Graph
from ..ir.node import Node
from ..ir.types import CacheType, TensorType
from ..ir.verify import quote
from ..runtime.executor import Batch
from .parity import relative_error, step_batch
from .reference import evaluate
from .reference.context import DTYPES

Array = np.ndarray[Any, np.dtype[Any]]


class Replay:
    """Token sequences, run through a graph over [B, S] one by one, and through a step graph as
    one ragged batch.
    """

    def __init__(
        self, sequences: Sequence[Sequence[int]], weights: Mapping[str, torch.Tensor], block: int
    ) -> None:
        self.sequences, self.weights, self.block = sequences, weights, block

    def logits(self, graph: Graph, *, wide: bool = True) -> Array:
        """The logits [N, V] behind the last token of each sequence."""
        runs = self._runs(graph, (graph.output("logits"),), wide)
        if _is_captured(graph):
            return np.stack([value.reshape(-1, value.shape[-1])[-1] for (value,) in runs])
        ((value,),) = runs
        ends = np.cumsum([len(s) for s in self.sequences]) - 1
        return value if len(value) == len(ends) else value[ends]

    def contents(self, graph: Graph, nodes: Sequence[Node]) -> list[Array]:
        """What each node holds, over all sequences, in ascending order: the same however its axes
        stand.
        """
        runs = self._runs(graph, tuple(nodes), True)
        return [
            np.sort(np.concatenate([run[i].ravel() for run in runs])) for i in range(len(nodes))
        ]

    def _runs(self, graph: Graph, nodes: tuple[Node, ...], wide: bool) -> list[list[Array]]:
        part = graph.with_outputs(nodes, tuple(f"n{i}" for i in range(len(nodes))))
        if _is_captured(graph):
            given = [self._captured_inputs(graph, ids) for ids in self.sequences]
        else:
            given = [self._step_inputs(graph)]
        results = [evaluate(part, inputs, self.weights, wide=wide) for inputs in given]
        return [[v.to(torch.float64).numpy() for v in result] for result in results]

    def _captured_inputs(self, graph: Graph, ids: Sequence[int]) -> dict[str, torch.Tensor]:
        positions = torch.arange(len(ids), dtype=torch.int32)
        return {
            i["name"]: positions
            if len(i.shape) == 1
            else torch.tensor([list(ids)]).to(DTYPES[i.dtype])
            for i in graph.inputs
        }

    def _step_inputs(self, graph: Graph) -> dict[str, torch.Tensor]:
        batch = prefill(self.sequences, self.block)
        width = max(map(len, batch.block_table))
        blocks = len(self.sequences) * width
        table = [[*row, *[0] * (width - len(row))] for row in batch.block_table]
        known = {**vars(batch), "block_table": table}
        pools = (blocks, len(self.sequences))
        return {i["name"]: _step_input(i, known, pools) for i in graph.inputs}


def prefill(sequences: Sequence[Sequence[int]], block: int) -> Batch:
    """One step with all tokens of all sequences."""
    group = range(len(sequences))
    return step_batch(block, sequences, group, list(group), [(0, len(s)) for s in sequences])


def _step_input(node: Node, batch: Mapping[str, Any], pools: tuple[int, int]) -> torch.Tensor:
    """The value of an input, in pools of so many blocks and states."""
    if isinstance(node.type, CacheType):
        shape = [int(d) for d in node.type.array(pools[node.type.is_state])]
        return torch.zeros(shape, dtype=DTYPES[node.type.dtype])
    return torch.tensor(batch[node["name"]], dtype=DTYPES[node.dtype])


def _is_captured(graph: Graph) -> bool:
    """Whether a graph is still over [B, S]."""
    return any(isinstance(i.type, TensorType) and i.type.rank == 2 for i in _token_inputs(graph))


def _token_inputs(graph: Graph) -> list[Node]:
    return [i for i in graph.inputs if i["name"] != "block_table"]


def first_departure(replay: Replay, before: Graph, after: Graph, tolerance: float) -> str:
    """The line of the first new node whose values are not those of the node that it stands for.

    A new node stands for the old one of the same op and origin, in order; where none departs, it
    is the output.
    """
    pairs = _pairs(before, after)
    known = {*before.nodes(), *(new for _, new in pairs)}
    old = replay.contents(before, [a for a, _ in pairs])
    new = replay.contents(after, [b for _, b in pairs])
    for (_, node), a, b in zip(pairs, old, new, strict=True):
        if relative_error(a, b) > tolerance:
            # What it reads and no old node stands for is nearer to the fault than the node itself.
            fresh = [i for i in node.inputs if i not in known]
            return "\n".join(quote(after, n) for n in (*fresh, node))
    return quote(after, after.output("logits"))


def _pairs(before: Graph, after: Graph) -> list[tuple[Node, Node]]:
    """(Old node, the new one that stands for it), in the order of the new graph."""
    left = _by_place(before, set(after.nodes()))
    pairs: list[tuple[Node, Node]] = []
    for key, nodes in _by_place(after, set(before.nodes())).items():
        # With another count the pass changed how often the op stands there: no pairs.
        if len(left.get(key, ())) == len(nodes):
            pairs += zip(left[key], nodes, strict=True)
    place = {n: i for i, n in enumerate(after.nodes())}
    return sorted(pairs, key=lambda pair: place[pair[1]])


def _by_place(graph: Graph, shared: set[Node]) -> dict[tuple[object, ...], list[Node]]:
    found: dict[tuple[object, ...], list[Node]] = {}
    for node in graph.nodes():
        if node not in shared and isinstance(node.type, TensorType) and graph.origin(node):
            found.setdefault((node.op.name, graph.origin(node)), []).append(node)
    return found
