"""Elementwise tensor ops: they broadcast as numpy does and demand equal dtypes; casts are explicit.

The tensor module passes them on: import them from there.
"""

from __future__ import annotations

from ..dims import Dim, Shape, equal, shape_text
from ..errors import IRError
from ..node import op
from ..types import FLOATS, TensorType, check_dtype

FAMILY = "tensor"
__all__ = [
    "abs_",
    "add",
    "bitwise_and",
    "bitwise_not",
    "bitwise_or",
    "bitwise_xor",
    "broadcast_shapes",
    "cast",
    "ceil",
    "cos",
    "div",
    "eq",
    "erf",
    "erfinv",
    "exp",
    "expm1",
    "float_tensor",
    "floor",
    "floordiv",
    "ge",
    "gelu",
    "gt",
    "le",
    "log",
    "log1p",
    "logical_and",
    "logical_not",
    "logical_or",
    "lt",
    "maximum",
    "minimum",
    "mod",
    "mul",
    "ne",
    "neg",
    "pow_",
    "reciprocal",
    "relu",
    "round_",
    "rsqrt",
    "same_dtype",
    "sigmoid",
    "sign",
    "silu",
    "sin",
    "softplus",
    "sqrt",
    "sub",
    "tanh",
    "where",
]  # fmt: skip


def broadcast_shapes(*shapes: Shape) -> Shape:
    """The shape that numpy's broadcasting gives, or an error that shows the shapes."""
    rank = max((len(s) for s in shapes), default=0)
    padded = [(1,) * (rank - len(s)) + tuple(s) for s in shapes]
    return tuple(_broadcast_dim(dims, shapes) for dims in zip(*padded, strict=True))


def _broadcast_dim(dims: tuple[Dim, ...], shapes: tuple[Shape, ...]) -> Dim:
    result: Dim = 1
    for d in dims:
        if d == 1 or equal(d, result):
            continue
        if result != 1:
            raise IRError(f"shapes {' and '.join(shape_text(s) for s in shapes)} do not broadcast")
        result = d
    return result


def same_dtype(*types: TensorType) -> str:
    """The dtype that tensors share, or an error that shows them."""
    if len({t.dtype for t in types}) != 1:
        raise IRError(f"dtypes differ: {', '.join(str(t) for t in types)}")
    return types[0].dtype


def float_tensor(t: TensorType) -> TensorType:
    """The type itself, which must be floating point."""
    if t.dtype not in FLOATS:
        raise IRError(f"a floating-point tensor was wanted, not {t}")
    return t


def _bits(t: TensorType) -> TensorType:
    if t.dtype in FLOATS:
        raise IRError(f"integers or booleans were wanted, not {t}")
    return t


# -- elementwise, one input


@op("elementwise")
def neg(x: TensorType) -> TensorType:
    """-x."""
    return x


@op("elementwise")
def abs_(x: TensorType) -> TensorType:
    """|x|."""
    return x


@op("elementwise")
def exp(x: TensorType) -> TensorType:
    """e to the x."""
    return float_tensor(x)


@op("elementwise")
def expm1(x: TensorType) -> TensorType:
    """exp(x) - 1, exact near zero."""
    return float_tensor(x)


@op("elementwise")
def log(x: TensorType) -> TensorType:
    """The natural logarithm."""
    return float_tensor(x)


@op("elementwise")
def log1p(x: TensorType) -> TensorType:
    """log(1 + x), exact near zero."""
    return float_tensor(x)


@op("elementwise")
def sqrt(x: TensorType) -> TensorType:
    """The square root."""
    return float_tensor(x)


@op("elementwise")
def rsqrt(x: TensorType) -> TensorType:
    """1 / sqrt(x)."""
    return float_tensor(x)


@op("elementwise")
def reciprocal(x: TensorType) -> TensorType:
    """1 / x."""
    return float_tensor(x)


@op("elementwise")
def sin(x: TensorType) -> TensorType:
    """The sine of radians."""
    return float_tensor(x)


@op("elementwise")
def cos(x: TensorType) -> TensorType:
    """The cosine of radians."""
    return float_tensor(x)


@op("elementwise")
def tanh(x: TensorType) -> TensorType:
    """The hyperbolic tangent."""
    return float_tensor(x)


@op("elementwise")
def sigmoid(x: TensorType) -> TensorType:
    """1 / (1 + exp(-x))."""
    return float_tensor(x)


@op("elementwise")
def erf(x: TensorType) -> TensorType:
    """The error function."""
    return float_tensor(x)


@op("elementwise")
def erfinv(x: TensorType) -> TensorType:
    """The inverse of the error function."""
    return float_tensor(x)


@op("elementwise")
def floor(x: TensorType) -> TensorType:
    """The largest integer not above x."""
    return x


@op("elementwise")
def ceil(x: TensorType) -> TensorType:
    """The smallest integer not below x."""
    return x


@op("elementwise")
def round_(x: TensorType) -> TensorType:
    """The nearest integer, ties to even."""
    return x


@op("elementwise")
def sign(x: TensorType) -> TensorType:
    """-1, 0 or 1."""
    return x


@op("elementwise")
def relu(x: TensorType) -> TensorType:
    """max(x, 0)."""
    return x


@op("elementwise")
def silu(x: TensorType) -> TensorType:
    """x * sigmoid(x)."""
    return float_tensor(x)


@op("elementwise")
def gelu(x: TensorType, *, approximate: str = "none") -> TensorType:
    """x * Phi(x) (Hendrycks and Gimpel, 2016).

    With approximate="tanh", 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))).
    """
    if approximate not in ("none", "tanh"):
        raise IRError(f"approximate is 'none' or 'tanh', not {approximate!r}")
    return float_tensor(x)


@op("elementwise")
def softplus(x: TensorType, *, beta: float = 1.0, threshold: float = 20.0) -> TensorType:
    """log(1 + exp(beta x)) / beta, and x itself where beta x is above the threshold."""
    return float_tensor(x)


@op("elementwise")
def logical_not(x: TensorType) -> TensorType:
    """Whether x is zero."""
    return x.with_dtype("bool")


@op("elementwise")
def bitwise_not(x: TensorType) -> TensorType:
    """Every bit turned; for booleans, not."""
    return _bits(x)


@op("elementwise")
def cast(x: TensorType, *, dtype: str) -> TensorType:
    """The nearest value in another dtype.

    Floats are cut towards zero to make integers; as booleans they say whether they are not zero.
    """
    return x.with_dtype(check_dtype(dtype))


# -- elementwise, two inputs


def _binary(x: TensorType, y: TensorType) -> TensorType:
    return TensorType(same_dtype(x, y), broadcast_shapes(x.shape, y.shape))


def _compare(x: TensorType, y: TensorType) -> TensorType:
    return _binary(x, y).with_dtype("bool")


@op("elementwise", "commutative")
def add(x: TensorType, y: TensorType) -> TensorType:
    """x + y."""
    return _binary(x, y)


@op("elementwise")
def sub(x: TensorType, y: TensorType) -> TensorType:
    """x - y."""
    return _binary(x, y)


@op("elementwise", "commutative")
def mul(x: TensorType, y: TensorType) -> TensorType:
    """x * y."""
    return _binary(x, y)


@op("elementwise")
def div(x: TensorType, y: TensorType) -> TensorType:
    """x / y of floats."""
    return _binary(float_tensor(x), y)


@op("elementwise")
def floordiv(x: TensorType, y: TensorType) -> TensorType:
    """floor(x / y), towards minus infinity for integers too."""
    return _binary(x, y)


@op("elementwise")
def mod(x: TensorType, y: TensorType) -> TensorType:
    """x - floor(x / y) * y: the sign is y's."""
    return _binary(x, y)


@op("elementwise")
def pow_(x: TensorType, y: TensorType) -> TensorType:
    """x to the y."""
    return _binary(x, y)


@op("elementwise", "commutative")
def maximum(x: TensorType, y: TensorType) -> TensorType:
    """The larger."""
    return _binary(x, y)


@op("elementwise", "commutative")
def minimum(x: TensorType, y: TensorType) -> TensorType:
    """The smaller."""
    return _binary(x, y)


@op("elementwise", "commutative")
def eq(x: TensorType, y: TensorType) -> TensorType:
    """x == y."""
    return _compare(x, y)


@op("elementwise", "commutative")
def ne(x: TensorType, y: TensorType) -> TensorType:
    """x != y."""
    return _compare(x, y)


@op("elementwise")
def lt(x: TensorType, y: TensorType) -> TensorType:
    """x < y."""
    return _compare(x, y)


@op("elementwise")
def le(x: TensorType, y: TensorType) -> TensorType:
    """x <= y."""
    return _compare(x, y)


@op("elementwise")
def gt(x: TensorType, y: TensorType) -> TensorType:
    """x > y."""
    return _compare(x, y)


@op("elementwise")
def ge(x: TensorType, y: TensorType) -> TensorType:
    """x >= y."""
    return _compare(x, y)


@op("elementwise", "commutative")
def logical_and(x: TensorType, y: TensorType) -> TensorType:
    """Whether both are non-zero."""
    return _compare(x, y)


@op("elementwise", "commutative")
def logical_or(x: TensorType, y: TensorType) -> TensorType:
    """Whether either is non-zero."""
    return _compare(x, y)


@op("elementwise", "commutative")
def bitwise_and(x: TensorType, y: TensorType) -> TensorType:
    """Bit by bit, both."""
    return _binary(_bits(x), y)


@op("elementwise", "commutative")
def bitwise_or(x: TensorType, y: TensorType) -> TensorType:
    """Bit by bit, either."""
    return _binary(_bits(x), y)


@op("elementwise", "commutative")
def bitwise_xor(x: TensorType, y: TensorType) -> TensorType:
    """Bit by bit, one but not both."""
    return _binary(_bits(x), y)


@op("elementwise")
def where(c: TensorType, x: TensorType, y: TensorType) -> TensorType:
    """x where c, else y."""
    if c.dtype != "bool":
        raise IRError(f"the condition is bool, not {c}")
    return TensorType(same_dtype(x, y), broadcast_shapes(c.shape, x.shape, y.shape))
