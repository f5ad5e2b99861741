"""Products of spectra: convolutions that are written with Fourier transforms.

irfft(rfft(u, n) rfft(k, n), n) is the circular convolution of u and k over n places, and an open
one where n is at least as large as both are long together. A spectrum is kept as the signals whose
transforms are multiplied in it; transformed back they are convolved by the definition, which tells
what reads what. Nothing else is done with a spectrum.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ...ir.dims import Dim, equal
from ...ir.node import Node
from ...ir.ops import tensor as t
from .table import Builder, Call, Table, Unsupported, cast, operand, reshape

TABLE = Table()


class Spectrum(NamedTuple):
    """The product of the transforms of real signals, at n places along an axis, which is counted
    from the end.
    """

    signals: tuple[Node, ...]
    n: Dim
    axis: int


@TABLE("fft_rfft", "fft_fft")
def transformed(
    call: Call, x: Any, n: Dim | None = None, dim: int = -1, norm: str | None = None
) -> Spectrum:
    """The transform of a real signal, cut or filled up with zeros to n places."""
    if not isinstance(x, Node):
        raise Unsupported("a transform of complex numbers; of real ones was wanted")
    if norm not in (None, "backward"):
        raise Unsupported(f"a transform with norm={norm!r}; 'backward' was wanted")
    rank = len(x.shape)
    axis = dim % rank
    size = x.shape[axis]
    n = size if n is None else n
    x = cast(x, call.dtype)
    if isinstance(n, int) and isinstance(size, int) and n < size:
        x = t.slice_(x, axis=axis, start=0, stop=n)
    return Spectrum((x,), n, axis - rank)


@TABLE("fft_irfft", "fft_ifft")
def transformed_back(
    call: Call, x: Any, n: Dim | None = None, dim: int = -1, norm: str | None = None
) -> Node:
    """The signals of a spectrum convolved, at n places."""
    if not isinstance(x, Spectrum):
        raise Unsupported("of a transform back, a product of transforms of signals was wanted")
    size = x.n if n is None else n
    rank = len(call.shape)
    if not equal(size, x.n) or dim % rank - rank != x.axis:
        raise Unsupported(
            f"a transform back to {size} places of dim {dim}; {x.n} of {x.axis} wanted"
        )
    if norm not in (None, "backward", "forward"):
        raise Unsupported(f"a transform back with norm={norm!r}")
    first, *rest = (_last(s, x.axis) for s in x.signals)
    for at, other in enumerate(rest):
        first = _convolved(first, other, size, whole=at == len(rest) - 1)
    y = _filled(first, size)
    if norm == "forward":
        y = t.mul(y, operand(size, y.dtype))
    return _placed(y, x.axis)


def _last(x: Node, axis: int) -> Node:
    """A signal with its places last."""
    return x if axis == -1 else _placed(x, axis, back=False)


def _placed(x: Node, axis: int, *, back: bool = True) -> Node:
    """The last axis moved to another, or that one last."""
    if axis == -1:
        return x
    rank = len(x.shape)
    order = [i for i in range(rank) if i != rank + axis]
    moved = (*order, rank + axis)
    if back:
        moved = tuple(moved.index(i) for i in range(rank))
    return t.transpose(x, permutation=moved)


def _filled(x: Node, size: Dim) -> Node:
    """A signal with zeros behind it up to a size."""
    own = x.shape[-1]
    if equal(own, size):
        return x
    nothing = (0,) * (len(x.shape) - 1)
    return t.pad(x, before=(*nothing, 0), after=(*nothing, size - own), value=0.0)


def _convolved(a: Node, b: Node, most: Dim, *, whole: bool) -> Node:
    """y[i] = sum_j k[i - j] u[j], k the one with fewer axes, at as many places as both are long, or
    as there are at most.
    """
    u, k = (a, b) if _count(a) >= _count(b) else (b, a)
    long, short = u.shape[-1], k.shape[-1]
    size = long + short - 1
    if not _fits(size, most):
        raise Unsupported(
            f"a product of spectra of {long} and {short} places in {most}, which wraps around: "
            f"transform to {size} or more places, and take those of the tokens"
        )
    size = most if whole else size
    apart = t.sub(
        reshape(t.iota(size=size, dtype="i64"), (size, 1)), t.iota(size=long, dtype="i64")
    )
    zero, last = t.scalar(0, "i64"), operand(short - 1, "i64")
    inside = t.logical_and(t.ge(apart, zero), t.le(apart, last))
    rows = t.take(k, t.minimum(t.maximum(apart, zero), last), axis=len(k.shape) - 1)
    rows = t.where(inside, rows, t.scalar(0.0, k.dtype))
    y = t.matmul(rows, reshape(u, (*u.shape, 1)))
    return reshape(y, y.shape[:-1])


def _fits(size: Dim, most: Dim) -> bool:
    """Whether a size is no more than another, whatever the dims are."""
    room = most - size
    return room >= 0 if isinstance(room, int) else room.is_nonnegative is True


def _count(x: Node) -> int:
    """How many axes have more than one place."""
    return sum(not equal(d, 1) for d in x.shape)


# -- what else may be done with a spectrum


def _product(call: Call, x: Any, y: Any) -> Spectrum:
    if isinstance(x, Spectrum) and isinstance(y, Spectrum):
        if not equal(x.n, y.n) or x.axis != y.axis:
            raise Unsupported(f"a product of spectra of {x.n} and {y.n} places")
        return Spectrum((*x.signals, *y.signals), x.n, x.axis)
    spectrum, other = (x, y) if isinstance(x, Spectrum) else (y, x)
    return _scaled(spectrum, other, t.mul)


def _quotient(call: Call, x: Any, y: Any, **_: Any) -> Spectrum:
    if not isinstance(x, Spectrum):
        raise Unsupported("a number over a spectrum")
    return _scaled(x, y, t.div)


def _scaled(x: Spectrum, by: Any, op: Callable[[Node, Node], Node]) -> Spectrum:
    first, *rest = x.signals
    if isinstance(by, Node):
        at = len(by.shape) + x.axis
        if at >= 0 and not equal(by.shape[at], 1):
            raise Unsupported("a spectrum times numbers of each of its places")
    elif isinstance(by, (complex, tuple, list)):
        raise Unsupported("a spectrum times complex numbers that are no spectrum")
    return Spectrum((op(first, operand(by, first.dtype)), *rest), x.n, x.axis)


def _with_axis(call: Call, x: Spectrum, dim: int) -> Spectrum:
    """A new axis of 1 before the places."""
    rank = len(call.shape)
    at = dim % rank
    if at > rank + x.axis:
        return Spectrum(tuple(_one_more(s, at - rank) for s in x.signals), x.n, x.axis - 1)
    return Spectrum(tuple(_one_more(s, at - rank) for s in x.signals), x.n, x.axis)


def _one_more(x: Node, axis: int) -> Node:
    at = len(x.shape) + 1 + axis
    if at < 0:
        return x  # it has fewer axes, and 1 there as it is
    return reshape(x, (*x.shape[:at], 1, *x.shape[at:]))


def _same(call: Call, x: Spectrum, *_: Any, **__: Any) -> Spectrum:
    return x


_RULES: dict[str, Callable[..., Any]] = {
    "mul": _product,
    "multiply": _product,
    "div": _quotient,
    "divide": _quotient,
    "true_divide": _quotient,
    "unsqueeze": _with_axis,
    "contiguous": _same,
    "clone": _same,
    "alias": _same,
}


def taking_spectra(name: str, builder: Builder) -> Builder:
    """A builder that takes spectra too, or says what may be done with them."""
    if name in TABLE:
        return builder
    rule = _RULES.get(name)

    def build(call: Call, *args: Any, **kwargs: Any) -> Any:
        if not any(isinstance(a, Spectrum) for a in _flat(args)):
            return builder(call, *args, **kwargs)
        if rule is None:
            raise Unsupported(
                f"{name} of a Fourier transform; what is known of transforms is their product with "
                "others and with numbers, transformed back, which is a convolution"
            )
        return rule(call, *args, **kwargs)

    return build


def _flat(args: Sequence[Any]) -> list[Any]:
    found: list[Any] = []
    for a in args:
        found += a if type(a) is list else [a]
    return found
