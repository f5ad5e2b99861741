"""Models in spellings of people: eager's tokens, however prompts are cut into chunks and whoever is
in the step beside them; where a template or a routed product is for them, they have it.
"""

from __future__ import annotations

import pytest
import torch
from ferrule.compiler.capture import capture
from ferrule.compiler.import_aten import import_captured
from ferrule.compiler.pipeline import raising
from ferrule.passes.base import run_passes

from .public import VOCABULARY
from .schedules import check_served
from .spelled import MODELS

FEW = ("grouped", "blocks", "flexible", "documents", "before", "boolean rows")
KINDS = [n if n in FEW else pytest.param(n, marks=pytest.mark.slow) for n in MODELS]
RAISED = {
    "grouped": ("attention", 1),
    "one group": ("attention", 1),
    "boolean rows": ("expert_linear", 2),
    "sorted rows": ("expert_linear", 2),
}


@pytest.mark.parametrize("name", KINDS)
def test_tokens_are_those_of_eager(name: str) -> None:
    torch.manual_seed(0)
    check_served(MODELS[name](), VOCABULARY)


@pytest.mark.parametrize("name", RAISED)
def test_what_a_template_is_for_is_one_op(name: str) -> None:
    graph = import_captured(capture(MODELS[name](), max_context=40, name="model")).graph
    ops = [n.op.name for n in run_passes(graph, raising()).nodes()]
    wanted, count = RAISED[name]
    assert ops.count(wanted) == count
