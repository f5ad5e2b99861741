"""Expert layers that sort rows and count them give the same with rows that stay where they are."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from ferrule.compiler.capture import capture
from ferrule.compiler.import_aten import import_captured
from ferrule.compiler.reference import evaluate
from ferrule.compiler.sorted_rows import Counts, Rows
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


@pytest.mark.parametrize("spelling", [by_numpy, by_ends, by_split, by_places])
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
    for wrong in (lambda: first + third, lambda: first > 3, lambda: second - first):
        with pytest.raises(TypeError):
            wrong()
