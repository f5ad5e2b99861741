"""Models that export at one length at a time: two graphs become one for any length."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from ferrule.compiler.capture import capture
from ferrule.compiler.errors import CompileError
from ferrule.compiler.evaluator import part_runner
from ferrule.compiler.fixed_lengths import CHECKED, LENGTHS
from ferrule.compiler.import_aten import import_captured
from ferrule.compiler.reference import evaluate
from ferrule.ir.errors import IRError
from ferrule.ir.graph import Graph
from ferrule.ir.text import parse_graph, print_graph
from ferrule.passes.join_lengths import JoinLengths
from ferrule.passes.raise_convs import RaiseConvs
from models.recurrent import FIXED, Mixer, Tensor

# What is before the loop, the loop unrolled, and what is behind it.
HEAD = """
graph m(%ids: i64[B, N]) where B in [1, 3] {
  %0 = parameter {name = "x"} : f32[11, 3]
  %1 = take %0 %ids {axis = 0} : f32[B, N, 3]
  %2 = pad %1 {before = (0, 2, 0), after = (0, 0, 0)} : f32[B, N + 2, 3]
  %3 = slice %2 {axis = 1, start = 0, stop = N} : f32[B, N, 3]
  %4 = add %1 %3 : f32[B, N, 3]
  %5 = slice %4 {axis = 1, start = 0, stop = 1} : f32[B, 1, 3]
"""


def unrolled(length: int, mix: str = "add") -> Graph:
    """y_t = y_{t-1} + x_t for every token in turn, then twice that."""
    lines, rows = [], ["%5"]
    for i in range(1, length):
        lines += [
            f"%{2 * i + 4} = slice %4 {{axis = 1, start = {i}, stop = {i + 1}}} : f32[B, 1, 3]",
            f"%{2 * i + 5} = {mix} %{2 * i + 4} {rows[-1]} : f32[B, 1, 3]",
        ]
        rows.append(f"%{2 * i + 5}")
    last = 2 * length + 4
    lines += [
        f"%{last} = concat {' '.join(rows)} {{axis = 1}} : f32[B, {length}, 3]",
        f"%{last + 1} = add %{last} %{last} : f32[B, {length}, 3]",
        f"return %{last + 1} as y",
    ]
    head = HEAD.replace("N + 2", str(length + 2)).replace("N", str(length))
    return parse_graph(head + "\n".join(f"  {line}" for line in lines) + "\n}\n")


def joined(*graphs: Graph) -> Graph:
    lengths = [g.inputs[0].shape[1] for g in graphs]
    return JoinLengths(
        dict(zip(lengths, graphs, strict=True)), 64, RaiseConvs().run, part_runner({})
    ).run()


def test_a_loop_over_the_tokens():
    graph = joined(unrolled(5), unrolled(8))
    names = [n.op.name for n in graph.nodes()]
    assert names.count("linear_scan") == 1 and names.count("causal_conv") == 1
    assert graph.bounds["S"] == (1, 64)
    weights = {"x": torch.randn(11, 3)}
    for length in (5, 8):
        ids = torch.randint(0, 11, (2, length))
        (wanted,) = evaluate(unrolled(length), [ids], weights)
        torch.testing.assert_close(evaluate(graph, [ids], weights)[0], wanted)


def test_a_loop_that_is_no_scan_becomes_its_step():
    graph = joined(unrolled(5, "maximum"), unrolled(8, "maximum"))
    assert [n.op.name for n in graph.nodes()].count("token_loop") == 1
    weights = {"x": torch.randn(11, 3)}
    for length in (5, 8):
        ids = torch.randint(0, 11, (2, length))
        (wanted,) = evaluate(unrolled(length, "maximum"), [ids], weights)
        torch.testing.assert_close(evaluate(graph, [ids], weights)[0], wanted)


def test_a_loop_whose_steps_differ_is_named():
    both = [
        parse_graph(print_graph(unrolled(n, "maximum")).replace("= maximum", "= minimum", 3))
        for n in (6, 8)
    ]
    with pytest.raises(IRError, match=r"the steps of tokens 4 and 3 differ(?s:.)*concat"):
        joined(*both)


def test_graphs_that_are_alike_need_no_loop():
    def plain(length: int) -> Graph:
        text = HEAD.replace("N + 2", str(length + 2)).replace("N", str(length))
        return parse_graph(text[: text.index("  %5")] + "  return %4 as y\n}\n")

    names = [n.op.name for n in joined(plain(5), plain(8)).nodes()]
    assert "linear_scan" not in names


@pytest.mark.parametrize("name", FIXED)
def test_spellings(name: str):
    torch.manual_seed(0)
    model = FIXED[name]().eval()
    imported = import_captured(capture(model, max_context=96))
    names = [n.op.name for n in imported.graph.nodes()]
    assert names.count("linear_scan") == 1
    weights = {p["name"]: imported.weights[p["name"]] for p in imported.graph.parameters()}
    # Eager itself takes multiples of the chunk alone; the graph takes any length.
    for length in (32, 64) if name == "whole chunks" else (1, 6, 41):
        ids = torch.randint(0, 31, (2, length))
        (given,) = evaluate(imported.graph, [ids], weights)
        torch.testing.assert_close(given, model(ids), rtol=1e-5, atol=1e-5)
    evaluate(imported.graph, [torch.randint(0, 31, (2, 7))], weights)


def by_rows(size: int) -> Tensor:
    mask = torch.zeros(size, size)
    for row in range(size):
        mask[row, : row + 1] = 1
    return mask == 1


def by_numpy(size: int) -> Tensor:
    return torch.from_numpy(np.triu(np.ones((1, size, size)), k=1).astype("uint8")) == 0


def by_lists(size: int) -> Tensor:
    return torch.tensor([[column <= row for column in range(size)] for row in range(size)])


def in_window(size: int, width: int) -> Tensor:
    return torch.from_numpy(np.tri(size) * (1 - np.tri(size, k=-width))) == 1


def masked(mask: Callable[[int], Tensor]) -> Mixer:
    def attend(model: Mixer, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        seen = mask(q.shape[1])
        return (q @ k.mT).masked_fill(~seen, -torch.inf).softmax(-1) @ v

    return Mixer(attend, q=(4,), k=(4,), v=(6,)).eval()


@pytest.mark.parametrize("mask", [by_rows, by_numpy, by_lists])
def test_a_mask_that_is_made_for_one_length_is_made_for_any(mask: Callable[[int], Tensor]):
    torch.manual_seed(0)
    model = masked(mask)
    imported = import_captured(capture(model, max_context=40))
    assert imported.graph.bounds["S"] == (1, 40)
    weights = {p["name"]: imported.weights[p["name"]] for p in imported.graph.parameters()}
    for length in (1, 5, 40):
        ids = torch.randint(0, 31, (2, length))
        (given,) = evaluate(imported.graph, [ids], weights)
        torch.testing.assert_close(given, model(ids), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("width", [5, 30])
def test_a_mask_that_is_no_step_is_refused(width: int):
    """Nor is one whose window is wider than what it is seen at."""
    with pytest.raises(CompileError, match="does not export"):
        capture(masked(lambda size: in_window(size, width)), max_context=40)


def test_no_more_steps_are_traced_than_two_lengths_have():
    steps: list[int] = []

    def in_turn(model: Mixer, v: Tensor) -> Tensor:
        state, rows = v[:, 0] * 0, []
        for at in range(v.shape[1]):
            steps.append(at)
            state = torch.tanh(state + v[:, at])
            rows.append(state)
        return torch.stack(rows, dim=1)

    model = Mixer(in_turn, v=(6,)).eval()
    steps.clear()
    longest = 64
    capture(model, max_context=longest)
    # The longest is not traced: eager itself computes it, to be compared with.
    assert len(steps) == sum(LENGTHS[0]) + sum(CHECKED) + longest


def test_a_spelling_in_half_precision():
    torch.manual_seed(0)
    model = FIXED["chunks"]().eval().bfloat16()
    imported = import_captured(capture(model, max_context=96))
    assert [n.op.name for n in imported.graph.nodes()].count("linear_scan") == 1
    ids = torch.randint(0, 31, (2, 64))
    weights = {p["name"]: imported.weights[p["name"]] for p in imported.graph.parameters()}
    (given,) = evaluate(imported.graph, [ids], weights, wide=True)
    torch.testing.assert_close(given, model.double()(ids), rtol=1e-5, atol=1e-5)


def by_two_before(model: Mixer, v: Tensor) -> Tensor:
    """A recurrence over two tokens before, which is not linear."""
    rows = [v[:, 0], v[:, 1]]
    for t in range(2, v.shape[1]):
        rows.append(torch.maximum(rows[-1], rows[-2]) * 0.9 + v[:, t])
    return torch.stack(rows, dim=1)


def test_what_is_no_scan_says_where_and_what_to_write():
    with pytest.raises(CompileError, match="no linear scan") as caught:
        capture(Mixer(by_two_before, v=(6,)).eval(), max_context=64)
    text = str(caught.value)
    assert "the steps of tokens 2 and 1 differ" in text
    assert "(recurrent.py:" in text
    assert "torch.ops.ferrule.linear_scan" in text
