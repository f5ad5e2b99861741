"""Dims: an int, or a sympy expression over named positive integers.

Plain ints take a fast path everywhere, because a sympy operation costs microseconds and most dims
are ints. Expressions are kept multiplied out, so that equal ones are mostly the same object.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

import sympy

from .errors import IRError

Dim = int | sympy.Expr
Shape = tuple[Dim, ...]


# What stands for something else in the text of a graph.
_RESERVED = frozenset({"true", "false", "None", "inf", "nan", "graph", "cache", "state"})
_FUNCTIONS: Mapping[str, Callable[..., sympy.Expr]] = MappingProxyType(
    {"floor": sympy.floor, "ceiling": sympy.ceiling, "Mod": sympy.Mod}
    | {"Max": sympy.Max, "Min": sympy.Min}
)


@functools.cache
def dim(name: str) -> sympy.Symbol:
    """The named dim: one positive integer symbol for each name."""
    if not name.isidentifier() or name in _RESERVED or name in _FUNCTIONS:
        raise IRError(f"a dim's name is an identifier that means nothing else, not {name!r}")
    return sympy.Symbol(name, integer=True, positive=True)


def as_dim(value: object) -> Dim:
    """A dim in canonical form: products multiplied out, an int wherever the expression is one."""
    if type(value) is int:
        return value
    if isinstance(value, sympy.Expr):
        return _canonical(value)
    raise IRError(f"a dim is an int or an expression over named dims, not {value!r}")


@functools.lru_cache(maxsize=65536)
def _canonical(d: sympy.Expr) -> Dim:
    expanded = sympy.expand(d)
    if expanded.has(sympy.Max, sympy.Min):
        # Where arguments have some in common, sympy takes these out and leaves Max(2, 3) as it is.
        expanded = sympy.expand(expanded.doit())
    return int(expanded) if isinstance(expanded, sympy.Integer) else expanded


def as_shape(values: Iterable[object]) -> Shape:
    """A shape of canonical dims, none of them a negative number."""
    shape = tuple(as_dim(v) for v in values)
    if any(isinstance(d, int) and d < 0 for d in shape):
        raise IRError(f"a shape has no negative dims: {shape_text(shape)}")
    return shape


def product(dims: Iterable[Dim]) -> Dim:
    """The product of dims; 1 for none."""
    known, rest = 1, sympy.Integer(1)
    for d in dims:
        if isinstance(d, int):
            known *= d
        else:
            rest = rest * d
    return as_dim(known * rest) if rest != 1 else known


def equal(a: Dim, b: Dim) -> bool:
    """Whether two dims are equal for every value of their names."""
    if isinstance(a, int) and isinstance(b, int):
        return a == b
    return a is b or as_dim(a) == as_dim(b)


def equal_shapes(a: Shape, b: Shape) -> bool:
    """Whether two shapes have equal dims throughout."""
    return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))


@functools.lru_cache(maxsize=65536)
def exact_quotient(a: Dim, b: Dim) -> Dim | None:
    """a / b where b divides a for every value of the names, else None."""
    if isinstance(a, int) and isinstance(b, int):
        return a // b if b and a % b == 0 else None
    quotient = sympy.cancel(sympy.sympify(a) / sympy.sympify(b))
    whole = quotient.is_integer and sympy.fraction(quotient)[1] == 1
    return as_dim(sympy.expand(quotient)) if whole else None


@functools.lru_cache(maxsize=65536)
def quotient_and_rest(a: Dim, b: Dim) -> tuple[Dim, Dim] | None:
    """(q, r) with a = q b + r and 0 <= r, as one expression for every value of the names; None
    where there is none.
    """
    if isinstance(a, int) and isinstance(b, int):
        return divmod(a, b) if b > 0 else None
    names = sorted(names_in(a) | names_in(b))
    if not names or not all(sympy.sympify(d).is_polynomial() for d in (a, b)):
        return None
    quotient, rest = sympy.div(sympy.sympify(a), sympy.sympify(b), *map(dim, names))
    whole = all(c.is_integer for c in sympy.Poly(quotient, *map(dim, names)).coeffs())
    return (as_dim(quotient), as_dim(rest)) if whole and is_no_less(as_dim(rest), 0) else None


def is_no_less(a: Dim, b: Dim) -> bool:
    """Whether a >= b is seen to hold for all values of the names, each of which is 1 at least."""
    if isinstance(a, int) and isinstance(b, int):
        return a >= b
    apart = sympy.sympify(a) - sympy.sympify(b)
    if not apart.is_polynomial():
        return False
    names = sorted(apart.free_symbols, key=str)
    beyond = sympy.expand(apart.subs({n: n + 1 for n in names}, simultaneous=True))
    return all(c >= 0 for c in sympy.Poly(beyond, *names).coeffs()) if names else beyond >= 0


def names_in(d: Dim) -> frozenset[str]:
    """The names that a dim depends on."""
    if isinstance(d, int):
        return frozenset()
    return _names_in(d)


@functools.lru_cache(maxsize=65536)
def _names_in(d: sympy.Expr) -> frozenset[str]:
    return frozenset(str(s) for s in d.free_symbols)


def substitute(d: Dim, values: Mapping[str, Dim]) -> Dim:
    """The dim with names replaced by other dims, all at once."""
    if isinstance(d, int) or not (names := names_in(d) & values.keys()):
        return d
    return _substituted(d, frozenset((n, values[n]) for n in names))


@functools.lru_cache(maxsize=65536)
def _substituted(d: sympy.Expr, given: frozenset[tuple[str, Dim]]) -> Dim:
    # Not by subs, which takes ten times as long: a name stands for itself alone.
    return as_dim(d.xreplace({dim(n): sympy.sympify(value) for n, value in given}))


def upper_bound(d: Dim, bounds: Mapping[str, tuple[int, int]]) -> int:
    """The largest value of a dim that grows with each of its names, given {name: (low, high)}."""
    value = substitute(d, {name: bounds[name][1] for name in names_in(d)})
    if not isinstance(value, int):
        raise IRError(f"dim {d} has no highest value within {dict(bounds)}")
    return value


def dim_text(d: Dim) -> str:
    """The dim as text that parse_dim reads back."""
    return str(d) if isinstance(d, int) else _expression_text(d)


def shape_text(shape: Shape) -> str:
    """The shape as text, in brackets."""
    return f"[{', '.join(map(dim_text, shape))}]"


@functools.lru_cache(maxsize=65536)
def _expression_text(d: sympy.Expr) -> str:
    return str(d)


@functools.lru_cache(maxsize=65536)
def parse_dim(text: str) -> Dim:
    """The dim that a text such as `2*T + 1` or `floor(T/2)` denotes."""
    try:
        return as_dim(_value(ast.parse(text.strip(), mode="eval").body))
    except (SyntaxError, ValueError, ArithmeticError, RecursionError) as error:
        raise IRError(f"not a dim: {text!r} ({error})") from error


def _value(tree: ast.expr) -> Dim:
    """The value of a parsed expression: only arithmetic, so that a text can run nothing."""
    match tree:
        case ast.Constant(value=int(number)) if type(number) is int:
            return number
        case ast.Name(id=name):
            return dim(name)
        case ast.UnaryOp(op=ast.USub(), operand=x):
            return -_value(x)
        case ast.BinOp(left=x, op=sign, right=y):
            return _combined(sign, _value(x), _value(y))
        case ast.Call(func=ast.Name(id=name), args=inputs, keywords=[]) if name in _FUNCTIONS:
            return _FUNCTIONS[name](*(sympy.sympify(_value(i)) for i in inputs))
        case _:
            raise ValueError(f"{ast.unparse(tree)} is no arithmetic of dims")


def _combined(sign: ast.operator, x: Dim, y: Dim) -> Dim:
    match sign:
        case ast.Add():
            return x + y
        case ast.Sub():
            return x - y
        case ast.Mult():
            return x * y
        case ast.Div():
            return sympy.sympify(x) / sympy.sympify(y)
        case ast.FloorDiv():
            return x // y
        case ast.Mod():
            return x % y
        case ast.Pow() if isinstance(y, int) and abs(y) <= 16 and isinstance(x, sympy.Expr):
            return x**y
        case _:
            raise ValueError(f"{type(sign).__name__} is no operation of dims")
