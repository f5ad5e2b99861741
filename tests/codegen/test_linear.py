"""The linear and expert templates: every weight layout, one, few and many rows, fused epilogues,
four targets.
"""

from __future__ import annotations

import pytest
import torch
from ferrule.codegen.backend import Layout, cpu_backend
from ferrule.compiler.reference import evaluate
from ferrule.ir.dims import dim
from ferrule.ir.graph import Graph
from ferrule.ir.node import Node
from ferrule.ir.ops import model, serving
from ferrule.ir.ops import tensor as t
from ferrule.ir.target import Target
from kernels import Kernels, T, below, given

B = dim("B")
Make = tuple[str, str]


def weight(make: Make, name: str, *shape: int) -> Node:
    """A packed weight input of the shape that the layout gives w[..., n, k]."""
    dtype, word = make
    packed = Layout.parse(word).packed(given("w", dtype, *shape))
    return given(name, dtype, *packed.shape)


def linear(make: Make, x: Node, name: str, n: int, *bias: Node) -> tuple[Node, Node]:
    w = weight(make, name, n, int(x.shape[-1]))
    return w, serving.packed_linear(x, w, *bias, n=n, layout=make[1])


def plain(make: Make) -> Graph:
    x = given("x", make[0], T, 37)
    w, y = linear(make, x, "w", 70)
    return Graph("plain", (x, w), (y,))


def long(make: Make) -> Graph:
    """More steps along k than a chunk of tiles."""
    x = given("x", make[0], T, 1205)
    w, y = linear(make, x, "w", 40)
    return Graph("long", (x, w), (y,))


def residual(make: Make) -> Graph:
    x, b, r = given("x", make[0], T, 100), given("b", make[0], 70), given("r", make[0], T, 70)
    w, y = linear(make, x, "w", 70, b)
    return Graph("residual", (x, w, b, r), (t.add(t.gelu(y), r),))


def gated(make: Make, width: int) -> Graph:
    """silu(gate) * up of the norm of x, gate and up in one weight."""
    x, g = given("x", make[0], T, 64), given("g", make[0], 64)
    w, y = linear(make, model.rms_norm(x, g, eps=1e-5), "w", 2 * width)
    halves = [t.slice_(y, axis=1, start=a, stop=a + width) for a in (0, width)]
    return Graph("gated", (x, g, w), (t.mul(t.silu(halves[0]), halves[1]),))


def turns(make: Make) -> Graph:
    """Gate and up whose blocks of columns take turns in memory."""
    return gated((make[0], f"{make[1]}s2"), 48)


def turned(make: Make) -> Graph:
    """All columns of such a weight, as they are."""
    return wide((make[0], f"{make[1]}s3"))


def wide(make: Make) -> Graph:
    x = given("x", make[0], T, 37)
    w, y = linear(make, x, "w", 96)
    return Graph("wide", (x, w), (t.relu(y),))


def heads(make: Make) -> Graph:
    """Two results of one linear, in other shapes; a batch of sequences."""
    x = given("x", make[0], B, T, 33)
    w, y = linear(make, x, "w", 48)
    return Graph("heads", (x, w), (t.reshape(y, shape=(B * T, 4, 12)), t.relu(y)))


def split(make: Make) -> Graph:
    """Merged q, k and v, taken apart and normalized by head: the linear goes through scratch."""
    x, g = given("x", make[0], T, 40), given("g", make[0], 8)
    w, y = linear(make, x, "w", 56)
    parts = [t.slice_(y, axis=1, start=a, stop=b) for a, b in ((0, 32), (32, 56))]
    q = model.rms_norm(t.reshape(parts[0], shape=(T, 4, 8)), g, eps=1e-6)
    return Graph("split", (x, w, g), (q, parts[1]))


def experts(make: Make) -> Graph:
    x, index, b = (
        given("x", make[0], T, 2, 37),
        given("index", "i64", T, 2),
        given("b", make[0], 5, 40),
    )
    w = weight(make, "w", 5, 40, 37)
    y = serving.packed_expert_linear(x, w, index, b, n=40, layout=make[1])
    return Graph("experts", (x, w, index, b), (t.relu(y),))


def chained(make: Make) -> Graph:
    """Two linears in one kernel."""
    x = given("x", make[0], T, 40)
    v, y = linear(make, x, "v", 50)
    w, z = linear(make, t.tanh(y), "w", 20)
    return Graph("chained", (x, v, w), (z,))


MAKES: dict[str, Make] = {
    "f32": ("f32", "n16"),
    "bf16": ("bf16", "n16k2"),
    "wide": ("bf16", "n16"),
    "f16": ("f16", "n16"),
    "f64": ("f64", "n16"),
}
BODIES = {
    "plain": plain,
    "long": long,
    "residual": residual,
    "gated": lambda m: gated(m, 48),
    "turns": turns,
    "turned": turned,
    "uneven": lambda m: gated(m, 21),
    "heads": heads,
    "split": split,
    "experts": experts,
    "chained": chained,
}
SMALL = ("residual", "gated", "experts")
TARGETS = {
    "cpu": [(m, b) for m in ("f32", "bf16") for b in BODIES]
    + [("f16", "residual"), ("f64", "plain")],
    "cpu:sapphirerapids": [("bf16", b) for b in BODIES],
    "cpu:znver4": [("bf16", b) for b in ("plain", "residual", "gated", "turns", "turned")],
    "cpu:x86-64-v4": [
        ("f32", "gated"),
        ("f32", "turns"),
        ("wide", "gated"),
        ("wide", "residual"),
        ("wide", "experts"),
        ("wide", "long"),
    ],
    "cpu:x86-64-v3": [
        ("f32", "gated"),
        ("f32", "turns"),
        ("f32", "turned"),
        ("wide", "gated"),
        ("wide", "turns"),
        ("wide", "turned"),
        ("wide", "experts"),
        ("wide", "residual"),
        ("f16", "residual"),
        ("wide", "long"),
        ("wide", "heads"),
    ],
    "cpu:x86-64": [("f32", "gated"), ("wide", "residual")],
}
CASES = [(target, f"{b}_{m}") for target, names in TARGETS.items() for m, b in names]


@pytest.fixture(scope="module")
def libraries() -> dict[str, Kernels]:
    """One library for each target, made when it is first asked for."""
    return {}


@pytest.mark.parametrize(("target", "name"), CASES)
def test_values(libraries: dict[str, Kernels], target: str, name: str) -> None:
    if Target.parse(target).missing_on(Target.parse("cpu")):
        pytest.skip(f"the machine is no {target}")
    if "bf16" in name and not Target.parse(target).has("avx512_bf16"):
        pytest.skip("the machine has no bfloat16 dot instruction")
    if target not in libraries:
        wanted = [
            (m, b)
            for m, b in TARGETS[target]
            if m != "bf16" or Target.parse(target).has("avx512_bf16")
        ]
        libraries[target] = Kernels(target, {f"{b}_{m}": BODIES[b](MAKES[m]) for m, b in wanted})
    for rows in (1, 3, 5, 19, 48, 131):
        libraries[target].check(name, {"index": below(5)}, T=rows, B=2)


@pytest.mark.parametrize("word", ["n16", "n16k2"])
@pytest.mark.parametrize("shape", [(70, 37), (16, 4), (3, 5, 33)])
def test_a_packed_weight_multiplies_as_the_weight_does(word: str, shape: tuple[int, ...]) -> None:
    w = given("w", "f32", *shape)
    packed = Layout.parse(word).packed(w)
    assert Layout.parse(word).word == word
    value = torch.randn(shape)
    (stored,) = evaluate(Graph("pack", (w,), (packed,)), [value])
    *lead, n, k = shape
    layout = Layout.parse(word)
    blocks = stored.reshape(*lead, stored.shape[len(lead)], -1, 16, layout.depth).movedim(-2, -3)
    flat = blocks.reshape(*lead, stored.shape[len(lead)] * 16, -1)
    assert torch.equal(flat[..., :n, :k], value)
    assert not flat[..., n:, :].any() and not flat[..., k:].any()


def test_the_layout_follows_the_target() -> None:
    assert cpu_backend(Target.parse("cpu:znver4")).layouts["bf16"].word == "n16k2"
    assert cpu_backend(Target.parse("cpu:x86-64-v4")).layouts["bf16"].word == "n16"
    assert cpu_backend(Target.parse("cpu:x86-64-v3")).layouts["f32"].word == "n16"
