"""Writes in place become values: who reads a tensor, or any view of it, reads what was written
before and nothing that is written after.
"""

from collections.abc import Callable

import pytest
import torch
from ferrule.compiler.capture import capture
from ferrule.compiler.functional import functional
from ferrule.compiler.import_aten import import_captured
from ferrule.compiler.reference import evaluate
from torch import nn
from torch.export import Dim, ExportedProgram

Tensors = tuple[torch.Tensor, ...]


def _early_views(x: torch.Tensor) -> Tensors:
    y = x * 2
    head, turned, flat = y[:, 1:], y.transpose(0, 1), y.reshape(-1)
    before = head + 1
    y[:, 2] = 7
    head += 1
    return head, turned, flat, y, before


def _views_of_views(x: torch.Tensor) -> Tensors:
    y = x.clone()
    y.permute(1, 2, 0)[1:3, ::2].unsqueeze(0)[..., -1:].mul_(3)
    y.view(x.shape[0], -1).t()[4].zero_()
    return (y,)


def _pieces(x: torch.Tensor) -> Tensors:
    y = x.exp()
    first, second = y.split([2, 4], 1)
    second.add_(first[:, :1])
    one, *_, last = y.unbind(-1)
    last.copy_(one)
    left, _ = y.chunk(2, 1)
    left.clamp_(max=1.5)
    return y, first, second, one, last


def _by_index(x: torch.Tensor) -> Tensors:
    y = torch.zeros_like(x)
    y[x > 0] = 1
    y[:, torch.tensor([1, 3])] = x[:, :2]
    kept = y.sum(-1)
    y.scatter_(1, x[:, :2].abs().long() % 3, 5.0)
    y.index_add_(1, torch.tensor([0, 0]), x[:, 4:])
    return y, kept


def _by_several_indices(x: torch.Tensor) -> Tensors:
    y, rows, columns = x.clone(), torch.tensor([[1], [3]]), torch.tensor([0, 5, 2])
    y[:, rows, columns] = x[:, :2, 3:6]
    y[0, :, columns] = torch.arange(3.0)
    y[:, columns[:2], 4] += 2
    return (y,)


def _same_storage(x: torch.Tensor) -> Tensors:
    y = x.relu()
    z = y.to(torch.float32).type_as(x).contiguous().detach()
    z.sub_(1)
    y[:, 1:4] = y[:, :3].clone()
    y.masked_fill_(y > 2, 9.0)
    return y, z


def _its_argument(x: torch.Tensor) -> Tensors:
    y = x + 0
    y.add_(y).mul_(y)
    return (y,)


def _a_result_twice(x: torch.Tensor) -> Tensors:
    y = x + 1
    z = y.add_(x)
    z[0] = 0
    return y, z


FOLLOWED = {
    f.__name__.strip("_"): f
    for f in (
        _early_views, _views_of_views, _pieces, _by_index, _by_several_indices, _same_storage,
        _its_argument, _a_result_twice,
    )
}  # fmt: skip


def _moved_axes(x: torch.Tensor) -> Tensors:
    y = x.clone()
    y.movedim(0, 2)[1].mul_(3)
    return (y,)


def _wider_operand(x: torch.Tensor) -> Tensors:
    y = x.half()
    y.add_(x / 3)
    return (y.float(),)


def _in_a_program_of_its_own(x: torch.Tensor) -> Tensors:
    y = x.clone()
    with torch.enable_grad():
        y[:, 1:] = x[:, :-1] * 2
    return (y,)


LEFT_TO_TORCH = {
    f.__name__.strip("_"): f for f in (_moved_axes, _wider_operand, _in_a_program_of_its_own)
}


class Plain(nn.Module):
    def __init__(self, function: Callable[[torch.Tensor], Tensors]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> Tensors:
        return self.function(x)


def check_values(function: Callable[[torch.Tensor], Tensors]) -> None:
    """What the import computes is what eager computes, at another size than that of the trace."""
    open_batch = ({0: Dim("N", min=2, max=99)},)
    captured = capture(Plain(function), args=(torch.randn(3, 6, 7),), dynamic_shapes=open_batch)
    x = torch.randn(5, 6, 7)
    imported = import_captured(captured)
    (name,) = captured.input_names
    found = evaluate(imported.graph, {name: x}, imported.weights)
    for made, wanted in zip(found, function(x), strict=True):
        torch.testing.assert_close(made, wanted)


@pytest.mark.parametrize("case", FOLLOWED)
def test_writes_are_followed_without_a_second_trace(case: str, monkeypatch: pytest.MonkeyPatch):
    def refuse(self: ExportedProgram, table: object = None) -> ExportedProgram:
        assert table, "the whole program is traced again"
        return traced_again(self, table)

    traced_again = ExportedProgram.run_decompositions
    monkeypatch.setattr(ExportedProgram, "run_decompositions", refuse)
    check_values(FOLLOWED[case])


@pytest.mark.parametrize("case", LEFT_TO_TORCH)
def test_what_cannot_be_followed_is_traced_again(case: str):
    check_values(LEFT_TO_TORCH[case])


class GradientsLM(nn.Module):
    """Sums of words, of parts that set whether gradients are wanted."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.out = nn.Embedding(31, 12), nn.Linear(12, 31)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            x = self.words(ids)
            x[..., :3] *= 2
        with torch.enable_grad():
            return self.out(x.tanh())


def test_parts_without_gradients_are_no_programs_of_their_own(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ExportedProgram, "run_decompositions", lambda *_: pytest.fail("traced"))
    model, ids = GradientsLM(), torch.randint(0, 31, (2, 5))
    imported = import_captured(capture(model, max_context=16))
    assert torch.is_grad_enabled()
    (found,) = evaluate(imported.graph, {"ids": ids}, imported.weights)
    torch.testing.assert_close(found, model(ids).detach())


def test_the_program_runs_as_before():
    x = torch.randn(3, 6, 7)
    with torch.no_grad():
        program = torch.export.export(Plain(_early_views), (x,), strict=False)
    made = functional(program)
    made.graph.lint()
    assert not any(n.target is torch.ops.aten.add_.Tensor for n in made.graph.nodes)
    for found, wanted in zip(made.module()(x), _early_views(x), strict=True):
        torch.testing.assert_close(found, wanted)
