"""Every zoo type imports with eager's values, and raises to the ops that its layers stand for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import pytest
import torch
from ferrule.compiler.capture import capture
from ferrule.compiler.import_aten import import_captured
from ferrule.compiler.pipeline import raising
from ferrule.compiler.reference import evaluate
from ferrule.ir.graph import Graph
from ferrule.passes.base import run_passes

from . import zoo

# attention, rms_norm, layer_norm, expert_linear, linear
COUNTS: Mapping[str, tuple[int, int, int, int, int]] = {
    "llama": (2, 5, 0, 0, 9),
    "mistral": (3, 7, 0, 0, 13),
    "gemma": (2, 5, 0, 0, 9),
    "gemma2": (3, 13, 0, 0, 13),
    "gemma3_text": (3, 19, 0, 0, 13),
    "gpt2": (2, 0, 5, 0, 9),
    "gpt_neox": (2, 0, 5, 0, 9),
    "gpt_oss": (3, 7, 0, 6, 10),
    "opt": (2, 0, 5, 0, 11),
    "bloom": (2, 0, 6, 0, 9),
    "phi": (2, 0, 7, 0, 7),
    "phi3": (2, 5, 0, 0, 9),
    "qwen2": (3, 7, 0, 0, 13),
    "qwen3": (3, 13, 0, 0, 13),
    "qwen3_moe": (3, 13, 0, 4, 11),
    "mixtral": (3, 7, 0, 6, 10),
    "olmo2": (2, 9, 0, 0, 9),
    "olmoe": (2, 9, 0, 4, 7),
    "stablelm": (2, 0, 21, 0, 9),
    "starcoder2": (3, 0, 7, 0, 13),
    "cohere2": (3, 0, 4, 0, 10),
    "internlm3": (2, 5, 0, 0, 9),
    "llama4_text": (4, 15, 0, 4, 17),
    "deepseek_v2": (3, 13, 0, 4, 21),
    "deepseek_v3": (3, 13, 0, 4, 21),
    "afmoe": (3, 19, 0, 4, 13),
    "dots1": (3, 13, 0, 4, 15),
    "granite_swa": (3, 7, 0, 0, 13),
    "lfm2": (1, 9, 0, 0, 13),
    "scratch_plain": (2, 0, 5, 0, 9),
    "scratch_interleaved": (2, 5, 0, 0, 9),
    "scratch_recurrent": (0, 5, 0, 0, 9),
}
OPS = ("attention", "rms_norm", "layer_norm", "expert_linear", "linear")


def raised(graph: Graph) -> Graph:
    return run_passes(graph, raising())


def counts(graph: Graph) -> tuple[int, ...]:
    found = Counter(n.op.name for n in graph.nodes())
    return tuple(found[name] for name in OPS)


def has_score_softmax(graph: Graph) -> bool:
    """Whether a softmax over a symbolic axis is left: one over scores."""
    softmaxes = (n for n in graph.nodes() if n.op.name == "softmax")
    return any(not isinstance(n.shape[n["axis"]], int) for n in softmaxes)


@pytest.mark.slow
@pytest.mark.parametrize("name", zoo.NAMES)
def test_import_and_raising(name: str):
    model = zoo.build(name)
    imported = import_captured(capture(model, name=name))
    before = imported.graph
    after = raised(before)
    assert dict(zip(OPS, counts(after), strict=True)) == dict(zip(OPS, COUNTS[name], strict=True))
    assert not has_score_softmax(after)
    assert not any(n.op.name == "rsqrt" for n in after.nodes())
    ids = torch.randint(3, 211, (2, 23))
    weights = {p["name"]: imported.weights[p["name"]] for p in before.parameters()}
    with torch.no_grad():
        wanted = zoo.logits_of(model, ids)
    for graph in (before, after):
        (given,) = evaluate(graph, [ids], weights)
        assert (given - wanted).abs().max() <= 1e-5 * wanted.abs().max()
