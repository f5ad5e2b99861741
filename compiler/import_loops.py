"""Import of loops that a program holds as graphs: torch's scan becomes token_loop."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule
from torch.fx import Node as FxNode

from ..ir.node import Node, input_
from ..ir.types import TensorType
from ..passes.build_loop import Step, loop_of
from ..passes.scan_regions import is_whole, token_axes, tokens_back
from ..passes.token_values import S
from .aten.table import Unsupported

SCAN: Any = torch.ops.higher_order.scan


class Importer(Protocol):
    """What imports the calls of a step; `values` holds what was imported."""

    values: dict[FxNode, Any]

    def type_of(self, value: torch.Tensor) -> TensorType:
        """The type of a traced tensor."""
        ...

    def import_calls(self, nodes: list[FxNode]) -> None:
        """Import calls in order."""
        ...


def steps_of(program: ExportedProgram) -> Iterator[GraphModule]:
    """The graphs that a program's loops run, those within them too."""
    for module in program.graph_module.modules():
        if isinstance(module, GraphModule) and module is not program.graph_module:
            yield module


def import_scan(importer: Importer, node: FxNode) -> list[Node | None]:
    """The results of a scan, [S, ...] each; None for the states behind the last token, which
    nothing may read. Raises Unsupported where it does not go over the tokens.
    """
    found, first, given, rest = node.args
    assert isinstance(found, FxNode), found
    module = importer.values[found]
    begun, rows, constants = (
        [_operand(importer, x) for x in part]  # type: ignore[union-attr]
        for part in (first, given, rest)
    )
    if not rows or any(x.shape[0] != S for x in rows):
        shapes = ", ".join(str(x.type) for x in rows)
        raise Unsupported(f"a scan over the tokens was wanted, not one over {shapes or 'nothing'}")
    step = _step(importer, module, len(begun), len(rows))
    kinds = [r.tensor.with_shape((S, *r.shape)) for r in step.results]
    made = loop_of(step, rows, begun, constants)
    results = [_back(m, kind) for m, kind in zip(made, kinds, strict=True)]
    return [*(None for _ in begun), *results]


def _operand(importer: Importer, value: Any) -> Node:
    node = importer.values.get(value) if isinstance(value, FxNode) else None
    if not isinstance(node, Node):
        raise Unsupported(f"a scan reads {value!r}; tensors were wanted")
    return node


def _back(made: Node, kind: TensorType) -> Node:
    """A result as the scan gives it."""
    axes = token_axes(input_(name="y", type=kind))
    if axes is None or not is_whole(axes):
        raise Unsupported(f"a scan that gives values of each token was wanted, not {kind}")
    return tokens_back(made, axes, kind.shape)


def _step(importer: Importer, module: GraphModule, states: int, tokens: int) -> Step:
    """The step's graph: torch gives it the states first."""
    inputs: list[Node] = []
    calls: list[FxNode] = []
    output: Any = None
    for node in module.graph.nodes:
        if node.op == "placeholder":
            kind = importer.type_of(node.meta["val"])
            inputs.append(input_(name=f"s{len(inputs)}", type=kind))
            importer.values[node] = inputs[-1]
        elif node.op == "call_function":
            calls.append(node)
        elif node.op == "get_attr":
            importer.values[node] = getattr(module, str(node.target))
        elif node.op == "output":
            output = node.args[0]
    importer.import_calls(calls)
    made = [_operand(importer, x) for x in output]
    first = states + tokens
    return Step(
        tokens=tuple(inputs[states:first]),
        states=tuple(inputs[:states]),
        constants=tuple(inputs[first:]),
        news=tuple(made[:states]),
        results=tuple(made[states:]),
    )
