"""Tensor ops: elementwise, reductions, movement, matmul, gather and scatter.

Elementwise ops broadcast as numpy does and demand equal dtypes: casts are explicit. Axes are never negative.
"""

from __future__ import annotations

from ..dims import Dim, Shape, dim_text, equal, exact_quotient, product
from ..errors import IRError
from ..node import Node, op
from ..types import FLOATS, TensorType, TupleType, check_dtype


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
            raise IRError(f"shapes {' and '.join(_shape_text(s) for s in shapes)} do not broadcast")
        result = d
    return result


def _shape_text(shape: Shape) -> str:
    return f"[{', '.join(dim_text(d) for d in shape)}]"


def _tensor(t: object) -> TensorType:
    if not isinstance(t, TensorType):
        raise IRError(f"a tensor was wanted, not {t}")
    return t


def _same_dtype(*types: TensorType) -> str:
    if len({_tensor(t).dtype for t in types}) != 1:
        raise IRError(f"dtypes differ: {', '.join(str(t) for t in types)}")
    return types[0].dtype


def _float(t: TensorType) -> TensorType:
    if _tensor(t).dtype not in FLOATS:
        raise IRError(f"a floating-point tensor was wanted, not {t}")
    return t


def _axis(t: TensorType, axis: int) -> int:
    if not 0 <= axis < _tensor(t).rank:
        raise IRError(f"axis {axis} of {t}")
    return axis


# -- leaves


@op("leaf")
def constant(*, value: float | int | bool, dtype: str) -> TensorType:
    """A scalar, shape ()."""
    return TensorType(dtype, ())


@op("leaf")
def iota(*, size: Dim, dtype: str) -> TensorType:
    """0, 1, ..., size - 1."""
    return TensorType(dtype, (size,))


@op("leaf")
def dim_value(*, dim: Dim, dtype: str) -> TensorType:
    """The value of a dim as a scalar, shape ()."""
    return TensorType(dtype, ())


def scalar(value: float | int | bool, dtype: str) -> Node:
    """A constant whose value has the Python type that the dtype calls for."""
    if dtype == "bool":
        return constant(value=bool(value), dtype=dtype)
    return constant(value=float(value) if check_dtype(dtype) in FLOATS else int(value), dtype=dtype)


# -- elementwise, one input


def _unary(x: TensorType) -> TensorType:
    return _tensor(x)


@op("elementwise")
def neg(x: TensorType) -> TensorType:
    """-x."""
    return _unary(x)


@op("elementwise")
def abs_(x: TensorType) -> TensorType:
    """|x|."""
    return _unary(x)


@op("elementwise")
def exp(x: TensorType) -> TensorType:
    """e to the x."""
    return _float(x)


@op("elementwise")
def expm1(x: TensorType) -> TensorType:
    """exp(x) - 1, exact near zero."""
    return _float(x)


@op("elementwise")
def log(x: TensorType) -> TensorType:
    """The natural logarithm."""
    return _float(x)


@op("elementwise")
def log1p(x: TensorType) -> TensorType:
    """log(1 + x), exact near zero."""
    return _float(x)


@op("elementwise")
def sqrt(x: TensorType) -> TensorType:
    """The square root."""
    return _float(x)


@op("elementwise")
def rsqrt(x: TensorType) -> TensorType:
    """1 / sqrt(x)."""
    return _float(x)


@op("elementwise")
def reciprocal(x: TensorType) -> TensorType:
    """1 / x."""
    return _float(x)


@op("elementwise")
def sin(x: TensorType) -> TensorType:
    """The sine of radians."""
    return _float(x)


@op("elementwise")
def cos(x: TensorType) -> TensorType:
    """The cosine of radians."""
    return _float(x)


@op("elementwise")
def tanh(x: TensorType) -> TensorType:
    """The hyperbolic tangent."""
    return _float(x)


@op("elementwise")
def sigmoid(x: TensorType) -> TensorType:
    """1 / (1 + exp(-x))."""
    return _float(x)


@op("elementwise")
def erf(x: TensorType) -> TensorType:
    """The error function."""
    return _float(x)


@op("elementwise")
def erfinv(x: TensorType) -> TensorType:
    """The inverse of the error function."""
    return _float(x)


@op("elementwise")
def floor(x: TensorType) -> TensorType:
    """The largest integer not above x."""
    return _unary(x)


@op("elementwise")
def ceil(x: TensorType) -> TensorType:
    """The smallest integer not below x."""
    return _unary(x)


@op("elementwise")
def round_(x: TensorType) -> TensorType:
    """The nearest integer, ties to even."""
    return _unary(x)


@op("elementwise")
def sign(x: TensorType) -> TensorType:
    """-1, 0 or 1."""
    return _unary(x)


@op("elementwise")
def relu(x: TensorType) -> TensorType:
    """max(x, 0)."""
    return _unary(x)


@op("elementwise")
def silu(x: TensorType) -> TensorType:
    """x * sigmoid(x)."""
    return _float(x)


@op("elementwise")
def gelu(x: TensorType, *, approximate: str = "none") -> TensorType:
    """x * Phi(x); with approximate="tanh", 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) (Hendrycks and Gimpel, 2016)."""
    if approximate not in ("none", "tanh"):
        raise IRError(f"approximate is 'none' or 'tanh', not {approximate!r}")
    return _float(x)


@op("elementwise")
def softplus(x: TensorType, *, beta: float = 1.0, threshold: float = 20.0) -> TensorType:
    """log(1 + exp(beta x)) / beta, and x itself where beta x is above the threshold."""
    return _float(x)


@op("elementwise")
def logical_not(x: TensorType) -> TensorType:
    """Whether x is zero."""
    return _unary(x).with_dtype("bool")


@op("elementwise")
def bitwise_not(x: TensorType) -> TensorType:
    """Every bit turned; for booleans, not."""
    return _unary(x)


@op("elementwise")
def cast(x: TensorType, *, dtype: str) -> TensorType:
    """The nearest value in another dtype; floats to integers cut towards zero; to bool, whether non-zero."""
    return _tensor(x).with_dtype(check_dtype(dtype))


# -- elementwise, two inputs


def _binary(x: TensorType, y: TensorType) -> TensorType:
    return TensorType(_same_dtype(x, y), broadcast_shapes(x.shape, y.shape))


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
    return _binary(_float(x), y)


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
    return _binary(x, y)


@op("elementwise", "commutative")
def bitwise_or(x: TensorType, y: TensorType) -> TensorType:
    """Bit by bit, either."""
    return _binary(x, y)


@op("elementwise", "commutative")
def bitwise_xor(x: TensorType, y: TensorType) -> TensorType:
    """Bit by bit, one but not both."""
    return _binary(x, y)


@op("elementwise")
def where(c: TensorType, x: TensorType, y: TensorType) -> TensorType:
    """x where c, else y."""
    if _tensor(c).dtype != "bool":
        raise IRError(f"the condition is bool, not {c}")
    return TensorType(_same_dtype(x, y), broadcast_shapes(c.shape, x.shape, y.shape))


# -- reductions and scans along axes


def _reduced(x: TensorType, axes: tuple[int, ...], keepdims: bool) -> TensorType:
    for axis in axes:
        _axis(x, axis)
    kept = ((1 if i in axes else d) for i, d in enumerate(x.shape) if keepdims or i not in axes)
    return x.with_shape(tuple(kept))


@op("reduction")
def reduce_sum(x: TensorType, *, axes: tuple[int, ...], keepdims: bool = False) -> TensorType:
    """The sum over axes; bfloat16 and float16 accumulate in float32."""
    return _reduced(x, axes, keepdims)


@op("reduction")
def reduce_max(x: TensorType, *, axes: tuple[int, ...], keepdims: bool = False) -> TensorType:
    """The largest over axes; for booleans, any."""
    return _reduced(x, axes, keepdims)


@op("reduction")
def reduce_min(x: TensorType, *, axes: tuple[int, ...], keepdims: bool = False) -> TensorType:
    """The smallest over axes; for booleans, all."""
    return _reduced(x, axes, keepdims)


@op("reduction")
def reduce_prod(x: TensorType, *, axes: tuple[int, ...], keepdims: bool = False) -> TensorType:
    """The product over axes."""
    return _reduced(x, axes, keepdims)


@op("reduction")
def argmax(x: TensorType, *, axis: int, keepdims: bool = False) -> TensorType:
    """Where the largest is along an axis, the first of equals; i64."""
    return _reduced(x, (axis,), keepdims).with_dtype("i64")


@op("axis")
def softmax(x: TensorType, *, axis: int) -> TensorType:
    """exp(x - max) / sum exp(x - max) along an axis; the mathematics in float32 or wider."""
    _axis(x, axis)
    return _float(x)


@op("axis")
def cumsum(x: TensorType, *, axis: int) -> TensorType:
    """Running sums along an axis."""
    _axis(x, axis)
    return x


@op("axis")
def topk(x: TensorType, *, k: int, axis: int, largest: bool = True) -> TupleType:
    """The k largest (or smallest) along an axis in order, and where they were; i64."""
    _axis(x, axis)
    shape = tuple(k if i == axis else d for i, d in enumerate(x.shape))
    return TupleType((x.with_shape(shape), TensorType("i64", shape)))


@op("axis")
def sort(x: TensorType, *, axis: int, descending: bool = False) -> TupleType:
    """The values in order along an axis, stable, and where they were; i64."""
    _axis(x, axis)
    return TupleType((x, x.with_dtype("i64")))


# -- movement


@op("movement")
def reshape(x: TensorType, *, shape: Shape) -> TensorType:
    """The same elements in row-major order, in another shape of the same size."""
    if not equal(product(_tensor(x).shape), product(shape)):
        raise IRError(f"{x} does not reshape to {_shape_text(shape)}")
    return x.with_shape(shape)


@op("movement")
def transpose(x: TensorType, *, permutation: tuple[int, ...]) -> TensorType:
    """Axis i of the result is axis permutation[i] of x."""
    if sorted(permutation) != list(range(_tensor(x).rank)):
        raise IRError(f"{permutation} is no permutation of the axes of {x}")
    return x.with_shape(tuple(x.shape[p] for p in permutation))


@op("movement")
def broadcast(x: TensorType, *, shape: Shape) -> TensorType:
    """x repeated along its dims of 1, and along new leading axes."""
    if len(shape) < _tensor(x).rank:
        raise IRError(f"{x} does not broadcast to {_shape_text(shape)}")
    tail = shape[len(shape) - x.rank :]
    if any(d != 1 and not equal(d, s) for d, s in zip(x.shape, tail, strict=True)):
        raise IRError(f"{x} does not broadcast to {_shape_text(shape)}")
    return x.with_shape(shape)


@op("movement")
def slice_(x: TensorType, *, axis: int, start: Dim, stop: Dim, step: int = 1) -> TensorType:
    """Every step-th element of [start, stop) along an axis; 0 <= start <= stop <= size."""
    _axis(x, axis)
    length = stop - start if step == 1 else -((start - stop) // step)
    if isinstance(length, int) and length < 0:
        raise IRError(f"slice [{start}, {stop}) runs backwards")
    size = x.shape[axis]
    if isinstance(stop, int) and isinstance(size, int) and stop > size:
        raise IRError(f"slice [{start}, {stop}) of axis {axis} of {x}")
    return x.with_shape(tuple(length if i == axis else d for i, d in enumerate(x.shape)))


@op("movement")
def concat(*xs: TensorType, axis: int) -> TensorType:
    """The inputs one after another along an axis."""
    if not xs:
        raise IRError("nothing to join")
    _axis(xs[0], axis)
    _same_dtype(*xs)
    total: Dim = 0
    for x in xs:
        others = zip(x.shape, xs[0].shape, strict=False)
        if x.rank != xs[0].rank or any(
            not equal(a, b) for i, (a, b) in enumerate(others) if i != axis
        ):
            raise IRError(f"{x} and {xs[0]} do not join along axis {axis}")
        total = total + x.shape[axis]
    return xs[0].with_shape(tuple(total if i == axis else d for i, d in enumerate(xs[0].shape)))


@op("movement")
def pad(
    x: TensorType, *, before: tuple[Dim, ...], after: tuple[Dim, ...], value: float | int | bool = 0
) -> TensorType:
    """x with constant values around it, so many before and after along each axis."""
    if len(before) != _tensor(x).rank or len(after) != x.rank:
        raise IRError(f"{x} needs {x.rank} paddings before and after, not {before} and {after}")
    return x.with_shape(tuple(b + d + a for b, d, a in zip(before, x.shape, after, strict=True)))


@op("movement")
def flip(x: TensorType, *, axes: tuple[int, ...]) -> TensorType:
    """x in reverse along axes."""
    for axis in axes:
        _axis(x, axis)
    return x


# -- gather and scatter


def _index(t: TensorType) -> TensorType:
    if _tensor(t).dtype not in ("i32", "i64"):
        raise IRError(f"an index is i32 or i64, not {t}")
    return t


@op("index")
def take(x: TensorType, index: TensorType, *, axis: int) -> TensorType:
    """x[..., index, ...] at an axis: the index's shape stands in that axis's place; 0 <= index < size."""
    _axis(x, axis)
    return x.with_shape((*x.shape[:axis], *_index(index).shape, *x.shape[axis + 1 :]))


@op("index")
def take_along(x: TensorType, index: TensorType, *, axis: int) -> TensorType:
    """result[i][j] = x[i][index[i][j]] for axis 1 (torch.gather)."""
    _axis(x, axis)
    if _index(index).rank != x.rank:
        raise IRError(f"the ranks of {x} and {index} differ")
    return x.with_shape(index.shape)


@op("index")
def scatter(
    x: TensorType, index: TensorType, source: TensorType, *, axis: int, reduce: str = "set"
) -> TensorType:
    """x with x[i][index[i][j]] set to (or, with reduce="add", increased by) source[i][j] for axis 1 (torch.scatter)."""
    _axis(x, axis)
    _same_dtype(x, source)
    if reduce not in ("set", "add"):
        raise IRError(f"reduce is 'set' or 'add', not {reduce!r}")
    if _index(index).rank != x.rank or source.rank != x.rank:
        raise IRError(f"the ranks of {x}, {index} and {source} differ")
    return x


# -- contraction


@op("contraction")
def matmul(x: TensorType, y: TensorType) -> TensorType:
    """x @ y over the last two axes; leading axes broadcast; accumulates in float32 or wider (integers in i32 or wider)."""
    dtype = _same_dtype(x, y)
    if x.rank < 2 or y.rank < 2:
        raise IRError(f"matrices were wanted, not {x} @ {y}")
    if not equal(x.shape[-1], y.shape[-2]):
        raise IRError(f"inner dims differ, {x} @ {y}")
    batch = broadcast_shapes(x.shape[:-2], y.shape[:-2])
    return TensorType(dtype, (*batch, x.shape[-2], y.shape[-1]))


@op("contraction")
def conv1d(
    x: TensorType,
    w: TensorType,
    *bias: TensorType,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    groups: int = 1,
) -> TensorType:
    """Cross-correlation of x[B, C, L] with w[O, C / groups, K], plus bias[O] (torch.nn.functional.conv1d)."""
    dtype = _same_dtype(x, w, *bias)
    if x.rank != 3 or w.rank != 3 or not equal(x.shape[1], product((w.shape[1], groups))):
        raise IRError(
            f"x[B, C, L] and w[O, C/groups, K] were wanted, not {x}, {w} in {groups} groups"
        )
    span = x.shape[2] + 2 * padding - dilation * (w.shape[2] - 1) - 1
    length = exact_quotient(span, stride) if stride > 1 else span
    length = length if length is not None else span // stride
    return TensorType(dtype, (x.shape[0], w.shape[0], length + 1))
