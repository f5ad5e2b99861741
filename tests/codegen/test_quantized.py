"""Kernels over quantized weights: int8 and 4-bit codes, widened or by integer dots, with fused
epilogues, odd sizes, one, few and many rows, four targets.
"""

from __future__ import annotations

import pytest
import torch
from ferrule.codegen.backend import cpu_backend
from ferrule.ir.graph import Graph
from ferrule.ir.node import Node
from ferrule.ir.ops import quantized
from ferrule.ir.ops import tensor as t
from ferrule.ir.target import Target
from ferrule.passes.layout_codes import PackedCodes
from ferrule.passes.weight_formats import Format
from kernels import Kernels, Make, T, below, given

TARGETS = (
    "cpu:sapphirerapids",
    "cpu:znver4",
    "cpu:x86-64-v4",
    "cpu:alderlake",
    "cpu:x86-64-v3",
    "cpu:x86-64",
)
CASES = (
    ("int8", "residual"),
    ("int8", "gated"),
    ("int8", "thirds"),
    ("int4", "thirds"),
    ("int8-g64", "plain"),
    ("int4-g32", "plain"),
    ("int4-g32", "gated"),
    ("int4-g128", "residual"),
    ("int8", "long"),
    ("int4-g32", "long"),
    ("int4-g24", "long"),
    ("int8-g64", "long"),
    ("int8-asym", "residual"),
    ("int8-g64-asym", "gated"),
    ("int4-g32-asym", "plain"),
    ("int4-g64-asym", "gated"),
    ("int8-asym", "long"),
    ("int8-g64-asym", "long"),
    ("int4-g32-asym", "long"),
    ("int4", "plain"),
    ("int4", "gated"),
    ("int4", "residual"),
    ("int4", "long"),
    ("int4-g16-b32", "long"),
    ("int4-g64-b256", "gated"),
    ("int8", "turns"),
    ("int4-g32", "turns"),
    ("int4-g32-asym", "turns"),
    ("int4", "turns"),
    ("int4", "turned"),
)


class Maker:
    """Bodies whose codes and scales are inputs, in the layout that a target wants."""

    def __init__(self, target: str, text: str, dtype: str, sides: int = 1) -> None:
        self.backend, self.sides = cpu_backend(Target.parse(target)), sides
        self.format, self.dtype = Format.parse(text), dtype

    def linear(self, x: Node, n: int, *bias: Node) -> tuple[tuple[Node, ...], Node]:
        """The inputs that the linear adds to a body, and its value."""
        k = int(x.shape[-1])
        codes, scale, zeros = self.format.quantized(given("weight", "f32", n, k))
        more = bias if zeros is None else (zeros, *bias)
        plain = quantized.quantized_linear(x, codes, scale, *more, offset=self.format.offset)
        packed, q, s, z = self.packed(codes, scale, zeros)
        if not self.backend.integer_dots:
            return (q, s, *z), packed.linear(plain, integer=False)
        groups = int(packed.scale.shape[-2])
        length = codes.shape[1] * codes.shape[2] // groups
        a = given("a", "i8", *x.shape[:-1], groups, length)
        f = given("f", "f32", *x.shape[:-1], groups)
        y = quantized.packed_integer_linear(
            a, f, q, s, *z, *bias,
            n=n, offset=self.format.offset, layout=packed.layout.word, dtype=self.dtype,
        )  # fmt: skip
        return (a, f, q, s, *z), y

    def packed(
        self, codes: Node, scale: Node, zeros: Node | None
    ) -> tuple[PackedCodes, Node, Node, tuple[Node, ...]]:
        """Packed codes that are inputs of a body: codes, scales, and zeros or multipliers."""
        levels = self.backend.integer_dots
        layout = self.backend.layouts[codes.dtype].with_sides(self.sides)
        made = PackedCodes.of(codes, scale, layout, zeros, levels=levels)
        q = given("q", codes.dtype, *made.codes.shape)
        s = given("s", scale.dtype, *made.scale.shape)
        z = None if made.zeros is None else given("z", "u8", *made.zeros.shape)
        m = None if made.multipliers is None else given("m", "u4", *made.multipliers.shape)
        more = tuple(n for n in (m, z) if n is not None)
        return PackedCodes(q, s, made.layout, z, m), q, s, more

    def experts(self, n: int, k: int, *, biased: bool) -> Graph:
        """Two rows of each token through weights of five experts."""
        shape = (T, 2, k)
        x, index = given("x", self.dtype, *shape), given("index", "i32", T, 2)
        codes, scale, zeros = self.format.quantized(given("weight", "f32", 5, n, k))
        packed, q, s, z = self.packed(codes, scale, zeros)
        bias = (given("b", self.dtype, 5, n),) if biased else ()
        more = bias if zeros is None else (zeros, *bias)
        plain = quantized.quantized_expert_linear(
            x, codes, scale, index, *more, offset=self.format.offset
        )
        y = packed.linear(plain, integer=self.backend.integer_dots)
        return Graph("experts", (x, index, q, s, *z, *bias), (y,))

    def body(self, name: str) -> Graph:
        """One of the bodies by name."""
        x = given("x", self.dtype, T, 300)
        if name == "plain":
            x = given("x", self.dtype, T, 37)
            more, y = self.linear(x, 70)
            return self.body_of(x, more, y)
        if name == "long":  # more steps along k than a chunk of tiles
            x = given("x", self.dtype, T, 1400)
            more, y = self.linear(x, 50)
            return self.body_of(x, more, y)
        if name == "residual":
            b, r = given("b", self.dtype, 70), given("r", self.dtype, T, 70)
            more, y = self.linear(x, 70, b)
            return self.body_of(x, (*more, b, r), t.add(t.gelu(y), r))
        more, y = self.linear(x, 96)
        if name == "turned":
            return self.body_of(x, more, t.relu(y))
        if name == "thirds":
            a, b, c = (t.slice_(y, axis=1, start=i, stop=i + 32) for i in (0, 32, 64))
            return self.body_of(x, more, t.mul(t.silu(a), t.add(b, c)))
        halves = [t.slice_(y, axis=1, start=a, stop=a + 48) for a in (0, 48)]
        return self.body_of(x, more, t.mul(t.silu(halves[0]), halves[1]))

    def body_of(self, x: Node, more: tuple[Node, ...], y: Node) -> Graph:
        """The body of a result, over x unless its integers are given."""
        used = () if self.backend.integer_dots else (x,)
        return Graph("body", (*used, *more), (y,))


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("target", TARGETS)
def test_values(target: str, dtype: str) -> None:
    if not cpu_runs(target):
        pytest.skip(f"the machine is no {target}")
    wanted = CASES if dtype == "f32" else CASES[:1] + CASES[6:7] + CASES[-2:]
    sides = {"turns": 2, "turned": 3}
    bodies = {f"{b}_{f}": Maker(target, f, dtype, sides.get(b, 1)).body(b) for f, b in wanted}
    library = Kernels(target, {n.replace("-", "_"): g for n, g in bodies.items()})
    for name in library.bodies:
        for rows in (1, 3, 7, 19, 90):
            library.check(name, {"z": below(16)}, T=rows)


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_tiles_of_another_machine_compile(dtype: str) -> None:
    formats = ("int8", "int4", "int4-g32", "int4-g32-asym")
    bodies = {
        f"{b}_{i}": Maker("cpu:sapphirerapids", f, dtype, sides).body(b)
        for i, f in enumerate(formats)
        for b, sides in (("plain", 1), ("gated", 1), ("turns", 2))
    }
    assert Kernels("cpu:sapphirerapids", bodies).reports.keys() == bodies.keys()


EXACT = (
    "int8", "int8-asym", "int8-g64", "int8-g64-asym", "int4-g32", "int4-g32-asym", "int4-g128",
    "int4",
)  # fmt: skip


@pytest.mark.parametrize("target", TARGETS)
def test_sums_of_whole_numbers_are_exact(target: str) -> None:
    if not cpu_runs(target):
        pytest.skip(f"the machine is no {target}")
    bodies: dict[str, Graph] = {}
    for i, text in enumerate(EXACT):
        maker, x = Maker(target, text, "f32"), given("x", "f32", T, 300)
        bodies[f"exact_{i}"] = maker.body_of(x, *maker.linear(x, 70))
    library = Kernels(target, bodies)
    whole = {
        "x": lambda shape: torch.randint(-9, 10, shape).double(),
        "a": lambda shape: torch.randint(-127, 128, shape),
        "z": below(16),
        "f": torch.ones,
        "s": torch.ones,
    }
    for name in library.bodies:
        for rows in (1, 3, 6, 40, 77):
            library.check(name, whole, exactly=True, T=rows)
        # The largest sums that sixteen bits may have to hold on the way.
        top = 255 if EXACT[int(name.removeprefix("exact_"))].startswith("int8") else 15
        for a, q in ((127, top), (-127, top), (127, 0), (-127, 0)):
            edge = {"a": filled(a), "q": filled(q)}
            for rows in (5, 9, 33):
                library.check(name, whole | edge, exactly=True, T=rows)


def filled(value: int) -> Make:
    return lambda shape: torch.full(shape, value)


EXPERTS = (
    ("int8", 96, 40),
    ("int4-g32", 37, 72),
    ("int8-g16-asym", 70, 40),
    ("int4-asym", 48, 64),
    ("int4", 80, 200),
)


@pytest.mark.parametrize(
    ("target", "dtype"), [*((t, "f32") for t in TARGETS), (TARGETS[0], "bf16")]
)
def test_values_of_experts(target: str, dtype: str) -> None:
    if not cpu_runs(target):
        pytest.skip(f"the machine is no {target}")
    wanted = EXPERTS if dtype == "f32" else (EXPERTS[0], EXPERTS[1], EXPERTS[-1])
    bodies = {
        f"experts_{i}": Maker(target, f, dtype).experts(n, k, biased=n % 16 > 0)
        for i, (f, n, k) in enumerate(wanted)
    }
    library = Kernels(target, bodies)
    given = {"z": below(16), "x": in_steps}
    for name in library.bodies:
        for rows in (1, 7, 40, 230):
            library.check(name, given | {"index": below(5)}, T=rows)
        # All to one expert, the first or the last; and to a few of them.
        for index in (filled(0), filled(4), lambda s: 3 * below(2)(s)):
            library.check(name, given | {"index": index}, T=61)


def in_steps(shape: tuple[int, ...]) -> torch.Tensor:
    """Activations that are whole numbers of steps, up to 127 of them in each group: near the middle
    between two a kernel and the reference may round apart.
    """
    x = torch.randint(-127, 128, shape).double()
    x[..., ::8] = 127
    return x / 64


def cpu_runs(target: str) -> bool:
    return not Target.parse(target).missing_on(Target.parse("cpu"))


def test_a_layout_of_another_template_is_refused() -> None:
    x, q, s = given("x", "f32", T, 64), given("q", "u8", 2, 16, 16, 4), given("s", "f32", 2, 1, 16)
    y = quantized.packed_quantized_linear(x, q, s, n=32, group=64, offset=128, layout="n16k4")
    with pytest.raises(Exception, match=r"layout 'n16k4' for u8.* n16 is known"):
        Kernels("cpu:x86-64-v3", {"wrong": Graph("wrong", (x, q, s), (y,))})
