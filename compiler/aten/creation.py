"""ATen ops that make tensors: constants, ranges, triangles, complex numbers from real ones."""

from __future__ import annotations

from typing import Any

from ...ir.dims import Dim
from ...ir.node import Node
from ...ir.ops import tensor as t
from .movement import part
from .table import Call, Complex, Table, broadcast, cast, full, operand, reshape

TABLE = Table()


# -- complex numbers as pairs


@TABLE("view_as_complex", "view_as_complex_copy")
def view_as_complex(call: Call, x: Node) -> Complex:
    """Pairs along the last axis as complex numbers."""
    last = len(x.shape) - 1
    shape = x.shape[:-1]
    return Complex(reshape(part(x, last, 0, 1), shape), reshape(part(x, last, 1, 2), shape))


@TABLE("view_as_real", "view_as_real_copy")
def view_as_real(call: Call, x: Complex) -> Node:
    """Complex numbers as pairs along a new last axis."""
    shape = (*x.real.shape, 1)
    return t.concat(reshape(x.real, shape), reshape(x.imag, shape), axis=len(shape) - 1)


@TABLE("polar")
def polar(call: Call, size: Node, angle: Node) -> Complex:
    """size (cos angle + i sin angle)."""
    return Complex(t.mul(size, t.cos(angle)), t.mul(size, t.sin(angle)))


@TABLE("complex")
def complex_(call: Call, real: Node, imag: Node) -> Complex:
    """real + i imag."""
    return Complex(broadcast(real, call.shape), broadcast(imag, call.shape))


@TABLE("real")
def real(call: Call, x: Any) -> Node:
    """The real part."""
    return x.real if isinstance(x, Complex) else x


@TABLE("imag")
def imag(call: Call, x: Complex) -> Node:
    """The imaginary part."""
    return x.imag


@TABLE("conj", "_conj")
def conj(call: Call, x: Any) -> Any:
    """The imaginary part turned."""
    return Complex(x.real, t.neg(x.imag)) if isinstance(x, Complex) else x


# -- constants


@TABLE("arange.default")
def arange(call: Call, stop: Any, **_: Any) -> Node:
    """0 to stop - 1."""
    return arange_from(call, 0, stop)


@TABLE("arange.start", "arange.start_step")
def arange_from(call: Call, start: Any, stop: Any, step: Any = 1, **_: Any) -> Node:
    """start, start + step, ...; as many as were traced."""
    dtype = call.dtype
    whole = not isinstance(start, float) and not isinstance(step, float)
    work = "i64" if whole else "f64"
    result = t.iota(size=call.shape[0], dtype=dtype if whole and (start, step) == (0, 1) else work)
    if step != 1:
        result = t.mul(result, operand(step, work))
    if start != 0:
        result = t.add(result, operand(start, work))
    return cast(result, dtype)


@TABLE(
    "zeros",
    "zeros_like",
    "new_zeros",
    "empty",
    "empty_like",
    "new_empty",
    "empty_strided",
    "new_empty_strided",
)
def zeros(call: Call, *_: Any, **__: Any) -> Any:
    """Nothing but 0; what torch leaves unset is 0 here."""
    return _constant(call, 0)


@TABLE("ones", "ones_like", "new_ones")
def ones(call: Call, *_: Any, **__: Any) -> Any:
    """Nothing but 1."""
    return _constant(call, 1)


def _constant(call: Call, value: Any) -> Any:
    made = full(value, call.shape, call.dtype)
    return Complex(made, full(0, call.shape, call.dtype)) if call.value.is_complex() else made


@TABLE("full", "full_like")
def full_(call: Call, _: Any, second: Any, *__: Any, **___: Any) -> Node:
    """Nothing but one value."""
    return full(second, call.shape, call.dtype)


@TABLE("fill", "fill_")
def fill(call: Call, x: Node, value: Any) -> Node:
    """Nothing but one value, in x's shape."""
    return full(value, call.shape, call.dtype)


@TABLE("scalar_tensor")
def scalar_tensor(call: Call, value: Any, **_: Any) -> Node:
    """A number as a tensor."""
    return operand(value, call.dtype)


@TABLE("new_full")
def new_full(call: Call, x: Node, size: Any, value: Any, **_: Any) -> Node:
    """Nothing but one value."""
    return full(value, call.shape, call.dtype)


@TABLE("eye")
def eye(call: Call, *_: Any, **__: Any) -> Node:
    """1 on the diagonal."""
    rows, columns = call.shape
    return cast(t.eq(*_grid(rows, columns)), call.dtype)


def _grid(rows: Dim, columns: Dim) -> tuple[Node, Node]:
    """Row numbers [rows, 1] and column numbers [1, columns]."""
    i, j = t.iota(size=rows, dtype="i64"), t.iota(size=columns, dtype="i64")
    return reshape(i, (rows, 1)), reshape(j, (1, columns))


def _triangle(x: Node, diagonal: int, upper: bool) -> Node:
    i, j = _grid(*x.shape[-2:])
    i = t.add(i, operand(diagonal, "i64")) if diagonal else i
    kept = t.ge(j, i) if upper else t.le(j, i)
    if x.dtype == "bool":
        return t.logical_and(x, broadcast(kept, x.shape) if x.shape != kept.shape else kept)
    return t.where(kept, x, operand(0, x.dtype))


@TABLE("triu")
def triu(call: Call, x: Node, diagonal: int = 0) -> Node:
    """On and above a diagonal; 0 below it."""
    return _triangle(x, diagonal, upper=True)


@TABLE("tril")
def tril(call: Call, x: Node, diagonal: int = 0) -> Node:
    """On and below a diagonal; 0 above it."""
    return _triangle(x, diagonal, upper=False)
