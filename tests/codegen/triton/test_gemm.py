"""The gemm templates: values as the interpreter makes them, on odd sizes; registers and shared
memory of the default tiles as compiled for GPUs.
"""

from __future__ import annotations

from math import ceil

import pytest
import torch
from cross_compiled import TARGETS, compiled, taken, target_of
from ferrule.codegen.triton.tiles import GEMM, GEMM_FEW, GEMV, Sizes, Tiles
from interpreted import Hook, Interpreter
from triton_entries import gemm as entries

TOLERANCE = {torch.bfloat16: 2e-2, torch.float16: 4e-3, torch.float32: 2e-6}
"""Largest error relative to the largest value; GPUs round bfloat16, the interpreter cuts it off."""
MODULE = "triton_entries.gemm"
SIZES = ((37, 29, 45), (16, 32, 64), (1, 17, 3))


class Case:
    """Fresh operands of a linear, and what it gives in float64."""

    def __init__(self, m: int, n: int, k: int, parts: int, dtype: torch.dtype) -> None:
        self.sizes, self.parts, self.dtype = (m, n, k), parts, dtype
        self.x, self.w = torch.randn(m, k).to(dtype), torch.randn(parts * n, k).to(dtype)
        self.bias, self.residual = torch.randn(parts * n).to(dtype), torch.randn(m, n).to(dtype)
        self.y = torch.full((m, n), torch.nan).to(dtype)

    def wanted(self, *, squared: bool, plain: bool) -> torch.Tensor:
        x = self.x.double()
        x = (x * x).to(self.dtype).double() if squared else x
        sums = x @ self.w.double().T
        if plain:
            return sums
        sums, n = sums + self.bias.double(), self.sizes[1]
        if self.parts == 2:
            sums = torch.nn.functional.silu(sums[:, :n]) * sums[:, n:]
        return sums + self.residual.double()

    def check(self, y: torch.Tensor, *, squared: bool = False, plain: bool = False) -> None:
        wanted = self.wanted(squared=squared, plain=plain)
        error = (y.double() - wanted).abs().max() / wanted.abs().max()
        assert error < TOLERANCE[self.dtype], f"{self.sizes} {self.dtype}: {error:.1e}"


def grid(entry: str, m: int, n: int, tile: dict[str, int]) -> tuple[int, ...]:
    across = ceil(n / tile["BN"])
    if entry == "one":
        return across, m
    down = ceil(m / tile["BM"])
    return (down * across,) if entry == "many" else (across, down, 1)


TILE = {
    "many": {"BM": 16, "BN": 16, "BK": 32},
    "few": {"BM": 16, "BN": 32, "BK": 16},
    "one": {"BN": 4, "BK": 32},
}


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("entry", list(TILE))
def test_values(interpreter: Interpreter, entry: str, dtype: torch.dtype) -> None:
    for (m, n, k), parts in zip(SIZES, (1, 2, 2), strict=True):
        m = 1 if entry == "one" else m
        case = Case(m, n, k, parts, dtype)
        values = (case.x, case.w, case.y, case.bias, case.residual, m)
        hooks = {"LOAD_X": Hook("load_squared"), "STORE": Hook("store_all")}
        at = grid(entry, m, n, TILE[entry])
        sizes = {"N": n, "K": k, "PARTS": parts}
        back = interpreter.run(f"{MODULE}:{entry}", at, *values, **sizes, **hooks, **TILE[entry])
        case.check(back[2], squared=True)


@pytest.mark.parametrize("x_dtype", [torch.float8_e4m3fn, torch.float16], ids=str)
@pytest.mark.parametrize("entry", ["many", "few"])
def test_weights_of_float8(interpreter: Interpreter, entry: str, x_dtype: torch.dtype) -> None:
    m, n, k = 5, 19, 45
    case = Case(m, n, k, 1, torch.float16)
    x, w = case.x.to(x_dtype), case.w.to(torch.float8_e4m3fn)
    hooks = {"LOAD_X": Hook("load_plain"), "STORE": Hook("store_scaled")}
    values = (x, w, case.y, case.bias, case.residual, m)
    at, sizes = grid(entry, m, n, TILE[entry]), {"N": n, "K": k, "PARTS": 1}
    back = interpreter.run(f"{MODULE}:{entry}", at, *values, **sizes, **hooks, **TILE[entry])
    wanted = x.double() @ w.double().T * case.bias.double()
    assert torch.allclose(back[2].double(), wanted, rtol=4e-3, atol=4e-3 * wanted.abs().max())


@pytest.mark.parametrize("parts", [1, 2])
def test_splits_of_k_are_gathered(interpreter: Interpreter, parts: int) -> None:
    m, n, k, split = 5, 37, 100, 3
    case = Case(m, n, k, parts, torch.bfloat16)
    partial = torch.full((split, m, parts * n), torch.nan)
    load, store = {"LOAD_X": Hook("load_plain")}, {"STORE": Hook("store_all")}
    sizes = {"N": n, "K": k, "PARTS": parts, "SPLIT": split}
    at = (ceil(n / 16), 1, split)
    tile = {"BM": 16, "BN": 16, "BK": 16}
    back = interpreter.run(
        f"{MODULE}:few_split", at, case.x, case.w, partial, m, **sizes, **load, **tile
    )
    assert not back[2].isnan().any()
    values = (back[2], case.y, case.bias, case.residual, m)
    y = interpreter.run(f"{MODULE}:gathered", (m, ceil(n / 32)), *values, **sizes, **store, BN=32)
    case.check(y[1])


def test_a_row_does_not_depend_on_the_rows_beside_it(interpreter: Interpreter) -> None:
    m, n, k = 18, 16, 40
    case = Case(m, n, k, 1, torch.float32)
    hooks = {"LOAD_X": Hook("load_plain"), "STORE": Hook("store_plain")}
    sizes = {"N": n, "K": k, "PARTS": 1}

    def run(rows: slice) -> torch.Tensor:
        x, y = case.x[rows], case.y[rows]
        at = grid("many", len(x), n, TILE["many"])
        values = (x, case.w, y, case.bias, case.residual[rows], len(x))
        return interpreter.run(f"{MODULE}:many", at, *values, **sizes, **hooks, **TILE["many"])[2]

    assert torch.equal(run(slice(0, m))[17:], run(slice(17, m)))


@pytest.mark.parametrize(("tma", "parts"), [(False, 1), (True, 2)])
def test_programs_that_take_tile_after_tile(
    interpreter: Interpreter, tma: bool, parts: int
) -> None:
    m, n, k = 37, 29, 48
    case = Case(m, n, k, parts, torch.float16)
    hooks = {"LOAD_X": Hook("load_plain"), "STORE": Hook("store_all")}
    values = (case.x, case.w, case.y, case.bias, case.residual, m)
    sizes = {"N": n, "K": k, "PARTS": parts, "TMA": tma}
    back = interpreter.run(f"{MODULE}:persistent", (2,), *values, **sizes, **hooks, **TILE["many"])
    case.check(back[2])


def test_weights_come_by_the_tensor_memory_accelerator() -> None:
    kernel = cross_compiled("persistent", "sm_90", 1, TMA=True)
    found = taken(kernel)
    assert found.fits("sm_90"), f"{found}"
    assert "cp.async.bulk.tensor" in kernel.asm["ptx"] and "wgmma" in kernel.asm["ptx"]
    assert kernel.metadata.global_scratch_size > 0


ROOM = {"many": GEMM, "few": GEMM_FEW, "one": GEMV}
COMPILED = (("many", "sm_90", 2), ("many", "gfx942", 1), ("few", "sm_90", 1), ("one", "sm_80", 2))


@pytest.mark.parametrize(("entry", "arch", "parts"), COMPILED)
def test_default_tiles_fit_and_spill_nothing(entry: str, arch: str, parts: int) -> None:
    kernel = cross_compiled(entry, arch, parts)
    found = taken(kernel)
    assert found.fits(arch), f"{found}"
    if entry != "one" and arch == "sm_90":
        assert "wgmma" in kernel.asm["ptx"]


def cross_compiled(entry: str, arch: str, parts: int, **more: int):
    """An entry for bfloat16 with the default tiles of a target."""
    pointers = dict.fromkeys(("x", "w", "y", "bias", "residual"), "*bf16")
    tile = dict(ROOM.get(entry, GEMM).default(target_of(arch)).values) | more
    hooks = {"LOAD_X": entries.load_plain, "STORE": entries.store_all}
    warps, stages = tile.pop("WARPS"), tile.pop("STAGES")
    choices = {"N": 4096, "K": 4096, "PARTS": parts, **hooks, **tile}
    types = pointers | {"M": "i32"}
    made = getattr(entries, entry)
    return compiled(made, arch, types, choices, warps=warps, stages=stages)


@pytest.mark.parametrize("tiles", ROOM.values(), ids=ROOM)
def test_defaults_are_among_the_choices_and_fit(tiles: Tiles) -> None:
    for arch in TARGETS:
        choice = tiles.default(target_of(arch))
        assert all(value in tiles.values[name] for name, value in choice.values), f"{choice}"
        assert tiles.fits(choice, target_of(arch), Sizes(parts=2)), f"{arch}: {choice}"
