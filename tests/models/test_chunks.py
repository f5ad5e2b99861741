"""Models with recurrent states: eager's tokens, however prompts are cut into chunks, whoever is in
the step beside them, and whatever of them the prefix cache has snapshots of.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest
from ferrule.compiler.build import Options, build_in_temporary
from ferrule.runtime.artifact import Artifact
from ferrule.runtime.options import EngineOptions
from ferrule.runtime.sampling import SamplingParams
from hypothesis import given, settings
from hypothesis import strategies as st

from . import zoo

COUNT = 8
SAMPLING = SamplingParams(temperature=0.0, max_tokens=COUNT, ignore_eos=True)


class Served(NamedTuple):
    """An artifact, prompts that begin alike, and eager's tokens for each."""

    artifact: Artifact
    prompts: list[list[int]]
    wanted: list[list[int]]


@pytest.fixture(scope="module", params=["mamba2", "qwen3_next", "lfm2"])
def served(request: pytest.FixtureRequest) -> Served:
    model, (a, b, c, d) = zoo.build(request.param), zoo.prompts(4)
    prompts = [d + b, d, d + c, a, d[:9] + b]
    options = Options(max_context=64, max_batch=4, chunk=40, block=4, parity=False, progress=False)
    wanted = [zoo.eager_greedy(model, p, COUNT)[0] for p in prompts]
    return Served(build_in_temporary(model, options), prompts, wanted)


def test_the_state_of_a_sequence_is_as_large_at_any_length(served: Served):
    plan = served.artifact.plan
    assert plan.state_bytes > 0
    grown = plan.sequence_bytes(64) - plan.sequence_bytes(4)
    assert grown == 15 * plan.block_bytes
    attends = any("attention" in c.ops for c in plan.entries["decode"].calls)
    assert bool(plan.block_bytes) == attends


@settings(max_examples=40, deadline=None)
@given(
    budget=st.integers(4, 40),
    beside=st.one_of(st.none(), st.integers(1, 40)),
    coming=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6)), min_size=1, max_size=8),
    caching=st.booleans(),
)
def test_tokens_at_any_chunk_size(
    served: Served, budget: int, beside: int | None, coming: list[tuple[int, int]], caching: bool
):
    options = EngineOptions(token_budget=budget, beside_decodes=beside, prefix_caching=caching)
    engine = served.artifact.new_engine(options)
    found: dict[str, list[int]] = {}
    asked: dict[str, int] = {}
    waiting = list(coming)
    while waiting or engine.has_work:
        if waiting and waiting[0][1] <= 0:
            which, _ = waiting.pop(0)
            asked[engine.submit(served.prompts[which], SAMPLING)] = which
            continue
        if waiting:
            waiting[0] = (waiting[0][0], waiting[0][1] - 1)
        for delta in engine.step():
            assert delta.error is None, delta.error
            found.setdefault(delta.request_id, []).extend(delta.token_ids)
        engine.check()
    for name, which in asked.items():
        assert found[name] == served.wanted[which], f"prompt {which}"
