"""Embedders, encoders and classifiers as a GPU would run them: built ahead of time, launches
interpreted on the CPU, vectors equal to eager's.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ferrule.compiler.interpreted import interpreted_executor
from ferrule.compiler.pooled_rows import POOLINGS
from ferrule.compiler.pooled_steps import vectors_of
from ferrule.runtime.artifact import Artifact
from ferrule.runtime.pools import Pools
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    ModernBertConfig,
    ModernBertModel,
    MPNetConfig,
    MPNetModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3ForSequenceClassification,
    XLMRobertaConfig,
    XLMRobertaModel,
)

import ferrule

SIZES = {
    "vocab_size": 60, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 40, "max_position_embeddings": 50, "pad_token_id": 1,
}  # fmt: skip
MARKS = {"bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
QWEN = {"num_key_value_heads": 1, "head_dim": 8}
PROMPTS = [[3 + (7 * i + n) % 50 for i in range(n)] for n in (17, 1, 5)]


def windowed() -> nn.Module:
    config = ModernBertConfig(**SIZES, **MARKS, local_attention=8, global_attn_every_n_layers=2)
    return ModernBertModel(config)


MODELS = {
    "bert": lambda: BertModel(BertConfig(**SIZES), add_pooling_layer=False),
    "windowed": windowed,
    "distances": lambda: MPNetModel(MPNetConfig(**SIZES), add_pooling_layer=False),
    "counted": lambda: XLMRobertaModel(XLMRobertaConfig(**SIZES), add_pooling_layer=False),
    "causal": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, **QWEN)),
}
FEW = ("bert", "causal", "distances")
KINDS = [n if n in FEW else pytest.param(n, marks=pytest.mark.slow) for n in MODELS]


def vectors(built: Artifact) -> list[np.ndarray]:
    """What the interpreted launches of an embedder give for PROMPTS."""
    executor = interpreted_executor(built.path, Pools(16, 4))
    try:
        assert built.pooling is not None
        return vectors_of(executor, built.pooling, PROMPTS)
    finally:
        executor.driver.close()


@torch.no_grad()
@pytest.mark.parametrize("name", KINDS)
def test_vectors_are_those_of_eager(name: str) -> None:
    torch.manual_seed(3)
    model = MODELS[name]().eval()
    base = getattr(model, "model", model) if name == "causal" else model
    built = ferrule.compile(
        model, target="cuda:sm_90", pooling="mean", progress=False, max_batch=4, max_context=48,
        chunk=32,
    )  # fmt: skip
    assert built.kind == "cuda" and "verify on one" in built.manifest["report"]["unverified"]
    for prompt, given in zip(PROMPTS, vectors(built), strict=True):
        wanted = POOLINGS["mean"](base(torch.tensor([prompt])).last_hidden_state)[0].numpy()
        assert np.abs(given - wanted).max() <= 1e-4 * np.abs(wanted).max()


@torch.no_grad()
def test_scores_of_a_classifier_are_those_of_eager() -> None:
    torch.manual_seed(3)
    model = Qwen3ForSequenceClassification(Qwen3Config(**SIZES, **QWEN, num_labels=3)).eval()
    built = ferrule.compile(
        model, target="cuda:sm_90", pooling="classify", progress=False, max_batch=4, max_context=48
    )
    for prompt, given in zip(PROMPTS, vectors(built), strict=True):
        wanted = model(torch.tensor([prompt])).logits[0].numpy()
        assert np.abs(given - wanted).max() <= 1e-4 * np.abs(wanted).max()
