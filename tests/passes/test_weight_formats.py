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

FORMATS = ("int8", "int8-g8", "int4", "int4-g32", "int4-g64", "int8-asym", "int4-g16-asym")


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
    # Half a step; a whole one (and what rounds the scale) beyond 7/8 of the largest value.
    assert bool(((back - value).abs() <= step * (0.51 if form.bits == 8 else 1.05) + 1e-6).all())


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
    assert str(Format.parse("int4")) == "int4-g32"
    for text in FORMATS[4:]:
        assert str(Format.parse(text)) == text
    for wrong in ("int3", "int4-g0", "int4-g12", "fp4", "int4-asym-g32"):
        with pytest.raises(IRError, match="format"):
            Format.parse(wrong)
