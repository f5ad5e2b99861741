"""Parts of a graph evaluated at given dims, for the passes that learn from values (masks, position
tables)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from ..ir.graph import Graph
from ..ir.node import Node
from .reference import evaluate

if TYPE_CHECKING:
    import numpy as np


def evaluator(
    parameters: Mapping[str, torch.Tensor], inputs: Mapping[str, torch.Tensor] | None = None
) -> Any:
    """A function (nodes, {dim: value}) -> numpy values, as the passes want it
    (analyze_tokens.Evaluate).

    Only parameters and inputs that the nodes reach are read. bfloat16 comes back as float32.
    """

    def values(nodes: tuple[Node, ...], dims: Mapping[str, int]) -> list[np.ndarray[Any, Any]]:
        graph = Graph("part", (), nodes).substitute(dims)
        reached = [n for n in graph.nodes() if n.op.name == "input"]
        graph = Graph("part", tuple(reached), graph.outputs)
        given = {n["name"]: (inputs or {})[n["name"]] for n in reached}
        outputs = evaluate(graph, given, parameters)
        return [(o.float() if o.dtype == torch.bfloat16 else o).numpy() for o in outputs]

    return values


def part_runner(parameters: Mapping[str, torch.Tensor]) -> Any:
    """A function (nodes, {dim: value}, {input: value}) -> numpy values, floats in float64 (the Run
    of passes/scan_regions.py); ValueError where the nodes have none for these inputs, such as a row
    behind the end of a table.

    Parameters that were read are kept for as long as the function is.
    """
    read: dict[str, torch.Tensor] = {}

    def values(
        nodes: tuple[Node, ...],
        dims: Mapping[str, int],
        inputs: Mapping[str, np.ndarray[Any, Any]],
    ) -> list[np.ndarray[Any, Any]]:
        graph = Graph("part", (), nodes)
        reached = tuple(n for n in graph.nodes() if n.op.name == "input")
        for node in graph.parameters():
            if node["name"] not in read:
                read[node["name"]] = parameters[node["name"]]
        graph = Graph("part", reached, nodes)
        given = {n["name"]: torch.as_tensor(inputs[n["name"]]) for n in reached}
        try:
            outputs = evaluate(graph, given, read, dims, wide=True)
        except (RuntimeError, IndexError) as error:
            raise ValueError(f"no value for these inputs: {error}") from error
        return [o.numpy() for o in outputs]

    return values
