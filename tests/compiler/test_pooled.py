"""Models without their head, pooled to one vector a text."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from ferrule.compiler.build import Options
from ferrule.compiler.cli import app
from ferrule.compiler.errors import CompileError
from ferrule.compiler.pooled import declared_pooling
from ferrule.compiler.pooled_rows import POOLINGS, typed
from ferrule.runtime.errors import RequestError
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
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
from typer.testing import CliRunner

import ferrule

SIZES = {
    "vocab_size": 60,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 40,
    "max_position_embeddings": 48,
}


def causal() -> Qwen3ForCausalLM:
    torch.manual_seed(1)
    return Qwen3ForCausalLM(Qwen3Config(**SIZES, num_key_value_heads=1, head_dim=8)).eval()


def bert(kind=BertModel, **more):
    torch.manual_seed(2)
    given = {"add_pooling_layer": False} if kind is BertModel else {}
    return kind(BertConfig(**SIZES, **more), **given).eval()


def ragged(seed: int, lengths=(1, 2, 17, 48, 5, 9, 30, 1), most: int = 60) -> list[list[int]]:
    """Prompts of many lengths, which no step has alone."""
    generator = np.random.default_rng(seed)
    return [generator.integers(3, most, n).tolist() for n in lengths]


def relative(given: np.ndarray, wanted: torch.Tensor) -> float:
    error = np.abs(given - wanted.numpy()).max()
    return float(error / wanted.abs().max())


@torch.no_grad()
def errors(built, model, prompts, pooling: str) -> list[float]:
    """How far the vectors of one batch are from eager's, which reads one prompt after another."""
    hidden = [model(torch.tensor([p])).last_hidden_state for p in prompts]
    wanted = [POOLINGS[pooling](h)[0] for h in hidden]
    given = built.embed(prompts, normalize=False)
    return [relative(g, w) for g, w in zip(given, wanted, strict=True)]


@pytest.mark.parametrize("pooling", POOLINGS)
def test_vectors_of_a_causal_model_read_in_chunks_are_eagers(pooling: str) -> None:
    model = causal()
    built = ferrule.compile(model, pooling=pooling, progress=False, chunk=32)
    assert not built.pooling.whole
    for seed in (0, 1):
        assert max(errors(built, model.model, ragged(seed), pooling)) < 1e-5
    steps = built._front.engine.steps
    assert steps < 16, f"{steps} steps for 16 prompts of 226 tokens"


@pytest.mark.parametrize("pooling", POOLINGS)
def test_vectors_of_an_encoder_in_one_step_are_eagers(pooling: str) -> None:
    model = bert()
    built = ferrule.compile(model, pooling=pooling, progress=False)
    assert built.pooling.whole
    assert max(errors(built, model, ragged(3), pooling)) < 1e-5
    assert built._front.engine.steps == 1
    (unit,) = built.embed([[4, 5, 6]])
    assert abs(float(np.linalg.norm(unit)) - 1.0) < 1e-6


def test_positions_that_count_tokens() -> None:
    """They are scans over the tokens, whose states a step begins anew."""
    sizes = SIZES | {"max_position_embeddings": 50}
    model = XLMRobertaModel(XLMRobertaConfig(**sizes, pad_token_id=1), add_pooling_layer=False)
    built = ferrule.compile(model.eval(), pooling="mean", progress=False, max_batch=3)
    assert built.plan.state_bytes
    for seed in (4, 5):
        assert max(errors(built, model, ragged(seed), "mean")) < 1e-5
    built._front.engine.check()


def test_windows_to_both_sides_of_a_token() -> None:
    torch.manual_seed(7)
    sizes = SIZES | {"pad_token_id": 1, "cls_token_id": 2, "sep_token_id": 3}
    marks = {"bos_token_id": 2, "eos_token_id": 3}
    config = ModernBertConfig(**sizes, **marks, local_attention=8, global_attn_every_n_layers=2)
    model = ModernBertModel(config).eval()
    built = ferrule.compile(model, pooling="cls", progress=False)
    assert built.pooling.whole and "window = 5" in (built.path / "graph.ir").read_text()
    assert max(errors(built, model, ragged(8), "cls")) < 1e-5


def test_a_bias_by_the_distance_to_both_sides() -> None:
    torch.manual_seed(9)
    sizes = SIZES | {"max_position_embeddings": 50}
    config = MPNetConfig(**sizes, pad_token_id=1)
    model = MPNetModel(config, add_pooling_layer=False).eval()
    torch.nn.init.normal_(model.encoder.relative_attention_bias.weight)
    built = ferrule.compile(model, pooling="mean", progress=False)
    assert "distances" in (built.path / "graph.ir").read_text()
    assert max(errors(built, model, ragged(10), "mean")) < 1e-5


def test_its_weights_quantize() -> None:
    model = causal()
    built = ferrule.compile(model, pooling="mean", quantize="int8", progress=False)
    assert 1e-6 < max(errors(built, model.model, ragged(0, (21, 3)), "mean")) < 0.1


def test_a_folder_is_compiled_by_the_pooling_that_it_declares(tmp_path) -> None:
    model = bert()
    model.save_pretrained(tmp_path / "bert")
    declare(tmp_path / "bert", {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False})
    arguments = ["compile", str(tmp_path / "bert"), "-o", str(tmp_path / "out"), "-q"]
    done = CliRunner().invoke(app, [*arguments, "--pooling", "auto"])
    assert done.exit_code == 0, done.output
    built = ferrule.load(tmp_path / "out")
    assert built.pooling.kind == "cls"
    with pytest.raises(RequestError, match="compiled with a pooling: it embeds"):
        built.generate([3, 4])
    for command in (["plan"], ["explain", "--no-measure"]):
        done = CliRunner().invoke(app, [*command, str(tmp_path / "out")])
        assert done.exit_code == 0 and done.output, (done.output, done.exception)
    done = CliRunner().invoke(app, ["verify", str(tmp_path / "out")])
    assert done.exit_code != 0 and "compares models that generate" in str(done.exception)
    assert max(errors(built, model, ragged(0, (9,)), "cls")) < 1e-5


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: bert(BertForSequenceClassification, num_labels=3), "cls"),
        (lambda: classifier_of_last(), "last"),
    ],
)
def test_scores_of_a_classifier_are_eagers(make, kind: str) -> None:
    model = make()
    built = ferrule.compile(model, pooling="classify", progress=False, chunk=48)
    found = built.pooling
    assert (found.kind, found.labels) == (kind, tuple(model.config.id2label.values()))
    prompts = ragged(6, most=60 * found.types)
    with torch.no_grad():
        wanted = [model(**typed(model, torch.tensor([p]))).logits[0] for p in prompts]
    given = built.embed(prompts)
    assert max(relative(g, w) for g, w in zip(given, wanted, strict=True)) < 1e-5
    shares = built.classify(prompts[2])[0]
    assert list(shares) == list(found.labels)
    np.testing.assert_allclose(list(shares.values()), wanted[2].softmax(-1), atol=1e-5)


def classifier_of_last() -> Qwen3ForSequenceClassification:
    torch.manual_seed(3)
    config = Qwen3Config(**SIZES, num_key_value_heads=1, head_dim=8, num_labels=2)
    return Qwen3ForSequenceClassification(config).eval()


def test_the_types_of_a_pairs_tokens_count() -> None:
    model = bert(BertForSequenceClassification, num_labels=1)
    built = ferrule.compile(model, pooling="classify", progress=False)
    assert (built.pooling.types, built.pooling.activation) == (2, "sigmoid")
    prompt, types = [5, 6, 7, 8, 9], [0, 0, 0, 1, 1]
    with torch.no_grad():
        given = {"input_ids": torch.tensor([prompt]), "token_type_ids": torch.tensor([types])}
        wanted = model(**given).logits[0]
    (found,) = built.embed([[p + 60 * t for p, t in zip(prompt, types, strict=True)]])
    (plain,) = built.embed([prompt])
    assert relative(found, wanted) < 1e-5 < relative(plain, wanted)


def test_a_folder_that_says_that_it_classifies(tmp_path) -> None:
    model = bert(BertForSequenceClassification, num_labels=2, id2label={0: "bad", 1: "good"})
    model.save_pretrained(tmp_path / "bert")
    built = ferrule.compile(tmp_path / "bert", pooling="auto", progress=False)
    assert built.pooling.labels == ("bad", "good")


class Mixes(nn.Module):
    """A base model whose tokens read later ones by something that is no attention."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = bert()
        self.config = self.inner.config

    @property
    def base_model(self) -> nn.Module:
        return self

    def forward(self, input_ids, **_):
        found = self.inner(input_ids=input_ids)
        found.last_hidden_state = found.last_hidden_state.cumsum(1).flip(1)
        return found


def test_what_has_no_form_for_steps_is_one_text_at_a_time_and_said(tmp_path) -> None:
    model = Mixes().eval()
    built = ferrule.compile(model, pooling="mean", progress=False)
    assert "flip" in built.manifest["report"]["unbatched"]
    ids = np.array([[5, 6, 7]])
    with torch.no_grad():
        wanted = model(torch.tensor(ids)).last_hidden_state.mean(1)
    assert relative(built(ids)[0], wanted) < 1e-5
    with pytest.raises(RequestError, match="compiled without a pooling"):
        built.embed([5, 6])


def declare(folder, fields, *more: str) -> None:
    """Write the files that name the parts of a model of sentence-transformers."""
    names = ["Transformer", "Pooling", *more]
    parts = [
        {"idx": i, "path": f"{i}_{n}" if i else "", "type": f"sentence_transformers.models.{n}"}
        for i, n in enumerate(names)
    ]
    (folder / "modules.json").write_text(json.dumps(parts))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(fields))


def test_declared_poolings(tmp_path) -> None:
    for fields, name in (
        ({"pooling_mode_lasttoken": True, "include_prompt": True}, "last"),
        ({"pooling_mode": "mean", "embedding_dimension": 3}, "mean"),
    ):
        declare(tmp_path, fields, "Normalize")
        assert declared_pooling(tmp_path) == name
    declare(tmp_path, {"pooling_mode_max_tokens": True})
    with pytest.raises(CompileError, match=r"pooling by \['max_tokens'\]; known: lasttoken"):
        declared_pooling(tmp_path)
    declare(tmp_path, {"pooling_mode": "cls"}, "Dense")
    with pytest.raises(CompileError, match="a part Dense behind the pooling is not compiled"):
        declared_pooling(tmp_path)
    with pytest.raises(CompileError, match=r"no modules\.json says which; give one of last, mean"):
        declared_pooling(None)


def test_what_cannot_be_pooled_is_refused() -> None:
    with pytest.raises(CompileError, match="Linear is no model of transformers"):
        ferrule.compile(nn.Linear(2, 2), pooling="mean", progress=False)
    for options, message in (
        ({"pooling": "best"}, "pooling is one of auto, last, mean, cls, classify, not 'best'"),
        ({"pooling": "classify"}, "Qwen3ForCausalLM is no sequence classifier"),
    ):
        with pytest.raises(CompileError, match=message):
            ferrule.compile(causal(), progress=False, **options)
    with pytest.raises(CompileError, match="an encoder has no KV cache"):
        ferrule.compile(bert(), pooling="cls", kv_dtype="int8", progress=False)
    assert Options().pooling is None
