"""Axes as factors: regrouping, merging, permuting, aligning."""

from __future__ import annotations

import pytest
from ferrule.ir.node import input_
from ferrule.ir.types import TensorType
from ferrule.passes.token_values import (
    B,
    MixesTokensError,
    S,
    T,
    TokenValue,
    aligned_constant,
    common_axes,
    merged,
    permuted,
    regroup,
    spread,
)


def value(*axes: tuple) -> TokenValue:
    """A value with these axes over a fresh input."""
    numbers = [f for axis in axes for f in axis if f not in (B, S)]
    return TokenValue(input_(name="x", type=TensorType("f32", (T, *numbers))), axes)


def test_regroup_splits_and_joins_numbers_and_keeps_tokens_whole():
    x = value((B,), (S,), (24,))
    split = regroup(x, (B, S, 4, 6), "reshape")
    assert split.axes == ((B,), (S,), (4,), (6,))
    assert split.node.shape == (T, 4, 6)
    flat = regroup(split, (B * S, 24), "reshape")
    assert flat.axes == ((B, S), (24,))
    assert regroup(flat, (B * S * 4, 6), "reshape").axes == ((B, S, 4), (6,))
    assert regroup(flat, (B, 1, S, 1, 24), "reshape").axes == ((B,), (), (S,), (), (24,))


def test_permuting_batch_and_length_moves_nothing():
    x = value((B,), (S,), (4,), (6,))
    heads_first = permuted(x, (0, 2, 1, 3))
    assert heads_first.node is x.node
    assert heads_first.axes == ((B,), (4,), (S,), (6,))
    assert permuted(x, (0, 1, 3, 2)).node.shape == (T, 6, 4)


def test_regroup_refuses_to_cut_batch_or_length():
    with pytest.raises(MixesTokensError, match="do not stay whole"):
        regroup(value((B,), (S,), (24,)), (2, B * S * 12), "reshape")


def test_merging_an_axis_of_one_gives_it_a_stored_dim():
    assert merged(value((B,), (), (S,), (6,)), 1).node.shape == (T, 1, 6)


def test_common_axes_take_the_finer_factors():
    a, b = value((B,), (S,), (24,)), value((B,), (S,), (4, 6))
    assert common_axes([a, b], [], "add") == ((B,), (S,), (4, 6))
    assert common_axes([a], [(24,)], "add") == ((B,), (S,), (24,))
    with pytest.raises(MixesTokensError, match="different tokens meet"):
        common_axes([value((B,), (S,)), value((S,), (B,))], [], "add")
    with pytest.raises(MixesTokensError, match="compares the tokens"):
        common_axes([value((B,), (S,), ()), value((B,), (), (S,))], [], "sub")


def test_constants_align_behind_the_token_axis():
    c = input_(name="c", type=TensorType("f32", (1, 1, 24)))
    assert aligned_constant(c, ((B,), (S,), (24,)), "add").shape == (24,)
    assert aligned_constant(c, ((B,), (S,), (4, 6)), "add").shape == (4, 6)
    with pytest.raises(MixesTokensError, match="own constant"):
        aligned_constant(input_(name="c", type=TensorType("f32", (5, 1))), ((S,), (24,)), "add")


def test_spread_repeats_numbers():
    assert spread(value((B,), (S,), ()), ((B,), (S,), (3,))).node.shape == (T, 3)
