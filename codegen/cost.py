"""What a kernel has to move and compute, as formulas of its dims."""

from __future__ import annotations

from dataclasses import dataclass

from ..ir.dims import Dim, dim, product
from ..ir.graph import Graph
from ..ir.node import Node
from ..ir.ops.quantized import operands
from ..ir.types import BITS, CacheType, TensorType, Type

CONTEXT = "L"
"""The dim that stands for the mean number of cached tokens of a sequence, which no shape of a
kernel shows.
"""


@dataclass(frozen=True)
class Cost:
    """Bytes read and written, arithmetic operations (a multiply-add is two); dims as in the
    kernel's shapes, and L.
    """

    bytes_read: Dim
    bytes_written: Dim
    operations: Dim


def cost_of(body: Graph) -> Cost:
    """The cost of a kernel body that touches each argument once; of a table that is indexed, the
    rows taken.
    """
    users = {i: [n for n in body.nodes() if i in n.inputs] for i in body.inputs}
    read: Dim = 0
    for i, readers in users.items():
        read = read + _read(i, readers)
    written: Dim = 0
    for o in dict.fromkeys(body.outputs):
        written = written + _bytes(o.inputs[1].type if isinstance(o.type, CacheType) else o.type)
    operations: Dim = 0
    for n in body.nodes():
        operations = operations + _operations(n)
    return Cost(read, written, operations)


def _bytes(t: Type) -> Dim:
    if not isinstance(t, TensorType):
        return 0
    count = product(t.shape)
    bits = BITS[t.dtype]
    return product((count, bits // 8)) if bits >= 8 else product((count, bits)) // 8


def _read(node: Node, readers: list[Node]) -> Dim:
    if isinstance(node.type, CacheType):
        return _cache_read(node.type, readers)
    if readers and all(r.op.name == "take" and r.inputs[0] is node for r in readers):
        total: Dim = 0
        for r in readers:
            total = total + _bytes(r.type)
        return total
    if readers and all(_is_of_experts(node, r) for r in readers):
        rows = product(readers[0].shape[:-1])
        return product((rows, _bytes(TensorType(node.dtype, node.shape[1:]))))
    return _bytes(node.type)


def _is_of_experts(node: Node, reader: Node) -> bool:
    """Whether the reader takes a part of the node for each row: the weights of an expert."""
    if not reader.op.name.endswith("expert_linear"):
        return False
    if "quantized" in reader.op.name or "integer" in reader.op.name:
        found = operands(reader)
        return node in (found.codes, found.scale, found.zeros)
    return reader.inputs[1] is node


def _cache_read(cache: CacheType, readers: list[Node]) -> Dim:
    total: Dim = 0
    for r in readers:
        if r.op.name == "paged_attention":
            sequences = r.inputs[5].shape[0]
            total = total + product((sequences, dim(CONTEXT), cache.bytes_per_token()))
    return total


def _operations(n: Node) -> Dim:
    name = n.op.name
    if (
        n.op.has("leaf")
        or n.op.has("movement")
        or n.op.has("index")
        or not isinstance(n.type, TensorType)
    ):
        return 0
    if name in ("linear", "packed_linear", "expert_linear", "packed_expert_linear", "matmul"):
        return product((2, *n.shape, n.inputs[0].shape[-1]))
    if "quantized" in name:
        return product((2, *n.shape, n.inputs[0].shape[-1]))
    if "integer" in name:
        return product((2, *n.shape, *n.inputs[0].shape[-2:]))
    if name == "conv1d":
        return product((2, *n.shape, *n.inputs[1].shape[1:]))
    if name == "attention":
        return product((2, *n.shape[:3], n.inputs[1].shape[2], n.inputs[0].shape[3] + n.shape[3]))
    if name in ("paged_attention", "ragged_attention"):
        return product((2, *n.shape[:2], dim(CONTEXT), n.inputs[0].shape[2] + n.shape[2]))
    source = n.inputs[0] if n.op.has("reduction") and n.inputs else n
    return product(source.shape)
