"""The types' sizes fit their configurations, and what loses most stands first."""

import pytest
from ferrule.compiler.roofline import KernelLine, StepLines

from benchmarks.mid_sizes import SIZES
from benchmarks.types import STEPS, losing


@pytest.mark.parametrize("kind", SIZES)
def test_sizes_are_those_of_a_model(kind: str):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    config = transformers.AutoConfig.for_model(kind, **SIZES[kind])
    known = set(config.to_dict()) | set(type(config).attribute_map)
    derived = {"layers_block_type", "num_hidden_layers"}  # of some types
    assert not set(SIZES[kind]) - known - derived
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    weights = sum(p.numel() for p in model.parameters())
    assert 50e6 < weights < 600e6, f"{weights:,}"


def test_what_loses_most_stands_first():
    lines = [
        KernelLine(name, "rows", "", "", 1, seconds=seconds, reading=limit, computing=0.0)
        for name, seconds, limit in (("near", 9.0, 8.0), ("far", 5.0, 1.0), ("small", 2.0, 0.5))
    ]
    step = StepLines("decode", {}, tuple(lines))
    assert [line.kernel for line in losing(step)] == ["far", "small", "near"]


def test_tokens_of_a_step():
    assert [(s.name, s.tokens) for s in STEPS] == [("tg", 1), ("tg x8", 8), ("pp512", 512)]
