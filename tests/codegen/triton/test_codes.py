"""Linears by codes: 4 and 8 bits, groups and channels, zeros and offsets, plain and interleaved,
one row and many, activations in int8; registers of the default tiles.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import pytest
import torch
from cross_compiled import compiled, taken, target_of
from ferrule.codegen.space import Choice
from ferrule.codegen.triton.tiles import GEMM_CODES, GEMV_CODES, fitting_codes
from ferrule.ir.errors import IRError
from interpreted import Interpreter
from triton_entries import codes as entries

MODULE = "triton_entries.codes"
TOLERANCE = {torch.bfloat16: 2e-2, torch.float16: 4e-3, torch.float32: 2e-5}


@dataclass(frozen=True)
class Format:
    """Codes of a weight: bits, codes of a group, how many of them in a word."""

    bits: int
    group: int
    pack: int
    zeros: bool = False
    interleaved: bool = False
    dtype: torch.dtype = torch.bfloat16


class Case:
    """Fresh operands of a linear by codes, and what it gives in float64."""

    def __init__(self, form: Format, m: int, n: int, k: int, parts: int, bk: int) -> None:
        self.form, self.sizes, self.parts, self.bk = form, (m, n, k), parts, bk
        groups, dtype = ceil(k / form.group), form.dtype
        self.q = torch.randint(0, 1 << form.bits, (parts * n, groups, form.group))
        self.scale = torch.rand(parts * n, groups).div(16).to(dtype)
        self.zeros = torch.randint(0, 1 << form.bits, self.scale.shape).to(torch.uint8)
        self.x = torch.randn(m, k).to(dtype)
        self.bias, self.residual = torch.randn(parts * n).to(dtype), torch.randn(m, n).to(dtype)
        self.y = torch.full((m, n), torch.nan).to(dtype)

    @property
    def offset(self) -> int:
        return 0 if self.form.zeros else 1 << (self.form.bits - 1)

    def codes(self) -> torch.Tensor:
        """The codes as they lie in memory."""
        q = self.q.flatten(1)
        if self.form.interleaved:
            stretch = q.reshape(len(q), -1, self.form.pack, self.bk // self.form.pack)
            q = stretch.transpose(2, 3).reshape(len(q), -1)
        if self.form.bits == 4:
            q = q[:, ::2] | q[:, 1::2] << 4
        return q.to(torch.uint8)

    def weights(self) -> torch.Tensor:
        z = self.zeros.double()[..., None] if self.form.zeros else self.offset
        w = (self.q.double() - z) * self.scale.double()[..., None]
        return w.flatten(1)[:, : self.sizes[2]]

    def constants(self) -> dict[str, object]:
        f, (_, n, k) = self.form, self.sizes
        return {"N": n, "K": k, "PARTS": self.parts, "BITS": f.bits, "G": f.group,
                "OFFSET": self.offset, "PACK": f.pack, "BK": self.bk}  # fmt: skip

    def operands(self) -> tuple[object, ...]:
        zeros = self.zeros if self.form.zeros else None
        return self.codes(), self.scale, zeros, self.y, self.bias, self.residual, self.sizes[0]

    def check(self, y: torch.Tensor, x: torch.Tensor | None = None) -> None:
        sums = (self.x.double() if x is None else x) @ self.weights().T + self.bias.double()
        n = self.sizes[1]
        if self.parts == 2:
            sums = torch.nn.functional.silu(sums[:, :n]) * sums[:, n:]
        wanted = sums + self.residual.double()
        error = (y.double() - wanted).abs().max() / wanted.abs().max()
        assert error < TOLERANCE[self.form.dtype], f"{self.form} {self.sizes}: {error:.1e}"


MANY = {
    "4 bits by two": (Format(4, 32, 2), (19, 21, 90), 1, 32),
    "4 bits by eight, zeros": (Format(4, 128, 8, zeros=True), (5, 16, 256), 2, 128),
    "4 bits interleaved": (
        Format(4, 64, 4, interleaved=True, dtype=torch.float16), (3, 18, 128), 1, 64),
    "8 bits a channel": (Format(8, 45, 1), (17, 19, 45), 2, 16),
    "8 bits, groups, zeros": (Format(8, 32, 1, zeros=True, dtype=torch.float32), (2, 7, 60), 1, 16),
}  # fmt: skip


@pytest.mark.parametrize("name", list(MANY))
def test_many_rows(interpreter: Interpreter, name: str) -> None:
    case = Case(*(MANY[name][0], *MANY[name][1], *MANY[name][2:]))
    m, n, _ = case.sizes
    grid = (ceil(n / 16) * ceil(m / 16), 1)
    more = {"INTERLEAVED": case.form.interleaved, "BM": 16, "BN": 16}
    back = interpreter.run(
        f"{MODULE}:many", grid, case.x, *case.operands(), **case.constants(), **more
    )
    case.check(back[-3])


ONE = {
    "4 bits": (Format(4, 32, 8), (1, 21, 90), 1, 64),
    "4 bits, zeros": (Format(4, 16, 2, zeros=True, dtype=torch.float32), (1, 9, 64), 2, 32),
    "8 bits": (Format(8, 45, 1, dtype=torch.float16), (1, 19, 45), 2, 32),
}


@pytest.mark.parametrize("name", list(ONE))
def test_one_row(interpreter: Interpreter, name: str) -> None:
    case = Case(*(ONE[name][0], *ONE[name][1], *ONE[name][2:]))
    grid = (ceil(case.sizes[1] / 4), 1)
    back = interpreter.run(
        f"{MODULE}:one", grid, case.x, *case.operands(), **case.constants(), BN=4
    )
    case.check(back[-3])


@pytest.mark.parametrize("form", [Format(8, 64, 1, zeros=True), Format(4, 64, 2)], ids=str)
def test_whole_numbers(interpreter: Interpreter, form: Format) -> None:
    case = Case(form, 5, 19, 128, 2, 64)
    x = torch.randint(-127, 128, (5, 128), dtype=torch.int8)
    x_scale = torch.rand(5, 2)
    grid = (ceil(19 / 16), 1)
    more = {"INTERLEAVED": False, "BM": 16, "BN": 16}
    values = (x, x_scale, *case.operands())
    back = interpreter.run(f"{MODULE}:integers", grid, *values, **case.constants(), **more)
    case.check(back[-3], (x.double().reshape(5, 2, 64) * x_scale.double()[..., None]).flatten(1))


COMPILED = (("many", "sm_90", 1), ("many", "gfx942", 1), ("one", "sm_80", 2))


@pytest.mark.parametrize(("entry", "arch", "parts"), COMPILED)
def test_default_tiles_fit_and_spill_nothing(entry: str, arch: str, parts: int) -> None:
    found = taken(cross_compiled(entry, arch, parts))
    assert found.fits(arch), f"{found}"


def cross_compiled(entry: str, arch: str, parts: int, **more: int):
    """A linear by codes of 4 bits in groups of 128 with the default tiles."""
    target = target_of(arch)
    tile = dict({"many": GEMM_CODES, "one": GEMV_CODES}[entry].default(target).values) | more
    warps, stages = tile.pop("WARPS"), tile.pop("STAGES")
    types = dict.fromkeys(("x", "scale", "y", "bias", "residual"), "*bf16")
    types |= {"codes": "*u8", "zeros": "*u8", "M": "i32"}
    form = {"BITS": 4, "G": 128, "OFFSET": 0, "INTERLEAVED": False}
    choices = {"N": 4096, "K": 4096, "PARTS": parts} | form | tile
    made = getattr(entries, entry)
    return compiled(made, arch, types, choices, warps=warps, stages=stages)


def test_tiles_are_brought_to_the_groups_of_a_weight() -> None:
    choice = Choice.of({"BK": 256, "PACK": 8})
    fitted = {
        (bits, group, k): fitting_codes(choice, bits, group, k).values
        for bits, group, k in ((4, 128, 4096), (4, 32, 4096), (8, 48, 96), (8, 45, 45))
    }
    assert fitted == {
        (4, 128, 4096): (("BK", 128), ("PACK", 8)),
        (4, 32, 4096): (("BK", 32), ("PACK", 2)),
        (8, 48, 96): (("BK", 16), ("PACK", 1)),
        (8, 45, 45): (("BK", 64), ("PACK", 1)),
    }
    with pytest.raises(IRError, match="groups of 16 codes of 64: a multiple of 32"):
        fitting_codes(choice, 4, 16, 64)
