"""Linears by experts: each row by the weights of its own expert."""

from __future__ import annotations

from ...ir.dims import product
from ...ir.node import Node
from .kernel import Call, Kernel, ceiling, emit_call
from .linear import behind, dear, load_hook, store_hook
from .loops import power_of_two
from .pull import Place


def needs(kernel: Kernel, node: Node) -> list[Node]:
    """What an expert linear wants whole: weights, the experts, a bias, and an x that a load cannot
    make.
    """
    return [*node.inputs[1:], *dear(kernel, node.inputs[0])]


def emit_expert(kernel: Kernel, node: Node, results: dict[Node, Place]) -> None:
    """Add the launch of an expert_linear, with what is fused behind it."""
    epilogue, placed = behind(kernel, node, results)
    x, w, index, *bias = node.inputs
    rows, (n, k) = product(node.shape[:-1]), (int(d) for d in w.shape[1:])
    hooks = {"LOAD_X": load_hook(kernel, x), "STORE": store_hook(kernel, node, epilogue)}
    given = kernel.places[bias[0]].name if bias else None
    operands = (kernel.places[w].name, kernel.places[index].name, given, rows, n, k)
    chosen = {"BN": min(64, power_of_two(epilogue.width)), "BK": min(128, power_of_two(k))}
    grid = (ceiling(epilogue.width, chosen["BN"]), rows)
    parts = {"PARTS": epilogue.parts}
    emit_call(kernel, Call("experts", "expert_gemv", operands, hooks, parts, grid, chosen))
    kernel.places.update(placed)
