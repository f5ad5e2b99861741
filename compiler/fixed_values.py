"""What a program computes of weights alone by ops that the importer lacks: torch computes it while
the model is imported.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Graph as FxGraph
from torch.fx import Node as FxNode
from torch.fx.node import map_arg


class FixedValues:
    """The nodes of a program that no input is behind, and whose sizes are numbers."""

    def __init__(self, graph: FxGraph, weight_of: Callable[[FxNode], torch.Tensor | None]) -> None:
        """`weight_of` gives a placeholder's weight, None for what the program is called with."""
        self._weight_of = weight_of
        self._known: dict[FxNode, Any] = {}
        self._nodes: set[FxNode] = set()
        for node in graph.nodes:
            inner = all(i in self._nodes for i in node.all_input_nodes)
            is_call = node.op == "call_function" and inner and _is_sized(node.meta.get("val"))
            if is_call or (node.op == "placeholder" and weight_of(node) is not None):
                self._nodes.add(node)

    def __contains__(self, node: FxNode) -> bool:
        return node.op == "call_function" and node in self._nodes

    def value(self, node: FxNode) -> Any:
        """What a node is: a tensor, or a tuple of them."""
        if node not in self._known:
            self._known[node] = self._computed(node)
        return self._known[node]

    def _computed(self, node: FxNode) -> Any:
        if node.op == "placeholder":
            return self._weight_of(node)
        args, kwargs = map_arg((node.args, node.kwargs), self.value)
        target: Any = node.target
        with torch.no_grad():
            return target(*args, **kwargs)


def _is_sized(value: Any) -> bool:
    parts = value if isinstance(value, (list, tuple)) else (value,)
    tensors = [p for p in parts if isinstance(p, torch.Tensor)]
    return bool(tensors) and all(isinstance(d, int) for p in tensors for d in p.shape)
