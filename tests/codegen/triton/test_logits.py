"""The top of long rows in two stages."""

from __future__ import annotations

from math import ceil

import pytest
import torch
from interpreted import Interpreter

MODULE = "triton_entries.logits"


@pytest.mark.parametrize(("n", "top"), [(70, 5), (3, 3)])
def test_the_top_of_a_row(interpreter: Interpreter, n: int, top: int) -> None:
    m, block = 3, 32
    x = torch.randint(-20, 20, (m, n)).float()
    chunks = ceil(n / block)
    values = torch.full((m, chunks, top), torch.nan)
    columns = torch.full((m, chunks, top), -1, dtype=torch.int32)
    given = (x, values, columns, m, n)
    _, values, columns = interpreter.run(f"{MODULE}:top", (m, chunks), *given, TOP=top, BLOCK=block)
    wide = 1 << (chunks * top - 1).bit_length()
    results = torch.full((m, top), torch.nan), torch.full((m, top), -1, dtype=torch.int64)
    choices = {"CHUNKS": chunks, "TOP": top, "BLOCK": wide}
    _, _, got, at = interpreter.run(
        f"{MODULE}:top_folded", (m,), values, columns, *results, **choices
    )
    order = torch.argsort(x, dim=1, descending=True, stable=True)[:, :top]
    assert torch.equal(at, order) and torch.equal(got, x.gather(1, order))
