"""Values larger than their parts are made where they are read, and nowhere else."""

from __future__ import annotations

from check import check_pass
from ferrule.codegen.backend import cpu_backend
from ferrule.ir.dims import dim
from ferrule.ir.graph import Graph
from ferrule.ir.node import Node, input_, parameter
from ferrule.ir.ops import recurrent
from ferrule.ir.ops import tensor as t
from ferrule.ir.target import Target
from ferrule.ir.types import TensorType
from ferrule.passes.group_kernels import GroupKernels

B, S, HEADS, ROWS = dim("B"), dim("S"), 12, 16
STEP = input_(name="step", type=TensorType("f32", (B, S, HEADS)))
X = input_(name="x", type=TensorType("f32", (B, S, HEADS)))
KEY = input_(name="key", type=TensorType("f32", (B, S, ROWS)))
QUERY = input_(name="query", type=TensorType("f32", (B, S, HEADS, ROWS)))
RATE = parameter(name="rate", type=TensorType("f32", (HEADS, ROWS)))


def column(x: Node) -> Node:
    return t.reshape(x, shape=(*x.shape, 1))


def scanned(step: Node) -> tuple[Node, Node]:
    """A state space whose keys are step key x, and its decays."""
    keys = t.mul(t.mul(column(step), t.reshape(KEY, shape=(B, S, 1, ROWS))), column(X))
    decay = t.neg(t.mul(column(step), t.abs_(RATE)))
    ones = t.broadcast(t.scalar(1.0, "f32"), shape=(B, S, HEADS, 1))
    return recurrent.linear_scan(QUERY, keys, ones, decay), decay


def kernels(*outputs: Node) -> list[list[str]]:
    """The ops of each kernel, the values checked."""
    names = tuple(f"y{i}" for i in range(len(outputs)))
    given = Graph("m", (STEP, X, KEY, QUERY), outputs, names, bounds={"B": (1, 3), "S": (1, 9)})
    templates = cpu_backend(Target.parse("cpu:znver4")).templates
    made = check_pass(GroupKernels(templates), given)
    bodies = [n["body"] for n in made.nodes() if n.op.name == "kernel"]
    silent = ("input", "constant", "reshape", "broadcast", "item")
    return [[n.op.name for n in b.nodes() if n.op.name not in silent] for b in bodies]


def test_a_scan_makes_its_keys_and_decays_itself():
    found = kernels(scanned(STEP)[0])
    assert ["abs"] in found and len(found) == 2
    assert {"mul", "neg", "linear_scan"} <= set(max(found, key=len))


def test_what_is_read_elsewhere_too_is_written():
    y, decay = scanned(STEP)
    scan = next(f for f in kernels(y, decay) if "linear_scan" in f)
    assert scan.count("mul") == 2 and "neg" not in scan


def test_what_is_dear_is_written():
    scan = next(f for f in kernels(scanned(t.exp(STEP))[0]) if "linear_scan" in f)
    assert "exp" not in scan and scan.count("mul") == 3


def test_what_is_no_larger_than_its_parts_is_written():
    y = recurrent.linear_scan(t.mul(QUERY, QUERY), QUERY, column(X), column(STEP))
    assert next(f for f in kernels(y) if "linear_scan" in f) == ["linear_scan"]
