"""Elementwise ATen ops: dtype promotion made explicit, numbers as constants."""

from __future__ import annotations

import math
import struct
from typing import Any

from ...ir.node import Node, Op
from ...ir.ops import tensor as t
from .table import Call, Complex, Table, Unsupported, cast, full, is_float, operand, widened

TABLE = Table()
_COMPLEX = (Complex, complex)


def _exact(value: Any, dtype: str) -> bool:
    """Whether a Python number survives rounding to a 16-bit float."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
        return True
    if dtype == "f16":
        return (
            struct.unpack("e", struct.pack("e", value))[0] == value if abs(value) < 65504 else False
        )
    return struct.unpack("I", struct.pack("f", value))[0] & 0xFFFF == 0 and _is_single(value)


def _is_single(value: float) -> bool:
    return struct.unpack("f", struct.pack("f", value))[0] == value


def _working_dtype(dtype: str, *values: Any) -> str:
    """Where torch computes: a number that the 16-bit dtype cannot hold keeps its value, so the work
    is in float32.
    """
    if dtype in ("bf16", "f16") and not all(_exact(v, dtype) for v in values):
        return "f32"
    return dtype


def binary(call: Call, op: Op, x: Any, y: Any) -> Node:
    """op on two operands in the result's dtype."""
    dtype = _working_dtype(call.dtype, x, y)
    return cast(op(operand(x, dtype), operand(y, dtype)), call.dtype)


def _scaled(call: Call, y: Any, alpha: Any) -> Any:
    if alpha == 1:
        return y
    if not isinstance(y, Node):
        return y * alpha
    return t.mul(operand(y, call.dtype), operand(alpha, call.dtype))


@TABLE("add")
def add(call: Call, x: Any, y: Any, *, alpha: Any = 1) -> Any:
    """x + alpha y; adding nothing is nothing."""
    if isinstance(x, _COMPLEX) or isinstance(y, _COMPLEX):
        return _complex_pairwise(call, t.add, x, y, alpha)
    if _is_number(y, 0) and isinstance(x, Node):
        return cast(x, call.dtype)
    return binary(call, t.add, x, _scaled(call, y, alpha))


@TABLE("sub")
def sub(call: Call, x: Any, y: Any, *, alpha: Any = 1) -> Any:
    """x - alpha y."""
    if isinstance(x, _COMPLEX) or isinstance(y, _COMPLEX):
        return _complex_pairwise(call, t.sub, x, y, alpha)
    if _is_number(y, 0) and isinstance(x, Node):
        return cast(x, call.dtype)
    return binary(call, t.sub, x, _scaled(call, y, alpha))


@TABLE("rsub")
def rsub(call: Call, x: Any, y: Any, alpha: Any = 1) -> Node:
    """y - alpha x."""
    return binary(call, t.sub, y, _scaled(call, x, alpha))


@TABLE("mul", "multiply")
def mul(call: Call, x: Any, y: Any) -> Any:
    """x y, of complex numbers too."""
    if isinstance(x, _COMPLEX) or isinstance(y, _COMPLEX):
        return _complex_product(call, x, y)
    if _is_number(y, 1) and isinstance(x, Node):
        return cast(x, call.dtype)
    if call.dtype == "bool":
        return t.logical_and(operand(x, "bool"), operand(y, "bool"))
    return binary(call, t.mul, x, y)


def _is_number(value: Any, number: int) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == number


def _parts(call: Call, x: Any) -> tuple[Node, Node | None]:
    if isinstance(x, Complex):
        return cast(x.real, call.dtype), cast(x.imag, call.dtype)
    if isinstance(x, complex):
        return operand(x.real, call.dtype), operand(x.imag, call.dtype)
    return operand(x, call.dtype), None


def _complex_product(call: Call, x: Any, y: Any) -> Complex:
    """(a + bi)(c + di) = (ac - bd) + (ad + bc) i."""
    (a, b), (c, d) = _parts(call, x), _parts(call, y)
    if b is None or d is None:
        by = a if b is None else c
        of = (c, d) if b is None else (a, b)
        return Complex(*(t.mul(part, by) for part in of if part is not None))
    real = t.sub(t.mul(a, c), t.mul(b, d))
    return Complex(real, t.add(t.mul(a, d), t.mul(b, c)))


def _complex_pairwise(call: Call, op: Op, x: Any, y: Any, alpha: Any) -> Complex:
    if alpha != 1:
        raise Unsupported("complex addition with alpha")
    (a, b), (c, d) = _parts(call, x), _parts(call, y)
    nothing = operand(0, call.dtype)
    return Complex(op(a, c), op(b if b is not None else nothing, d if d is not None else nothing))


@TABLE("div", "divide", "true_divide")
def div(call: Call, x: Any, y: Any, *, rounding_mode: str | None = None) -> Any:
    """x / y; with a rounding mode, floored or cut towards zero."""
    if isinstance(x, Complex):
        return Complex(binary(call, t.div, x.real, y), binary(call, t.div, x.imag, y))
    if rounding_mode == "floor":
        return floor_divide(call, x, y)
    if rounding_mode is None:
        return (
            x
            if _is_number(y, 1) and isinstance(x, Node) and x.dtype == call.dtype
            else binary(call, t.div, x, y)
        )
    if is_float(call.dtype):
        return _cut(binary(call, t.div, x, y))
    a, b = operand(x, call.dtype), operand(y, call.dtype)
    magnitude = t.floordiv(t.abs_(a), t.abs_(b))
    return t.mul(magnitude, t.mul(t.sign(a), t.sign(b)))


def _cut(x: Node) -> Node:
    return t.where(t.lt(x, operand(0, x.dtype)), t.ceil(x), t.floor(x))


@TABLE("trunc", "fix")
def trunc(call: Call, x: Node) -> Node:
    """x cut towards zero."""
    return _cut(x) if is_float(x.dtype) else x


@TABLE("floor_divide")
def floor_divide(call: Call, x: Any, y: Any) -> Node:
    """floor(x / y)."""
    return binary(call, t.floordiv, x, y)


@TABLE("remainder")
def remainder(call: Call, x: Any, y: Any) -> Node:
    """x - floor(x / y) y."""
    return binary(call, t.mod, x, y)


@TABLE("fmod")
def fmod(call: Call, x: Any, y: Any) -> Node:
    """The remainder with x's sign."""
    a, b = operand(x, call.dtype), operand(y, call.dtype)
    return t.mul(t.sign(a), t.mod(t.abs_(a), t.abs_(b)))


@TABLE("pow")
def power(call: Call, x: Any, y: Any) -> Node:
    """x to the y; small whole powers as products, as torch does."""
    if isinstance(x, Node) and isinstance(y, (int, float)):
        special = _whole_power(cast(x, call.dtype), y)
        if special is not None:
            return special
    dtype = widened(call.dtype)
    return cast(t.pow_(operand(x, dtype), operand(y, dtype)), call.dtype)


def _whole_power(x: Node, y: float) -> Node | None:
    if y == 1:
        return x
    if y == 2:
        return t.mul(x, x)
    if y == 3:
        return t.mul(t.mul(x, x), x)
    if not is_float(x.dtype):
        return None
    return {0.5: t.sqrt, -0.5: t.rsqrt, -1: t.reciprocal}.get(y, lambda _: None)(x)


@TABLE("square")
def square(call: Call, x: Node) -> Node:
    """x x."""
    return t.mul(x, x)


def _register_binary() -> None:
    both = {
        "maximum": t.maximum,
        "minimum": t.minimum,
        "max.other": t.maximum,
        "min.other": t.minimum,
    }
    for name, op in both.items():
        TABLE(name)(lambda call, x, y, op=op: binary(call, op, x, y))
    compared = {"eq": t.eq, "ne": t.ne, "lt": t.lt, "le": t.le, "gt": t.gt, "ge": t.ge}
    for name, op in compared.items():
        TABLE(name)(lambda call, x, y, op=op: _compare(call, op, x, y))
    bits = {
        "and": (t.bitwise_and, t.logical_and),
        "or": (t.bitwise_or, t.logical_or),
        "xor": (t.bitwise_xor, t.ne),
    }
    for name, (whole, truth) in bits.items():
        TABLE(f"__{name}__", f"bitwise_{name}")(
            lambda call, x, y, ops=(whole, truth): binary(call, ops[call.dtype == "bool"], x, y)
        )
    for name, op in {
        "logical_and": t.logical_and,
        "logical_or": t.logical_or,
        "logical_xor": t.ne,
    }.items():
        TABLE(name)(lambda call, x, y, op=op: op(_truth(x), _truth(y)))


def _compare(call: Call, op: Op, x: Any, y: Any) -> Node:
    dtype = call.common()
    return op(operand(x, dtype), operand(y, dtype))


def _truth(x: Any) -> Node:
    return operand(x, "bool")


_FLOAT_OPS = {
    "exp": t.exp,
    "expm1": t.expm1,
    "log": t.log,
    "log1p": t.log1p,
    "sqrt": t.sqrt,
    "rsqrt": t.rsqrt,
    "reciprocal": t.reciprocal,
    "sin": t.sin,
    "cos": t.cos,
    "tanh": t.tanh,
    "sigmoid": t.sigmoid,
    "erf": t.erf,
    "erfinv": t.erfinv,
    "silu": t.silu,
}
_SAME_OPS = {"neg": t.neg, "abs": t.abs_, "sign": t.sign, "sgn": t.sign, "relu": t.relu}
_ROUNDING = {"floor": t.floor, "ceil": t.ceil, "round": t.round_}


def _register_unary() -> None:
    for name, op in _FLOAT_OPS.items():
        TABLE(name)(lambda call, x, op=op: op(cast(x, call.dtype)))
    for name, op in _SAME_OPS.items():
        TABLE(name)(lambda call, x, op=op: op(x))
    for name, op in _ROUNDING.items():
        TABLE(name)(lambda call, x, op=op: op(x) if is_float(x.dtype) else x)


_register_binary()
_register_unary()


@TABLE("gelu")
def gelu(call: Call, x: Node, *, approximate: str = "none") -> Node:
    """x Phi(x)."""
    return t.gelu(x, approximate=approximate)


@TABLE("softplus")
def softplus(call: Call, x: Node, beta: float = 1, threshold: float = 20) -> Node:
    """log(1 + exp(beta x)) / beta."""
    return t.softplus(x, beta=float(beta), threshold=float(threshold))


@TABLE("log_sigmoid")
def log_sigmoid(call: Call, x: Node) -> Node:
    """log(sigmoid(x)) = -softplus(-x)."""
    return t.neg(t.softplus(t.neg(x), beta=1.0, threshold=20.0))


@TABLE("relu6", "hardtanh")
def hardtanh(call: Call, x: Node, low: float | None = None, high: float | None = None) -> Node:
    """x cut to [low, high]; relu6 has neither argument."""
    low, high = (0.0, 6.0) if low is None and high is None else (low, high)
    return clamp(call, x, low, high)


@TABLE("leaky_relu")
def leaky_relu(call: Call, x: Node, slope: float = 0.01) -> Node:
    """x, or slope x below zero."""
    return t.where(t.gt(x, operand(0, x.dtype)), x, binary(call, t.mul, x, slope))


@TABLE("mish")
def mish(call: Call, x: Node) -> Node:
    """x tanh(softplus(x))."""
    return t.mul(x, t.tanh(t.softplus(x, beta=1.0, threshold=20.0)))


@TABLE("hardsigmoid")
def hardsigmoid(call: Call, x: Node) -> Node:
    """(x + 3) / 6 cut to [0, 1]."""
    return clamp(call, t.div(t.add(x, operand(3, x.dtype)), operand(6, x.dtype)), 0.0, 1.0)


@TABLE("elu")
def elu(call: Call, x: Node, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Node:
    """scale x above zero, scale alpha (exp(input_scale x) - 1) below."""
    below = t.mul(operand(alpha, x.dtype), t.expm1(t.mul(x, operand(input_scale, x.dtype))))
    return t.mul(operand(scale, x.dtype), t.where(t.gt(x, operand(0, x.dtype)), x, below))


@TABLE("clamp", "clip")
def clamp(call: Call, x: Node, low: Any = None, high: Any = None) -> Node:
    """x cut to [low, high]."""
    x = cast(x, call.dtype)
    x = x if low is None else t.maximum(x, operand(low, call.dtype))
    return x if high is None else t.minimum(x, operand(high, call.dtype))


@TABLE("clamp_min")
def clamp_min(call: Call, x: Node, low: Any) -> Node:
    """max(x, low)."""
    return clamp(call, x, low, None)


@TABLE("clamp_max")
def clamp_max(call: Call, x: Node, high: Any) -> Node:
    """min(x, high)."""
    return clamp(call, x, None, high)


@TABLE("logical_not")
def logical_not(call: Call, x: Node) -> Node:
    """Whether x is zero."""
    return t.logical_not(x)


@TABLE("bitwise_not")
def bitwise_not(call: Call, x: Node) -> Node:
    """Every bit turned."""
    return t.logical_not(x) if x.dtype == "bool" else t.bitwise_not(x)


@TABLE("where")
def where(call: Call, c: Node, x: Any, y: Any) -> Any:
    """x where c, else y."""
    if isinstance(x, _COMPLEX) or isinstance(y, _COMPLEX):
        (a, b), (p, q) = _parts(call, x), _parts(call, y)
        nothing = operand(0, call.dtype)
        return Complex(t.where(c, a, p), t.where(c, b or nothing, q or nothing))
    return t.where(operand(c, "bool"), operand(x, call.dtype), operand(y, call.dtype))


@TABLE("masked_fill")
def masked_fill(call: Call, x: Node, mask: Node, value: Any) -> Node:
    """value where the mask, else x."""
    return t.where(operand(mask, "bool"), operand(value, call.dtype), cast(x, call.dtype))


@TABLE("isnan")
def isnan(call: Call, x: Node) -> Node:
    """NaN alone differs from itself."""
    return t.ne(x, x) if is_float(x.dtype) else full(False, x.shape, "bool")


@TABLE("isinf")
def isinf(call: Call, x: Node) -> Node:
    """Whether |x| is infinite."""
    if not is_float(x.dtype):
        return full(False, x.shape, "bool")
    return t.eq(t.abs_(x), operand(math.inf, x.dtype))


@TABLE("isfinite")
def isfinite(call: Call, x: Node) -> Node:
    """Whether |x| is below infinity, which NaN is not."""
    if not is_float(x.dtype):
        return full(True, x.shape, "bool")
    return t.lt(t.abs_(x), operand(math.inf, x.dtype))


@TABLE("addcmul")
def addcmul(call: Call, x: Node, a: Node, b: Node, *, value: float = 1) -> Node:
    """x + value a b."""
    product = t.mul(cast(a, call.dtype), cast(b, call.dtype))
    return t.add(cast(x, call.dtype), _scaled(call, product, value))


@TABLE("_to_copy", "to", "type_as", "to.dtype")
def to_copy(call: Call, x: Any, *_: Any, **__: Any) -> Any:
    """x in the result's dtype; where it lies is not a graph's business."""
    if isinstance(x, Complex):
        return Complex(cast(x.real, call.dtype), cast(x.imag, call.dtype))
    if call.value.is_complex():
        return Complex(cast(x, call.dtype), full(0, x.shape, call.dtype))
    return cast(x, call.dtype)
