"""Builds whose KV cache has another dtype than the model: bytes, parity, generated text."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ferrule.compiler.build import Options, compile_to
from ferrule.compiler.errors import CompileError
from ferrule.compiler.parity import QUANTIZED, TOLERANCES, tolerance_of
from ferrule.compiler.plan_report import read_memory
from ferrule.compiler.verify import options_of

import ferrule

TINY = Path(__file__).resolve().parents[2] / "examples/models/tiny-llama"


@pytest.mark.parametrize("kv_dtype", ["bf16", "f16", "int8"])
def test_a_build_holds_its_tolerance_and_its_bytes(tmp_path: Path, kv_dtype: str) -> None:
    options = Options(max_context=64, max_batch=2, chunk=32, progress=False, kv_dtype=kv_dtype)
    made = compile_to(TINY, tmp_path / "artifact", options)
    assert made.manifest["parity"]["top1"] >= 0.8
    assert options_of(made.manifest).kv_dtype == kv_dtype
    plain = [c for c in made.plan.caches if not c.name.endswith("_scale")]
    rows = sum(int(torch.tensor(c.entry[:-1]).prod()) for c in plain)
    elements = sum(int(torch.tensor(c.entry).prod()) for c in plain)
    wanted = elements + 4 * rows if kv_dtype == "int8" else 2 * elements
    assert read_memory(made.path).report.token_bytes == wanted
    assert made.generate("def add(a, b):")


def test_the_tolerance_follows_the_caches() -> None:
    assert tolerance_of("f32", cache="bf16") is TOLERANCES["bf16"]
    assert tolerance_of("bf16", cache="f16") is TOLERANCES["bf16"]
    assert tolerance_of("f32", cache="i8") is QUANTIZED[8]


def test_an_unknown_dtype_is_refused_with_the_known_ones() -> None:
    with pytest.raises(CompileError, match="kv_dtype is one of auto, bf16, bfloat16, f16"):
        Options(kv_dtype="fp8")


def test_a_plain_module_has_no_cache() -> None:
    with pytest.raises(CompileError, match="kv_dtype"):
        ferrule.compile(torch.nn.Linear(4, 4), args=(torch.randn(2, 4),), kv_dtype="int8")
