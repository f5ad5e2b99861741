"""Elements in memory and in registers: how each dtype is stored, widened on load and rounded on
store.

bool is a byte in memory, i4, u4 and i2 lie packed in bytes (low bits first). In registers all float
mathematics is float32, and float64 for f64 alone.
"""

from __future__ import annotations

import math

POINTED = {
    "f64": "fp64",
    "f32": "fp32",
    "f16": "fp16",
    "bf16": "bf16",
    "f8e4m3": "fp8e4nv",
    "f8e5m2": "fp8e5",
    "i64": "i64",
    "i32": "i32",
    "i16": "i16",
    "i8": "i8",
    "u8": "u8",
    "bool": "u8",
    "i4": "u8",
    "u4": "u8",
    "i2": "u8",
}
"""Triton's word for what a pointer points to, by IR dtype."""

STORED = {
    "f64": "tl.float64",
    "f32": "tl.float32",
    "f16": "tl.float16",
    "bf16": "tl.bfloat16",
    "f8e4m3": "tl.float8e4nv",
    "f8e5m2": "tl.float8e5",
    "i64": "tl.int64",
    "i32": "tl.int32",
    "i16": "tl.int16",
    "i8": "tl.int8",
    "u8": "tl.uint8",
    "bool": "tl.uint8",
}
"""The type of an element in memory, by IR dtype."""

COMPUTED = {
    **STORED,
    "f16": "tl.float32",
    "bf16": "tl.float32",
    "f8e4m3": "tl.float32",
    "f8e5m2": "tl.float32",
    "bool": "tl.int1",
    "i4": "tl.int8",
    "u4": "tl.uint8",
    "i2": "tl.int8",
}
"""The type of a value in a register, by IR dtype."""

PACKED = {"i4": 4, "u4": 4, "i2": 2}
"""Bits of the dtypes of which a byte holds several."""


def number(value: float | int | bool, dtype: str) -> str:
    """A constant in the type that its dtype has in registers."""
    computed = COMPUTED[dtype]
    text = str(int(value)) if not is_float(dtype) else _float(float(value))
    return f"tl.full([], {text}, {computed})"


def _float(value: float) -> str:
    return repr(value) if math.isfinite(value) else f'float("{value}")'


def is_float(dtype: str) -> bool:
    """Whether a dtype's values are floating point."""
    return COMPUTED[dtype] in ("tl.float32", "tl.float64")


def lowest(dtype: str, *, highest: bool = False) -> str:
    """What no value of a dtype is below (above): the start of a maximum (minimum)."""
    if is_float(dtype):
        return number(math.inf if highest else -math.inf, dtype)
    if dtype == "bool":
        return number(highest, dtype)
    bits = PACKED.get(dtype) or int(STORED[dtype].lstrip("tl.unsig"))
    unsigned = dtype.startswith("u")
    low, high = (0, 2**bits - 1) if unsigned else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return number(high if highest else low, dtype)
