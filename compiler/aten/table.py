"""What the builders of ATen ops share: the table they register in, and the call they are given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from ...ir.dims import Dim
from ...ir.node import Node
from ...ir.ops import tensor as t
from ...ir.types import FLOATS

Builder = Callable[..., Any]


class Complex(NamedTuple):
    """A complex tensor: two real nodes of one shape."""

    real: Node
    imag: Node


class Table(dict[str, Builder]):
    """Builders by ATen name: `add` for every overload, `max.dim` for one."""

    def __call__(self, *names: str) -> Callable[[Builder], Builder]:
        """Register a function under names."""

        def register(builder: Builder) -> Builder:
            for name in names:
                assert name not in self, f"{name} has two builders"
                self[name] = builder
            return builder

        return register


class Unsupported(Exception):
    """A use of an op that has no translation; the importer adds where it is."""


DTYPES: Mapping[torch.dtype, str] = {
    torch.float64: "f64",
    torch.float32: "f32",
    torch.float16: "f16",
    torch.bfloat16: "bf16",
    torch.float8_e4m3fn: "f8e4m3",
    torch.float8_e5m2: "f8e5m2",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int16: "i16",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.bool: "bool",
    # Complex tensors are pairs of real ones.
    torch.complex64: "f32",
    torch.complex128: "f64",
}


@dataclass(frozen=True)
class Call:
    """One call of an ATen op while it is imported: the traced result, the traced arguments, symbols
    to dims.
    """

    value: Any
    arguments: tuple[Any, ...]
    to_dim: Callable[[Any], Dim]

    @property
    def shape(self) -> tuple[Dim, ...]:
        """The shape of the result."""
        return self.shape_of(self.value)

    @property
    def dtype(self) -> str:
        """The dtype of the result (of its parts, where it is complex)."""
        return DTYPES[self.value.dtype]

    def shape_of(self, value: Any) -> tuple[Dim, ...]:
        """The shape of a traced tensor, in our dims."""
        return tuple(self.to_dim(d) for d in value.shape)

    def common(self) -> str:
        """The dtype that the first two arguments meet in, by torch's promotion of tensors and
        Python numbers.
        """
        first, second = (_plain(a) for a in self.arguments[:2])
        return DTYPES[torch.result_type(first, second)]


def _plain(value: Any) -> Any:
    if isinstance(value, torch.SymInt):
        return 1
    return 1.0 if isinstance(value, torch.SymFloat) else value


def cast(x: Node, dtype: str) -> Node:
    """The node in a dtype; itself where it has it."""
    return x if x.dtype == dtype else t.cast(x, dtype=dtype)


def reshape(x: Node, shape: Sequence[Dim]) -> Node:
    """The node in a shape; itself where it has it; one reshape where it was reshaped already."""
    if x.op.name == "reshape":
        x = x.inputs[0]
    return x if tuple(x.shape) == tuple(shape) else t.reshape(x, shape=tuple(shape))


def broadcast(x: Node, shape: Sequence[Dim]) -> Node:
    """The node repeated to a shape; itself where it has it."""
    return x if tuple(x.shape) == tuple(shape) else t.broadcast(x, shape=tuple(shape))


def transpose(x: Node, order: Sequence[int]) -> Node:
    """The axes in an order; itself where that changes nothing."""
    return (
        x if list(order) == list(range(len(x.shape))) else t.transpose(x, permutation=tuple(order))
    )


def operand(value: Node | float | int | bool | Dim, dtype: str) -> Node:
    """A node in a dtype: a node cast, a number as a constant, a dim as its value."""
    if isinstance(value, Node):
        return cast(value, dtype)
    if isinstance(value, (int, float)):
        return t.scalar(value, dtype)
    return t.dim_value(dim=value, dtype=dtype)


def full(value: Any, shape: Sequence[Dim], dtype: str) -> Node:
    """A tensor of one value."""
    return broadcast(operand(value, dtype), shape)


def axis_of(axis: int, rank: int) -> int:
    """An axis counted from the front."""
    return axis + rank if axis < 0 else axis


def axes_of(axes: int | Sequence[int] | None, rank: int) -> tuple[int, ...]:
    """Axes counted from the front, in order; all of them where none are given."""
    if axes is None or (not isinstance(axes, int) and not axes):
        return tuple(range(rank))
    listed = [axes] if isinstance(axes, int) else axes
    return tuple(sorted(axis_of(a, rank) for a in listed))


def is_float(dtype: str) -> bool:
    """Whether a dtype is floating point."""
    return dtype in FLOATS


def widened(dtype: str) -> str:
    """float32 for 16-bit floats, where torch's own kernels work in float32."""
    return "f32" if dtype in ("bf16", "f16") else dtype
