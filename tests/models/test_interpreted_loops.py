"""Whole models with loops and contexts as a GPU would run them: launches interpreted on the CPU,
tokens equal to eager.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ferrule.codegen.errors import CodegenError
from ferrule.compiler.zoo_models import randomize

from . import looping, scoring
from .test_interpreted import OPTIONS, greedy, tokens

RANKING = "windowed"  # a rank among as many windows as the context has
MODELS = {n: m for n, m in {**looping.MODELS, **scoring.MODELS}.items() if n != RANKING}
FEW = ("gru", "logarithms", "sigmoid", "talking")
KINDS = [n if n in FEW else pytest.param(n, marks=pytest.mark.slow) for n in MODELS]


@pytest.mark.parametrize("name", KINDS)
def test_interpreted_launches_give_the_tokens_of_eager(name: str, tmp_path: Path):
    torch.manual_seed(0)
    model = randomize(MODELS[name]().eval())
    prompts = [torch.randint(0, looping.VOCABULARY, (n,)).tolist() for n in (9, 6)]
    assert tokens(model, OPTIONS, prompts, tmp_path, 3) == greedy(model, prompts, 3)


def test_a_rank_among_more_than_a_program_holds_is_refused(tmp_path: Path):
    model = randomize(scoring.MODELS[RANKING]().eval())
    with pytest.raises(CodegenError, match=r"topk of .* among .*: at most 128 of 16384"):
        tokens(model, OPTIONS, [[1, 2, 3]], tmp_path, 1)
