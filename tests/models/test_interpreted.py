"""Whole models as a GPU would run them: launches interpreted on the CPU, tokens equal to eager.

Prefill in one ragged step, then decode steps, which are filled up to a bucket.
"""

from pathlib import Path

import pytest
from ferrule.compiler.build import Options
from ferrule.compiler.interpreted import interpret
from ferrule.runtime.engine import Engine
from ferrule.runtime.pools import Pools

import ferrule

from . import zoo

COUNT = 8
SAMPLING = ferrule.SamplingParams(temperature=0.0, max_tokens=COUNT, ignore_eos=True)
OPTIONS = Options(
    target="cuda:sm_90", max_context=32, max_batch=4, chunk=24, block=8, progress=False
)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "qwen3", "mixtral", "deepseek_v2"])
def test_interpreted_launches_give_the_tokens_of_eager(name: str, tmp_path: Path):
    # Several sequences where it costs least: an interpreted step takes about a second.
    model, prompts = zoo.build(name), [p[:9] for p in zoo.prompts(3)[: 3 if name == "llama" else 1]]
    wanted = [zoo.eager_greedy(model, p, COUNT)[0] for p in prompts]
    executor = interpret(model, tmp_path, OPTIONS, Pools(12, 0))
    try:
        assert generated(Engine(executor), prompts) == wanted
    finally:
        executor.driver.close()


def generated(engine: Engine, prompts: list[list[int]]) -> list[list[int]]:
    found: dict[str, list[int]] = {f"r{i}": [] for i in range(len(prompts))}
    for name, prompt in zip(found, prompts, strict=True):
        engine.submit(prompt, SAMPLING, name)
    while engine.has_work:
        for delta in engine.step():
            assert delta.error is None, delta.error
            found[delta.request_id] += delta.token_ids
    engine.check()
    return list(found.values())
