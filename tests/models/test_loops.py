"""Recurrences that are not linear: eager's tokens, however prompts are cut into chunks and whoever
is in the step beside them.
"""

from __future__ import annotations

import pytest
import torch
from ferrule.compiler.build import Options, build_in_temporary
from ferrule.compiler.errors import CompileError
from torch._higher_order_ops.associative_scan import associative_scan

from .looping import MODELS, VOCABULARY, Looping
from .schedules import check_served

FEW = ("gru", "scan", "first step", "transition", "pairs", "logarithms")
KINDS = [n if n in FEW else pytest.param(n, marks=pytest.mark.slow) for n in MODELS]


@pytest.mark.parametrize("name", KINDS)
def test_tokens_are_those_of_eager(name: str) -> None:
    torch.manual_seed(0)
    check_served(MODELS[name](), VOCABULARY)


def from_the_end(model: Looping, x: torch.Tensor) -> torch.Tensor:
    return associative_scan(torch.add, x, 1, reverse=True, combine_mode="generic")


def test_a_scan_from_the_last_token_on_is_refused_with_its_line() -> None:
    why = r"(?s)no causal language model.*flip turns the tokens around.*looping\.py:\d+"
    with pytest.raises(CompileError, match=why):
        build_in_temporary(Looping(from_the_end), Options(max_context=40, progress=False))
