"""Generated kernels: every op that is an expression of its inputs or has loops of its own, on
odd sizes.
"""

from __future__ import annotations

import pytest
import torch
from ferrule.ir.dims import dim
from ferrule.ir.graph import Graph
from ferrule.ir.node import Node, item
from ferrule.ir.ops import model, serving
from ferrule.ir.ops import tensor as t
from kernels import Kernels, T, below, cache, given

D = 37
UNARY = [
    "neg",
    "abs",
    "exp",
    "expm1",
    "sin",
    "cos",
    "tanh",
    "sigmoid",
    "erf",
    "floor",
    "ceil",
    "round",
    "sign",
    "relu",
    "silu",
]
POSITIVE = ["log", "log1p", "sqrt", "rsqrt", "reciprocal"]
BINARY = ["add", "sub", "mul", "div", "maximum", "minimum", "floordiv", "mod"]
COMPARE = ["eq", "ne", "lt", "le", "gt", "ge", "logical_and", "logical_or"]
BITWISE = ["bitwise_and", "bitwise_or", "bitwise_xor"]


def op(name: str, *inputs: Node, **attributes: object) -> Node:
    """A node by the name of its op."""
    return (getattr(t, name, None) or getattr(t, f"{name}_"))(*inputs, **attributes)


def body(name: str, *outputs: Node) -> Graph:
    """A graph of the inputs that the outputs reach."""
    found = Graph(name, (), outputs).nodes()
    return Graph(name, tuple(n for n in found if n.op.name == "input"), outputs)


def unary(dtype: str) -> Graph:
    x = given("x", dtype, T, D)
    positive = t.add(t.abs_(x), t.scalar(0.01, dtype))
    outputs = [op(n, x) for n in UNARY] + [op(n, positive) for n in POSITIVE]
    outputs += [t.gelu(x), t.gelu(x, approximate="tanh"), t.softplus(x, beta=2.0, threshold=3.0)]
    return body("unary", *outputs)


def binary(dtype: str) -> Graph:
    x, y, row = given("x", dtype, T, D), given("y", dtype, T, 1), given("row", dtype, D)
    outputs = [op(n, x, y) for n in BINARY] + [op(n, x, row) for n in COMPARE]
    outputs += [t.where(t.gt(x, y), x, row), t.pow_(t.abs_(x), y), t.pow_(x, t.scalar(3.0, dtype))]
    return body("binary", *outputs)


def integers() -> Graph:
    x, y = given("x", "i32", T, D), given("y", "i32", D)
    some = t.where(t.eq(y, t.scalar(0, "i32")), t.scalar(3, "i32"), y)
    outputs = [op(n, x, y) for n in ("add", "sub", "mul", "maximum", "minimum", *BITWISE, *COMPARE)]
    outputs += [t.floordiv(x, some), t.mod(x, some), t.neg(x), t.abs_(x), t.sign(x), t.relu(x)]
    outputs += [t.bitwise_not(x), t.logical_not(x), t.cast(x, dtype="i64"), t.cast(x, dtype="f32")]
    outputs += [t.cast(x, dtype="bool"), t.cast(t.gt(x, y), dtype="i32"), t.cast(x, dtype="bf16")]
    outputs += [t.cast(given("f", "f32", T, 5), dtype="i32"), t.logical_not(t.gt(x, y))]
    return body("integers", *outputs)


def movement() -> Graph:
    x, y, z = given("x", "f32", T, 6, 20), given("y", "f32", T, 6, 13), given("z", "f32", 6, 1)
    joined = t.concat(x, y, t.slice_(x, axis=2, start=3, stop=19, step=5), axis=2)
    outputs = [
        joined,
        t.reshape(x, shape=(T, 120)),
        t.reshape(x, shape=(T, 4, 30)),
        t.reshape(t.transpose(x, permutation=(0, 2, 1)), shape=(T, 15, 8)),
        t.transpose(x, permutation=(2, 0, 1)),
        t.broadcast(z, shape=(T, 6, 7)),
        t.pad(x, before=(0, 1, 2), after=(0, 0, 3), value=1.5),
        t.flip(x, axes=(1, 2)),
        t.concat(x, x, axis=1),
        t.slice_(x, axis=1, start=1, stop=6, step=2),
        t.add(t.cast(t.iota(size=20, dtype="i64"), dtype="f32"), x),
        t.mul(x, t.cast(t.dim_value(dim=T, dtype="i64"), dtype="f32")),
        t.reshape(x, shape=(2 * T, 60)),
    ]
    return body("movement", *outputs)


def indexed() -> Graph:
    table, ids = given("table", "bf16", 50, D), given("ids", "i32", T)
    x, places = given("x", "f32", T, D), given("places", "i64", T, 4)
    source = given("source", "f32", T, 4)
    outputs = [
        t.take(table, ids, axis=0),
        t.take(x, t.scalar(3, "i64"), axis=1),
        t.take(given("wide", "f32", T, 9, 5), given("few", "i64", 2, 3), axis=1),
        t.take_along(x, places, axis=1),
        t.scatter(x, places, source, axis=1, reduce="add"),
        t.scatter(
            t.mul(x, x),
            t.broadcast(t.reshape(t.iota(size=4, dtype="i64"), shape=(1, 4)), shape=(T, 4)),
            source,
            axis=1,
        ),
    ]
    return body("indexed", *outputs)


def reductions(dtype: str = "f32") -> Graph:
    x = given("x", dtype, T, 6, 20)
    outputs = [
        op(f"reduce_{n}", x, axes=a, keepdims=k)
        for n in ("sum", "max", "min", "prod")
        for a, k in (((2,), True), ((1,), False), ((1, 2), False), ((0,), False))
    ]
    outputs += [t.argmax(x, axis=2), t.argmax(x, axis=1, keepdims=True), t.cumsum(x, axis=2)]
    outputs += [t.cumsum(x, axis=0), t.softmax(x, axis=2), t.softmax(x, axis=1)]
    # One element far above the others: what came before it still counts before it.
    high = t.where(t.gt(x, t.scalar(1.5, dtype)), t.mul(x, t.scalar(90.0, dtype)), x)
    outputs += [op(n, x, axis=2) for n in ("cumprod", "cummax")]
    outputs += [t.logcumsumexp(high, axis=2), t.logcumsumexp(x, axis=1)]
    return body("reductions", *outputs)


def ordered() -> Graph:
    x = given("x", "f32", T, D)
    best, least = t.topk(x, k=5, axis=1), t.topk(x, k=3, axis=1, largest=False)
    up, down = t.sort(x, axis=1), t.sort(x, axis=0, descending=True)
    pairs = [item(n, index=i) for n in (best, least, up, down) for i in (0, 1)]
    weights = t.softmax(item(best, index=0), axis=1)
    return body("ordered", *pairs, weights)


def norms(dtype: str, width: int = 100) -> Graph:
    x, r = given("x", dtype, T, width), given("r", dtype, T, width)
    w, b = given("w", dtype, width), given("b", dtype, width)
    h = t.add(x, r)
    heads = given("heads", dtype, T, 3, 20)
    outputs = [h, model.rms_norm(h, w, eps=1e-5, offset=1.0), model.layer_norm(h, w, b, eps=1e-5)]
    outputs += [
        model.layer_norm(x, eps=1e-3),
        model.rms_norm(heads, given("v", dtype, 20), eps=1e-6),
    ]
    return body("norms", *outputs)


def rotary(dtype: str) -> Graph:
    q, slots = given("q", dtype, T, 5 * 32), given("slots", "i32", T)
    table, positions = given("table", "f32", 64, 16), given("positions", "i32", T)
    angle = t.take(table, positions, axis=0)
    both = t.reshape(t.concat(angle, angle, axis=1), shape=(T, 1, 32))
    x = t.cast(t.reshape(q, shape=(T, 5, 32)), dtype="f32")
    half = [t.slice_(x, axis=2, start=a, stop=a + 16) for a in (0, 16)]
    turned = t.concat(t.neg(half[1]), half[0], axis=2)
    rope = t.cast(t.add(t.mul(x, t.cos(both)), t.mul(turned, t.sin(both))), dtype=dtype)
    keys = serving.cache_append(cache("c", dtype, 5, 32), rope, slots)
    return body("rotary", rope, keys)


def contractions() -> Graph:
    x, y = given("x", "f32", 2, T, 20), given("y", "f32", 20, 33)
    a, b = given("a", "f32", 2, 3, T, 18), given("b", "f32", 2, 3, T, 18)
    signal = given("signal", "f32", 2, 6, 30)
    taps, dense, bias = (
        given("taps", "f32", 6, 1, 3),
        given("dense", "f32", 4, 3, 5),
        given("bias", "f32", 4),
    )
    w = given("w", "f32", 5, 10, 20)
    index = given("index", "i64", 2, T)
    outputs = [
        t.matmul(x, t.reshape(t.add(y, y), shape=(1, 20, 33))),
        t.softmax(t.matmul(a, t.transpose(b, permutation=(0, 1, 3, 2))), axis=3),
        t.conv1d(signal, taps, padding=2, groups=6),
        t.conv1d(signal, dense, bias, stride=2, dilation=2, groups=2),
        model.linear(x, given("lw", "f32", 7, 20), given("lb", "f32", 7)),
        model.expert_linear(x, w, index, given("eb", "f32", 5, 10)),
    ]
    return body("contractions", *outputs)


def packed_types() -> Graph:
    parts = [
        given(f"x{d}", d, T, 24)
        for d in ("i4", "u4", "i2", "f8e4m3", "f8e5m2", "i8", "u8", "f16", "bool")
    ]
    return body("packed", *(t.cast(x, dtype="f32") for x in parts))


def checked() -> Graph:
    x = given("x", "f32", T, 100)
    return body("checked", *(t.argmax(x, axis=a, checked=True) for a in (0, 1)))


def few() -> Graph:
    x = given("x", "f32", T, D)
    return body("few", t.exp(x), t.erf(x), t.softmax(t.tanh(x), axis=1), t.argmax(x, axis=1))


BODIES = {
    "few": few(),
    "checked": checked(),
    "unary": unary("f32"),
    "unary-f64": unary("f64"),
    "binary": binary("f32"),
    "integers": integers(),
    "movement": movement(),
    "indexed": indexed(),
    "reductions": reductions(),
    "ordered": ordered(),
    "norms": norms("f32"),
    "norms-bf16": norms("bf16"),
    "norms-f16": norms("f16", 48),
    "rotary": rotary("f32"),
    "rotary-bf16": rotary("bf16"),
    "contractions": contractions(),
    "packed": packed_types(),
}
PORTABLE = ("few", "norms-bf16", "rotary", "norms-f16")
TARGETS = ("cpu", "cpu:x86-64-v4", "cpu:x86-64-v3", "cpu:x86-64")
INPUTS = {
    "indexed": {
        "ids": below(50),
        "few": below(9),
        "index": below(5),
        "places": lambda s: torch.rand(s[0], 37).argsort()[:, :4],
    },
    "rotary": {"positions": below(64), "slots": lambda s: torch.randperm(64)[: s[0]] - 1},
    "contractions": {"index": below(5)},
}


@pytest.fixture(scope="module")
def libraries() -> dict[str, Kernels]:
    """One library for each target, made when it is first asked for."""
    return {}


def library(libraries: dict[str, Kernels], target: str) -> Kernels:
    if target not in libraries:
        names = BODIES if target == "cpu" else PORTABLE
        libraries[target] = Kernels(target, {n.replace("-", "_"): BODIES[n] for n in names})
    return libraries[target]


CASES = [("cpu", n) for n in BODIES] + [(target, n) for target in TARGETS[1:] for n in PORTABLE]


@pytest.mark.parametrize(("target", "name"), CASES)
def test_values(libraries: dict[str, Kernels], target: str, name: str) -> None:
    kernels = library(libraries, target)
    inputs = INPUTS.get(name.partition("-")[0], {})
    for tokens in (1, 3, 19):
        kernels.check(name.replace("-", "_"), inputs, T=tokens, C=4)


def test_special_values(libraries: dict[str, Kernels]) -> None:
    """Infinities, NaN, zeros and the ends of the ranges, as IEEE arithmetic has them."""
    special = [
        0.0,
        -0.0,
        1.0,
        -1.0,
        float("inf"),
        float("-inf"),
        float("nan"),
        88.0,
        -88.0,
        104.0,
        -104.0,
        1e-30,
        1e30,
    ]
    x = torch.tensor((special * 3)[:D]).expand(2, D).contiguous()
    kernels = library(libraries, "cpu")
    names = [n for n in UNARY if n not in ("sin", "cos")]
    index = [UNARY.index(n) for n in names]
    results = kernels.run("unary", [x], [(2, D)] * len(BODIES["unary"].outputs))
    for n, i in zip(names, index, strict=True):
        function = {"silu": torch.nn.functional.silu, "neg": torch.neg}.get(n) or getattr(torch, n)
        want = function(x.double()).float()
        torch.testing.assert_close(results[i], want, rtol=2e-6, atol=1e-37, equal_nan=True, msg=n)


def test_a_checked_place_is_none_where_a_row_is_not_finite(libraries: dict[str, Kernels]) -> None:
    for wrong in (torch.nan, torch.inf):
        x = torch.randn(3, 100)
        x[0, torch.randint(100, ())] = wrong
        x[1, 1:] = -torch.inf
        x[2] = -torch.inf
        library(libraries, "cpu").check("checked", {"x": x}, T=3)
        (_, rows) = library(libraries, "cpu").run("checked", [x], [(100,), (3,)])
        assert rows.tolist() == [-1, 0, -1]


def test_elementary_functions_are_exact_to_a_few_units(libraries: dict[str, Kernels]) -> None:
    kernels = library(libraries, "cpu")
    x = (torch.rand(200, D) * 60 - 30).float()
    results = kernels.run("unary", [x], [(200, D)] * len(BODIES["unary"].outputs))
    for n in ("exp", "tanh", "sigmoid", "sin", "cos", "erf"):
        want = getattr(torch, n)(x.double())
        error = (results[UNARY.index(n)].double() - want).abs() / want.abs().clamp_min(
            1e-2 if n in ("sin", "cos") else 0
        )
        assert float(error.max()) < 6e-7, f"{n}: {error.max():.1e}"


def test_a_ragged_dim_expression_is_read_from_the_shapes() -> None:
    n = dim("N")
    x, y = given("x", "f32", n, 5), given("y", "f32", n + 1)
    kernels = Kernels(
        "cpu", {"k": body("k", t.reduce_sum(x, axes=(0,)), t.reshape(x, shape=(5 * n,)), t.neg(y))}
    )
    kernels.check("k", N=7)
