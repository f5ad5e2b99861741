"""What a choice of tiles makes of a kernel's bytes and operations on a GPU: tiles that reach beyond
the sizes, processors that idle, partial sums that go to memory and back.

A tuner multiplies a kernel's cost (codegen/cost.py) by these to leave out what cannot win.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil

from ...ir.errors import IRError
from ...ir.target import Target
from ..space import Burden, Choice

PROCESSORS = {
    "sm_70": 80, "sm_75": 68, "sm_80": 108, "sm_86": 84, "sm_89": 128, "sm_90": 132,
    "sm_100": 148, "sm_120": 170, "gfx90a": 104, "gfx942": 304, "gfx950": 256,
}  # fmt: skip
"""Multiprocessors (compute units) of the largest GPU of an architecture: V100, RTX 2080 Ti, A100,
RTX 3090, RTX 4090, H100 and H200 SXM, B200, RTX 5090, half an MI250X, MI300X, MI355X (the vendors'
data sheets).
"""

BALANCE = {
    "sm_80": 153.0, "sm_86": 153.0, "sm_89": 419.0, "sm_90": 295.0, "sm_100": 281.0,
    "sm_120": 117.0, "gfx90a": 240.0, "gfx942": 247.0, "gfx950": 288.0,
}  # fmt: skip
"""Operations on bfloat16 in the time of a byte from memory: peaks by bandwidths, as above."""

VECTOR = 16.0
"""Operations of matrix units in the time of one by the others."""

APART = 8.0
"""Operations in the time that reading two bytes apart takes."""

Burdens = Callable[[Choice, int], Burden]
"""By a choice and a number of rows, as `ferrule.codegen.space.Space` takes it."""


def processors(target: Target) -> int:
    """How many programs run side by side, at one a processor."""
    if target.arch not in PROCESSORS:
        raise IRError(f"no processors known of {target}; known: {', '.join(PROCESSORS)}")
    return PROCESSORS[target.arch]


def linear_burden(target: Target, n: int, k: int, *, parts: int = 1, item: float = 2.0) -> Burdens:
    """Of a linear with w[N, K], `item` bytes an element of it: gemm, gemm_few, gemm_codes and
    those by experts (BM, BN, SPLIT), or gemv (BN alone).
    """
    wide, most = n // parts, processors(target)

    def burden(choice: Choice, tokens: int) -> Burden:
        named = {"BM": 1, "SPLIT": 1} | dict(choice.values)
        down, across = ceil(tokens / named["BM"]), ceil(wide / named["BN"])
        programs = down * across * named["SPLIT"]
        padded = down * named["BM"] * across * named["BN"] / (tokens * wide)
        idle = ceil(programs / most) * most / programs
        # Written and read again in float32, beside the weights.
        partial = 8 * named["SPLIT"] * tokens / (k * item) if named["SPLIT"] > 1 else 0.0
        return Burden(max(1.0, most / programs) + partial, padded * idle)

    return burden


def codes_burden(target: Target, n: int, k: int, *, parts: int = 1, item: float = 0.5) -> Burdens:
    """Of a linear by codes: gemm_codes or gemv_codes. What is no work of matrix units is counted
    as so much more of it, for each code of a tile of BM rows. Where weights are ROUNDED, that is
    four operations to make one; by groups three, three a product of every group's sums by its
    scale, and what reading x apart takes, element by element, for BN columns.
    """
    plain = linear_burden(target, n, k, parts=parts, item=item)

    def burden(choice: Choice, tokens: int) -> Burden:
        found, named = plain(choice, tokens), dict(choice.values)
        if "BM" not in named:
            return found
        by_groups = 3 / named["BM"] + 3 / named["BK"] + APART / named["BN"]
        each = (4 / named["BM"] if named["ROUNDED"] else by_groups) / 2
        return Burden(found.bytes, found.operations * (1.0 + VECTOR * each))

    return burden


def splits_burden(target: Target, groups: int, repeat: int) -> Burdens:
    """Of attend_splits, one token a sequence with so many groups of `repeat` heads: a group's keys
    are read once by each program that has some of its heads.
    """
    most = processors(target)

    def burden(choice: Choice, tokens: int) -> Burden:
        across = ceil(repeat / choice["HEADS"])
        programs = tokens * groups * across * choice["SPLITS"]
        padded = across * choice["HEADS"] / repeat
        idle = ceil(programs / most) * most / programs
        return Burden(across * max(1.0, most / programs), padded * idle)

    return burden


def tokens_burden(target: Target, groups: int, repeat: int) -> Burdens:
    """Of attend_tokens: keys are read once for each tile of ROWS tokens and heads."""
    most = processors(target)

    def burden(choice: Choice, tokens: int) -> Burden:
        heads = min(choice["ROWS"], 1 << (repeat - 1).bit_length())
        size = choice["ROWS"] // heads
        down, across = ceil(tokens / size), groups * ceil(repeat / heads)
        programs = down * across
        padded = down * size * across * heads / (tokens * groups * repeat)
        return Burden(float(programs) / groups, padded * ceil(programs / most) * most / programs)

    return burden
