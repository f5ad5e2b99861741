"""Conditions on sizes that the tracer cannot prove are tried at every size."""

from __future__ import annotations

import pytest
import sympy
import torch
from ferrule.compiler import conditions
from ferrule.compiler.capture import LENGTH, capture
from ferrule.compiler.errors import CompileError
from ferrule.compiler.whole_numbers import in_whole_numbers
from torch import nn
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._sympy.functions import FloorDiv, Max, Min, Mod, PythonMod


class Best(nn.Module):
    """Adds up each token's best few of all tokens' scores."""

    def __init__(self, whole: int = 0) -> None:
        super().__init__()
        self.words, self.out, self.whole = nn.Embedding(31, 8), nn.Linear(8, 31), whole

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.words(ids)
        scores = x @ x.transpose(1, 2)
        best = scores.topk(min(6, scores.shape[-1]), dim=-1).values.sum(-1, keepdim=True)
        if self.whole and min(self.whole, ids.shape[1]) == self.whole:
            best = best * 2
        return self.out(x + best)


def test_a_least_of_two_sizes_is_captured_for_all_lengths() -> None:
    model = Best().eval()
    captured = capture(model, max_context=40)
    assert captured.bounds["S"] == (1, 40)
    for shape in ((1, 1), (2, 5), (3, 40)):
        ids = torch.randint(0, 31, shape)
        torch.testing.assert_close(captured.program.module()(ids), model(ids))


def test_a_condition_that_always_holds_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    exports: list[dict[str, object]] = []
    trace, known = torch.export.export, ShapeEnv._maybe_evaluate_static

    def counted(*args: object, **options: object) -> object:
        exports.append(options)
        return trace(*args, **options)

    monkeypatch.setattr(torch.export, "export", counted)
    capture(Best().eval(), max_context=40)
    assert len(exports) == 1 and not exports[0]["prefer_deferred_runtime_asserts_over_guards"]
    assert ShapeEnv._maybe_evaluate_static is known


def test_a_condition_that_fails_at_some_length_is_refused() -> None:
    with pytest.raises(CompileError, match=r"does not hold at s\d+ = \d+.*test_conditions\.py"):
        capture(Best(whole=5).eval(), max_context=40)


class Folded(nn.Module):
    """Adds up whole fours of tokens; with `fixed`, for as many as there are in 19 alone."""

    def __init__(self, *, fixed: bool = False) -> None:
        super().__init__()
        self.words, self.out, self.fixed = nn.Embedding(31, 8), nn.Linear(8, 31), fixed

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.words(ids)
        fours = ids.shape[1] // 4
        if 4 * fours <= ids.shape[1]:
            x = x + x[:, : 4 * fours].sum(1, keepdim=True)
        if self.fixed:
            x = x * torch.ones(19)[: int(ids.shape[1])].sum() + torch.ones(ids.shape[0], 19, 8)
        return self.out(x)


def test_what_is_left_by_a_division_is_captured_for_all_lengths() -> None:
    model = Folded().eval()
    captured = capture(model, max_context=40)
    assert captured.bounds["S"] == (1, 40)
    for shape in ((1, 1), (2, 5), (3, 40)):
        ids = torch.randint(0, 31, shape)
        torch.testing.assert_close(captured.program.module()(ids), model(ids))


def test_where_a_size_becomes_a_number_is_said() -> None:
    with pytest.raises(
        CompileError, match=r"test_conditions\.py:\d+, where the number of tokens becomes 19"
    ):
        capture(Folded(fixed=True).eval(), max_context=40)


def test_what_is_no_condition_at_some_size_is_left_to_the_tracer() -> None:
    size = sympy.Symbol("s", integer=True, positive=True)
    fours = FloorDiv(size, sympy.Integer(4))
    assert conditions._at_each(sympy.Le(4 * fours, size), size, 40) is sympy.true
    assert conditions._at_each(sympy.Eq(Mod(size, 4), 0), size, 40) is None
    assert conditions._at_each(sympy.Eq(Mod(size, fours), 0), size, 40) is None  # nothing below 4


class Windows(nn.Module):
    """Adds to each token the means of the windows of `size` that ended with it or before; one too
    many where there is one window, with `short`.
    """

    def __init__(self, size: int = 4, *, short: int = 0) -> None:
        super().__init__()
        self.words, self.out = nn.Embedding(31, 8), nn.Linear(8, 31)
        self.size, self.short = size, short

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x, length, size = self.words(ids), ids.shape[1], self.size
        count, ended = length // size, (torch.arange(length)[:, None] + 1 + self.short) // size
        if count > 1:
            windows = x[:, : size * count].view(ids.shape[0], count, size, 8).mean(2)
            ended = (torch.arange(length)[:, None] + 1) // size
            x = x + (ended > torch.arange(count)).to(x.dtype) @ windows
        elif count > 0:
            x = x + (ended > 0) * x[:, :size].mean(1)[:, None]
        return self.out(x)


@pytest.mark.parametrize(("size", "most"), [(4, 40), (24, 200)])
def test_what_is_otherwise_where_there_are_few_tokens_is_captured_from_there_on(
    size: int, most: int
) -> None:
    """With windows that a trace of few tokens has several of, or none."""
    captured = capture(Windows(size).eval(), max_context=most)
    assert captured.bounds["S"] == (max(2 * size, LENGTH), most)


def test_of_a_model_in_few_bits_the_tracer_says_from_where_on_it_is_the_same() -> None:
    captured = capture(Windows().bfloat16().eval(), max_context=40)
    assert captured.bounds["S"] == (8, 40)


def test_what_has_other_values_where_there_are_few_tokens_is_refused() -> None:
    for model in (Windows(short=1), Windows(short=1).bfloat16()):
        with pytest.raises(CompileError, match="differently at 4 tokens than at 8 or more"):
            capture(model.eval(), max_context=40)


def test_a_condition_in_whole_numbers_is_what_substitution_gives():
    size = sympy.Symbol("s", integer=True, positive=True)
    fours = FloorDiv(size + PythonMod(-size, sympy.Integer(4)), sympy.Integer(4))
    shapes = [
        Max(3 * size, fours) - Min(size, sympy.Integer(6)),
        Mod(5 * size + 1, 3) * (FloorDiv(size, sympy.Integer(2)) + 1),
        size * size - 3 * fours,
    ]
    for relation in (sympy.Eq, sympy.Ne, sympy.Lt, sympy.Le, sympy.Gt, sympy.Ge):
        for shape in shapes:
            condition = sympy.Or(relation(shape, 7), sympy.And(size > 20, size < 30))
            holds = in_whole_numbers(condition, (size,))
            wanted = [condition.xreplace({size: sympy.Integer(n)}) for n in range(1, 40)]
            if holds is not None:  # a square is left to algebra
                assert [holds(n) for n in range(1, 40)] == [w is sympy.true for w in wanted]
            assert (holds is None) == condition.has(sympy.Pow)
    assert in_whole_numbers(sympy.Le(size / 2, 3), (size,)) is None
