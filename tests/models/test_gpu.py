"""Whole models on the GPU at hand: compiled for it, run, tokens equal to eager."""

import pytest
import torch
from ferrule.compiler.build import Options, build_in_temporary
from ferrule.runtime.cuda.device import CudaDevice

import ferrule

from . import zoo

pytestmark = pytest.mark.gpu
SAMPLING = ferrule.SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True)


def built(name: str, dtype: torch.dtype = torch.float32) -> ferrule.Artifact:
    device = CudaDevice()
    target = f"cuda:{device.arch}"
    device.close()
    model = zoo.build(name).to(dtype)
    sizes = {"max_context": 96, "max_batch": 4, "chunk": 40}
    return build_in_temporary(model, Options(target=target, progress=False, **sizes))


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "qwen3", "mixtral", "deepseek_v2"])
def test_tokens_are_those_of_eager(name: str):
    model, prompts = zoo.build(name), zoo.prompts(4)
    wanted = [zoo.eager_greedy(model, p, 16)[0] for p in prompts]
    artifact = built(name)
    assert [list(c.token_ids) for c in artifact.generate(prompts, SAMPLING)] == wanted
    # Again, by recorded graphs that another batch has used.
    assert [list(artifact.generate(p, SAMPLING)[0].token_ids) for p in prompts] == wanted


def test_bfloat16_is_within_its_tolerance():
    parity = built("llama", torch.bfloat16).manifest["parity"]
    assert parity["top1"] >= 0.9 and parity["kl"] < 5e-3, parity
