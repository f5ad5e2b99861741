"""Candidates of a linear: which templates serve how many rows, and what the model takes."""

from __future__ import annotations

import pytest
from cross_compiled import TARGETS, target_of
from ferrule.codegen.triton.candidates import (
    LADDER,
    Problem,
    choices,
    default,
    template_of,
    templates,
    work,
)
from ferrule.codegen.triton.tiles import Sizes

HOPPER = target_of("sm_90")
PROBLEMS = {
    "wide": Problem(28672, 4096, parts=2),
    "odd": Problem(37, 45, item=4),
    "codes": Problem(4096, 4096, bits=4, group=128),
    "codes in small groups": Problem(512, 96, bits=4, group=24, zeros=True),
    "codes of a row": Problem(100, 40, bits=8, group=40),
}


@pytest.mark.parametrize("arch", list(TARGETS))
@pytest.mark.parametrize("name", list(PROBLEMS))
def test_what_is_taken_is_a_choice_that_fits(name: str, arch: str) -> None:
    problem, target = PROBLEMS[name], target_of(arch)
    for rows in (*LADDER, None):
        template, values = template_of(default(problem, rows, 2048, target))
        tiles = templates(problem, rows, target)[template]
        known = list(choices(template, tiles, problem, target, all_=True))
        assert values in [dict(c.values) for c in known]
        assert all(tiles.fits(c, target, Sizes(problem.item, problem.parts)) for c in known)


def test_nothing_that_serves_is_cheaper_by_the_model() -> None:
    problem = PROBLEMS["wide"]
    for rows in (*LADDER, None):
        name, _ = template_of(default(problem, rows, 512, HOPPER))
        costs = {
            n: min(work(n, c, problem, rows or 512, HOPPER) for c in choices(n, t, problem, HOPPER))
            for n, t in templates(problem, rows, HOPPER).items()
        }
        assert costs[name] <= min(costs.values()) / 0.998


def test_one_row_goes_without_matrix_units_and_many_tile_after_tile_on_hopper() -> None:
    problem = PROBLEMS["wide"]
    taken = [template_of(default(problem, r, 2048, HOPPER))[0] for r in (1, 16, None)]
    assert taken == ["gemv", "gemm_few", "gemm_persistent"]
    ampere = template_of(default(problem, None, 2048, target_of("sm_80")))[0]
    assert ampere == "gemm"


def test_the_tensor_memory_accelerator_is_a_candidate_where_it_can_read() -> None:
    assert "gemm_tma" in templates(Problem(4096, 4096), None, HOPPER)
    assert "gemm_tma" not in templates(Problem(4096, 4092), None, HOPPER)
    assert "gemm_tma" not in templates(Problem(4096, 4096), None, target_of("sm_80"))


def test_groups_that_no_tile_divides_are_rounded_in_registers() -> None:
    problem = PROBLEMS["codes in small groups"]
    assert template_of(default(problem, 16, 16, HOPPER))[1]["ROUNDED"] == 1
