"""An operator's options: what is wrong is told, what is right reaches the engine."""

import json
from dataclasses import replace

import pytest
from ferrule.ir.plan import Plan
from ferrule.runtime.errors import ArtifactError
from ferrule.runtime.options import EngineOptions
from ferrule.runtime.policies import FairShare
from toys import toy_plan


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"policy": "best"}, "policy='best': wanted one of fcfs, priority, fair, shortest"),
        ({"weights": {"a": 2.0}}, "weights: wanted with policy 'fair', given 'fcfs'"),
        ({"policy": "fair", "weights": {"a": 0.0}}, "weights: wanted numbers above 0, given a=0.0"),
    ],
)
def test_wrong_options_are_told(given, wanted):
    with pytest.raises(ValueError, match=wanted):
        EngineOptions(**given)


def test_memory_for_swapped_blocks_is_counted_in_blocks():
    plan = Plan.from_json(json.dumps(toy_plan()))
    assert plan.block_bytes == 16
    assert EngineOptions().arguments(plan, 40)["swap_blocks"] == 10
    assert EngineOptions(swap_bytes=100).arguments(plan, 40)["swap_blocks"] == 6
    assert EngineOptions(swap_bytes=0).arguments(plan, 40)["swap_blocks"] == 0
    without = replace(plan, caches=())
    assert EngineOptions(swap_bytes=100).arguments(without, 40)["swap_blocks"] == 0


def test_policies_are_made_anew_for_each_engine():
    plan = Plan.from_json(json.dumps(toy_plan()))
    options = EngineOptions(policy="fair", weights={"a": 2.0})
    one, two = (options.arguments(plan, 8)["policy"] for _ in range(2))
    assert isinstance(one, FairShare) and one is not two and one.weights == {"a": 2.0}


def test_an_artifact_refuses_what_it_was_not_built_for(toy):
    from ferrule.runtime.artifact import load

    artifact = load(toy, cache_bytes=16 * 20)
    engine = artifact.new_engine(EngineOptions(max_batch=3, max_context=24, policy="priority"))
    config = engine.config()
    assert (config["max_num_seqs"], config["max_model_len"]) == ("3", "24")
    assert config["scheduling_policy"] == "priority"
    for options, wanted in (
        (EngineOptions(max_batch=9), "max_batch=9: wanted 1 to 8"),
        (EngineOptions(max_context=0), "max_context=0: wanted 1 to 40"),
        (EngineOptions(token_budget=7), "token_budget=7: wanted 8 or more"),
        (EngineOptions(pace=1.0), "pace=1.0: wanted more than 1"),
    ):
        with pytest.raises(ArtifactError, match=wanted):
            artifact.new_engine(options)
