"""The recurrent templates: sequences that begin and that go on, plain scans and the delta rule, one
decay a head and one a row of the state, states in place.
"""

from __future__ import annotations

from math import ceil

import pytest
import torch
from cross_compiled import compiled, taken
from interpreted import Hook, Interpreter
from triton_entries import recurrent as entries

MODULE = "triton_entries.recurrent"
STARTS = torch.tensor([0, 5, 6, 6, 15], dtype=torch.int32)
SOURCE = torch.tensor([3, -1, 1, 0], dtype=torch.int32)
TARGET = torch.tensor([3, 2, 1, 0], dtype=torch.int32)
"""A state each, sequence 1 from zeros, sequence 2 without tokens; the last state is nobody's."""


def begun(state: torch.Tensor, n: int) -> torch.Tensor:
    source = int(SOURCE[n])
    return state[source].double() if source >= 0 else torch.zeros_like(state[0]).double()


@pytest.mark.parametrize(("delta", "wide"), [(False, True), (True, False)])
def test_scan(interpreter: Interpreter, delta: bool, wide: bool) -> None:
    heads, groups, keys, values, rows = 4, 2, 6, 11, 15
    q, k = torch.randn(rows, groups, keys).half(), torch.randn(rows, groups, keys).half()
    v = torch.randn(rows, heads, values).half()
    decay = -torch.rand(rows, heads, keys if wide else 1)
    beta, state = torch.rand(rows, heads), torch.randn(5, heads, keys, values)
    y = torch.full_like(v, torch.nan)
    sizes = {"H": heads, "G": groups, "K": keys, "V": values, "D": decay.shape[2]}
    more = {"BK": 8, "BV": 8, "BETA": Hook("load_beta") if delta else None}
    values_ = (q, k, v, decay, beta, state, STARTS, SOURCE, TARGET, y)
    grid = (4, heads, ceil(values / 8))
    back = interpreter.run(f"{MODULE}:scan", grid, *values_, **sizes, **more)
    wanted, after = torch.empty(rows, heads, values).double(), state.double().clone()
    for n in range(4):
        s = begun(state, n)
        for t in range(int(STARTS[n]), int(STARTS[n + 1])):
            s = s * decay[t].double().exp()[..., None]
            kt, qt = (x[t].double().repeat_interleave(heads // groups, 0) for x in (k, q))
            new = v[t].double()
            if delta:
                new = beta[t].double()[:, None] * (new - torch.einsum("hkv,hk->hv", s, kt))
            s = s + kt[..., None] * new[:, None]
            wanted[t] = torch.einsum("hkv,hk->hv", s, qt)
        after[TARGET[n]] = s
    assert torch.allclose(back[-1].double(), wanted, rtol=1e-2, atol=4e-3 * wanted.abs().max())
    assert torch.allclose(back[5].double(), after, rtol=1e-4, atol=1e-4 * after.abs().max())


@pytest.mark.parametrize("delta", [False, True])
def test_blocks_of_a_scan_give_what_one_row_after_another_gives(
    interpreter: Interpreter, delta: bool
) -> None:
    """Sequences shorter than a block, of some blocks and a rest; decays from none at all to all."""
    heads, groups, keys, values, block = 2, 1, 20, 19, 16
    starts = torch.tensor([0, 37, 38, 38, 70], dtype=torch.int32)
    q, k = torch.randn(70, groups, keys), torch.randn(70, groups, keys)
    v, state = torch.randn(70, heads, values), torch.randn(5, heads, keys, values)
    decay = -torch.rand(70, heads, 1) * 10 ** (3 * torch.rand(70, heads, 1) - 2)
    decay[5], decay[40], decay[45, 0] = 0.0, -torch.inf, -3e4
    if delta:  # keys of length one, some the same: what is learned of them is unlearned first
        k = torch.nn.functional.normalize(k, dim=-1)
        k[7:11] = k[6]
    hooks = {"BETA": Hook("load_beta"), "BETAS": Hook("load_betas")} if delta else {"BETA": None}
    sizes = {"H": heads, "G": groups, "K": keys, "V": values, "D": 1, "BK": 32, "BV": 16}
    given = (q, k, v, decay, torch.rand(70, heads), state, starts, SOURCE, TARGET)
    found = [
        interpreter.run(
            f"{MODULE}:scan", (4, heads, 2), *given, torch.full_like(v, torch.nan), **sizes,
            **hooks, BLOCK=size,
        )
        for size in (1, block)
    ]  # fmt: skip
    for at in (-1, 5):
        one, blocks = found[0][at], found[1][at]
        assert torch.allclose(blocks, one, rtol=1e-5, atol=1e-5 * one.abs().max())


@pytest.mark.parametrize(
    ("arch", "delta", "operand"),
    [("sm_80", False, "bf16"), ("sm_90", False, "fp32"), ("sm_90", True, "bf16"),
     ("sm_90", True, "fp32")],
)  # fmt: skip
def test_blocks_of_a_scan_fit(arch: str, delta: bool, operand: str) -> None:
    types = dict.fromkeys(("q", "k", "v", "y"), f"*{operand}")
    types |= dict.fromkeys(("decay", "beta", "state"), "*fp32")
    types |= dict.fromkeys(("starts", "source", "target"), "*i32")
    sizes = {"H": 24, "G": 1, "K": 128, "V": 64, "D": 1, "BK": 128, "BV": 32}
    hooks = {"BETA": entries.load_beta, "BETAS": entries.load_betas} if delta else {"BETA": None}
    choices = sizes | hooks | {"BLOCK": 16 if delta or operand == "fp32" else 32, "TF32": 1}
    found = taken(compiled(entries.scan, arch, types, choices, warps=4, stages=3))
    assert found.fits(arch), f"{found}"


@pytest.mark.parametrize(("taps", "states"), [(4, True), (1, False), (3, False)])
def test_conv(interpreter: Interpreter, taps: int, states: bool) -> None:
    channels, rows = 11, 15
    x, w = torch.randn(rows, channels), torch.randn(taps, channels)
    state = torch.randn(5, taps - 1, channels)
    y = torch.full_like(x, torch.nan)
    places = (state, STARTS, SOURCE, TARGET) if states else (None, STARTS, None, None)
    sizes = {"C": channels, "TAPS": taps, "BT": 4, "BC": 8, "BS": 4}
    back = interpreter.run(f"{MODULE}:conv", (4, 2), x, w, *places, y, **sizes)
    wanted, after = torch.empty(rows, channels).double(), state.double().clone()
    for n in range(4):
        own = x[STARTS[n] : STARTS[n + 1]].double()
        before = begun(state, n) if states else torch.zeros(taps - 1, channels).double()
        all_rows = torch.cat([before, own])
        made = [w[j].double() * all_rows[j : j + len(own)] for j in range(taps)]
        wanted[STARTS[n] : STARTS[n + 1]] = torch.stack(made).sum(0)
        after[TARGET[n]] = all_rows[len(own) :]
    assert torch.allclose(back[-1].double(), wanted, rtol=1e-5, atol=1e-5)
    if states:
        assert torch.allclose(back[2].double(), after)


def test_scans_keep_their_state_in_registers() -> None:
    types = dict.fromkeys(("q", "k", "v", "y"), "*bf16")
    types |= dict.fromkeys(("decay", "beta", "state"), "*fp32")
    types |= dict.fromkeys(("starts", "source", "target"), "*i32")
    sizes = {"H": 32, "G": 16, "K": 128, "V": 128, "D": 1}
    choices = sizes | {"BK": 128, "BV": 32, "BETA": entries.load_beta, "BLOCK": 1, "TF32": 0}
    found = taken(compiled(entries.scan, "sm_90", types, choices, warps=4, stages=1))
    assert found.fits("sm_90"), f"{found}"
