"""Linears of few columns: products and sums that rows take in, the same values."""

from __future__ import annotations

import pytest
from check import check_pass
from ferrule.codegen.backend import cpu_backend, gpu_backend
from ferrule.ir.dims import dim
from ferrule.ir.graph import Graph
from ferrule.ir.node import Node, input_
from ferrule.ir.ops import model
from ferrule.ir.ops import tensor as t
from ferrule.ir.target import Target
from ferrule.ir.types import TensorType
from ferrule.passes.few_columns import FewColumns
from ferrule.passes.group_kernels import GroupKernels
from ferrule.passes.layout_weights import LayoutWeights
from ferrule.passes.split_preparation import split_preparation

B, S = dim("B"), dim("S")
CPU = cpu_backend(Target.parse("cpu:znver4"))


def given(name: str, dtype: str, *shape: object) -> Node:
    return input_(name=name, type=TensorType(dtype, tuple(shape)))  # pyright: ignore[reportArgumentType]


def linear(n: int, k: int, dtype: str = "f32", *, bias: bool = False) -> Graph:
    x, w, b = given("x", dtype, B, S, k), given("w", dtype, n, k), given("b", dtype, n)
    inputs = (x, w, b) if bias else (x, w)
    return Graph("main", inputs, (model.linear(*inputs),), bounds={"B": (1, 4), "S": (1, 16)})


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f64"])
@pytest.mark.parametrize("n, k, bias", [(4, 33, False), (1, 20, True), (17, 3, True)])
def test_few_columns_are_products_and_sums(n: int, k: int, bias: bool, dtype: str) -> None:
    after = check_pass(FewColumns(4), linear(n, k, dtype, bias=bias))
    assert "reduce_sum" in {node.op.name for node in after.nodes()}
    assert all(node.op.name != "linear" for node in after.nodes())


@pytest.mark.parametrize("n, k", [(5, 33), (65, 4), (4, 5000)])
def test_more_are_left_to_linears(n: int, k: int) -> None:
    graph = linear(n, k)
    assert FewColumns(4).run(graph) is graph


def test_a_backend_says_how_many_are_few() -> None:
    assert CPU.few_columns and not gpu_backend(Target.parse("cuda:sm_90")).few_columns
    assert FewColumns(0).run(linear(1, 8)).nodes() == linear(1, 8).nodes()


def test_rows_gather_them_beside_what_reads_them() -> None:
    """A norm, a gate of four numbers made of it, and what the gate weighs: one kernel."""
    x, u, r = given("x", "f32", S, 32), given("u", "f32", 4, 32), given("r", "f32", S, 4, 32)
    gate = t.tanh(model.linear(model.rms_norm(x, eps=1e-6), u))
    mixed = t.reduce_sum(t.mul(t.reshape(gate, shape=(S, 4, 1)), r), axes=(1,))
    graph = Graph("main", (x, u, r), (mixed,), bounds={"S": (1, 16)})
    for few, count in ((4, 1), (0, 3)):
        laid = LayoutWeights(CPU.layouts).run(FewColumns(few).run(graph))
        kernels = GroupKernels(CPU.templates).run(split_preparation(laid).step)
        assert sum(n.op.name == "kernel" for n in kernels.nodes()) == count
