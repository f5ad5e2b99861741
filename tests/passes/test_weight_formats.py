"""Weight formats: codes, scales and zeros near the weight, and the names of formats."""

from __future__ import annotations

import pytest
import torch
from ferrule.compiler.reference import evaluate
from ferrule.ir.errors import IRError
from ferrule.ir.graph import Graph
from ferrule.ir.node import parameter
from ferrule.ir.types import TensorType
from ferrule.passes.weight_formats import Format

FORMATS = (
    "int8", "int8-g8", "int4", "int4-g32", "int4-g64", "int8-asym", "int4-g16-asym", "int4-g8-b16"
)  # fmt: skip


@pytest.mark.parametrize("text", FORMATS)
def test_codes_and_scales_are_near_the_weight(text: str):
    w = parameter(name="w", type=TensorType("f32", (21, 77)))
    form = Format.parse(text)
    codes, scale, zeros = form.quantized(w)
    value = torch.randn(21, 77)
    value[3] = 0.0  # a row with no scale
    graph = Graph("q", (), (codes, scale) if zeros is None else (codes, scale, zeros))
    q, s, *z = evaluate(graph, {}, {"w": value})
    zero = z[0].float()[..., None] if z else form.offset
    back = ((q.float() - zero) * s.float()[..., None]).flatten(1)[:, :77]
    assert int(q.max()) < 1 << form.bits and len(z) == form.zeros
    assert torch.equal(back[3], value[3])
    step = s.float().abs()[..., None].expand(q.shape).flatten(1)[:, :77]
    # Half a step; a whole one (and what rounds the scale) beyond 7/8 of the largest value; in
    # blocks a value is cut off where that makes the others' errors less.
    most = 0.51 if form.bits == 8 else 2.0 if form.block else 1.05
    assert bool(((back - value).abs() <= step * most + 1e-6).all())


@pytest.mark.parametrize("k", [32, 64, 77, 192, 416, 1020])
def test_two_levels_of_scales_lose_little(k: int):
    w = parameter(name="w", type=TensorType("f32", (64, k)))
    value = torch.randn(64, k)
    value[5] *= 1e-4
    lost = {}
    for text in ("int4-g32", "int4-g64", "int4"):
        q, s = evaluate(Graph("q", (), Format.parse(text).quantized(w)[:2]), {}, {"w": value})
        back = ((q.float() - 8) * s.float()[..., None]).flatten(1)[:, :k]
        lost[text] = (back - value).square().sum(1)
    assert float(lost["int4"].sum()) < 1.15 * float(lost["int4-g32"].sum())
    assert float(lost["int4"][5]) < 1.6 * float(lost["int4-g32"][5])
    if k > 200:
        assert float(lost["int4"].sum()) < float(lost["int4-g64"].sum())


def test_scales_of_blocks_are_exact_in_bfloat16():
    w = parameter(name="w", type=TensorType("f32", (33, 512)))
    scale = Format.parse("int4").quantized(w).scale
    found = evaluate(Graph("q", (), (*scale.inputs, scale)), {}, {"w": torch.randn(33, 512)})
    multipliers, blocks, scales = (x.float() for x in found)
    assert blocks.shape == (33, 4) and float(multipliers.max()) == 15
    assert torch.equal(scales, multipliers * blocks.repeat_interleave(4, 1))


@pytest.mark.parametrize("text", ["int4-g32-asym", "int8-asym"])
def test_zeros_make_the_most_of_one_sided_groups(text: str):
    w = parameter(name="w", type=TensorType("f32", (9, 64)))
    value = torch.rand(9, 64) + 0.5  # no group has a value below 0, so that half the codes of a
    form = Format.parse(text)  # format without zeros would be unused
    graph = Graph("q", (), tuple(n for n in form.quantized(w) if n is not None))
    q, s, z = evaluate(graph, {}, {"w": value})
    back = ((q.float() - z.float()[..., None]) * s.float()[..., None]).flatten(1)
    assert int(z.max()) == 0 and int(q.max()) == (1 << form.bits) - 1
    assert float((back - value).abs().max()) < 0.6 * 1.5 / int(q.max())


def test_formats_are_read_from_text():
    assert str(Format.parse("int4")) == "int4-g32-b128"
    for text in FORMATS[3:]:
        assert str(Format.parse(text)) == text
    for wrong in (
        "int3",
        "int4-g0",
        "int4-g12",
        "fp4",
        "int4-asym-g32",
        "int4-g32-b32",
        "int4-g32-b96",
        "int8-g32-b64",
        "int4-g32-b64-asym",
    ):
        with pytest.raises(IRError, match="format"):
            Format.parse(wrong)
