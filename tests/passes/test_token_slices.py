"""One token's part of a value is its slice, made of the parts of what the value is made of."""

from __future__ import annotations

import pytest
import torch
from ferrule.compiler.reference import evaluate
from ferrule.ir.dims import Dim, dim, substitute
from ferrule.ir.graph import Graph
from ferrule.ir.node import Node, input_, walk
from ferrule.ir.ops import tensor as t
from ferrule.ir.types import TensorType
from ferrule.passes.token_slices import TokenSlices

L = dim("L")
COUNT = 5


def values(name: str, *shape: Dim) -> Node:
    return input_(name=name, type=TensorType("f32", shape))


def sliced(node: Node, axis: int, place: Dim) -> Node:
    slices = TokenSlices()
    return slices.of(slices.at(node, axis, place))


def check(node: Node, axis: int, place: Dim = L - 1, length: int = COUNT) -> list[str]:
    """The part of a node has its slice's values; the ops that it is made of, inputs first."""
    part = sliced(node, axis, place)
    whole = t.slice_(node, axis=axis, start=place, stop=place + 1)
    inputs = tuple(n for n in walk((node,)) if n.op.name == "input")
    graph = Graph("m", inputs, (part, whole), bounds={"L": (1, 9)})
    torch.manual_seed(0)
    sizes = [[substitute(d, {"L": length}) for d in i.shape] for i in inputs]
    given = {i["name"]: torch.randn(*size) for i, size in zip(inputs, sizes, strict=True)}
    made, wanted = evaluate(graph, given, {}, {"L": length})
    torch.testing.assert_close(made, wanted)
    return [n.op.name for n in walk((part,))]


def is_first(ops: list[str], name: str) -> bool:
    """Whether nothing but slices comes between the inputs and an op."""
    moves = {"input", "slice", "iota", "dim_value", "reshape", "broadcast"}
    return set(ops[: ops.index(name)]) <= moves


def places(*shape: Dim) -> Node:
    return t.broadcast(t.iota(size=L, dtype="i64"), shape=shape)


@pytest.mark.parametrize("axis", [1, 2])
def test_elements_by_index(axis: int):
    node = t.take_along(values("x", 1, L, L), places(1, L, L), axis=axis)
    assert is_first(check(node, 1), "take_along")


def test_rows_of_a_product_have_all_that_is_summed_over():
    node = t.matmul(values("x", 1, 3, 2), values("y", 1, 2, 4))
    assert is_first(check(node, 1, 2), "matmul")


def test_slices_of_what_has_no_rule_come_to_an_end():
    node = t.flip(values("x", 1, L, 3, 4), axes=(1, 2))
    one = t.slice_(node, axis=2, start=1, stop=2)
    assert check(one, 1).count("slice") == 2
    assert check(t.slice_(node, axis=1, start=L - 1, stop=L), 2, 0).count("slice") == 2


@pytest.mark.parametrize("behind", [0, 1, 3])
def test_scores_that_are_shifted_by_their_distance(behind: int):
    """[S, S + n] read as [S + n, S], without its first n rows, as [S, S]."""
    wide: Dim = L + behind
    scores = t.matmul(values("x", 1, L, 3), values("y", 1, 3, wide))
    if behind:
        flat = t.reshape(scores, shape=(1, wide, L))
        rest = t.slice_(flat, axis=1, start=behind, stop=wide)
        shifted = t.reshape(rest, shape=(1, L, L))
    else:
        shifted = t.reshape(t.reshape(scores, shape=(L, L)), shape=(1, L, L))
    # A row of the scores comes of one query, not of all.
    assert check(shifted, 1)[:3] == ["input", "slice", "input"]


def test_a_row_that_lies_in_no_one_row_is_cut_behind():
    scores = t.matmul(values("x", 1, L, 3), values("y", 1, 3, 2 * L))
    halves = t.reshape(scores, shape=(1, 2 * L, L))
    assert check(halves, 1)[:3] == ["input", "input", "matmul"]
