"""The logits are found in whatever a forward gives."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ferrule.compiler.capture import LogitsOf, capture
from ferrule.compiler.errors import CompileError
from ferrule.compiler.import_aten import import_captured
from ferrule.compiler.reference import evaluate
from ferrule.compiler.results import logits_in
from torch import nn

Tensor = torch.Tensor
B, S, V, WIDTH = 2, 5, 11, 7
IDS = torch.zeros(B, S, dtype=torch.int64)
LOGITS, HIDDEN = torch.randn(B, S, V), torch.randn(B, S, WIDTH)
Named = namedtuple("Named", "hidden scores")


@dataclass
class Held:
    loss: Any
    inner: Any


FORMS: dict[str, Any] = {
    "bare": LOGITS,
    "a key": {"hidden": HIDDEN, "logits": LOGITS},
    "another key": {"loss": torch.tensor(0.0), "out": LOGITS},
    "by width": {"hidden": HIDDEN, "scores": LOGITS},
    "by width in a tuple": (HIDDEN, LOGITS),
    "behind a loss": (torch.tensor(0.0), LOGITS, HIDDEN),
    "several": [LOGITS, LOGITS + 1],
    "several by name": {"hidden": HIDDEN, "logits": [LOGITS, LOGITS + 1]},
    "nearly a name": {"router_logits": torch.randn(B * S, 3), "lm_logits": LOGITS},
    "fields": Named(HIDDEN, LOGITS),
    "a dataclass": Held(None, {"hidden": HIDDEN, "logits": LOGITS}),
    "an object": SimpleNamespace(states=HIDDEN, lm_logits=LOGITS),
    "a row a token": LOGITS.reshape(B * S, V),
    "tokens first": LOGITS.transpose(0, 1),
    "classes before tokens": LOGITS.transpose(1, 2),
}


@pytest.mark.parametrize("name", FORMS)
def test_logits_are_found(name: str):
    torch.testing.assert_close(logits_in(FORMS[name], IDS, frozenset({V})), LOGITS)


def test_logits_of_the_last_token_alone_have_an_axis_for_it():
    for given in (LOGITS[:, -1], LOGITS[:, -1:], (LOGITS[:, -1], HIDDEN[0])):
        torch.testing.assert_close(logits_in(given, IDS), LOGITS[:, -1:])


def test_without_a_table_the_first_result_is_taken_and_names_are_asked_for():
    torch.testing.assert_close(logits_in((LOGITS, HIDDEN), IDS), LOGITS)
    with pytest.raises(CompileError, match=r"hidden \[2, 5, 7\], scores \[2, 5, 11\]; none"):
        logits_in(Named(HIDDEN, LOGITS), IDS)


@pytest.mark.parametrize("given", [LOGITS[0], (IDS, LOGITS[0, 0]), {"loss": torch.tensor(0.0)}])
def test_what_has_no_logits_is_said(given: Any):
    with pytest.raises(CompileError, match=r"this forward gives .*\[.*\].* for ids \[2, 5\]"):
        logits_in(given, IDS)


class Model(nn.Module):
    """A table and a linear, given in some form."""

    def __init__(self, form: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.words, self.out, self.form = nn.Embedding(V, WIDTH), nn.Linear(WIDTH, V), form

    def forward(self, ids: Tensor) -> Any:
        x = self.words(ids)
        return self.form(x, self.out(x))


@pytest.mark.parametrize(
    "form",
    [
        lambda x, logits: Named(x, logits),
        lambda x, logits: logits.view(-1, V).log_softmax(-1),
        lambda x, logits: logits.transpose(0, 1),
        lambda x, logits: {"scores": logits.transpose(1, 2), "hidden": x},
    ],
)
def test_any_form_is_captured_for_any_batch_and_length(form: Callable[[Tensor, Tensor], Any]):
    model = Model(form).eval()
    captured = capture(model, max_context=20)
    assert (captured.bounds["S"], set(captured.dims.values())) == ((1, 20), {"B", "S"})
    imported = import_captured(captured)
    for shape in ((3, 4), (1, 1), (2, 20)):
        ids = torch.randint(0, V, shape)
        (found,) = evaluate(imported.graph, {"ids": ids}, imported.weights)
        torch.testing.assert_close(found, LogitsOf(model, 20)(ids), rtol=1e-5, atol=1e-5)
