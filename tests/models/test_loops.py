"""Recurrences that are not linear: eager's tokens, however prompts are cut into chunks and whoever
is in the step beside them.
"""

from __future__ import annotations

import pytest
import torch
from ferrule.compiler.build import Options, build_in_temporary
from ferrule.compiler.zoo_models import eager_greedy, randomize

from .looping import MODELS, VOCABULARY
from .schedules import COUNT, SCHEDULES, served

FEW = ("gru", "scan", "first step", "transition")
KINDS = [n if n in FEW else pytest.param(n, marks=pytest.mark.slow) for n in MODELS]


@pytest.mark.parametrize("name", KINDS)
def test_tokens_are_those_of_eager(name: str) -> None:
    torch.manual_seed(0)
    model = randomize(MODELS[name]().eval())
    options = Options(max_context=40, max_batch=3, chunk=16, block=4, progress=False)
    artifact = build_in_temporary(model, options)
    prompts = [torch.randint(0, VOCABULARY, (n,)).tolist() for n in (5, 19, 1)]
    prompts.append(prompts[1][:9] + prompts[0])
    wanted = [eager_greedy(model, p, COUNT)[0] for p in prompts]
    for schedule in SCHEDULES:
        assert served(artifact, prompts, *schedule) == wanted, schedule
