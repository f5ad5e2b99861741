"""Linears by experts: rows sorted by expert, tiles of rows and single rows, floats and codes;
registers of the default tiles.
"""

from __future__ import annotations

from math import ceil

import pytest
import torch
from cross_compiled import compiled, taken, target_of
from ferrule.codegen.triton.tiles import GEMM_FEW
from interpreted import Interpreter
from triton_entries import experts as entries

MODULE = "triton_entries.experts"
TOLERANCE = 2e-2
ROWS, EXPERTS, COLUMNS, DEPTH = 41, 6, 19, 64


class Case:
    """Fresh operands of a linear by experts; expert 2 has no rows, and weights that would show."""

    def __init__(self, rows: int, parts: int, *, codes: bool, zeros: bool = False) -> None:
        self.parts, self.zeros = parts, None
        others = torch.tensor([e for e in range(EXPERTS) if e != 2])
        self.index = others[torch.randint(0, EXPERTS - 1, (rows,))].int()
        self.x = torch.randn(rows, DEPTH).bfloat16()
        self.bias = torch.randn(EXPERTS, parts * COLUMNS).bfloat16()
        self.y = torch.full((rows, COLUMNS), torch.nan).bfloat16()
        shape = (EXPERTS, parts * COLUMNS, DEPTH)
        if codes:
            self._quantize(shape, zeros=zeros)
        else:
            self.w = torch.randn(shape).bfloat16()
            self.w[2] = torch.nan
            self.operands = (self.w,)

    def _quantize(self, shape: tuple[int, ...], *, zeros: bool) -> None:
        q = torch.randint(0, 16, shape)
        scale = torch.rand(*shape[:2], DEPTH // 32).bfloat16()
        z = torch.randint(0, 16, scale.shape).to(torch.uint8)
        offset = z.double() if zeros else torch.full(z.shape, 8.0).double()
        centred = q.reshape(*shape[:2], -1, 32).double() - offset[..., None]
        self.w = (centred * scale.double()[..., None]).flatten(2)
        scale[2] = torch.nan
        packed = (q[..., ::2] | q[..., 1::2] << 4).to(torch.uint8)
        self.operands = (packed, scale, z if zeros else None)

    def check(self, y: torch.Tensor) -> None:
        chosen = self.w.double()[self.index.long()]
        sums = torch.einsum("mk,mnk->mn", self.x.double(), chosen)
        sums = sums + self.bias.double()[self.index.long()]
        if self.parts == 2:
            gate, up = sums[:, :COLUMNS], sums[:, COLUMNS:]
            sums = torch.nn.functional.silu(gate) * up
        error = (y.double() - sums).abs().max() / sums.abs().max()
        assert error < TOLERANCE, f"{error:.1e}"

    @property
    def sizes(self) -> dict[str, int]:
        return {"N": COLUMNS, "K": DEPTH, "PARTS": self.parts}

    def sorted(self, interpreter: Interpreter) -> tuple[torch.Tensor, torch.Tensor]:
        order = torch.full((len(self.index),), -1).int()
        starts = torch.full((EXPERTS + 1,), -1).int()
        values = (self.index, order, starts, len(self.index), EXPERTS)
        _, order, starts = interpreter.run(f"{MODULE}:sort", (EXPERTS,), *values, BLOCK=16)
        return order, starts


FORM = {"BITS": 4, "G": 32, "PACK": 2}


def test_rows_are_sorted_by_expert_as_they_come(interpreter: Interpreter) -> None:
    case = Case(ROWS, 1, codes=False)
    order, starts = case.sorted(interpreter)
    assert torch.equal(order.long(), torch.argsort(case.index, stable=True))
    counts = torch.bincount(case.index, minlength=EXPERTS)
    assert starts.tolist() == [0, *counts.cumsum(0).tolist()]


@pytest.mark.parametrize(("codes", "zeros", "parts"), [(False, False, 2), (True, True, 1)])
def test_tiles_of_rows(interpreter: Interpreter, codes: bool, zeros: bool, parts: int) -> None:
    case = Case(ROWS, parts, codes=codes, zeros=zeros)
    order, starts = case.sorted(interpreter)
    values = (*case.operands, order, starts, case.bias, case.y, ROWS, EXPERTS)
    grid = (ROWS // 16 + EXPERTS, ceil(COLUMNS / 16))
    form = FORM | {"OFFSET": 0} if codes else {}
    entry = "tile_codes" if codes else "tile"
    tile = {"BM": 16, "BN": 16, "BK": 32}
    back = interpreter.run(f"{MODULE}:{entry}", grid, case.x, *values, **case.sizes, **form, **tile)
    case.check(back[-1])


@pytest.mark.parametrize(("codes", "parts"), [(False, 1), (True, 2)])
def test_single_rows(interpreter: Interpreter, codes: bool, parts: int) -> None:
    case = Case(3, parts, codes=codes)
    values = (*case.operands, case.index, case.bias, case.y, 3)
    grid = (ceil(COLUMNS / 8), 3)
    form = FORM | {"OFFSET": 8} if codes else {}
    entry = "row_codes" if codes else "row"
    more = {**case.sizes, **form, "BN": 8, "BK": 32}
    back = interpreter.run(f"{MODULE}:{entry}", grid, case.x, *values, **more)
    case.check(back[-1])


@pytest.mark.parametrize("arch", ["sm_90"])
def test_default_tiles_fit_and_spill_nothing(arch: str) -> None:
    found = taken(cross_compiled(arch))
    assert found.fits(arch), f"{found}"


def cross_compiled(arch: str, **more: int):
    """A gated linear by experts in bfloat16 with the default tiles of few rows."""
    target = target_of(arch)
    tile = dict(GEMM_FEW.default(target).values) | more
    warps, stages = tile.pop("WARPS"), tile.pop("STAGES")
    types = dict.fromkeys(("x", "w", "bias", "y"), "*bf16") | {"M": "i32", "E": "i32"}
    types |= dict.fromkeys(("order", "starts"), "*i32")
    choices = {"N": 1024, "K": 2048, "PARTS": 2} | tile
    return compiled(entries.tile, arch, types, choices, warps=warps, stages=stages)
