"""Packed codes and scales: what is packed can be read back, in every layout."""

from __future__ import annotations

import pytest
import torch
from ferrule.codegen.backend import Layout
from ferrule.compiler.reference import evaluate
from ferrule.compiler.reference.layouts import unpacked
from ferrule.ir.graph import Graph
from ferrule.ir.node import input_
from ferrule.ir.types import TensorType
from ferrule.passes.layout_codes import PackedCodes, quantized_rows

LAYOUTS = [Layout(16, 1), Layout(16, 2), Layout(16, 4), Layout(16, 4, 2)]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda x: x.word)
@pytest.mark.parametrize("n", [16, 37])
def test_packed_codes_are_read_back(layout: Layout, n: int):
    assert Layout.parse(layout.word) == layout
    codes = input_(name="q", type=TensorType("u4", (n, 3, 16)))
    scale = input_(name="s", type=TensorType("f32", (n, 3)))
    made = PackedCodes.of(codes, scale, layout)
    outputs = (
        made.codes, made.scale, made.unpacked_codes(codes), made.unpacked_scale(scale),
    )  # fmt: skip
    q, s = torch.randint(0, 16, (n, 3, 16)).to(torch.uint8), torch.randn(n, 3)
    packed, columns, codes_again, scale_again = evaluate(
        Graph("pack", (codes, scale), outputs), [q, s]
    )
    assert torch.equal(codes_again, q) and torch.equal(scale_again, s)
    assert torch.equal(unpacked(packed, n, 48, layout.word), q.flatten(1))
    assert torch.equal(unpacked(columns, n, 3, "n16"), s)


def test_rows_are_quantized_by_group_and_rows_of_zeros_stay_zero():
    x = input_(name="x", type=TensorType("f32", (3, 21)))
    whole, scale = quantized_rows(x, 3, 8)
    value = torch.randn(3, 21)
    value[1] = 0.0
    codes, factor = evaluate(Graph("rows", (x,), (whole, scale)), [value])
    back = (codes.float() * factor[..., None]).flatten(1)
    assert torch.equal(back[1], torch.zeros(24))
    assert bool(((back[:, :21] - value).abs() <= factor.max() * 0.51).all())
    assert int(codes.abs().max()) == 127
