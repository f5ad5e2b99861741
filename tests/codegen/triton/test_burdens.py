"""Burdens: what padding, idle processors and partial sums make of a choice."""

from __future__ import annotations

import pytest
from cross_compiled import target_of
from ferrule.codegen.space import Burden, Choice
from ferrule.codegen.triton.burdens import linear_burden, splits_burden, tokens_burden
from ferrule.ir.errors import IRError
from ferrule.ir.target import Target

HOPPER = target_of("sm_90")


def chosen(**values: int) -> Choice:
    return Choice.of(values)


def test_whole_waves_of_whole_tiles_cost_nothing_more() -> None:
    burden = linear_burden(HOPPER, 132 * 64, 4096)
    assert burden(chosen(BM=128, BN=64), 256) == Burden(1.0, 1.0)


def test_rows_that_are_not_there_are_multiplied_all_the_same() -> None:
    burden = linear_burden(HOPPER, 132 * 64, 4096)
    assert burden(chosen(BM=128, BN=64), 64).operations == 2.0


def test_few_programs_leave_processors_idle_and_splits_cost_memory() -> None:
    burden = linear_burden(HOPPER, 33 * 64, 4096)
    whole, split = (burden(chosen(BM=16, BN=64, SPLIT=s), 16) for s in (1, 4))
    assert whole == Burden(4.0, 4.0)
    assert split == Burden(1.0 + 8 * 4 * 16 / (4096 * 2), 1.0)


def test_a_row_by_itself() -> None:
    assert linear_burden(HOPPER, 4096, 4096, parts=2)(chosen(BN=4), 1).bytes == 1.0


def test_heads_of_a_group_read_its_keys_together() -> None:
    burden = splits_burden(HOPPER, 1, 128)
    few, many = (burden(chosen(HEADS=h, SPLITS=33), 32) for h in (16, 64))
    assert (few.bytes, many.bytes) == (8.0, 2.0)
    assert splits_burden(HOPPER, 8, 4)(chosen(HEADS=16, SPLITS=66), 2).operations == 4.0


def test_wider_tiles_of_tokens_read_keys_less_often() -> None:
    burden = tokens_burden(HOPPER, 8, 4)
    assert [burden(chosen(ROWS=r), 1024).bytes for r in (64, 128)] == [64.0, 32.0]


def test_an_architecture_without_a_figure_is_refused() -> None:
    with pytest.raises(IRError, match="no processors known of cuda:sm_1"):
        linear_burden(Target("cuda", "sm_1"), 64, 64)
