"""Quantized builds: recipes through the API and the command line, what is left, tolerances."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from ferrule.compiler.build import Options, compile_to
from ferrule.compiler.errors import CompileError
from ferrule.compiler.parity import QUANTIZED, TOLERANCES, Parity, check, tolerance_of
from ferrule.compiler.verify import options_of
from ferrule.compiler.writing import as_stored
from ferrule.ir.errors import IRError
from ferrule.passes.quantize import Recipe
from typer.testing import CliRunner

import ferrule

TINY = Path(__file__).resolve().parents[2] / "examples/models/tiny-llama"


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> ferrule.Artifact:
    """The embedded model: 4-bit weights, the shared table in int8, one layer's output whole."""
    rules = (("lm_head*", "int8"), ("*layers.0.self_attn.o_proj*", "none"))
    place = tmp_path_factory.mktemp("quantized") / "artifact"
    options = Options(
        max_context=64, max_batch=2, chunk=32, progress=False, quantize=Recipe("int4", rules)
    )
    return compile_to(TINY, place, options)


def test_a_recipe_is_built_and_its_exceptions_are_listed(mixed: ferrule.Artifact) -> None:
    (left,) = mixed.manifest["report"]["unquantized"]
    assert "layers.0.self_attn.o_proj.weight is not quantized: the recipe leaves it" in left
    assert mixed.manifest["parity"]["top1"] >= 0.5
    graph = (mixed.path / "graph.ir").read_text()
    assert ": u4[" in graph and ": u8[" in graph
    assert options_of(mixed.manifest).quantize == Recipe(
        "int4", (("lm_head*", "int8"), ("*layers.0.self_attn.o_proj*", "none"))
    )


def test_a_quantized_artifact_generates_and_is_smaller(mixed: ferrule.Artifact, tiny: Path) -> None:
    stored = (mixed.path / "weights.safetensors").stat().st_size
    assert stored < 0.45 * (tiny / "weights.safetensors").stat().st_size
    assert mixed.generate("def add(a, b):")


def test_the_tolerance_follows_the_coarsest_format() -> None:
    assert tolerance_of("f32") is TOLERANCES["f32"]
    assert tolerance_of("f32", Recipe("none")) is TOLERANCES["f32"]
    assert tolerance_of("bf16", Recipe("int8", (("x", "int4-g64"),))) is QUANTIZED[4]
    far = Parity(4, 0.25, 0.25, 0.01, 0.1, 1.0, 0.5, 1.0, (1.0,))
    with pytest.raises(
        CompileError, match=r"25% of the best tokens are half as likely .*at least 80% wanted"
    ):
        check(far, "f32", QUANTIZED[8])


def test_a_wrong_format_is_refused_with_the_known_ones() -> None:
    with pytest.raises(CompileError, match="no weight format 'int5'; wanted int8"):
        Options(quantize="int5")
    from ferrule.compiler.cli import app

    done = CliRunner().invoke(app, ["compile", str(TINY), "-o", "nowhere", "--quantize", "int5"])
    assert done.exit_code != 0 and "int5" in str(done.exception)


def test_a_rule_without_a_parameter_is_refused() -> None:
    recipe = Recipe("int8", (("lm_heads*", "none"),))
    with pytest.raises(IRError, match=r"no parameter matches .*'lm_heads\*'; the nearest are"):
        ferrule.compile(TINY, quantize=recipe, max_context=32, progress=False, parity=False)


def test_a_plain_module_is_not_quantized_in_silence() -> None:
    with pytest.raises(CompileError, match="quantized for language models"):
        ferrule.compile(torch.nn.Linear(4, 4), args=(torch.randn(2, 4),), quantize="int8")


def test_small_integers_are_stored_two_a_byte_low_first() -> None:
    value = torch.tensor([[1, 2, 15], [0, 7, 8]], dtype=torch.uint8)
    assert as_stored(value, "u4").tolist() == [[0x21, 0x0F], [0x70, 0x08]]
    assert as_stored(torch.tensor([-1, 3], dtype=torch.int8), "i4").tolist() == [0x3F]
    assert json.dumps(as_stored(torch.tensor([5], dtype=torch.uint8), "u8").tolist()) == "[5]"
