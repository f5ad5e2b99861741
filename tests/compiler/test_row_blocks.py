"""Weights that are made a block of rows at a time have the values that they have made at once."""

from __future__ import annotations

import pytest
import torch
from ferrule.compiler import row_blocks
from ferrule.compiler.prepared import PreparedWeights
from ferrule.compiler.reference import evaluate
from ferrule.compiler.row_blocks import evaluate_by_rows
from ferrule.ir.graph import Graph
from ferrule.ir.node import Node, parameter
from ferrule.ir.ops import tensor as t
from ferrule.ir.types import TensorType
from ferrule.passes.weight_formats import Format


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Blocks of a few rows; gives the rows of those that are made, in order of their number."""
    found: list[list[int]] = []
    monkeypatch.setattr(row_blocks, "ELEMENTS", 1000)
    real = row_blocks.values_of_rows

    def seen(block: Graph, given: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        found.append([int(v.shape[0]) for v in given])
        return real(block, given)

    monkeypatch.setattr(row_blocks, "values_of_rows", seen)
    return found


def weight(name: str, *shape: int) -> Node:
    return parameter(name=name, type=TensorType("bf16", shape))


def values(*nodes: Node) -> dict[str, torch.Tensor]:
    return {n["name"]: torch.randn([int(d) for d in n.shape]).bfloat16() for n in nodes}


def same(graph: Graph, given: dict[str, torch.Tensor]) -> None:
    for made, wanted in zip(
        evaluate_by_rows(graph, given), evaluate(graph, (), given), strict=True
    ):
        assert made.dtype == wanted.dtype and torch.equal(made, wanted)


def laid_out(codes: Node, rows: int) -> Node:
    """Codes in blocks of sixteen rows, as they are packed."""
    short = -rows % 16
    padded = t.pad(codes, before=(0, 0), after=(short, 0), value=0)
    blocks = t.reshape(padded, shape=((rows + short) // 16, 16, int(codes.shape[1])))
    return t.transpose(blocks, permutation=(0, 2, 1))


@pytest.mark.parametrize("text", ["int4", "int4-g64-asym", "int8", "int8-g32", "fp8"])
def test_codes_scales_and_zeros(text: str, short: list[list[int]]) -> None:
    w = weight("w", 131, 256)
    coded = [n for n in Format.parse(text).quantized(w) if isinstance(n, Node)]
    same(
        Graph("codes", (), (laid_out(t.reshape(coded[0], shape=(131, 256)), 131), *coded[1:])),
        values(w),
    )
    assert len(short) > 8 and sum(rows[0] for rows in short) == 131


def test_joined_turned_and_stacked_weights(short: list[list[int]]) -> None:
    form = Format.parse("int4")
    a, b, c = weight("a", 70, 128), weight("b", 33, 128), weight("c", 128, 90)
    stack = weight("s", 7, 40, 64)
    outputs = [
        coded
        for w in (t.concat(a, b, axis=0), t.transpose(c, permutation=(1, 0)), stack)
        for coded in form.quantized(w)
        if isinstance(coded, Node)
    ]
    same(Graph("joined", (), tuple(outputs)), values(a, b, c, stack))
    assert sum(rows[0] for rows in short) == (70 + 33) + 90 + 7


def test_what_mixes_rows_is_made_at_once(short: list[list[int]]) -> None:
    w = weight("w", 131, 64)
    most = t.reduce_max(t.abs_(w), axes=(0,), keepdims=True)
    same(Graph("columns", (), (t.div(w, most), t.cast(t.relu(w), dtype="f32"))), values(w))
    assert sum(rows[0] for rows in short) == 131  # of the values that `most` and relu are made of
    small = weight("small", 4, 8)
    same(Graph("small", (), (t.relu(small),)), values(small))


def test_the_weights_of_the_same_parameters_are_made_together_and_again_when_asked_again() -> None:
    w, other = weight("w", 131, 256), weight("other", 64, 64)
    codes, scale, *_ = Format.parse("int8").quantized(w)
    graph = Graph("p", (), (codes, t.relu(other), scale), ("codes", "other", "scale"))
    given = values(w, other)
    prepared = PreparedWeights(graph, given)
    wanted = dict(zip(graph.output_names, evaluate(graph, (), given), strict=True))
    for name in ("codes", "scale", "other", "codes", "scale", "scale"):
        assert torch.equal(prepared[name], wanted[name])
    assert prepared["w"] is given["w"] and set(prepared) == {"w", "other", "codes", "scale"}
    assert len(prepared) == 4
