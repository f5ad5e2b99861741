"""Every model type, end to end: the tokens and logits of ragged batches against eager PyTorch.

Eager recomputes the whole sequence for every token, without a cache.
"""

from collections.abc import Sequence

import pytest
import torch
from ferrule.compiler.build import Options, build_in_temporary
from ferrule.compiler.zoo import largest_error
from torch import nn

import ferrule

from . import zoo

COUNT = 32
TOLERANCE = 1e-4  # of the row's largest logit
SAMPLING = ferrule.SamplingParams(temperature=0.0, max_tokens=COUNT, ignore_eos=True)


def compiled(model: nn.Module) -> ferrule.Artifact:
    return build_in_temporary(model, Options(max_context=96, max_batch=4, chunk=40, progress=False))


@pytest.mark.parametrize("name", zoo.NAMES)
def test_a_ragged_batch_gives_the_tokens_and_logits_of_eager(name: str):
    model, prompts = zoo.build(name), zoo.prompts(4)
    eager = [zoo.eager_greedy(model, p, COUNT) for p in prompts]
    wanted = [tokens for tokens, _ in eager]
    artifact = compiled(model)
    assert [list(c.token_ids) for c in artifact.generate(prompts, SAMPLING)] == wanted
    assert joining(artifact, prompts) == wanted
    whole = [p + tokens[:-1] for p, tokens in zip(prompts, wanted, strict=True)]
    assert largest_error(artifact, whole, [rows for _, rows in eager]) <= TOLERANCE
    assert_all_in_kernels(artifact)


def joining(artifact: ferrule.Artifact, prompts: Sequence[list[int]]) -> list[list[int]]:
    """The tokens of requests that join one after another, while others are being decoded."""
    engine = artifact.new_engine()
    waiting = {5 * at: (f"r{at}", p) for at, p in enumerate(prompts)}
    found: dict[str, list[int]] = {name: [] for name, _ in waiting.values()}
    step = 0
    while waiting or engine.has_work:
        if step in waiting:
            name, prompt = waiting.pop(step)
            engine.submit(prompt, SAMPLING, name)
        for delta in engine.step():
            assert delta.error is None, delta.error
            found[delta.request_id] += delta.token_ids
        engine.check()
        step += 1
    return list(found.values())


def assert_all_in_kernels(artifact: ferrule.Artifact) -> None:
    """Every call of a step is a kernel of the artifact's own library."""
    for entry in artifact.plan.entries.values():
        assert entry.calls
        for call in entry.calls:
            assert callable(artifact.library[call.kernel])


@pytest.mark.parametrize("name", ["llama", "gemma2", "olmo2", "scratch_plain", "lfm2"])
def test_bfloat16_agrees_with_eager_bfloat16(name: str):
    model = zoo.build(name).to(torch.bfloat16)
    parity = compiled(model).manifest["parity"]
    assert parity["kl"] < 5e-3, parity
    assert parity["top1"] >= 0.9, parity


def test_float16_agrees_with_eager_float16():
    parity = compiled(zoo.build("llama").to(torch.float16)).manifest["parity"]
    assert parity["kl"] < 1e-4, parity
    assert parity["top1"] >= 0.95, parity
