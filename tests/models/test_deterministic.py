"""`deterministic`: a prompt's greedy tokens, and their probabilities to the last bit, alone and
inside random ragged batches.
"""

from __future__ import annotations

import random

import pytest
from ferrule.compiler.build import Options, build_in_temporary
from ferrule.runtime.engine import Engine
from ferrule.runtime.options import EngineOptions
from ferrule.runtime.results import Delta
from ferrule.runtime.sampling import SamplingParams

from . import zoo

BATCHES, MOST, TOKENS = 200, 16, 4
Answer = list[tuple[int, object]]  # each token with the probabilities around it


def answers(engine: Engine, prompts: list[list[int]], pause: random.Random) -> list[Answer]:
    """What each prompt gets; they come in at random times and are cut into chunks as it happens."""
    params = SamplingParams(temperature=0.0, max_tokens=TOKENS, ignore_eos=True, logprobs=3)
    found: dict[str, Answer] = {}
    names: list[str] = []
    waiting = list(prompts)
    while waiting or engine.has_work:
        while waiting and (not engine.has_work or pause.random() < 0.7):
            names.append(engine.submit(waiting.pop(0), params))
        for delta in engine.step():
            found.setdefault(delta.request_id, []).extend(_pairs(delta))
    return [found[name] for name in names]


def _pairs(delta: Delta) -> Answer:
    assert delta.error is None and delta.logprobs is not None, delta
    return list(zip(delta.token_ids, delta.logprobs, strict=True))


@pytest.mark.parametrize(
    ("name", "dtype", "quantize"),
    [
        ("qwen2", "float32", None),
        ("llama", "bfloat16", None),
        ("llama", "bfloat16", "int4"),
        ("mixtral", "float32", "int4-asym"),
    ],
)
def test_tokens_do_not_depend_on_the_batch(name: str, dtype: str, quantize: str | None) -> None:
    draw = random.Random(7)
    options = Options(
        dtype=dtype, quantize=quantize, max_context=96, max_batch=MOST, chunk=48, block=8,
        deterministic=True, parity=False, progress=False,
    )  # fmt: skip
    artifact = build_in_temporary(zoo.build(name), options)
    assert artifact.manifest["options"]["deterministic"] is True
    prompts = [[draw.randrange(3, 211) for _ in range(draw.randint(1, 40))] for _ in range(40)]
    engine = artifact.new_engine(EngineOptions(prefix_caching=False))
    alone = [answers(engine, [p], draw)[0] for p in prompts]
    for batch in range(BATCHES):
        chosen = draw.sample(range(len(prompts)), draw.randint(2, MOST))
        together = answers(engine, [prompts[i] for i in chosen], draw)
        for i, answer in zip(chosen, together, strict=True):
            assert answer == alone[i], f"batch {batch} of {len(chosen)}: prompt {i}"
