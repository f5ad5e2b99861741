"""Expert layers that sort rows and count them give the same with rows that stay where they are."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from ferrule.compiler.capture import capture
from ferrule.compiler.import_aten import import_captured
from ferrule.compiler.pipeline import raising
from ferrule.compiler.reference import evaluate
from ferrule.compiler.sorted_rows import Counts, Rows
from ferrule.passes.base import run_passes
from torch import nn

Tensor = torch.Tensor
E, K, WIDTH = 5, 2, 6


class Layer(nn.Module):
    """A language model of one expert layer."""

    def __init__(self, spelling: Callable[[Layer, Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.words, self.gate = nn.Embedding(31, WIDTH), nn.Linear(WIDTH, E)
        self.w, self.out = nn.Parameter(torch.randn(E, WIDTH, WIDTH)), nn.Linear(WIDTH, 31)
        self.spelling = spelling

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids).view(-1, WIDTH)
        share, chosen = self.gate(x).softmax(-1).topk(K)
        return self.out(self.spelling(self, x, share, chosen).view(*ids.shape, WIDTH))

    def expert(self, x: Tensor, e: int) -> Tensor:
        return torch.tanh(x @ self.w[e])


def by_numpy(layer: Layer, x: Tensor, share: Tensor, chosen: Tensor) -> Tensor:
    """As DeepSeek-V2's layer."""
    counts = chosen.new_zeros((len(x), E)).scatter_(1, chosen, 1).sum(dim=0)
    order = chosen.view(-1).argsort()
    rows, made, start = x[order // chosen.shape[1]], [], 0
    for e, count in enumerate(counts.cpu().numpy()):
        end = start + count
        if count == 0:
            continue
        made.append(layer.expert(rows[start:end], e))
        start = end
    joined = torch.cat(made, dim=0) if len(made) else rows.new_empty(0)
    back = torch.empty_like(joined)
    back[order] = joined
    return (back.view(*chosen.shape, -1) * share.unsqueeze(-1)).sum(dim=1)


def by_ends(layer: Layer, x: Tensor, share: Tensor, chosen: Tensor) -> Tensor:
    """As DeepSeekMoE's layer: sums into the tokens' rows, one run after the other."""
    y, flat = torch.zeros_like(x), chosen.view(-1)
    order, shares = flat.argsort(), share.view(-1, 1)
    ends, tokens = flat.bincount().cpu().numpy().cumsum(0), order // K
    for e, end in enumerate(ends):
        start = 0 if e == 0 else ends[e - 1]
        if start == end:
            continue
        mine = tokens[start:end]
        made = layer.expert(x[mine], e).mul_(shares[order[start:end]])
        y.scatter_reduce_(0, mine.view(-1, 1).repeat(1, WIDTH), made, reduce="sum")
    return y


def by_columns(layer: Layer, x: Tensor, share: Tensor, chosen: Tensor) -> Tensor:
    """As by_ends, with indices that put an axis behind the rows' own."""
    y, order = torch.zeros_like(x), chosen.view(-1).argsort(stable=True)
    ends, start = chosen.view(-1).bincount(minlength=E).numpy().cumsum(), 0
    for e, end in enumerate(ends):
        mine = (order // K)[start:end]
        made = layer.expert(x[mine], e) * share.view(-1)[order[start:end], None]
        y.scatter_add_(0, mine[:, None].repeat(1, WIDTH), made)
        start = end
    return y


def by_split(layer: Layer, x: Tensor, share: Tensor, chosen: Tensor) -> Tensor:
    """As JetMoe's layer: runs as a list, joined and added at once."""
    gates = torch.zeros(x.shape[0], E).scatter(1, chosen, 1)
    sizes = gates.long().sum(0).tolist()
    _, order = chosen.flatten().sort(0)
    tokens = order.div(K, rounding_mode="trunc")
    runs = x[tokens].split(sizes, dim=0)
    made = torch.cat([layer.expert(run, e) for e, run in enumerate(runs)], dim=0)
    made = made * share.flatten()[order][:, None]
    return torch.zeros(x.shape[0], WIDTH).index_add(0, tokens, made)


def by_places(layer: Layer, x: Tensor, share: Tensor, chosen: Tensor) -> Tensor:
    """Sorted back by the order's own order; shares by token and choice."""
    order = chosen.flatten().argsort(stable=True)
    counts = torch.bincount(chosen.flatten(), minlength=E)
    rows, ends = x[order // K], counts.cumsum(0).tolist()
    shares = share[order // K, order % K]
    runs = enumerate(zip([0, *ends[:-1]], ends, strict=True))
    made = torch.cat([layer.expert(rows[a:b], e) for e, (a, b) in runs])
    made = (made * shares[:, None])[order.argsort()]
    return made.view(-1, K, WIDTH).sum(1)


def by_rows(layer: Layer, x: Tensor, share: Tensor, chosen: Tensor) -> Tensor:
    """As Mistral's reference."""
    y = torch.zeros_like(x)
    for e in range(E):
        row, nth = torch.where(chosen == e)
        y[row] += share[row, nth, None] * layer.expert(x[row], e)
    return y


def by_one_hot(layer: Layer, x: Tensor, share: Tensor, chosen: Tensor) -> Tensor:
    """As Mixtral's layer in transformers."""
    y = torch.zeros_like(x)
    mask = nn.functional.one_hot(chosen, num_classes=E).permute(2, 1, 0)
    for e in range(E):
        nth, row = torch.where(mask[e])
        rows = x[None, row].reshape(-1, WIDTH)
        y.index_add_(0, row, layer.expert(rows, e) * share[row, nth, None])
    return y


def by_masks(layer: Layer, x: Tensor, share: Tensor, chosen: Tensor) -> Tensor:
    """As DeepSeek's layers while they train."""
    flat, rows = chosen.view(-1), x.repeat_interleave(K, dim=0)
    y = torch.empty_like(rows)
    for e in range(E):
        y[flat == e] = layer.expert(rows[flat == e], e)
    return (y.view(*share.shape, -1) * share.unsqueeze(-1)).sum(dim=1)


def by_largest(layer: Layer, x: Tensor, share: Tensor, chosen: Tensor) -> Tensor:
    """One expert a token."""
    share, chosen = layer.gate(x).softmax(-1).max(-1)
    y = torch.zeros_like(x)
    for e in range(E):
        rows = torch.nonzero(chosen == e)[:, 0]
        y[rows] = layer.expert(x[rows], e)
    return y * share[:, None]


LOOPS = (
    *(by_numpy, by_ends, by_columns, by_split, by_places),
    *(by_rows, by_one_hot, by_masks, by_largest),
)


@pytest.mark.parametrize("spelling", LOOPS)
def test_loops_over_experts_are_one_routed_product(spelling: Callable[..., Tensor]):
    model = Layer(spelling).eval()
    imported = import_captured(capture(model, max_context=20))
    raised = run_passes(imported.graph, raising())
    names = [n.op.name for n in raised.nodes()]
    assert (names.count("expert_linear"), names.count("linear")) == (1, 2)
    ids = torch.randint(0, 31, (3, 11))
    values = (evaluate(g, {"ids": ids}, imported.weights)[0] for g in (imported.graph, raised))
    torch.testing.assert_close(*values, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("spelling", LOOPS)
def test_values_are_those_of_sorted_rows(spelling: Callable[..., Tensor]):
    model = Layer(spelling).eval()
    imported = import_captured(capture(model, max_context=20))
    for shape in ((2, 7), (1, 1)):
        ids = torch.randint(0, 31, shape)
        while len(model.gate(model.words(ids)).topk(K).indices.unique()) < E and shape != (1, 1):
            ids = torch.randint(0, 31, shape)
        if spelling is by_ends and shape == (1, 1):
            continue  # the model itself counts up to the largest expert chosen
        (found,) = evaluate(imported.graph, {"ids": ids}, imported.weights)
        torch.testing.assert_close(found, model(ids), rtol=1e-5, atol=1e-5)


def test_numbers_of_rows_answer_no_question_that_the_data_decides():
    counts = Counts(Rows(n, n + 1) for n in range(3))
    first, second, third = counts
    assert first + second == counts.cumsum()[1]
    assert counts.cumsum()[1] - counts.cumsum()[0] == second
    assert first > 0
    assert first != 0
    for wrong in (
        lambda: first + third,
        lambda: first > 3,
        lambda: first == 3,
        lambda: second - first,
    ):
        with pytest.raises(TypeError):
            wrong()
