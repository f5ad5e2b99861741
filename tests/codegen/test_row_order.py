"""Kernels of a deterministic target: a row's linear is the same, to the last bit, beside any number
of rows.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from ferrule.codegen.backend import cpu_backend
from ferrule.ir.graph import Graph
from ferrule.ir.ops import serving
from ferrule.ir.target import Target
from kernels import Kernels, T, drawn, given

N, K, ROWS = 96, 777, 48


def linear(target: Target, dtype: str) -> Graph:
    layout = cpu_backend(target).layouts[dtype]
    packed = layout.packed(given("w", dtype, N, K))
    x, w = given("x", dtype, T, K), given("p", dtype, *packed.shape)
    return Graph("linear", (x, w), (serving.packed_linear(x, w, n=N, layout=layout.word),))


@pytest.mark.parametrize("text", ["cpu", "cpu:x86-64-v4", "cpu:x86-64-v3"])
def test_rows_do_not_depend_on_their_number(text: str) -> None:
    target = replace(Target.parse(text), deterministic=True)
    if target.missing_on(Target.parse("cpu")):
        pytest.skip(f"the machine is no {text}")
    library = Kernels(target, {d: linear(target, d) for d in ("f32", "bf16")})
    for name, body in library.bodies.items():
        x, w = (drawn(name, (ROWS, *i.shape[1:]) if i["name"] == "x" else i.shape)
                for i in body.inputs)  # fmt: skip
        rows = [library.run(name, [x[r : r + 1], w], [(1, N)])[0] for r in range(ROWS)]
        for count in (2, 4, 5, 8, 17, 19, 40, 48):
            (many,) = library.run(name, [x[:count], w], [(count, N)])
            assert torch.equal(many, torch.cat(rows[:count])), f"{name}: {count} rows"
