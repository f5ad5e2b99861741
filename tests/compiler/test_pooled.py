"""Models without their head, pooled to one vector a text."""

from __future__ import annotations

import json

import pytest
import torch
from ferrule.compiler.build import Options
from ferrule.compiler.cli import app
from ferrule.compiler.errors import CompileError
from ferrule.compiler.module import CompiledModule
from ferrule.compiler.pooled import POOLINGS, declared_pooling
from torch import nn
from transformers import BertConfig, BertModel, Qwen3Config, Qwen3ForCausalLM
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


def relative(given: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((given - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("pooling", POOLINGS)
def test_the_vector_is_eagers_at_every_length(pooling: str) -> None:
    model = causal()
    built = ferrule.compile(model, pooling=pooling, progress=False)
    for length in (1, 2, 17, 48):
        ids = torch.randint(3, 60, (1, length))
        with torch.no_grad():
            wanted = POOLINGS[pooling](model.model(ids).last_hidden_state)
        assert relative(built(input_ids=ids), wanted) < 1e-5


def test_its_weights_quantize() -> None:
    model = causal()
    built = ferrule.compile(model, pooling="mean", quantize="int8", progress=False)
    ids = torch.randint(3, 60, (1, 21))
    with torch.no_grad():
        wanted = model.model(ids).last_hidden_state.mean(1)
    assert 1e-6 < relative(built(input_ids=ids), wanted) < 0.1


def test_a_folder_is_compiled_by_the_pooling_that_it_declares(tmp_path) -> None:
    torch.manual_seed(2)
    bert = BertModel(BertConfig(**SIZES), add_pooling_layer=False).eval()
    bert.save_pretrained(tmp_path / "bert")
    declare(tmp_path / "bert", {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False})
    arguments = ["compile", str(tmp_path / "bert"), "-o", str(tmp_path / "out"), "-q"]
    done = CliRunner().invoke(app, [*arguments, "--pooling", "auto"])
    assert done.exit_code == 0, done.output
    ids = torch.randint(3, 60, (1, 9))
    with torch.no_grad():
        wanted = bert(ids).last_hidden_state[:, 0]
    assert relative(CompiledModule.load(tmp_path / "out")(input_ids=ids), wanted) < 1e-5


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
        ({"pooling": "best"}, "pooling is one of auto, last, mean, cls, not 'best'"),
        ({"pooling": "last", "target": "cuda:sm_90"}, "embedders are built for cpu alone"),
        ({"pooling": "last", "kv_dtype": "int8"}, "an embedder has no KV cache"),
    ):
        with pytest.raises(CompileError, match=message):
            ferrule.compile(causal(), progress=False, **options)
    assert Options().pooling is None
