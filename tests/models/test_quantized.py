"""Quantized models against eager ones whose weights were rounded alike: with activations in float,
the tokens are the same.
"""

from __future__ import annotations

import copy

import pytest
import torch
from ferrule.compiler.build import Options, build_in_temporary
from ferrule.compiler.reference import evaluate
from ferrule.compiler.reference.quantized import weight
from ferrule.ir.graph import Graph
from ferrule.ir.node import input_
from ferrule.ir.types import TensorType
from ferrule.passes.weight_formats import Format
from torch import nn

import ferrule

from . import zoo

CASES = [
    ("llama", "int4-asym"),
    ("llama", "int4"),
    ("mixtral", "int8-g16"),
    ("qwen3_moe", "int4-g32-asym"),
]


@torch.no_grad()
def rounded(model: nn.Module, form: Format) -> nn.Module:
    """The model with every table and matrix, those of experts too, as its codes give it back."""
    model = copy.deepcopy(model)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            w = input_(name="w", type=TensorType("f32", tuple(parameter.shape)))
            graph = Graph("w", (w,), tuple(n for n in form.quantized(w) if n is not None))
            q, s, *z = evaluate(graph, [parameter.data])
            parameter.copy_(weight(q, s, z[0] if z else form.offset, parameter.shape[-1]))
    return model


@pytest.mark.parametrize(("name", "text"), CASES)
def test_tokens_are_those_of_the_rounded_weights(name: str, text: str) -> None:
    model = zoo.build(name)
    options = Options(
        target="cpu:x86-64", max_context=96, max_batch=4, chunk=64, block=8, progress=False,
        parity=False, quantize=text,
    )  # fmt: skip
    artifact = build_in_temporary(model, options)
    assert artifact.manifest["report"]["unquantized"] == []
    graph = (artifact.path / "graph.ir").read_text()
    assert ("packed_quantized_expert_linear" in graph) == (name != "llama")
    eager = rounded(model, Format.parse(text))
    sampling = ferrule.SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
    for prompt in zoo.prompts(3):
        (output,) = artifact.generate([prompt], sampling)
        assert list(output.token_ids) == zoo.eager_greedy(eager, prompt, 6)[0]
