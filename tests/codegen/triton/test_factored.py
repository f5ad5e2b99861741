"""Norms before linears of one row, summed up in the template's own loop: against the reference at
odd sizes, for every kind of weight and what is fused behind; what is compiled spills nothing.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from cross_compiled import target_of
from ferrule.codegen.triton.compile import compile_entry
from ferrule.codegen.triton.kernel import Start
from ferrule.codegen.triton.lower import Lowered, lower
from ferrule.ir.dims import dim
from ferrule.ir.graph import Graph
from ferrule.ir.node import Node
from ferrule.ir.ops import model as m
from ferrule.ir.ops import quantized as q
from ferrule.ir.ops import tensor as t
from ferrule.ir.target import Target
from interpreted_kernels import Interpreted
from kernels import given

T = dim("T")
WEIGHTS = {"u4": 8, "u8": 128, "f8e4m3": 0}
"""Dtypes of codes, and what is taken off them."""


def linear(x: Node, n: int, kind: str, group: int = 0) -> Node:
    """A linear by weights of a kind."""
    k = int(x.shape[-1])
    if kind in ("f32", "bf16"):
        return m.linear(x, given("w", kind, n, k), given("b", x.dtype, n))
    group = group or k
    codes = given("q", kind, n, -(-k // group), group)
    scale = given("s", "f32" if kind == "f8e4m3" else "bf16", n, -(-k // group))
    return q.quantized_linear(x, codes, scale, offset=WEIGHTS[kind])


def gated(y: Node) -> Node:
    n = int(y.shape[-1]) // 2
    gate, up = (t.slice_(y, axis=1, start=a, stop=a + n) for a in (0, n))
    return t.mul(t.silu(gate), up)


def body(y: Node, most: int = 64) -> Graph:
    inputs = tuple(n for n in Graph("x", (), (y,)).nodes() if n.op.name == "input")
    return Graph("kernel", inputs, (y,), bounds={"T": (1, most)})


def normed(kind: str, n: int, k: int, dtype: str = "bf16", group: int = 0, **more: float) -> Graph:
    x = m.rms_norm(given("x", dtype, T, k), given("g", dtype, k), **{"eps": 1e-5, **more})
    return body(t.add(linear(x, n, kind, group), given("r", dtype, T, n)))


BODIES = {
    "plain": normed("f32", 29, 45, "f32"),
    "added_to_one": normed("bf16", 21, 72, offset=1.0),
    "codes": normed("u4", 21, 72, "f32", 24),
    "codes_alone": normed("u4", 20, 256, group=128),
    "bytes": normed("u8", 19, 45, "f32"),
    "float8": normed("f8e4m3", 37, 45),
    "gate": body(gated(linear(m.rms_norm(given("x", "f32", T, 40), eps=1e-6), 74, "f32"))),
    "gate_codes": body(gated(linear(m.rms_norm(given("x", "f32", T, 96), eps=1e-6), 42, "u4", 32))),
}


@pytest.fixture(scope="module")
def interpreted():
    kernels = Interpreted(BODIES)
    yield kernels
    kernels.close()


def launched(name: str, rows: int, interpreted: Interpreted) -> list[str]:
    """The entries that so many rows take."""
    function = interpreted.table.functions[interpreted.reports[name].function]
    return [launch.entry for launch in function.form({"T": rows}).launches]


@pytest.mark.parametrize("name", list(BODIES))
def test_one_row_takes_one_launch_and_more_take_the_norm_before(
    interpreted: Interpreted, name: str
):
    torch.manual_seed(1)
    (one,) = launched(name, 1, interpreted)
    assert "gemv" in one, one
    first, *_ = launched(name, 2, interpreted)
    assert "rows" in first, first
    for rows in (1, 3):
        interpreted.check(name, T=rows)


def test_a_large_row_is_as_exact_as_a_small_one(interpreted: Interpreted):
    x = torch.randn(1, 256).bfloat16()
    for scale in (1e-4, 1.0, 3e4):
        interpreted.check("codes_alone", {"x": (x * scale).bfloat16()}, T=1)


def test_what_lies_behind_a_gain_is_not_read(interpreted: Interpreted):
    # A step of k is longer than the row: what a load gives there is multiplied by zeros.
    assert "mask=m2" in interpreted.reports["plain"].source().partition("return v")[0]


def test_a_row_of_a_deterministic_build_has_its_norm_first():
    made = lower("k", BODIES["codes"], Target("cuda", "sm_90", deterministic=True))
    (form,) = made.forms
    assert "rows" in form.starts[0].entry and "FACTOR=" not in made.text


def test_values_that_are_no_such_product_are_made_before():
    x = given("x", "f32", T, 24)
    y = m.linear(m.layer_norm(x, given("g", "f32", 24), given("b", "f32", 24), eps=1e-5),
                 given("w", "f32", 10, 24))  # fmt: skip
    made = lower("k", body(y), Target.parse("cuda:sm_90"))
    assert "FACTOR=" not in made.text and len(made.forms[0].starts) == 2


def test_a_choice_of_matrix_units_for_one_row_has_its_norm_first():
    made = lower("k", BODIES["codes_alone"], Target.parse("cuda:sm_90"))
    space = next(s for s in made.spaces if s.bucket.name == "1")
    other = next(c for c in space.choices() if "gemm" in space.words(c))
    form = lower("k", BODIES["codes_alone"], Target.parse("cuda:sm_90"), {"1": other}).forms[0]
    assert ["rows" in s.entry for s in form.starts[:2]] == [True, False]


def one_row(kind: str, arch: str, *, gate: bool) -> tuple[Lowered, Start]:
    """A layer's linear behind a norm with the default tiles, in the form for one row."""
    x = m.rms_norm(given("x", "bf16", T, 4096), given("g", "bf16", 4096), eps=1e-5)
    y = linear(x, 6144, kind, 128 if kind == "u4" else 0)
    made = lower("k", body(gated(y) if gate else y), target_of(arch))
    (start,) = made.forms[0].starts
    return made, start


@pytest.mark.parametrize(
    ("kind", "arch", "gate"),
    [("bf16", "sm_90", True), ("u4", "sm_80", True), ("u4", "sm_100", False), ("u8", "sm_90", True),
     ("f8e4m3", "sm_90", False), ("u4", "gfx942", False)],
)  # fmt: skip
def test_default_tiles_spill_nothing(tmp_path, kind: str, arch: str, gate: bool):
    made, start = one_row(kind, arch, gate=gate)
    source = tmp_path / "k.py"
    source.write_text(made.text)
    plain = replace(start, grid=(), tile=None)
    found = compile_entry(source, plain, made.pointers, target_of(arch))
    assert found.spilled == 0, found
    # A quarter of what a processor's part has, or less: others run beside it, and their loads.
    assert found.registers <= (168 if arch.startswith("gfx") else 128), found
