"""What every reference function is given: the sizes of dims, and how wide floats are."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, SupportsComplex, cast

import sympy
import torch

from ...ir.dims import Dim, dim, substitute
from ...ir.errors import IRError

DTYPES: Mapping[str, torch.dtype] = {
    "f64": torch.float64,
    "f32": torch.float32,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "f8e4m3": torch.float8_e4m3fn,
    "f8e5m2": torch.float8_e5m2,
    "i64": torch.int64,
    "i32": torch.int32,
    "i16": torch.int16,
    "i8": torch.int8,
    "u8": torch.uint8,
    "bool": torch.bool,
    "i4": torch.int8,
    "u4": torch.uint8,
    "i2": torch.int8,
}


@dataclass(frozen=True)
class Context:
    """Sizes of named dims; whether floats are widened to float64; how to evaluate a kernel's
    body; functions in place of those that ops have; whether values are held to their types;
    `known` holds the dims that were asked for.
    """

    sizes: Mapping[str, int]
    wide: bool
    body: Callable[..., tuple[Any, ...]]
    replaced: Mapping[str, Callable[..., Any]] = field(default_factory=dict[str, Any])
    checked: bool = True
    known: dict[Dim, int] = field(default_factory=dict)

    def size(self, d: Dim) -> int:
        """The dim as an int."""
        if isinstance(d, int):
            return d
        if d not in self.known:
            value = substitute(d, self.sizes)
            if not isinstance(value, int):
                raise IRError(f"no value for dim {d}; known: {dict(self.sizes)}")
            self.known[d] = value
        return self.known[d]

    def number(self, d: Dim) -> float | int:
        """The dim as a number: what a model computes of its sizes in Python need not be whole, and
        is none where those are sizes that its way is not for.
        """
        value = substitute(d, self.sizes)
        if isinstance(value, int) or not value.is_number:
            return self.size(d)
        number = complex(cast("SupportsComplex", value))
        return number.real if number.imag == 0 else math.nan

    def dtype(self, name: str) -> torch.dtype:
        """The torch dtype that stands for one of the IR's."""
        dtype = DTYPES[name]
        return torch.float64 if self.wide and dtype.is_floating_point else dtype

    def widened(self, value: torch.Tensor) -> torch.Tensor:
        """The value, in float64 where floats are wide."""
        return value.double() if self.wide and value.is_floating_point() else value

    def math(self, *values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Floats of fewer than 32 bits as float32, for mathematics that is rounded once at its
        end.
        """
        return tuple(
            v.float() if v.is_floating_point() and v.dtype.itemsize < 4 else v for v in values
        )


def bind(d: Dim, size: int, sizes: dict[str, int], complaint: str) -> None:
    """Learn a named dim from the size of an input, or check one that is known."""
    if isinstance(d, sympy.Symbol) and str(d) not in sizes:
        sizes[str(d)] = size
        return
    value = substitute(d, sizes)
    if isinstance(value, int):
        if value != size:
            raise IRError(f"{complaint} ({d} = {value})")
        return
    names = list(value.free_symbols)
    if len(names) == 1:
        solved = sympy.solve(sympy.Eq(value, size), names[0])
        if len(solved) == 1 and solved[0].is_Integer and solved[0] > 0:
            sizes[str(names[0])] = int(solved[0])
            return
    raise IRError(f"{complaint}: {d} cannot be {size}")


__all__ = ["DTYPES", "Context", "bind", "dim"]
