"""Kernels of a deterministic target, and linears of any without AMX: a row's value is the same, to
the last bit, beside any number of rows, and wherever its sequence is cut into steps.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from ferrule.codegen.backend import cpu_backend
from ferrule.codegen.tvm.isa import isa_of
from ferrule.ir.dims import dim
from ferrule.ir.graph import Graph
from ferrule.ir.ops import quantized as ops
from ferrule.ir.ops import serving
from ferrule.ir.target import Target
from ferrule.passes.layout_codes import PackedCodes
from ferrule.passes.quantize import Format
from kernels import Kernels, T, cache, drawn, given

N, K, ROWS = 96, 777, 48
HEADS, LENGTH, BLOCK = 8, 300, 16
TARGETS = ["cpu", "cpu:x86-64-v4", "cpu:x86-64-v3"]


def deterministic(text: str) -> Target:
    target = replace(Target.parse(text), deterministic=True)
    if target.missing_on(Target.parse("cpu")):
        pytest.skip(f"the machine is no {text}")
    return target


def linear(target: Target, dtype: str) -> Graph:
    layout = cpu_backend(target).layouts[dtype]
    packed = layout.packed(given("w", dtype, N, K))
    x, w = given("x", dtype, T, K), given("p", dtype, *packed.shape)
    return Graph("linear", (x, w), (serving.packed_linear(x, w, n=N, layout=layout.word),))


@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize("text", TARGETS)
def test_rows_do_not_depend_on_their_number(text: str, *, asked: bool) -> None:
    target = replace(deterministic(text), deterministic=asked)
    if not isa_of(target).sums_in_order:
        pytest.skip("AMX sums in an order of its own unless it is asked not to")
    library = Kernels(target, {d: linear(target, d) for d in ("f32", "bf16")})
    for name, body in library.bodies.items():
        shapes = {"x": (ROWS, K), "p": body.inputs[1].shape}
        x, w = (drawn(name, shapes[i["name"]]) for i in body.inputs)
        rows = [library.run(name, [x[r : r + 1], w], [(1, N)])[0] for r in range(ROWS)]
        for count in (2, 4, 5, 8, 17, 19, 40, 48):
            (many,) = library.run(name, [x[:count], w], [(count, N)])
            assert torch.equal(many, torch.cat(rows[:count])), f"{name}: {count} rows"


QUANTIZED = ("int8", "int4-g32", "int4-g64-asym", "int8-g64")


def quantized(target: Target, text: str, dtype: str) -> Graph:
    form = Format.parse(text)
    x = given("x", dtype, T, K)
    codes, scale, zeros = form.quantized(given("w", "f32", N, K))
    more = () if zeros is None else (zeros,)
    plain = ops.quantized_linear(x, codes, scale, *more, offset=form.offset)
    backend = cpu_backend(target)
    packed = PackedCodes.of(codes, scale, backend.layouts[codes.dtype], zeros)
    weights = [packed.codes, packed.scale, *(() if zeros is None else (packed.zeros,))]
    q, s, *z = (given(f"p{i}", w.dtype, *w.shape) for i, w in enumerate(weights))
    y = PackedCodes(q, s, packed.layout, *z).linear(plain, integer=backend.integer_dots)
    return Graph("quantized", (x, q, s, *z), (y,))


@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("text", TARGETS)
def test_rows_of_quantized_weights_do_not_depend_on_their_number(
    text: str, dtype: str, *, asked: bool
) -> None:
    target = replace(deterministic(text), deterministic=asked)
    if not isa_of(target).sums_in_order:
        pytest.skip("AMX sums in an order of its own unless it is asked not to")
    bodies = {f.replace("-", "_"): quantized(target, f, dtype) for f in QUANTIZED}
    library = Kernels(target, bodies)
    for name, body in bodies.items():
        x = drawn(dtype, (ROWS, K))
        packed = [drawn(i.dtype, tuple(int(d) for d in i.shape)) for i in body.inputs[1:]]
        packed[2:] = [zeros % 16 for zeros in packed[2:]]  # of codes of four bits
        rows = [library.run(name, [x[r : r + 1], *packed], [(1, N)])[0] for r in range(ROWS)]
        for count in (2, 5, 16, 17, 33, 48):
            (many,) = library.run(name, [x[:count], *packed], [(count, N)])
            assert torch.equal(many, torch.cat(rows[:count])), f"{name}: {count} rows"


def attention(dtype: str, groups: int, width: int, window: int) -> Graph:
    q, n = given("q", dtype, T, HEADS, width), dim("N")
    caches = [cache(name, dtype, groups, width, block=BLOCK) for name in ("k", "v")]
    shapes = {"table": (n, dim("M")), "starts": (n + 1,), "lengths": (n,)}
    batch = tuple(given(name, "i32", *shape) for name, shape in shapes.items())
    options = {"scale": width**-0.5, "value_size": width, "window": window}
    y = serving.paged_attention(q, *caches, *batch, **options)
    return Graph("attention", (q, *caches, *batch), (y,))


CASES = {
    "f32": ("f32", 2, 20, 0),
    "bf16": ("bf16", 2, 64, 0),
    "bf16_many_groups": ("bf16", 8, 96, 0),
    "bf16_window": ("bf16", 4, 32, 70),
}


@pytest.mark.parametrize("text", TARGETS)
def test_tokens_do_not_depend_on_the_steps_they_come_in(text: str) -> None:
    library = Kernels(deterministic(text), {n: attention(*case) for n, case in CASES.items()})
    blocks = -(-LENGTH // BLOCK)
    for name, (dtype, groups, width, _) in CASES.items():
        q = drawn(dtype, (LENGTH, HEADS, width))
        pages = [drawn(dtype, (2 * blocks, BLOCK, groups, width)) for _ in range(2)]
        table = torch.randperm(2 * blocks).reshape(2, blocks).int()

        def step(*spans: tuple[int, int], name: str = name) -> list[torch.Tensor]:
            """The values of tokens begin to end of a first sequence, and of a second."""
            counts = torch.tensor([0, *(end - begin for begin, end in spans)])
            tokens = torch.cat([q[begin:end] for begin, end in spans])  # noqa: B023
            lengths = torch.tensor([end for _, end in spans]).int()
            batch = [table[: len(spans)], counts.cumsum(0).int(), lengths]  # noqa: B023
            (y,) = library.run(name, [tokens, *pages, *batch], [tuple(tokens.shape)])  # noqa: B023
            return list(y.split(counts[1:].tolist()))

        (whole,) = step((0, LENGTH))
        other = step((0, 5), (0, LENGTH))[1]
        for begin, end in ((0, 1), (30, 31), (31, 33), (100, 257), (256, 257), (299, LENGTH)):
            assert torch.equal(step((begin, end))[0], whole[begin:end]), f"{name}: {begin}, {end}"
            both = step((7, 8), (begin, end))
            assert torch.equal(both[1], other[begin:end]), f"{name}: {begin}, {end} beside one"
            assert torch.equal(both[0], whole[7:8]), f"{name}: one beside {begin}, {end}"
