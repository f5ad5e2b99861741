"""Quantized linears as kernels: every kind of group, zeros and offsets, one row and many, sums kept
and gated; weights of float8. Through the interpreter, against the reference.
"""

from __future__ import annotations

import pytest
import torch
from ferrule.codegen.backend import KernelBody
from ferrule.codegen.triton.build import build_kernels
from ferrule.ir.dims import dim
from ferrule.ir.graph import Graph
from ferrule.ir.launches import LAUNCHES, LaunchTable
from ferrule.ir.node import Node
from ferrule.ir.ops import quantized as q
from ferrule.ir.ops import tensor as t
from ferrule.ir.target import Target
from interpreted_kernels import Interpreted
from kernels import given

T = dim("T")


def body(*outputs: Node, most: int = 300) -> Graph:
    inputs = dict.fromkeys(
        n for o in Graph("x", (), outputs).nodes() for n in (o,) if n.op.name == "input"
    )
    return Graph("kernel", tuple(inputs), outputs, bounds={"T": (1, most)})


def coded(
    bits: int, group: int, sizes: tuple[int, int], *, zeros: bool, dtype: str, gated: bool = False
) -> Graph:
    """A linear by codes with a bias, and a residual or a gate behind it."""
    n, k = sizes
    groups, rows = -(-k // group), n * (1 + gated)
    x, codes = given("x", dtype, T, k), given("q", f"u{bits}", rows, groups, group)
    scale, bias = given("s", "bf16", rows, groups), given("b", dtype, rows)
    own = (given("z", "u8", rows, groups),) if zeros else ()
    y = q.quantized_linear(x, codes, scale, *own, bias, offset=0 if zeros else 1 << (bits - 1))
    if not gated:
        return body(t.add(y, given("r", dtype, T, n)))
    gate, up = (t.slice_(y, axis=1, start=a, stop=a + n) for a in (0, n))
    return body(t.mul(t.silu(gate), up))


def eight_bit_floats() -> Graph:
    """Weights of float8 with a scale a row, a bias, a residual."""
    x, codes = given("x", "bf16", T, 45), given("q", "f8e4m3", 37, 1, 45)
    y = q.quantized_linear(x, codes, given("s", "f32", 37, 1), given("b", "bf16", 37), offset=0)
    return body(t.add(y, given("r", "bf16", T, 37)))


BODIES = {
    "float8": eight_bit_floats(),
    "four_32": coded(4, 32, (48, 64), zeros=False, dtype="bf16"),
    "four_8_zeros": coded(4, 8, (37, 40), zeros=True, dtype="f32"),
    "four_24_gated": coded(4, 24, (21, 72), zeros=True, dtype="f32", gated=True),
    "four_24_zeros": coded(4, 24, (21, 72), zeros=True, dtype="bf16"),
    "four_128": coded(4, 128, (20, 256), zeros=False, dtype="f32"),
    "eight_row_gated": coded(8, 48, (19, 45), zeros=False, dtype="f32", gated=True),
    "eight_8_zeros": coded(8, 8, (16, 32), zeros=True, dtype="f32"),
}


@pytest.fixture(scope="module")
def interpreted():
    kernels = Interpreted(BODIES)
    yield kernels
    kernels.close()


@pytest.mark.parametrize("name", list(BODIES))
def test_values_are_those_of_the_reference(interpreted: Interpreted, name: str):
    torch.manual_seed(0)
    forms = interpreted.table.functions[interpreted.reports[name].function].forms
    for form in forms:
        # One row, a few that fill no tile, and a number that each later form begins with.
        interpreted.check(name, T={1: 1, 16: 5, 64: 17}.get(form.most or 0, 70))


@pytest.mark.parametrize("target", ["cuda:sm_80", "cuda:sm_90", "rocm:gfx942"])
def test_forms_fit_and_spill_nothing(target: str, tmp_path):
    n, k, group = 2048, 4096, 64
    x, codes = given("x", "bf16", T, k), given("q", "u4", 2 * n, k // group, group)
    y = q.quantized_linear(x, codes, given("s", "bf16", 2 * n, k // group), offset=8)
    gate, up = (t.slice_(y, axis=1, start=a, stop=a + n) for a in (0, n))
    made = {"k": KernelBody(body(t.mul(t.silu(gate), up), most=2048))}
    build_kernels(made, Target.parse(target), tmp_path)
    table = LaunchTable.from_json((tmp_path / LAUNCHES).read_bytes())
    assert len(table.functions["k"].forms) >= 3
    assert all(b.spilled == 0 for b in table.binaries.values()), table.binaries
