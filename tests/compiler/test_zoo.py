"""The zoo: tiny configs by rule, what is compared, records that let a run go on, the page."""

import os
import random
import re
from pathlib import Path

import pytest
import torch
from ferrule.compiler.errors import CompileError
from ferrule.compiler.zoo import (
    Found,
    chosen_types,
    decided,
    equal_tokens,
    read_found,
    run_zoo,
    try_type,
    zoo_types,
)
from ferrule.compiler.zoo_command import line_of, page, served_types, write_records
from ferrule.compiler.zoo_configs import layers_of, tiny_config
from transformers import CONFIG_MAPPING


@pytest.mark.parametrize("kind", ["gemma3_text", "qwen3_next", "jamba", "glm_moe_dsa", "zaya"])
def test_a_tiny_config_keeps_every_kind_of_layer(kind: str):
    whole, tiny = CONFIG_MAPPING[kind](), tiny_config(kind)
    few = layers_of(tiny)
    assert few < layers_of(whole)
    for name in ("layer_types", "mlp_layer_types", "layers_block_type"):
        kinds = getattr(whole, name, None)
        if isinstance(kinds, list):
            assert set(getattr(tiny, name)) == set(kinds) and len(getattr(tiny, name)) == few


def test_sizes_shrink_and_counts_that_are_small_stay():
    tiny = tiny_config("exaone4")
    assert (tiny.vocab_size, tiny.hidden_size, tiny.num_attention_heads) == (211, 48, 6)
    assert (tiny.num_key_value_heads, tiny.max_position_embeddings) == (2, 96)
    assert tiny_config("falcon").num_kv_heads == 2
    assert tiny_config("mamba2").conv_kernel == CONFIG_MAPPING["mamba2"]().conv_kernel


def test_parts_of_a_config_shrink_too():
    tiny = tiny_config("gemma3")
    assert tiny.text_config.hidden_size == 48 and tiny.vision_config.hidden_size == 48


def test_types_are_chosen_by_name_or_by_seed():
    assert chosen_types(["llama", "gpt2"], None, 0) == ["llama", "gpt2"]
    drawn = chosen_types([], 5, 3)
    assert drawn == chosen_types([], 5, 3) != chosen_types([], 5, 4)
    assert len(set(drawn)) == 5 and set(drawn) <= set(zoo_types())
    with pytest.raises(CompileError, match=r"no causal-LM type lama; known: .*llama"):
        chosen_types(["lama"], None, 0)
    with pytest.raises(CompileError, match="a sample is 1 to 1 types, not 2"):
        chosen_types(["llama"], 2, 0)


def test_nothing_is_compared_behind_a_tie():
    rows = torch.tensor([[1.0, 5.0, 3.0], [2.0, 2.0 + 1e-6, 0.0], [7.0, 1.0, 0.0]])
    assert decided(rows) == 1
    assert decided(rows[[0, 2]]) == 2
    assert decided(torch.tensor([[float("-inf"), 1.0, 2.0]])) == 1
    assert equal_tokens([1, 2, 3], [1, 5, 3]) == 1
    assert equal_tokens([1, 2], [1, 2]) == 2


def test_a_type_that_has_no_model_says_why():
    found = try_type("gemma4_assistant")
    assert re.match(r"no tiny model, at configuration_\w+\.py:\d+: ValueError", found.refused)
    assert not found.served


def test_a_type_of_several_models_is_tried_as_its_language_model():
    found = try_type("musicgen")
    assert found.family == "MusicgenForCausalLM" and "modeling_musicgen.py:" in found.refused


SERVED = served_types((Path(__file__).parents[2] / "docs/models.md").read_text(encoding="utf-8"))
SEED = int(os.environ.get("FERRULE_ZOO_SEED", "0"))


@pytest.mark.slow
def test_a_sample_of_the_page_is_as_it_says(tmp_path: Path):
    """Two of the types that the page says are served, beside one that was tried before."""
    records = tmp_path / "zoo.jsonl"
    drawn = sorted(random.Random(SEED).sample([k for k in SERVED if k != "bert"], 2))
    write_records(records, [Found("bert", "Known", 3, 4)])
    seen: list[Found] = []
    found = run_zoo([*drawn, "bert"], records, 240.0, seen.append)
    assert [one.kind for one in seen] == drawn
    assert found[2] == Found("bert", "Known", 3, 4) and not found[2].served
    for one in seen:
        assert one.served and one.wanted > 0, one
        assert 0 < one.error < 1e-4 and one.kernels > one.layers >= 2, one
    assert {one.kind for one in read_found(records)} == {*drawn, "bert"}


def test_a_type_that_takes_too_long_is_ended(tmp_path: Path):
    (found,) = run_zoo(["llama"], tmp_path / "zoo.jsonl", 0.01, lambda _: None)
    assert found.refused == "no answer in 0 s"


def test_records_that_are_none_are_refused(tmp_path: Path):
    (tmp_path / "zoo.jsonl").write_text("[1]\n")
    with pytest.raises(CompileError, match="no records of a zoo"):
        read_found(tmp_path / "zoo.jsonl")


def test_the_page_tells_served_from_refused():
    found = [
        Found("b", "B", 128, 128, 1.5e-6, 22, 2, 3.0),
        Found("a", "A", 100, 128, 0.5, 22, 2, 3.0),
        Found("c", "C", refused="does not export | at x.py:3"),
    ]
    text = page(found)
    assert "| b | B | 128/128 | 1.5e-06 | 11.0 | 3.0 |" in text
    assert served_types(text) == ["b"]
    departed, refused = text.index("other tokens"), text.index("not served")
    assert departed < text.index("| a | A | 100/128") < refused
    assert "| c | C | does not export \\| at x.py:3 |" in text[refused:]
    assert [line_of(one) for one in found] == [
        "b: 128/128 tokens, error 1.5e-06, 11.0 kernels a layer, 3.0 s",
        "a: 100/128 tokens, error 5.0e-01, 11.0 kernels a layer, 3.0 s",
        "c: does not export | at x.py:3",
    ]
