"""A model's closed set of kernels compiled ahead of time, for GPUs that are not there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ferrule.codegen.backend import KernelBody
from ferrule.codegen.errors import CodegenError
from ferrule.codegen.triton.build import build_kernels
from ferrule.codegen.triton.elf import resources_of
from ferrule.compiler.build import Options, build_in_temporary
from ferrule.compiler.devices import binaries_of
from ferrule.compiler.explain import explain_artifact
from ferrule.ir.dims import dim
from ferrule.ir.graph import Graph
from ferrule.ir.launches import LAUNCHES, LaunchTable
from ferrule.ir.ops import model as m
from ferrule.ir.target import Target
from ferrule.runtime.artifact import load
from ferrule.runtime.errors import ArtifactError
from kernels import given
from models import zoo

SIZES = {"max_context": 64, "max_batch": 4, "chunk": 32, "progress": False}


@pytest.mark.parametrize("target", ["cuda:sm_80", "cuda:sm_90", "rocm:gfx942"])
def test_every_kernel_of_a_model_is_compiled_and_fits(target: str, tmp_path: Path):
    model = zoo.build("llama").to(torch.bfloat16)
    artifact = build_in_temporary(model, Options(target=target, **SIZES)).save(tmp_path / "a")
    table = LaunchTable.from_json((artifact / LAUNCHES).read_bytes())
    wanted = {la.binary for f in table.functions.values() for o in f.forms for la in o.launches}
    assert wanted == table.binaries.keys()
    for binary in table.binaries.values():
        assert (artifact / binary.file).stat().st_size > 500
        assert binary.spilled == 0, binary
        assert 4 <= binary.registers <= (512 if target.startswith("rocm") else 255), binary
        assert binary.hidden == 2 and binary.threads % 32 == 0
    manifest = (artifact / "manifest.json").read_text()
    assert f"no device here runs {target}: verify on one" in manifest
    (decode,) = explain_artifact(artifact, entry="decode").steps
    assert decode.limit is not None and 0 < decode.limit < 1e-3
    listed = binaries_of(artifact)
    assert {b.binary for b in listed} == table.binaries.keys()
    assert all(b.registers and b.rows for b in listed)
    if not torch.cuda.is_available():
        with pytest.raises(ArtifactError, match=r"no CUDA device here|built for 'rocm'"):
            load(artifact)


def test_an_architecture_that_triton_does_not_know_is_refused(tmp_path: Path):
    x, w = given("x", "f32", dim("T"), 16), given("w", "f32", 16, 16)
    body = Graph("kernel", (x, w), (m.linear(x, w),), bounds={"T": (1, 8)})
    with pytest.raises(CodegenError, match=r"Triton compiles for sm_80, .* not for cuda:sm_70"):
        build_kernels({"k": KernelBody(body)}, Target.parse("cuda:sm_70"), tmp_path)


def test_what_is_no_cubin_is_refused():
    with pytest.raises(CodegenError, match="no ELF file"):
        resources_of(b"\x7fELF\x01" + bytes(64), "k")
