"""Counts of tokens become scans, where they are exact."""

from __future__ import annotations

import pytest
from check import check_pass
from ferrule.ir.dims import dim
from ferrule.ir.graph import Graph
from ferrule.ir.node import Node, input_
from ferrule.ir.ops import tensor as t
from ferrule.ir.types import TensorType
from ferrule.passes.raise_counts import RaiseCounts, bound

B, S = dim("B"), dim("S")
IDS = input_(name="ids", type=TensorType("i64", (B, S)))
REAL = t.ne(IDS, t.scalar(1, "i64"))
BEFORE = """
graph m(%ids: i64[B, S]) where B in [1, 3], S in [1, 9] {
  %0 = constant {value = 1, dtype = "i64"} : i64[]
  %1 = ne %ids %0 : bool[B, S]
  %2 = cast %1 {dtype = "i64"} : i64[B, S]
  %3 = cumsum %2 {axis = 1} : i64[B, S]
  return %3 as y
}
"""


def graph(node: Node, longest: int = 9) -> Graph:
    return Graph("m", (IDS,), (node,), ("y",), {"B": (1, 3), "S": (1, longest)})


def ops(found: Graph) -> list[str]:
    return [n.op.name for n in found.nodes()]


def test_positions_without_padding_are_a_scan():
    found = check_pass(RaiseCounts(), BEFORE, ranges={"ids": (0, 3)})
    assert "linear_scan" in ops(found) and "cumsum" not in ops(found)
    (scan,) = (n for n in found.nodes() if n.op.name == "linear_scan")
    assert scan.shape == (B, S, 1, 1) and scan.dtype == "f32"


def test_counts_of_several_things_are_one_scan():
    classes = t.reshape(IDS, shape=(B, S, 1))
    each = t.cast(t.eq(classes, t.iota(size=3, dtype="i64")), dtype="i64")
    found = check_pass(RaiseCounts(), graph(t.cumsum(each, axis=1)), ranges={"ids": (0, 3)})
    (scan,) = (n for n in found.nodes() if n.op.name == "linear_scan")
    assert scan.shape == (B, S, 1, 3) and "cumsum" not in ops(found)


@pytest.mark.parametrize(
    "kept",
    [
        t.cumsum(IDS, axis=1),  # token ids have no bound
        t.cumsum(t.cast(REAL, dtype="i64"), axis=0),  # over the batch
        t.cumsum(t.cast(REAL, dtype="f32"), axis=1),
        t.cumsum(t.broadcast(t.scalar(1, "i64"), shape=(B, S)), axis=1),  # of positions alone
    ],
)
def test_what_is_no_count_stays(kept: Node):
    before = graph(t.add(t.cast(IDS, dtype=kept.dtype), kept))
    assert RaiseCounts().run(before) is before


def test_sums_that_float32_does_not_hold_stay():
    count = t.cumsum(t.mul(t.cast(REAL, dtype="i64"), t.scalar(1 << 14, "i64")), axis=1)
    assert "linear_scan" in ops(RaiseCounts().run(graph(count, longest=1023)))
    assert "linear_scan" not in ops(RaiseCounts().run(graph(count, longest=1024)))


def test_bounds():
    one = t.cast(REAL, dtype="i32")
    assert bound(one) == 1 and bound(t.neg(one)) == 1
    assert bound(t.add(one, t.scalar(-4, "i32"))) == 5
    assert bound(t.where(REAL, t.scalar(7, "i64"), t.scalar(-9, "i64"))) == 9
    assert bound(IDS) is None and bound(t.add(IDS, t.scalar(1, "i64"))) is None
    assert bound(t.cast(t.cast(REAL, dtype="f32"), dtype="i64")) is None
