"""What rules share: reading literals, rounding as a dtype does, fitting a node to a shape."""

from __future__ import annotations

import math

import numpy as np

from ...ir.dims import Dim, Shape, equal, equal_shapes
from ...ir.node import Node
from ...ir.ops import tensor
from ...ir.types import BITS, FLOATS, TensorType

# What each dtype's values all survive a round trip through.
_HOLDS: dict[str, frozenset[str]] = {
    "f64": frozenset({"f32", "f16", "bf16", "f8e4m3", "f8e5m2", "i32", "i16", "i8", "u8", "bool"}),
    "f32": frozenset({"f16", "bf16", "f8e4m3", "f8e5m2", "i16", "i8", "u8", "bool"}),
    "f16": frozenset({"f8e4m3", "f8e5m2", "i8", "u8", "bool"}),
    "bf16": frozenset({"f8e4m3", "f8e5m2", "i8", "u8", "bool"}),
    "i64": frozenset({"i32", "i16", "i8", "u8", "bool"}),
    "i32": frozenset({"i16", "i8", "u8", "bool"}),
}


MASKED = -1e3
"""What is filled in where a key is not to be seen lies below: -inf, a dtype's lowest, -1e4."""


def holds(wide: str, narrow: str) -> bool:
    """Whether every value of a dtype is a value of a wider one too."""
    return wide == narrow or narrow in _HOLDS.get(wide, frozenset())


def literal(node: Node) -> float | int | bool | None:
    """The number that a constant holds, seen through broadcasts and reshapes, else None."""
    while node.op in (tensor.broadcast, tensor.reshape):
        node = node.inputs[0]
    return node["value"] if node.op is tensor.constant else None


def rounded(value: float | int | bool, dtype: str) -> float | int | bool | None:
    """The value as the dtype holds it: rounded to nearest even, cut, or tested; None: unknown."""
    if dtype == "bool":
        return bool(value)
    if dtype in FLOATS:
        return _rounded_float(float(value), dtype)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    low = 0 if dtype.startswith("u") else -(1 << (BITS[dtype] - 1))
    cut = int(value)
    return cut if low <= cut < low + (1 << BITS[dtype]) else None


def _rounded_float(value: float, dtype: str) -> float | None:
    if dtype == "f64":
        return value
    with np.errstate(over="ignore"):
        if dtype in ("f32", "f16"):
            return float(np.dtype("f4" if dtype == "f32" else "f2").type(value))
        return _rounded_bfloat16(value) if dtype == "bf16" else None


def _rounded_bfloat16(value: float) -> float:
    if not math.isfinite(value):
        return value
    bits = int(np.float32(value).view(np.uint32))
    bits = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000
    return float(np.uint32(bits).view(np.float32))


def fitted(root: Node, value: Node) -> Node | None:
    """The value broadcast to the shape of what it stands in for; None where the dtypes differ."""
    if value.dtype != root.dtype:
        return None
    return spread(value, root.shape)


def filled(root: Node, value: float | int | bool) -> Node:
    """A tensor of root's type that holds one number throughout."""
    return spread(tensor.scalar(value, root.dtype), root.shape)


def spread(value: Node, shape: Shape) -> Node:
    """The value broadcast to a shape, or itself where it has it."""
    return value if equal_shapes(value.shape, shape) else tensor.broadcast(value, shape=shape)


def reshaped(value: Node, shape: Shape) -> Node:
    """The value in a shape, or itself where it has it."""
    if value.op is tensor.reshape:
        value = value.inputs[0]
    return value if equal_shapes(value.shape, shape) else tensor.reshape(value, shape=tuple(shape))


def transposed(value: Node) -> Node:
    """The value with its last two axes exchanged."""
    rank = len(value.shape)
    permutation = (*range(rank - 2), rank - 1, rank - 2)
    if value.op is tensor.transpose:
        inner: tuple[int, ...] = value["permutation"]
        value, permutation = value.inputs[0], tuple(inner[p] for p in permutation)
    if permutation == tuple(range(rank)):
        return value
    return tensor.transpose(value, permutation=permutation)


def without_widening(value: Node) -> Node:
    """The value below casts that lose nothing."""
    while value.op is tensor.cast and holds(value.dtype, value.inputs[0].dtype):
        value = value.inputs[0]
    return value


def without_casts(value: Node) -> Node:
    """What a value was before any casts."""
    while value.op is tensor.cast:
        (value,) = value.inputs
    return value


def is_tensor(value: Node) -> bool:
    """Whether a node is one tensor, not a tuple or a cache."""
    return isinstance(value.type, TensorType)


def same(a: Dim, b: Dim) -> bool:
    """Whether two dims are equal for every value of their names."""
    return equal(a, b)
