"""Linears by experts: each row by the weights of its own expert."""

from __future__ import annotations

from ...ir.dims import product
from ...ir.node import Node
from .kernel import Call, Kernel, ceiling, emit_call
from .linear import Epilogue, _fitted, _wide, epilogue_of, load_hook, store_hook
from .loops import TooDear
from .pull import Place


def needs(kernel: Kernel, node: Node) -> list[Node]:
    """What an expert linear wants whole: weights, the experts, a bias, and an x that a load cannot
    make.
    """
    found = list(node.inputs[1:])
    try:
        load_hook(kernel, node.inputs[0])
    except TooDear:
        found.append(node.inputs[0])
    return found


def emit_expert(kernel: Kernel, node: Node, results: dict[Node, Place]) -> None:
    """Add the launch of an expert_linear, with what is fused behind it."""
    left = {n: p for n, p in results.items() if n not in kernel.places}
    epilogue = epilogue_of(kernel, node, left)
    if epilogue is None:
        place = results.get(node) or kernel.scratch_for(node.shape, _wide(node.dtype))
        epilogue = Epilogue(((node, place),), 1, int(node.shape[-1]))
        left = {node: place}
    x, w, index, *bias = node.inputs
    rows, (n, k) = product(node.shape[:-1]), (int(d) for d in w.shape[1:])
    hooks = {"LOAD_X": load_hook(kernel, x), "STORE": store_hook(kernel, node, epilogue)}
    given = kernel.places[bias[0]].name if bias else None
    operands = (kernel.places[w].name, kernel.places[index].name, given, rows, n, k)
    chosen = {"BN": _fitted(64, epilogue.width), "BK": _fitted(128, k)}
    grid = (ceiling(epilogue.width, chosen["BN"]), rows)
    parts = {"PARTS": epilogue.parts}
    emit_call(kernel, Call("experts", "expert_gemv", operands, hooks, parts, grid, chosen))
    kernel.places.update(left)
