"""Models that give the last token's logits alone are captured for every token."""

from __future__ import annotations

import pytest
import torch
from ferrule.compiler.capture import LogitsOf, capture
from ferrule.compiler.eager import logits_from
from ferrule.compiler.import_aten import import_captured
from ferrule.compiler.last_rows import is_last_row
from ferrule.compiler.reference import evaluate
from models.scratch import PlainLM
from torch.nn import functional as F


class LastOnly(PlainLM):
    """As nanoGPT does where it has no targets, and what it gives beside the logits."""

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor | None = None):  # type: ignore[override]
        places = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.words(tokens) + self.places(places)
        for layer in self.layers:
            x = layer(x)
        x = self.last_norm(x)
        if targets is None:
            return F.linear(x[:, [-1], :], self.words.weight), None
        logits = F.linear(x, self.words.weight)
        return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten())


class Flat(PlainLM):
    """Logits [B, V] under a key."""

    def forward(self, tokens: torch.Tensor) -> dict[str, torch.Tensor]:  # type: ignore[override]
        return {"logits": super().forward(tokens)[:, -1]}


@pytest.mark.parametrize("kind", [LastOnly, Flat])
def test_every_row_is_the_last_of_its_prefix(kind: type[PlainLM]) -> None:
    torch.manual_seed(0)
    model = kind().eval()
    imported = import_captured(capture(model, max_context=40))
    ids = torch.randint(0, 211, (2, 11))
    (found,) = evaluate(imported.graph, {"ids": ids}, imported.weights)
    wanted = logits_from(LogitsOf(model, 1), ids)
    assert wanted.shape == (2, 11, 211)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_which_indices_take_the_last_row() -> None:
    every = slice(None)
    taken = [(every, -1), (every, [-1]), (every, [-1], every), (every, slice(-1, None), ...)]
    left = [-1, (every,), (every, 0), (0, -1), (every, -1, 0), (every, -1, None), (every, [0, -1])]
    assert all(map(is_last_row, taken)) and not any(map(is_last_row, left))
