"""A GPU's artifact explained where no GPU is: held against a device by its name."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from ferrule.compiler.cli import app
from ferrule.compiler.devices import binaries_of, device_named
from ferrule.compiler.explain import Load, explain_artifact
from ferrule.ir.errors import IRError
from ferrule.ir.launches import LAUNCHES, Binary, Form, Function, Launch, LaunchTable, Solve
from ferrule.ir.plan import Argument, Call, Entry, Plan
from ferrule.runtime.manifest import write_manifest
from typer.testing import CliRunner

WEIGHT = Argument("weight", "w", 0, "bf16", (1024, 1024))
TOKENS = Argument("input", "tokens", 0, "i32", ("T",))
LOGITS = Argument("result", "logits", 0, "f32", ("R", 1024))


@pytest.fixture
def folder(tmp_path: Path):
    entry = Entry((Call("head", (TOKENS, WEIGHT, LOGITS), ops="linear", label="linear"),))
    limits = {"max_context": 64, "max_batch": 4}
    dims = {"T": (1, 8), "N": (1, 4), "R": (1, 4), "M": (1, 4)}
    plan = Plan({"decode": entry, "mixed": entry}, dims, limits=limits)
    (tmp_path / "plan.json").write_text(plan.to_json())
    launch = Launch("head_1", (), ("T",), ("T",))
    function = Function("h.py", "T", {"T": Solve(0, 0)}, (), (Form(None, (launch,)),))
    table = LaunchTable({"head": function}, {"head_1": Binary("h.cubin", "h", 128, 4096, 40)})
    (tmp_path / LAUNCHES).write_text(table.to_json())
    known = {"reads": ["4*T", "2097152"], "writes": "4096*T", "operations": {"bf16": "2097152*T"}}
    target = {"kind": "cuda", "arch": "sm_90", "features": []}
    write_manifest(tmp_path, {"target": target, "report": {"kernels": {"head": known}}})
    return tmp_path


def test_kernels_are_held_against_a_named_device(folder: Path):
    (step,) = explain_artifact(folder, entry="decode", load=Load(sequences=2), device="H200").steps
    # A weight of 2 MiB at 4.8 TB/s; tokens and logits stay in the device's caches.
    assert step.limit == pytest.approx((1 << 21) / 4.8e12)
    (usual,) = explain_artifact(folder, entry="decode", load=Load(sequences=2)).steps
    assert step.limit and usual.limit == pytest.approx(step.limit * 4.8 / 3.35)


def test_a_device_that_nobody_knows_is_refused(folder: Path):
    with pytest.raises(IRError, match="no 'h900'; known: a100, l40s, h100"):
        explain_artifact(folder, device="h900")
    with pytest.raises(IRError, match="no usual device of sm_75"):
        device_named(None, "sm_75")


def test_each_binary_is_listed_with_what_it_takes(folder: Path):
    (line,) = binaries_of(folder)
    assert (line.kernel, line.rows, line.binary, line.choices) == ("head", "any", "head_1", {})
    assert (line.threads, line.registers, line.spilled, line.shared) == (128, 40, 0, 4096)


def test_forms_that_share_a_binary_name_their_rows(folder: Path):
    table = LaunchTable.from_json((folder / LAUNCHES).read_bytes())
    one, tiled = (
        Launch("gemv", (), (), ("T",)),
        Launch("gemm", (), (), ("T",), None, "", (("BM", 16),)),
    )
    forms = (Form(1, (one,)), Form(16, (tiled,)), Form(64, (one,)), Form(None, (tiled,)))
    function = replace(table.functions["head"], forms=forms)
    binaries = {"gemv": Binary("v.cubin", "v", 32), "gemm": Binary("m.cubin", "m", 128)}
    (folder / LAUNCHES).write_text(LaunchTable({"head": function}, binaries).to_json())
    first, second = binaries_of(folder)
    assert (first.binary, first.rows) == ("gemv", "1, 17 to 64")
    assert (second.rows, second.choices) == ("2 to 16, 65 on", {"BM": 16})


def test_the_commands_text_json_and_page_name_the_device_and_what_binaries_take(folder: Path):
    html = folder / "page.html"
    asked = ["explain", str(folder), "--device", "h200"]
    text = CliRunner().invoke(app, [*asked, "--html", str(html)]).output
    assert "h200, as its maker states: 4.8 TB/s from memory; peaks" in text
    assert "registers" in text and "4096" in text and "head_1" in text
    assert "head_1" in html.read_text() and "what its maker states" in html.read_text()
    found = json.loads(CliRunner().invoke(app, [*asked, "--json"]).output)
    assert found["binaries"][0]["registers"] == 40 and found["binaries"][0]["rows"] == "any"
