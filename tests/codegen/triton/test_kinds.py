"""Kinds of kernels that tiny models of the compile test have not, compiled for a GPU that is not
there: the interpreter takes what a compiler refuses.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from ferrule.codegen.backend import KernelBody
from ferrule.codegen.errors import CodegenError
from ferrule.codegen.triton.build import build_kernels
from ferrule.codegen.triton.jobs import Job, compile_all
from ferrule.codegen.triton.kernel import Start
from ferrule.codegen.triton.lower import lower
from ferrule.ir.dims import dim
from ferrule.ir.graph import Graph
from ferrule.ir.launches import LAUNCHES, LaunchTable
from ferrule.ir.node import Node, item
from ferrule.ir.ops import model as m
from ferrule.ir.ops import quantized as q
from ferrule.ir.ops import recurrent as r
from ferrule.ir.ops import tensor as t
from ferrule.ir.target import Target
from kernels import given, state

T, N = dim("T"), dim("N")


def body(*outputs: Node) -> Graph:
    inputs = dict.fromkeys(
        n for o in Graph("x", (), outputs).nodes() for n in (o,) if n.op.name == "input"
    )
    return Graph("kernel", tuple(inputs), outputs, bounds={"T": (1, 1024), "N": (1, 64)})


def batch() -> tuple[Node, Node, Node]:
    return given("starts", "i32", N + 1), given("source", "i32", N), given("target", "i32", N)


def conv() -> Graph:
    x, w = given("x", "bf16", T, 1024), given("w", "bf16", 4, 1024)
    made = r.state_conv(x, w, state("s", "bf16", 3, 1024), *batch())
    return body(item(made, index=0), item(made, index=1))


def delta() -> Graph:
    x, k = (given(n, "bf16", T, 4, 128) for n in "qk")
    v, g = given("v", "bf16", T, 8, 128), given("g", "f32", T, 8, 1)
    held, beta = state("s", "f32", 8, 128, 128), given("b", "bf16", T, 8)
    made = r.state_scan(x, k, v, g, held, *batch(), beta)
    return body(item(made, index=0), item(made, index=1))


def delta_widened() -> Graph:
    """The same with keys and queries of length one, in float32."""
    x, k = (given(n, "f32", T, 4, 128) for n in "qk")
    v, g = t.cast(given("v", "bf16", T, 8, 128), dtype="f32"), given("g", "f32", T, 8, 1)
    held, beta = state("s", "f32", 8, 128, 128), given("b", "bf16", T, 8)
    made = r.state_scan(x, k, v, g, held, *batch(), beta)
    return body(item(made, index=0), item(made, index=1))


def scan() -> Graph:
    """As state spaces have it: one decay a head, made where it is read."""
    x, k = (given(n, "bf16", T, 1, 128) for n in "qk")
    v, g = given("v", "bf16", T, 24, 64), given("g", "f32", T, 24, 1)
    rate = given("a", "f32", 24, 1)
    made = r.state_scan(
        x, k, v, t.neg(t.mul(t.exp(rate), g)), state("s", "f32", 24, 128, 64), *batch()
    )
    return body(item(made, index=0), item(made, index=1))


def experts() -> Graph:
    x, index = given("x", "bf16", T, 2, 512), given("index", "i32", T, 2)
    y = m.expert_linear(x, given("w", "bf16", 8, 256, 512), index)
    gate, up = (t.slice_(y, axis=2, start=a, stop=a + 128) for a in (0, 128))
    return body(t.mul(t.silu(gate), up))


def expert_codes() -> Graph:
    x, index = given("x", "bf16", T, 2, 512), given("index", "i32", T, 2)
    codes, scale = given("q", "u4", 8, 256, 4, 128), given("s", "bf16", 8, 256, 4)
    return body(q.quantized_expert_linear(x, codes, scale, index, offset=8))


def greedy() -> Graph:
    logits = t.cast(given("x", "bf16", T, 32000), dtype="f32")
    return body(logits, t.cast(t.argmax(logits, axis=1), dtype="i32"))


KINDS = {
    "conv": conv, "delta": delta, "delta_widened": delta_widened, "scan": scan,
    "experts": experts, "expert_codes": expert_codes, "greedy": greedy,
}  # fmt: skip


@pytest.mark.parametrize("target", ["cuda:sm_90", "rocm:gfx942"])
def test_kernels_of_every_kind_fit_and_spill_nothing(target: str, tmp_path: Path):
    made = {name: KernelBody(make()) for name, make in KINDS.items()}
    build_kernels(made, Target.parse(target), tmp_path)
    table = LaunchTable.from_json((tmp_path / LAUNCHES).read_bytes())
    assert {name: len(table.functions[name].forms) for name in ("experts", "conv")} == {
        "experts": 3, "conv": 1
    }  # fmt: skip
    assert {n: b.spilled for n, b in table.binaries.items() if b.spilled} == {}


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_deterministic_target_takes_rows_of_a_scan_one_by_one(deterministic: bool):
    """Where blocks of rows begin depends on how a prompt is cut into chunks."""
    target = Target("cuda", "sm_90", deterministic=deterministic)
    (start,) = lower("kernel", scan(), target).forms[0].starts
    assert ("BLOCK" in dict(start.constants)) is not deterministic


def test_several_processes_compile_what_one_does(tmp_path: Path):
    made = {name: KernelBody(KINDS[name]()) for name in ("greedy", "conv")}
    target = Target.parse("cuda:sm_80")
    tables = []
    for workers in (1, 2):
        folder = tmp_path / f"{workers}"
        build_kernels(made, target, folder, workers=workers)
        tables.append((folder / LAUNCHES).read_text())
        table = LaunchTable.from_json(tables[-1])
        assert all((folder / b.file).stat().st_size > 500 for b in table.binaries.values())
    assert tables[0] == tables[1]


def test_what_a_process_cannot_compile_is_said_with_the_kernel(tmp_path: Path):
    source = tmp_path / "bad.py"
    source.write_text("import triton\n\n\n@triton.jit\ndef bad(x):\n    missing(x)\n")
    job = Job(source, Start("bad", ("x",), (), ()), {"x": "f32"}, Target.parse("cuda:sm_80"))
    for found in compile_all([job, job], workers=2):
        assert isinstance(found, CodegenError) and "entry bad" in str(found)
