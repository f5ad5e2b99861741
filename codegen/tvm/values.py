"""Elements in memory and in registers: how each dtype is stored, widened on load and rounded on
store.

At a kernel's border bf16 is uint16 bits, bool is uint8, i4/u4/i2 lie packed in uint8 (low bits
first). Inside, all float mathematics is float32, and float64 for f64 alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from tvm import tirx
from tvm.script.ir_builder import tirx as T
from tvm.tirx.analysis import undefined_vars

Expr = tirx.Expr if hasattr(tirx, "Expr") else object
Index = tuple

STORED = {
    "f64": "float64",
    "f32": "float32",
    "f16": "float16",
    "bf16": "uint16",
    "f8e4m3": "uint8",
    "f8e5m2": "uint8",
    "i64": "int64",
    "i32": "int32",
    "i16": "int16",
    "i8": "int8",
    "u8": "uint8",
    "bool": "uint8",
    "i4": "uint8",
    "u4": "uint8",
    "i2": "uint8",
}
"""The type of a buffer's elements, by IR dtype."""

COMPUTED = {
    "f64": "float64",
    "f32": "float32",
    "f16": "float32",
    "bf16": "float32",
    "f8e4m3": "float32",
    "f8e5m2": "float32",
    "i64": "int64",
    "i32": "int32",
    "i16": "int16",
    "i8": "int8",
    "u8": "uint8",
    "bool": "bool",
    "i4": "int8",
    "u4": "uint8",
    "i2": "int8",
}
"""The type of a value in a register, by IR dtype."""

SUBBYTE = {"i4": 4, "u4": 4, "i2": 2}


def bytes_of(dtype: str) -> float:
    """Bytes that one element takes in memory; a fraction for packed dtypes."""
    if dtype in SUBBYTE:
        return SUBBYTE[dtype] / 8
    digits = STORED[dtype].lstrip("abcdefghijklmnopqrstuvwxyz")
    return int(digits) / 8


def const(value: float | int | bool, dtype: str) -> Expr:
    """A constant of a TVM dtype."""
    if dtype.startswith("float"):
        return (
            tirx.FloatImm(dtype, float(value)) if _finite(value) else _special(float(value), dtype)
        )
    return tirx.IntImm(dtype, int(value))


def _finite(value: float | int | bool) -> bool:
    return value == value and abs(value) != float("inf")


def _special(value: float, dtype: str) -> Expr:
    bits = {"float32": ("uint32", 0x7F800000, 0xFF800000, 0x7FC00000)}
    bits["float64"] = ("uint64", 0x7FF0 << 48, 0xFFF0 << 48, 0x7FF8 << 48)
    word, plus, minus, nan = bits[dtype]
    chosen = nan if value != value else plus if value > 0 else minus
    if word == "uint32":
        return tirx.op.reinterpret(dtype, tirx.IntImm(word, chosen))
    high = tirx.Cast(word, tirx.IntImm("uint32", chosen >> 32))
    return tirx.op.reinterpret(dtype, tirx.op.shift_left(high, tirx.IntImm(word, 32)))


_LANE: ContextVar[tuple[Expr, int] | None] = ContextVar("lane", default=None)
# The vectorized loop under construction; as dynamic as the IRBuilder's own frames.


@contextmanager
def vectorized(lanes: int) -> Iterator[Expr]:
    """A vectorized loop over lanes (int64); a single lane is no loop."""
    if lanes == 1:
        yield tirx.IntImm("int64", 0)
        return
    with T.vectorized(tirx.IntImm("int64", 0), tirx.IntImm("int64", lanes)) as v:
        token = _LANE.set((v, lanes))
        try:
            yield v
        finally:
            _LANE.reset(token)


def bind(value: Expr) -> Expr:
    """An index in a variable of its own, so that ranges are known of it; other values as
    bind_opaque has them.
    """
    if isinstance(value, tirx.Var | tirx.IntImm | tirx.FloatImm):
        return value
    dtype = dtype_of(value)
    # A vector written out (x16) is made of loads, which the analyzer does not follow.
    written_out = dtype.endswith(("x16", "x32", "x64"))
    return (
        T.bind(value)
        if written_out or (dtype == "int64" and not _in_lanes(value))
        else bind_opaque(value)
    )


def bind_opaque(value: Expr) -> Expr:
    """A value that is computed once and used more than once.

    It is held in a buffer (one element, or one for each lane), not in a variable: TVM's
    analyzer follows a bound variable into every expression that uses it, in time exponential in
    the length of the chain. LLVM makes it a register again.
    """
    if isinstance(value, tirx.Var | tirx.IntImm | tirx.FloatImm):
        return value
    dtype = dtype_of(value)
    if dtype.startswith("bool"):
        number = tirx.Select(value, const(1, "int32"), const(0, "int32"))
        return tirx.NE(bind_opaque(number), const(0, "int32"))
    lane = _LANE.get() if _in_lanes(value) else None
    lane = lane or (tirx.IntImm("int64", 0), 1)
    held = T.alloc_buffer((lane[1],), dtype)
    T.buffer_store(held, value, [lane[0]])
    return held[lane[0]]


def _in_lanes(value: Expr) -> bool:
    """Whether a value differs between the lanes of the vectorized loop under construction."""
    lane = _LANE.get()
    return lane is not None and any(v.same_as(lane[0]) for v in undefined_vars(value))


def is_nan(x: Expr) -> Expr:
    """Whether a float is no number, by its bits: TVM simplifies x != x to false."""
    word, infinity = ("int64", 0x7FF0 << 48) if dtype_of(x) == "float64" else ("int32", 0x7F800000)
    magnitude = tirx.op.bitwise_and(
        tirx.op.reinterpret(word, x), _bits(word, infinity | (infinity - 1))
    )
    return tirx.GT(magnitude, _bits(word, infinity))


def _bits(word: str, value: int) -> Expr:
    if word == "int32":
        return tirx.IntImm(word, value)
    high = tirx.op.shift_left(tirx.IntImm(word, value >> 32), tirx.IntImm(word, 32))
    return tirx.op.bitwise_or(high, tirx.IntImm(word, value & 0xFFFFFFFF))


def i64(value: int | Expr) -> Expr:
    """An index: 64 bits wide, because a cache may hold more than 2^31 elements."""
    if isinstance(value, int):
        return tirx.IntImm("int64", value)
    return value if dtype_of(value) == "int64" else tirx.Cast("int64", value)


def dtype_of(value: Expr) -> str:
    """The TVM dtype of an expression."""
    return str(value.ty.dtype) if hasattr(value.ty, "dtype") else str(value.ty)


def cast(value: Expr, dtype: str) -> Expr:
    """A value converted to a TVM dtype; itself where it has it already."""
    have = dtype_of(value)
    if have == dtype:
        return value
    if dtype == "bool":
        return tirx.NE(value, const(0, have))
    if have == "bool":
        return tirx.Select(value, const(1, dtype), const(0, dtype))
    return tirx.Cast(dtype, value)


def widen_bf16(bits: Expr) -> Expr:
    """float32 from bfloat16 bits: a shift by 16."""
    wide = tirx.op.shift_left(tirx.Cast("uint32", bits), tirx.IntImm("uint32", 16))
    return tirx.op.reinterpret("float32", wide)


def round_bf16(value: Expr) -> Expr:
    """bfloat16 bits nearest to a float32, ties to even; a NaN stays one."""
    value = bind(value)
    bits = bind(tirx.op.reinterpret("uint32", value))
    u = lambda n: tirx.IntImm("uint32", n)  # noqa: E731
    nearest = nearest_bf16(bits)
    quiet = tirx.op.bitwise_or(tirx.op.shift_right(bits, u(16)), u(0x40))
    return tirx.Cast("uint16", tirx.Select(is_nan(value), quiet, nearest))


def nearest_bf16(bits: Expr) -> Expr:
    """The upper half, in as many bits, of a finite float32 rounded to nearest, ties to even: given
    and gives uint32, one or a vector of them.
    """
    u = lambda n: _like(tirx.IntImm("uint32", n), bits)  # noqa: E731
    odd = tirx.op.bitwise_and(tirx.op.shift_right(bits, u(16)), u(1))
    return tirx.op.shift_right(bits + odd + u(0x7FFF), u(16))


def _like(number: Expr, value: Expr) -> Expr:
    """A number in as many lanes as a value has."""
    _, _, lanes = dtype_of(value).partition("x")
    return T.broadcast(number, int(lanes)) if lanes else number


def _widen_f8(bits: Expr, exponent: int, mantissa: int) -> Expr:
    """float32 from an 8-bit float: the bits moved into place, the bias corrected by a
    multiplication (exact, subnormals too).
    """
    word = bind(tirx.Cast("uint32", bits))
    u = lambda n: tirx.IntImm("uint32", n)  # noqa: E731
    body = tirx.op.shift_left(tirx.op.bitwise_and(word, u(0x7F)), u(23 - mantissa))
    sign = tirx.op.shift_left(tirx.op.bitwise_and(word, u(0x80)), u(24))
    scale = float(2.0 ** (127 - (2 ** (exponent - 1) - 1)))
    size = bind(tirx.op.reinterpret("float32", body) * const(scale, "float32"))
    low = tirx.op.bitwise_and(word, u(0x7F))
    top = 0x7F if exponent == 4 else 0x7D
    special = tirx.GE(low, u(top)) if exponent == 4 else tirx.GE(low, u(0x7C))
    infinite = (
        const(float("nan"), "float32")
        if exponent == 4
        else tirx.Select(
            tirx.EQ(low, u(0x7C)), const(float("inf"), "float32"), const(float("nan"), "float32")
        )
    )
    size = bind(tirx.Select(special, infinite, size))
    return tirx.op.reinterpret(
        "float32", tirx.op.bitwise_or(tirx.op.reinterpret("uint32", size), sign)
    )


def load(buffer: tirx.Buffer, dtype: str, index: Sequence[Expr]) -> Expr:
    """The element at an index, as a value in a register."""
    if dtype in SUBBYTE:
        return _load_packed(buffer, dtype, index)
    value = buffer[tuple(index)] if len(index) else buffer[()]
    if dtype == "bf16":
        return widen_bf16(value)
    if dtype in ("f8e4m3", "f8e5m2"):
        return _widen_f8(value, 4 if dtype == "f8e4m3" else 5, 3 if dtype == "f8e4m3" else 2)
    return cast(value, COMPUTED[dtype])


def _load_packed(buffer: tirx.Buffer, dtype: str, index: Sequence[Expr]) -> Expr:
    bits = SUBBYTE[dtype]
    per = 8 // bits
    last = index[-1]
    byte = buffer[(*index[:-1], tirx.floordiv(last, i64(per)))]
    shift = tirx.Cast("uint8", tirx.floormod(last, i64(per))) * tirx.IntImm("uint8", bits)
    low = tirx.op.bitwise_and(tirx.op.shift_right(byte, shift), tirx.IntImm("uint8", 2**bits - 1))
    if dtype == "u4":
        return low
    half = tirx.IntImm("int8", 2 ** (bits - 1))
    return tirx.op.bitwise_xor(tirx.Cast("int8", low), half) - half


def rounded(value: Expr, dtype: str) -> Expr:
    """A register's value as memory would give it back."""
    if dtype == "bf16":
        return widen_bf16(round_bf16(cast(value, "float32")))
    return cast(cast(value, STORED[dtype]), COMPUTED[dtype])


def stored(value: Expr, dtype: str) -> Expr:
    """A register's value in the form that memory holds."""
    if dtype == "bf16":
        return round_bf16(cast(value, "float32"))
    return cast(value, STORED[dtype])
