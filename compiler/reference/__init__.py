"""The value of every op in eager torch: what a graph means, slowly and plainly.

`evaluate` walks a graph once. One small function an op, in a table beside its family: tensor.py,
model.py, recurrent.py, loops.py, contexts.py, selection.py, serving.py, quantized.py.
Packed integers (i4, u4, i2) are held one a byte in int8 or uint8 tensors. Caches are their physical
arrays
[C, block, *entry]; an append returns a new array.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from ...ir.dims import Dim
from ...ir.errors import IRError
from ...ir.graph import Graph
from ...ir.node import Node
from ...ir.types import CacheType, TensorType, Type
from ..threads import TorchThreads
from . import contexts, loops, model, quantized, recurrent, selection, serving, tensor
from .context import Context, bind

Function = Callable[..., Any]
TABLE: Mapping[str, Function] = {
    **tensor.TABLE,
    **model.TABLE,
    **recurrent.TABLE,
    **loops.TABLE,
    **contexts.TABLE,
    **selection.TABLE,
    **serving.TABLE,
    **quantized.TABLE,
}


@torch.no_grad()
def evaluate(
    graph: Graph,
    inputs: Mapping[str, torch.Tensor] | Sequence[torch.Tensor],
    parameters: Mapping[str, torch.Tensor] | None = None,
    dims: Mapping[str, int] | None = None,
    *,
    wide: bool = False,
) -> tuple[torch.Tensor, ...]:
    """The graph's outputs for inputs by name or in order; `wide` does all floating-point
    mathematics in float64.

    Named dims are read off the inputs' shapes; `dims` gives those that no input shows. A value
    whose shape departs from its
    node's type is an IRError: the reference holds the type rules to account too.
    """
    given = _by_name(graph, inputs)
    sizes: dict[str, int] = dict(dims or {})
    for node in graph.inputs:
        _bind_input(node.type, given[node["name"]], sizes, node["name"])
    context = Context(sizes, wide, lambda *arguments: evaluate_body(*arguments, wide=wide))
    return walk(graph, context, given, parameters or {})


def walk(
    graph: Graph,
    context: Context,
    inputs: Mapping[str, Any],
    parameters: Mapping[str, torch.Tensor],
) -> tuple[Any, ...]:
    """The graph's outputs, node after node; a value is let go once nothing more reads it."""
    values: dict[Node, Any] = {}
    left = {n: len(graph.users(n)) for n in graph.nodes()}
    kept = set(graph.outputs)
    with TorchThreads() as threads:
        for node in graph.nodes():
            arguments = [values[i] for i in node.inputs]
            if context.checked:  # else sizes may be open ones
                threads.take(arguments)
            values[node] = value_of(node, arguments, context, inputs, parameters)
            for source in dict.fromkeys(node.inputs):
                left[source] -= 1
                if not left[source] and source not in kept:
                    del values[source]
    return tuple(values[o] for o in graph.outputs)


def evaluate_body(
    body: Graph, arguments: Sequence[Any], dims: Mapping[str, int], *, wide: bool
) -> tuple[Any, ...]:
    """The outputs of a kernel's body for its arguments in order."""
    return evaluate(body, list(arguments), {}, dims, wide=wide)


def value_of(
    node: Node,
    arguments: Sequence[Any],
    context: Context,
    inputs: Mapping[str, Any],
    parameters: Mapping[str, torch.Tensor],
) -> Any:
    """The value of one node from the values of its inputs."""
    name = node.op.name
    if name == "input":
        return context.widened(inputs[node["name"]])
    if name == "parameter":
        return context.widened(_parameter(node, parameters))
    function = context.replaced.get(name) or TABLE.get(name)
    if function is None:
        raise IRError(f"no reference value for op {name!r}")
    number = context.number if name == "dim_value" else context.size
    attributes = {k: _number(v, number) for k, v in node.attributes.items()}
    result = function(context, *arguments, **attributes)
    if context.checked:
        _check(node, node.type, result, context)
    return result


def _number(value: Any, number: Callable[[Any], Any]) -> Any:
    """Attributes with their dims as numbers."""
    if isinstance(value, tuple):
        return tuple(_number(v, number) for v in value)
    return number(value) if hasattr(value, "free_symbols") else value


def _by_name(
    graph: Graph, inputs: Mapping[str, torch.Tensor] | Sequence[torch.Tensor]
) -> dict[str, Any]:
    names = [n["name"] for n in graph.inputs]
    if isinstance(inputs, Mapping):
        missing = [n for n in names if n not in inputs]
        if missing:
            raise IRError(f"no value for input {', '.join(missing)}; given: {', '.join(inputs)}")
        return {n: inputs[n] for n in names}
    if len(inputs) != len(names):
        raise IRError(f"{len(inputs)} values given, {len(names)} wanted: {', '.join(names)}")
    return dict(zip(names, inputs, strict=True))


def _bind_input(t: Type, value: Any, sizes: dict[str, int], name: str) -> None:
    shape: Sequence[Dim] = ()
    if isinstance(t, TensorType):
        shape = t.shape
    elif isinstance(t, CacheType):
        shape = t.array(value.shape[0])
    if len(shape) != value.dim():
        raise IRError(f"input {name}: {list(value.shape)} given, {t} wanted")
    for dim, size in zip(shape, value.shape, strict=True):
        bind(dim, int(size), sizes, f"input {name}: {list(value.shape)} given, {t} wanted")


def _parameter(node: Node, parameters: Mapping[str, torch.Tensor]) -> torch.Tensor:
    name = node["name"]
    if name not in parameters:
        raise IRError(f"no value for parameter {name!r} : {node.type}")
    value = parameters[name]
    if tuple(value.shape) != tuple(node.shape):
        raise IRError(f"parameter {name}: {list(value.shape)} given, {node.type} wanted")
    return value


def _check(node: Node, t: Type, value: Any, context: Context) -> None:
    if isinstance(t, TensorType):
        wanted = tuple(context.size(d) for d in t.shape)
        dtype = context.dtype(t.dtype)
        if tuple(value.shape) != wanted or value.dtype != dtype:
            raise IRError(
                f"{node.op.name}: the value is {value.dtype} {list(value.shape)}; "
                f"its type says {t}, that is {dtype} {list(wanted)}"
            )
