"""Loops over the rows that experts are chosen for give the same with all rows and masks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from ferrule.compiler.chosen_rows import all_rows_for_chosen
from torch.nn import functional as F

N, H, E, K = 7, 6, 5, 2
X = torch.randn(N, H)
W = torch.randn(E, H, H)
SCORES = torch.randn(N, E)
VALUES, INDEX = SCORES.softmax(-1).topk(K)


def expert(x: torch.Tensor, e: int) -> torch.Tensor:
    return torch.tanh(x @ W[e])


def hit_experts() -> torch.Tensor:
    """As Mixtral's layer in transformers, a number beyond the experts included."""
    y = torch.zeros_like(X)
    mask = F.one_hot(INDEX, num_classes=E + 1).permute(2, 1, 0)
    for e in torch.greater(mask.sum(dim=(-1, -2)), 0).nonzero():
        e = e[0]
        slot, token = torch.where(mask[e])
        y.index_add_(0, token, torch.tanh(X[token] @ W[e]) * VALUES[token, slot, None])
    return y


def numbered_experts() -> torch.Tensor:
    """By `item`, and a leading axis, as older versions of it have."""
    y = torch.zeros_like(X)
    mask = F.one_hot(INDEX, num_classes=E).permute(2, 1, 0)
    for e in torch.greater(mask.sum(dim=(-1, -2)), 0).nonzero(as_tuple=False):
        number = int(e.item())
        slot, token = torch.where(mask[e].squeeze(0))
        if token.numel() == 0:
            continue
        rows = X[None, token].reshape(-1, H)
        y.index_add_(0, token, expert(rows, number) * VALUES[token, slot, None])
    return y


def added_in_place() -> torch.Tensor:
    """As Mistral's reference."""
    y = torch.zeros_like(X)
    for e in range(E):
        token, slot = torch.where(e == INDEX)
        y[token] += VALUES[token, slot, None] * expert(X[token], e)
    return y


def masks() -> torch.Tensor:
    """Masks as indices, and a condition."""
    x, scores = X.view(1, N, H), SCORES.softmax(-1)
    y = torch.zeros_like(x)
    for e in range(E):
        mask = (e == INDEX).any(dim=-1)[None]
        flat = mask.view(-1)
        if flat.any():
            rows = expert(x.view(-1, H)[flat], e)
            y[mask] += rows * scores[flat, e].unsqueeze(1)
    return y


def written() -> torch.Tensor:
    """Rows in the place of others, by a mask and by numbers."""
    y = X.clone()
    mask = SCORES[:, 0] > 0
    y[mask] = expert(X[mask], 1)
    (rows,) = torch.where(SCORES[:, 1] > 0)
    y[rows] = expert(y[rows], 2)
    token, _ = torch.where(INDEX == E - 2)
    y[token] = expert(y[token], 3)
    return y


def counted() -> torch.Tensor:
    """Experts without rows left out, as DeepSeek's reference does; a slice beside the places."""
    y = torch.zeros_like(X)
    counts = torch.bincount(INDEX.flatten(), minlength=E).tolist()
    for e in range(E):
        if counts[e] == 0:
            continue
        token, slot = torch.where(e == INDEX)
        y[token, :] += expert(X[token, :], e) * VALUES[token, slot, None]
    return y


def lines() -> torch.Tensor:
    """A table of one column as a line; rows by index_select; places along two axes written."""
    y = torch.zeros_like(X)
    rows = (SCORES[:, 2] > 0).nonzero().squeeze(-1)
    y.index_add_(0, rows, expert(X.index_select(0, rows), 1))
    z = torch.zeros(N, K)
    token, slot = torch.nonzero(INDEX == E - 3, as_tuple=True)
    z[token, slot] = VALUES[token, slot] * 2
    return torch.cat([y, z], 1)


CASES = (hit_experts, numbered_experts, added_in_place, masks, written, counted, lines)


@pytest.mark.parametrize("layer", CASES, ids=lambda f: f.__name__)
def test_all_rows_give_what_the_chosen_give(layer: Callable[[], torch.Tensor]) -> None:
    wanted = layer()
    with all_rows_for_chosen():
        given = layer()
    torch.testing.assert_close(given, wanted, rtol=1e-5, atol=1e-6)


def test_what_is_no_write_of_rows_is_left_to_the_data() -> None:
    def used() -> tuple[torch.Tensor, ...]:
        (rows,) = torch.where(SCORES[:, 0] > 0)
        y = X.clone()
        y[SCORES[:, 0] > 0] = 2.0
        counts = torch.bincount(INDEX.flatten(), minlength=E) * 2
        return rows * 2, y, torch.where(SCORES > 0, SCORES, 0), counts

    with all_rows_for_chosen():
        given = used()
    torch.testing.assert_close(given, used(), rtol=0, atol=0)
