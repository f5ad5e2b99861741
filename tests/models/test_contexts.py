"""Attention that no template is for: eager's tokens, however prompts are cut into chunks and
whoever is in the step beside them.
"""

from __future__ import annotations

import pytest
import torch

from .schedules import check_served
from .scoring import MODELS, VOCABULARY

FEW = ("talking", "relative", "forgetting", "windowed")
KINDS = [n if n in FEW else pytest.param(n, marks=pytest.mark.slow) for n in MODELS]


@pytest.mark.parametrize("name", KINDS)
def test_tokens_are_those_of_eager(name: str) -> None:
    torch.manual_seed(0)
    check_served(MODELS[name](), VOCABULARY)
