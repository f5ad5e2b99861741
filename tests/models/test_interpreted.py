"""Whole models as a GPU would run them: launches interpreted on the CPU, tokens equal to eager.

Prefill in one ragged step, then decode steps, which are filled up to a bucket.
"""

import random
from dataclasses import replace
from pathlib import Path

import pytest
from ferrule.compiler.build import Options
from ferrule.compiler.interpreted import interpret
from ferrule.passes.weight_formats import Format
from ferrule.runtime.engine import Engine
from ferrule.runtime.options import EngineOptions
from ferrule.runtime.pools import Pools
from on_double import Double
from torch import nn

import ferrule

from . import zoo
from .test_deterministic import Answer, answers
from .test_quantized import rounded

NAMES = (
    "llama", "gemma2", "gpt2", "qwen3", "mixtral", "deepseek_v2", "lfm2", "mamba2", "qwen3_next",
)  # fmt: skip
COUNT = 5
LENGTHS = (9, 6, 7)
"""Tokens of prompts: blocks of 8 end in one, and while what follows another is generated."""
OPTIONS = Options(
    target="cuda:sm_90", max_context=32, max_batch=4, chunk=24, block=8, progress=False
)


@pytest.mark.parametrize("name", NAMES)
def test_interpreted_launches_give_the_tokens_of_eager(name: str, tmp_path: Path):
    model, prompts = zoo.build(name), prompts_of(3 if name == "llama" else 2)
    assert tokens(model, OPTIONS, prompts, tmp_path) == greedy(model, prompts)


def test_a_whole_engine_on_a_driver_that_holds_to_the_rules(tmp_path: Path):
    model, prompts = zoo.build("llama"), prompts_of(3)
    interpret(model, tmp_path, OPTIONS, Pools(1, 0)).driver.close()
    double = Double(tmp_path, Pools(12, 4))
    engine = Engine(double.executor)
    # The third comes later: its prompt is computed beside decodes, whose tokens are not known then.
    wanted = greedy(model, prompts, 5)
    assert generated(engine, prompts, 5, late=2) == [*wanted[:2], wanted[2][:2]]
    calls = double.cuda.calls
    assert calls.count("cuGraphInstantiateWithFlags") == 2  # of 2 and 4 sequences
    assert calls.count("cuGraphLaunch") >= 4 and calls.count("cuStreamSynchronize") < 3
    double.close()


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_one_sequence_alone(name: str, tmp_path: Path):
    # The launches for one row are many small programs, which the interpreter takes long over.
    model, prompts = zoo.build(name), prompts_of(1)
    assert tokens(model, OPTIONS, prompts, tmp_path, 3) == greedy(model, prompts, 3)


@pytest.mark.parametrize(
    ("name", "text"), [("llama", "int4"), ("qwen3_moe", "int8-g16-asym"), ("llama", "fp8")]
)
def test_quantized_models_give_the_tokens_of_the_rounded_weights(
    name: str, text: str, tmp_path: Path
):
    model, prompts = zoo.build(name), prompts_of(2)
    found = tokens(model, replace(OPTIONS, quantize=text), prompts, tmp_path)
    assert found == greedy(rounded(model, Format.parse(text)), prompts)


class AtOnce(random.Random):
    """All prompts come before the first step."""

    def random(self) -> float:
        return 0.0


def test_to_the_last_bit_tokens_do_not_depend_on_the_batch(tmp_path: Path):
    """A prompt alone, in one chunk, and beside another, which leaves it two, the second of one
    token: enough keys for several stretches of them.
    """
    options = replace(
        OPTIONS, deterministic=True, quantize="int4", dtype="bfloat16", max_context=96, chunk=80
    )
    draw = random.Random(7)
    prompts = [[draw.randrange(3, 211) for _ in range(n)] for n in (6, 75)]
    executor = interpret(zoo.build("llama"), tmp_path, options, Pools(24, 4))
    given = EngineOptions(token_budget=80, prefix_caching=False)
    try:
        found: list[list[Answer]] = []
        for asked in (prompts[1:], prompts):
            engine = Engine(executor, **given.arguments(executor.plan, executor.blocks))
            found.append(answers(engine, asked, AtOnce()))
        assert found[0][0] == found[1][1]
    finally:
        executor.driver.close()


def prompts_of(count: int) -> list[list[int]]:
    """So many short prompts."""
    return [p[:n] for p, n in zip(zoo.prompts(3)[:count], LENGTHS, strict=False)]


def greedy(model: nn.Module, prompts: list[list[int]], count: int = COUNT) -> list[list[int]]:
    """What eager generates."""
    return [zoo.eager_greedy(model, p, count)[0] for p in prompts]


def tokens(
    model: nn.Module, options: Options, prompts: list[list[int]], folder: Path, count: int = COUNT
) -> list[list[int]]:
    """What the interpreted launches of a model generate."""
    executor = interpret(model, folder, options, Pools(12, 4))
    try:
        return generated(Engine(executor), prompts, count)
    finally:
        executor.driver.close()


def generated(
    engine: Engine, prompts: list[list[int]], count: int = COUNT, late: int | None = None
) -> list[list[int]]:
    """What an engine gives for prompts, those from `late` on asked after two steps, and for three
    tokens less.
    """
    sampling = ferrule.SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True)
    found: dict[str, list[int]] = {f"r{i}": [] for i in range(len(prompts))}
    asked = list(zip(found, prompts, strict=True))
    for name, prompt in asked[:late]:
        engine.submit(prompt, sampling, name)
    steps = 0
    while engine.has_work:
        for delta in engine.step():
            assert delta.error is None, delta.error
            found[delta.request_id] += delta.token_ids
        steps += 1
        if steps == 2 and late is not None:
            for name, prompt in asked[late:]:
                engine.submit(prompt, replace(sampling, max_tokens=count - 3), name)
    engine.check()
    return list(found.values())
