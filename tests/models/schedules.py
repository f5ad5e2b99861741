"""Requests that come one by one, prompts cut into chunks of any size: the tokens that they get."""

from __future__ import annotations

import torch
from ferrule.compiler.build import Options, build_in_temporary
from ferrule.compiler.zoo_models import eager_greedy, randomize
from ferrule.runtime.artifact import Artifact
from ferrule.runtime.options import EngineOptions
from ferrule.runtime.sampling import SamplingParams
from torch import nn

COUNT = 8
SAMPLING = SamplingParams(temperature=0.0, max_tokens=COUNT, ignore_eos=True)
# (tokens of a step, whether prefixes are kept, the step before which each request comes)
SCHEDULES = ((4, False, (0, 0, 0, 0)), (7, True, (0, 2, 5, 30)), (16, True, (3, 0, 1, 2)))


def served(
    artifact: Artifact,
    prompts: list[list[int]],
    budget: int,
    caching: bool,
    coming: tuple[int, ...],
) -> list[list[int]]:
    """The tokens that an engine gives for prompts that come one by one."""
    engine = artifact.new_engine(EngineOptions(token_budget=budget, prefix_caching=caching))
    found: dict[int, list[int]] = {n: [] for n in range(len(prompts))}
    names: dict[str, int] = {}
    step = 0
    while len(names) < len(prompts) or engine.has_work:
        for n, when in enumerate(coming):
            if when == step:
                names[engine.submit(prompts[n], SAMPLING)] = n
        for delta in engine.step() if engine.has_work else ():
            assert delta.error is None, delta.error
            found[names[delta.request_id]].extend(delta.token_ids)
        engine.check()
        step += 1
    return list(found.values())


def check_served(model: nn.Module, vocabulary: int) -> None:
    """A model's tokens are those of eager under every schedule."""
    model = randomize(model.eval())
    options = Options(max_context=40, max_batch=3, chunk=16, block=4, progress=False)
    artifact = build_in_temporary(model, options)
    prompts = [torch.randint(0, vocabulary, (n,)).tolist() for n in (5, 19, 1)]
    prompts.append(prompts[1][:9] + prompts[0])
    wanted = [eager_greedy(model, p, COUNT)[0] for p in prompts]
    for schedule in SCHEDULES:
        assert served(artifact, prompts, *schedule) == wanted, schedule
