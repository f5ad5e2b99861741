"""The largest logits of rows that are never stored, and the top of long rows in two stages."""

from __future__ import annotations

from math import ceil

import pytest
import torch
from cross_compiled import compiled, taken, target_of
from ferrule.codegen.triton.tiles import GEMM_FEW
from interpreted import Interpreter
from triton_entries import logits as entries

MODULE = "triton_entries.logits"


@pytest.mark.parametrize(("entry", "m"), [("many", 19), ("one", 2)])
def test_the_first_of_the_largest_logits(interpreter: Interpreter, entry: str, m: int) -> None:
    n, k, bn = 75, 40, 16
    # Whole numbers: sums are exact in any order, and the largest comes up more than once.
    x = torch.randint(-1, 2, (m, k)).to(torch.float16)
    w = torch.randint(-1, 2, (n, k)).to(torch.float16)
    x[0], w[7] = 0, w[70]
    tiles = ceil(n / bn)
    best = torch.full((tiles, m), torch.nan)
    column = torch.full((tiles, m), -1, dtype=torch.int32)
    tile = {"BM": 16} if entry == "many" else {}
    grid = (tiles, ceil(m / 16) if entry == "many" else m)
    back = interpreter.run(
        f"{MODULE}:{entry}", grid, x, w, best, column, m, N=n, K=k, BN=bn, BK=16, **tile
    )
    result = torch.full((m,), -1, dtype=torch.int64)
    folded = interpreter.run(f"{MODULE}:folded", (m,), *back[2:], result, m, TILES=tiles, BLOCK=2)
    logits = (x.double() @ w.double().T).numpy()
    assert folded[2].tolist() == logits.argmax(1).tolist()


@pytest.mark.parametrize(("n", "top"), [(70, 5), (3, 3)])
def test_the_top_of_a_row(interpreter: Interpreter, n: int, top: int) -> None:
    m, block = 3, 32
    x = torch.randint(-20, 20, (m, n)).float()
    chunks = ceil(n / block)
    values = torch.full((m, chunks, top), torch.nan)
    columns = torch.full((m, chunks, top), -1, dtype=torch.int32)
    given = (x, values, columns, m, n)
    _, values, columns = interpreter.run(f"{MODULE}:top", (chunks, m), *given, TOP=top, BLOCK=block)
    wide = 1 << (chunks * top - 1).bit_length()
    results = torch.full((m, top), torch.nan), torch.full((m, top), -1, dtype=torch.int64)
    choices = {"CHUNKS": chunks, "TOP": top, "BLOCK": wide}
    _, _, got, at = interpreter.run(
        f"{MODULE}:top_folded", (m,), values, columns, *results, **choices
    )
    order = torch.argsort(x, dim=1, descending=True, stable=True)[:, :top]
    assert torch.equal(at, order) and torch.equal(got, x.gather(1, order))


def test_default_tiles_fit_and_spill_nothing() -> None:
    target = target_of("sm_90")
    tile = dict(GEMM_FEW.default(target).values)
    warps, stages = tile.pop("WARPS"), tile.pop("STAGES")
    types = {"x": "*bf16", "w": "*bf16", "best": "*fp32", "column": "*i32", "M": "i32"}
    choices = {"N": 128256, "K": 4096} | tile
    kernel = compiled(entries.many, "sm_90", types, choices, warps=warps, stages=stages)
    found = taken(kernel)
    assert found.fits("sm_90"), f"{found}"
