"""The place of the largest in long rows, such as logits: chunk by chunk, then among the chunks."""

from __future__ import annotations

from ...ir.dims import product
from ...ir.node import Node
from .kernel import Call, Hook, Kernel, emit_call
from .loops import TooDear, power_of_two, unflattened
from .pull import Place
from .text import Index, Test, Writer

LONG = 4096
"""Elements of a row from which on several programs look through it."""

CHUNK = 1024
COLS = frozenset({"cols"})


def is_long(node: Node) -> bool:
    """Whether an argmax goes along a last axis that is long."""
    x = node.inputs[0]
    count = x.shape[-1]
    last = node["axis"] == len(x.shape) - 1 and not node["keepdims"]
    return last and isinstance(count, int) and count > LONG and x.dtype in ("f32", "bf16", "f16")


def needs(kernel: Kernel, node: Node) -> list[Node]:
    """What is wanted whole: values that a load cannot make."""
    try:
        _value(kernel, node.inputs[0])
    except TooDear:
        return [node.inputs[0]]
    return []


def emit_argmax(kernel: Kernel, node: Node, results: dict[Node, Place]) -> None:
    """Add the launches of a long argmax; where a cast of it is a result, they write that."""
    x = node.inputs[0]
    count, rows = int(x.shape[-1]), product(x.shape[:-1])
    result, place = _result(kernel, node, results)
    chunks = -(-count // CHUNK)
    values = kernel.scratch_for((rows, chunks), "f32").name
    columns = kernel.scratch_for((rows, chunks), "i32").name
    best = kernel.scratch_for((rows,), "f32").name
    checked = bool(node["checked"])
    emit_call(kernel, Call(
        "logits", "top_of_chunk", (values, columns, rows, count), {"VALUE": _value(kernel, x)},
        {"TOP": 1, "BLOCK": CHUNK, "CHECKED": checked}, (rows, chunks),
    ))  # fmt: skip
    sizes = {"CHUNKS": chunks, "TOP": 1, "BLOCK": power_of_two(chunks), "CHECKED": checked}
    given = (values, columns, best, place.name)
    emit_call(kernel, Call("logits", "top_of_chunks", given, {}, sizes, (rows,)))
    kernel.places[result] = place


def _result(kernel: Kernel, node: Node, results: dict[Node, Place]) -> tuple[Node, Place]:
    for result, place in results.items():
        base = result
        while base.op.name in ("reshape", "cast") and base is not node:
            base = base.inputs[0]
        if base is node and result not in kernel.places:
            return result, place
    return node, kernel.scratch_for(node.shape, node.dtype)


def _value(kernel: Kernel, x: Node) -> Hook:
    """VALUE(env, row, cols, mask): x at a row and columns of it."""
    writer = Writer()
    pull = kernel.pull(writer)
    cols = Index("cols", 0, COLS)
    at = (*unflattened(pull, Index("row"), x.shape[:-1]), cols)
    writer.line(f"return {pull.value(x, at, (Test('mask', COLS),))}")
    return Hook(("row", "cols", "mask"), writer, pull)
