"""Bytes to the byte and operations to the operation, for kernels whose costs are known."""

from __future__ import annotations

import pytest
from ferrule.codegen.cost import cost_of
from ferrule.codegen.needed import needed_elements
from ferrule.codegen.visible import Mask, pairs_doubled, span
from ferrule.ir.dims import Dim, dim, substitute
from ferrule.ir.graph import Graph
from ferrule.ir.node import Node, item
from ferrule.ir.ops import model, quantized, recurrent, serving
from ferrule.ir.ops import tensor as t
from kernels import T, cache, given, state

N, M, L = dim("N"), dim("M"), dim("L")


def body(*inputs_and_output: Node) -> Graph:
    *inputs, output = inputs_and_output
    return Graph("g", tuple(inputs), (output,))


def test_of_a_table_the_rows_taken_are_read() -> None:
    table, ids = given("table", "bf16", 1000, 64), given("ids", "i32", T)
    cost = cost_of(body(table, ids, t.take(table, ids, axis=0)))
    assert cost.reads == (T * 128, T * 4)
    assert (cost.bytes_written, cost.operations) == (T * 128, 0)


def test_of_a_packed_table_the_codes_and_scales_of_the_rows_taken_are_read() -> None:
    """Rows lie across the columns of a layout, and are widened and scaled behind the lookup."""
    codes, scale = given("q", "u4", 50, 8, 16, 4, 2), given("s", "f32", 50, 2, 16)
    ids = given("ids", "i32", T)
    flat = t.reshape(t.transpose(codes, permutation=(0, 2, 1, 4, 3)), shape=(800, 2, 32))
    scales = t.reshape(t.transpose(scale, permutation=(0, 2, 1)), shape=(800, 2))
    taken = t.sub(
        t.cast(t.take(flat, ids, axis=0), dtype="f32"), t.constant(value=8.0, dtype="f32")
    )
    factor = t.reshape(t.take(scales, ids, axis=0), shape=(T, 2, 1))
    cost = cost_of(body(codes, scale, ids, t.mul(taken, factor)))
    assert cost.reads == (T * 32, T * 8, T * 4)
    assert cost.bytes_written == T * 64 * 4


def test_a_table_that_something_else_reads_too_is_read_whole() -> None:
    table, ids = given("table", "f32", 10, 4), given("ids", "i32", T)
    taken, summed = t.take(table, ids, axis=0), t.reduce_sum(table, axes=(0,))
    cost = cost_of(body(table, ids, t.add(taken, summed)))
    assert cost.reads == (10 * 4 * 4, T * 4)


def test_of_what_is_sliced_the_slice_is_read() -> None:
    x = given("x", "f32", T, 96)
    low = t.slice_(x, axis=1, start=0, stop=32)
    assert cost_of(body(x, t.neg(low))).reads == (T * 32 * 4,)
    halves = [t.slice_(x, axis=1, start=i * 48, stop=i * 48 + 48) for i in (0, 1)]
    assert needed_elements(body(x, t.add(*halves)))[x] == T * 96
    twice = [t.slice_(x, axis=1, start=i, stop=i + 64) for i in (0, 1)]
    assert needed_elements(body(x, t.add(*twice)))[x] == T * 96


def test_packed_weights_are_read_with_their_padding_and_scales() -> None:
    x, x_scale = given("x", "i8", T, 4, 32), given("xs", "f32", T, 4)
    codes, scale = given("q", "u4", 3, 16, 16, 4, 2), given("s", "f32", 3, 4, 16)
    y = quantized.packed_integer_linear(
        x, x_scale, codes, scale, n=40, offset=8, layout="n16k4x2", dtype="bf16"
    )
    cost = cost_of(body(x, x_scale, codes, scale, t.relu(y)))
    assert cost.reads == (T * 128, T * 16, 48 * 128 // 2, 48 * 4 * 4)
    assert cost.by_dtype == {"i8": 2 * T * 40 * 128, "f32": T * 40}
    assert cost.bytes_written == T * 40 * 2


def test_a_linear_multiplies_in_the_dtype_of_what_it_reads() -> None:
    x, w = given("x", "bf16", T, 32), given("w", "bf16", 2, 16, 16, 2)
    cost = cost_of(body(x, w, serving.packed_linear(x, w, n=30, layout="n16k2")))
    assert cost.by_dtype == {"bf16": 2 * T * 30 * 32}
    assert cost.reads == (T * 64, 2 * 16 * 16 * 2 * 2)


@pytest.mark.parametrize(("rows", "experts"), [(1, 1), (3, 3), (40, 8)])
def test_of_experts_those_that_rows_name_are_read(rows: int, experts: int) -> None:
    x, w, index = given("x", "f32", T, 16), given("w", "f32", 8, 4, 16), given("i", "i32", T)
    cost = cost_of(body(x, w, index, model.expert_linear(x, w, index)))
    reads = [substitute(d, {"T": rows}) for d in cost.reads]
    assert reads == [rows * 64, experts * 4 * 16 * 4, rows * 4]
    assert cost.operations == 2 * T * 4 * 16


def paged(window: int = 0) -> Graph:
    q = given("q", "bf16", T, 6, 8)
    k, v = cache("k", "bf16", 2, 8), cache("v", "bf16", 2, 8)
    table, start = given("table", "i32", N, M), given("start", "i32", N + 1)
    length = given("length", "i32", N)
    y = serving.paged_attention(
        q, k, v, table, start, length, scale=1.0, window=window, value_size=8
    )
    return body(q, k, v, table, start, length, y)


def test_of_a_cache_the_tokens_that_are_seen_are_read() -> None:
    cost = cost_of(paged())
    at = {"T": 3, "N": 3, "M": 7, "L": 100}
    reads = [substitute(d, at) for d in cost.reads]
    assert reads == [3 * 96, 3 * 100 * 32, 3 * 100 * 32, 3 * 7 * 4, 4 * 4, 3 * 4]
    # A query, 6 heads of 8, meets 100 keys and 100 values.
    assert substitute(cost.by_dtype["bf16"], at) == 3 * 6 * 100 * 8 * 2 * 2
    windowed = cost_of(paged(window=10))
    assert substitute(windowed.reads[1], at) == 3 * 10 * 32
    assert substitute(windowed.by_dtype["bf16"], at) == 3 * 6 * 10 * 8 * 2 * 2


def test_a_prompt_sees_half_of_its_square() -> None:
    at = {"T": 64, "N": 1, "L": 64}
    operations = substitute(cost_of(paged()).by_dtype["bf16"], at)
    assert operations == 6 * (64 * 65 // 2) * 8 * 2 * 2


def counted(mask: Mask, length: int, queries: int) -> tuple[int, int]:
    """Visible pairs twice and keys, one by one."""
    visible = [
        (i, j)
        for i in range(length - queries, length)
        for j in range(length)
        if (not mask.causal or j <= i)
        and (not mask.window or abs(i - j) < mask.window)
        and (not mask.chunk or i // mask.chunk == j // mask.chunk)
    ]
    return 2 * len(visible), len({j for _, j in visible})


@pytest.mark.parametrize(
    "mask",
    [
        *(Mask(True, 0, 0), Mask(False, 0, 0), Mask(True, 5, 0), Mask(True, 0, 4)),
        *(Mask(False, 3, 0), Mask(False, 1, 0)),
    ],
)
def test_formulas_of_masks_count_what_is_visible(mask: Mask) -> None:
    both: tuple[Dim, Dim] = pairs_doubled(mask, L, T // N), span(mask, L, T // N)
    for length in range(1, 12):
        for queries in range(1, length + 1):
            at = {"L": length, "T": 2 * queries, "N": 2}
            wanted = counted(mask, length, queries)
            assert tuple(substitute(d, at) for d in both) == wanted, at
            assert (pairs_doubled(mask, length, queries), span(mask, length, queries)) == wanted


def test_caches_are_written_one_entry_a_token() -> None:
    kept, value, slots = cache("k", "i8", 2, 8), given("v", "i8", T, 2, 8), given("s", "i32", T)
    cost = cost_of(body(kept, value, slots, serving.cache_append(kept, value, slots)))
    assert (cost.reads, cost.bytes_written) == ((0, T * 16, T * 4), T * 16)


def test_states_are_read_and_written_once_a_sequence_whatever_the_tokens() -> None:
    places = [given(n, "i32", d) for n, d in (("s", N + 1), ("f", N), ("t", N))]
    x, w, rows = given("x", "bf16", T, 64), given("w", "bf16", 4, 64), state("c", "bf16", 3, 64)
    made = recurrent.state_conv(x, w, rows, *places)
    inputs = (x, w, rows, *places)
    cost = cost_of(Graph("g", inputs, (item(made, index=0), item(made, index=1))))
    assert cost.reads[:3] == (T * 128, 4 * 128, N * 3 * 128)
    assert cost.bytes_written == T * 128 + N * 3 * 128
    assert cost.operations == 2 * 4 * 64 * T
    q, k = (given(n, "f32", T, 2, 8) for n in "qk")
    v, g, b = given("v", "f32", T, 4, 16), given("g", "f32", T, 4, 1), given("b", "f32", T, 4)
    held = state("h", "f32", 4, 8, 16)
    for beta, each in (((), 4), ((b,), 6)):
        made = recurrent.state_scan(q, k, v, g, held, *places, *beta)
        inputs = (q, k, v, g, held, *places, *beta)
        cost = cost_of(Graph("g", inputs, (item(made, index=0), item(made, index=1))))
        assert cost.reads[4] == N * 4 * 4 * 8 * 16
        assert cost.operations == each * 4 * 8 * 16 * T
