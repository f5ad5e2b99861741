"""Weights from files: tied, merged and renamed as transformers does; what does not fit is
named at once.
"""

import warnings
from pathlib import Path

import pytest
import torch
from ferrule.compiler.checkpoint import CheckpointWeights, LiveWeights, SafetensorsFiles
from ferrule.compiler.errors import CompileError
from ferrule.compiler.models import open_model
from models import zoo
from safetensors.torch import load_file, save_file
from torch import nn


def saved(name: str, folder: Path):
    model = zoo.build(name)
    model.save_pretrained(folder, max_shard_size="30KB")
    return model


@pytest.mark.parametrize(
    "name", ["llama", "gemma", "mixtral", "qwen3_moe", "gpt_oss", "deepseek_v3", "phi3"]
)
def test_weights_from_files_equal_the_models(name: str, tmp_path: Path):
    model = saved(name, tmp_path)
    weights = open_model(tmp_path).weights
    live = LiveWeights(model)
    for key, parameter in model.named_parameters(remove_duplicate=False):
        torch.testing.assert_close(weights[key], live[key], rtol=0, atol=0)
        assert weights.describe(key) == (tuple(parameter.shape), parameter.dtype)


def test_tied_weights_need_be_stored_once(tmp_path: Path):
    saved("gemma", tmp_path)
    stored = set(SafetensorsFiles.of_directory(tmp_path).names())
    assert "lm_head.weight" not in stored
    weights = open_model(tmp_path).weights
    assert weights["lm_head.weight"].equal(weights["model.embed_tokens.weight"])


def rewritten(folder: Path, change) -> None:
    """The checkpoint's tensors after `change`, in one file."""
    tensors = {}
    for file in folder.glob("*.safetensors"):
        tensors |= load_file(file)
        file.unlink()
    (folder / "model.safetensors.index.json").unlink(missing_ok=True)
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_all_that_does_not_fit_is_one_error(tmp_path: Path):
    saved("llama", tmp_path)

    def change(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["model.layers.0.mlp.up_proj.weight"]
        tensors["model.norm.weight"] = torch.zeros(47)
        tensors["model.layers.0.mlp.strange"] = torch.zeros(3)

    rewritten(tmp_path, change)
    with pytest.raises(CompileError) as caught:
        open_model(tmp_path)
    text = str(caught.value)
    assert "2 weights do not fit" in text
    assert "model.layers.0.mlp.up_proj.weight: missing; [72, 48] was wanted" in text
    assert "model.norm.weight: [47] given, [48] wanted" in text
    assert "model.layers.0.mlp.strange: in the files, but the model has no such weight" in text


def test_what_nothing_takes_is_listed(tmp_path: Path):
    saved("llama", tmp_path)
    rewritten(tmp_path, lambda tensors: tensors.update(strange=torch.zeros(3)))
    assert open_model(tmp_path).weights.unused == ("strange",)


def test_a_merged_weight_that_lacks_an_expert_is_named(tmp_path: Path):
    saved("mixtral", tmp_path)
    lost = "model.layers.0.block_sparse_moe.experts.3.w1.weight"
    names = set(SafetensorsFiles.of_directory(tmp_path).names())
    assert lost in names, sorted(names)[:9]
    rewritten(tmp_path, lambda tensors: tensors.pop(lost))
    with pytest.raises(CompileError, match=r"layers\.0\.mlp\.experts\.gate_up_proj"):
        open_model(tmp_path)


def test_a_shard_that_is_not_there_is_named(tmp_path: Path):
    saved("llama", tmp_path)
    lost = sorted(tmp_path.glob("*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(CompileError, match=lost.name):
        open_model(tmp_path)


def test_a_file_cut_short_is_named(tmp_path: Path):
    saved("llama", tmp_path)
    file = sorted(tmp_path.glob("*.safetensors"))[0]
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(CompileError, match=file.name):
        open_model(tmp_path)


def test_a_plain_module_reads_its_names_directly(tmp_path: Path):
    model = zoo.build("scratch_interleaved")
    save_file(
        {k: v.contiguous() for k, v in model.state_dict().items()}, tmp_path / "w.safetensors"
    )
    weights = CheckpointWeights(model, SafetensorsFiles.of_directory(tmp_path))
    assert weights["speak.weight"].equal(model.speak.weight)
    assert weights["turns"].shape == (96, 6, 2)


def test_what_a_type_keeps_in_float32_stays_wide(tmp_path: Path):
    model = zoo.build("deepseek_v3")
    model.save_pretrained(tmp_path)  # pyright: ignore[reportCallIssue]
    opened = open_model(tmp_path, "bfloat16")
    state = dict(opened.model.named_parameters()) | dict(opened.model.named_buffers())
    bias = [t for name, t in state.items() if "e_score_correction_bias" in name]
    assert bias and all(t.dtype == torch.float32 for t in bias)
    assert opened.dtype == "bf16"


def test_a_language_model_is_read_alone_where_the_whole_takes_missing_libraries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Beside an encoder of images that is timm's, which need not be installed."""
    from ferrule.compiler.zoo_configs import tiny_config
    from transformers import Gemma3nForCausalLM, Gemma3nForConditionalGeneration

    def refused(*_: object, **__: object) -> None:
        raise ImportError("timm")

    monkeypatch.setattr(Gemma3nForConditionalGeneration, "__init__", refused)
    config = tiny_config("gemma3n")
    model = Gemma3nForCausalLM(config.text_config)
    model.save_pretrained(tmp_path)
    config.save_pretrained(tmp_path)

    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            tensors[name.replace("model.", "model.language_model.", 1)] = tensors.pop(name)
        tensors["model.vision_tower.weight"] = torch.zeros(3)

    rewritten(tmp_path, change)
    weights, live = open_model(tmp_path).weights, LiveWeights(model)
    for key, _ in model.named_parameters(remove_duplicate=False):
        assert weights[key].equal(live[key]), key


def test_a_model_in_memory_is_copied_with_weights_that_it_made():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = nn.Sequential(nn.Embedding(7, 4), nn.utils.weight_norm(nn.Linear(4, 7)))
    opened = open_model(model, "float32")
    assert opened.model is not model
    ids = torch.tensor([[1, 2, 5]])
    torch.testing.assert_close(opened.model(ids), model(ids))


def test_modules_that_cannot_be_captured_are_refused():
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 7))
    with pytest.raises(CompileError, match=r"TopLevelTracedModule is a TorchScript module"):
        open_model(torch.jit.trace(model, torch.zeros(1, 3, dtype=torch.int64)))
    lazy = nn.Sequential(nn.Embedding(7, 4), nn.LazyLinear(7))
    with pytest.raises(CompileError, match=r"1\.weight, 1\.bias of Sequential have no size yet"):
        open_model(lazy)
