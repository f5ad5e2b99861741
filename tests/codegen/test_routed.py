"""Expert linears with rows of one expert together: any split of rows over experts, epilogues over
several results, rows that choices share.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from ferrule.codegen.backend import Layout
from ferrule.ir.graph import Graph
from ferrule.ir.node import Node
from ferrule.ir.ops import serving
from ferrule.ir.ops import tensor as t
from ferrule.ir.target import Target
from kernels import Kernels, T, given

EXPERTS, CHOICES = 7, 3


def weight(name: str, dtype: str, layout: str, n: int, k: int) -> Node:
    packed = Layout.parse(layout).packed(given(name, dtype, EXPERTS, n, k))
    return given(name, dtype, *packed.shape)


def gated(dtype: str, layout: str, width: int) -> Graph:
    """silu(gate) up, weighed, of rows that all choices of a token share."""
    x, index = given("x", dtype, T, 1, 37), given("index", "i64", T, CHOICES)
    w, share = weight("w", dtype, layout, 2 * width, 37), given("share", dtype, T, CHOICES, 1)
    rows = t.broadcast(x, shape=(T, CHOICES, 37))
    y = serving.packed_expert_linear(rows, w, index, n=2 * width, layout=layout)
    gate, up = (t.slice_(y, axis=2, start=a, stop=a + width) for a in (0, width))
    return Graph("gated", (x, index, w, share), (t.mul(t.mul(t.silu(gate), up), share),))


def biased(dtype: str, layout: str) -> Graph:
    """Flat rows, columns that are no whole number of vectors, a bias."""
    x, index = given("x", dtype, T, 50), given("index", "i32", T)
    w, b = weight("w", dtype, layout, 90, 50), given("b", dtype, EXPERTS, 90)
    y = serving.packed_expert_linear(x, w, index, b, n=90, layout=layout)
    return Graph("biased", (x, index, w, b), (y,))


KINDS = {"f32": ("f32", "n16"), "bf16": ("bf16", "n16"), "f64": ("f64", "n16")}
BODIES = {
    **{f"gated_{k}": gated(*kind, 48) for k, kind in KINDS.items() if k != "f64"},
    "uneven": gated("f32", "n16", 21),
    "turns": gated("bf16", "n16s2", 48),
    **{f"biased_{k}": biased(*kind) for k, kind in KINDS.items()},
}


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    return Kernels("cpu", BODIES)


def below(count: int) -> Callable[[tuple[int, ...]], torch.Tensor]:
    return lambda shape: torch.randint(0, count, shape)


@pytest.mark.parametrize("name", BODIES)
def test_values(kernels: Kernels, name: str) -> None:
    for rows in (1, 4, 61, 301):
        kernels.check(name, {"index": below(EXPERTS)}, T=rows)
    # All to one expert, the first or the last; and to a few of them.
    for index in (torch.zeros, lambda s: torch.full(s, EXPERTS - 1), lambda s: 5 * below(2)(s)):
        kernels.check(name, {"index": index}, T=19)


def test_a_row_does_not_depend_on_what_it_is_computed_with() -> None:
    target = replace(Target.parse("cpu"), deterministic=True)
    kernels = Kernels(target, {"gated": gated("f32", "n16", 48)})
    x, index = torch.randn(40, 1, 37), torch.randint(0, EXPERTS, (40, CHOICES))
    more = [torch.randn(EXPERTS, 6, 37, 16), torch.randn(40, CHOICES, 1)]
    whole = kernels.run("gated", [x, index, *more], [(40, CHOICES, 48)])[0]
    for rows in (slice(3, 4), slice(10, 17)):
        part = kernels.run(
            "gated",
            [x[rows], index[rows], more[0], more[1][rows]],
            [(rows.stop - rows.start, CHOICES, 48)],
        )[0]
        assert torch.equal(part, whole[rows])
