"""Packed codes, scales and zeros: what is packed can be read back, in every layout."""

from __future__ import annotations

import pytest
import torch
from ferrule.codegen.backend import Layout
from ferrule.compiler.reference import evaluate
from ferrule.compiler.reference.layouts import columns_of, unpacked
from ferrule.ir.graph import Graph
from ferrule.ir.node import input_
from ferrule.ir.types import TensorType
from ferrule.passes.layout_codes import PackedCodes, quantized_rows

LAYOUTS = [Layout(16, 1), Layout(16, 2), Layout(16, 4), Layout(16, 4, 2)]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda x: x.word)
@pytest.mark.parametrize("rows", [(16,), (37,), (3, 21)], ids=str)
def test_packed_codes_are_read_back(layout: Layout, rows: tuple[int, ...]):
    check_read_back(layout, rows)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda x: x.word)
@pytest.mark.parametrize(("rows", "sides"), [((96,), 3), ((3, 64), 2), ((32,), 2)], ids=str)
def test_blocks_that_take_turns_are_read_back(layout: Layout, rows: tuple[int, ...], sides: int):
    check_read_back(layout.with_sides(sides), rows)


def check_read_back(layout: Layout, rows: tuple[int, ...]):
    assert Layout.parse(layout.word) == layout
    codes = input_(name="q", type=TensorType("u4", (*rows, 3, 16)))
    scale = input_(name="s", type=TensorType("f32", (*rows, 3)))
    zeros = input_(name="z", type=TensorType("u8", (*rows, 3)))
    made = PackedCodes.of(codes, scale, layout, zeros)
    assert made.zeros is not None
    packed = (made.codes, made.scale, made.zeros)
    views = made.views(codes, scale, zeros)
    q, s = torch.randint(0, 16, codes.shape).to(torch.uint8), torch.randn(scale.shape)
    z = torch.randint(0, 16, zeros.shape).to(torch.uint8)
    outputs = (*packed, *(views[n] for n in (codes, scale, zeros)))
    given = evaluate(Graph("pack", (codes, scale, zeros), outputs), [q, s, z])
    for value, view in zip((q, s, z), given[3:], strict=True):
        assert torch.equal(view, value)
    assert torch.equal(unpacked(given[0], rows[-1], 48, layout.word), q.flatten(-2))
    for value, columns in zip((s, z), given[1:3], strict=True):
        assert torch.equal(unpacked(columns, rows[-1], 3, columns_of(layout.word)), value)


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
