"""Types and dims: canonical forms, sizes, text."""

import random

import pytest
import sympy
from ferrule.ir.dims import (
    as_dim,
    dim,
    dim_text,
    equal,
    exact_quotient,
    is_no_less,
    names_in,
    parse_dim,
    product,
    quotient_and_rest,
    substitute,
    upper_bound,
)
from ferrule.ir.errors import IRError
from ferrule.ir.types import CacheType, TensorType, TupleType, substitute_type
from hypothesis import given, settings
from hypothesis import strategies as st

B, S, T = dim("B"), dim("S"), dim("T")
NAMES = ("B", "S", "T")


def random_dim(rng: random.Random, depth: int = 3):
    """A random expression, with its value as a Python function of {name: value}."""
    if depth == 0 or rng.random() < 0.2:
        if rng.random() < 0.5:
            name = rng.choice(NAMES)
            return dim(name), lambda v: v[name]
        number = rng.randint(1, 9)
        return number, lambda v: number
    (x, f), (y, g) = random_dim(rng, depth - 1), random_dim(rng, depth - 1)
    kind, k = rng.choice(("+", "-", "*", "//", "%", "max", "min")), rng.randint(1, 5)
    return {
        "+": (x + y, lambda v: f(v) + g(v)),
        "-": (x - y, lambda v: f(v) - g(v)),
        "*": (x * y, lambda v: f(v) * g(v)),
        "//": (x // k, lambda v: f(v) // k),
        "%": (x % k, lambda v: f(v) % k),
        "max": (sympy.Max(x, y), lambda v: max(f(v), g(v))),
        "min": (sympy.Min(x, y), lambda v: min(f(v), g(v))),
    }[kind]


@settings(deadline=None, max_examples=60)
@given(st.randoms(use_true_random=False))
def test_a_dim_means_the_same_after_its_text_is_parsed(rng):
    expression, value = random_dim(rng)
    canonical = as_dim(expression)
    parsed = parse_dim(dim_text(canonical))
    assert equal(parsed, canonical)
    for _ in range(3):
        at = {name: rng.randint(1, 12) for name in NAMES}
        assert substitute(parsed, at) == value(at)


def test_dims_are_canonical():
    within = sympy.Min(B, sympy.Max(2, 3, evaluate=False), evaluate=False)
    assert as_dim(B + within) == B + sympy.Min(3, B)
    assert TensorType("f32", ((T + 4) - T, 2 * (T + 1))).shape == (4, 2 * T + 2)
    assert type(TensorType("f32", ((T + 4) - T,)).shape[0]) is int
    assert as_dim(B * (S + 1)) == B * S + B
    assert dim("T") is T


@pytest.mark.parametrize("value", [1.5, True, "T", None])
def test_what_is_no_dim_is_refused(value):
    with pytest.raises(IRError, match="a dim is an int"):
        as_dim(value)


@pytest.mark.parametrize(
    "text",
    ["T.subs", "__import__('os')", "T +", "f(T)", "'a'", "1.5", "[T]", "T if T else 1", "9**9**9"],
)
def test_the_text_of_a_dim_holds_nothing_but_arithmetic(text):
    with pytest.raises(IRError, match="not a dim"):
        parse_dim(text)


@pytest.mark.parametrize("name", ["a b", "2T", "floor", "true", ""])
def test_names_that_mean_something_else_are_refused(name):
    with pytest.raises(IRError, match="identifier"):
        dim(name)


def test_arithmetic_of_dims():
    assert product(()) == 1 and product((2, T, 3)) == 6 * T
    assert exact_quotient(12, 4) == 3 and exact_quotient(12, 5) is None
    assert exact_quotient(6 * B * S, 2 * B) == 3 * S and exact_quotient(T, 2) is None
    assert exact_quotient(3, 0) is None
    assert names_in(B * S + 1) == {"B", "S"} and names_in(4) == frozenset()
    assert upper_bound(2 * T + 1, {"T": (1, 512)}) == 1025
    assert substitute(B * S, {"B": S, "S": B}) == B * S
    assert not equal(T, T + 1) and not equal(T, 4)


@pytest.mark.parametrize(
    ("given", "bytes_"),
    [("f32", 24), ("bf16", 12), ("bool", 6), ("i4", 3), ("i2", 2), ("f64", 48), ("f8e4m3", 6)],
)
def test_bytes(given, bytes_):
    assert TensorType(given, (2, 3)).nbytes() == bytes_


def test_symbolic_bytes():
    assert TensorType("f16", (T, 64)).nbytes() == 128 * T
    with pytest.raises(IRError, match="known size"):
        TensorType("i4", (T,)).nbytes()


def test_refused_types():
    with pytest.raises(IRError, match="no dtype 'f31'; known: f64"):
        TensorType("f31", ())
    with pytest.raises(IRError, match="negative"):
        TensorType("f32", (3, -1))
    with pytest.raises(IRError, match="positive"):
        CacheType("bf16", -1, (8, 64))


def test_text_of_types():
    assert str(TensorType("f16", (B, 64))) == "f16[B, 64]"
    assert str(TensorType("f16", ())) == "f16[]"
    assert str(CacheType("bf16", 16, (8, 64))) == "cache<bf16>[16; 8, 64]"
    assert str(CacheType("f32", 0, (8, 64))) == "state<f32>[8, 64]"
    assert CacheType("f32", 0, (8, 64)).array(3) == (3, 8, 64)
    assert CacheType("f32", 16, (8, 64)).array(3) == (3, 16, 8, 64)
    pair = TupleType((TensorType("f32", (2,)), TensorType("i64", (2,))))
    assert str(pair) == "(f32[2], i64[2])"
    assert CacheType("i4", 16, (3, 3)).entry_bytes() == 5
    assert substitute_type(TupleType((TensorType("f32", (B,)),)), {"B": 3}) == TupleType(
        (TensorType("f32", (3,)),)
    )


def test_division_with_a_rest():
    assert quotient_and_rest(14, 4) == (3, 2) and quotient_and_rest(14, 0) is None
    # Of n rows of n + 1, the last begins at n n - 1.
    assert quotient_and_rest(T * T, T + 1) == (T - 1, 1)
    assert quotient_and_rest(2 * T * T - 2 * T + 1, 2 * T) == (T - 1, 1)
    assert quotient_and_rest(T * T - T, 2 * T) is None  # half a row
    assert quotient_and_rest(T, T + 3) is None
    assert is_no_less(2 * T, T + 1) and not is_no_less(T, 2) and is_no_less(3, 3)
