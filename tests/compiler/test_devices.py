"""A GPU's artifact explained where no GPU is: held against a device by its name."""

from pathlib import Path

import pytest
from ferrule.compiler.devices import binary_lines, device_named
from ferrule.compiler.explain import Load, explain_artifact
from ferrule.ir.errors import IRError
from ferrule.ir.launches import LAUNCHES, Binary, Form, Function, Launch, LaunchTable, Solve
from ferrule.ir.plan import Argument, Call, Entry, Plan
from ferrule.runtime.manifest import write_manifest

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
    (step,) = explain_artifact(folder, entry="decode", load=Load(sequences=2), device="h200").steps
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
    head, line = binary_lines(folder)
    assert head.split() == ["binary", "threads", "registers", "spilled", "shared"]
    assert line.split() == ["head_1", "128", "40", "0", "4096"]
