"""The attention template: ragged batches over pages, over rows, over whole tensors; every
option, odd sizes, four targets.
"""

from __future__ import annotations

import pytest
import torch
from ferrule.ir.dims import dim
from ferrule.ir.graph import Graph
from ferrule.ir.ops import model, serving
from ferrule.ir.ops import tensor as t
from kernels import Kernels, T, cache, given

N, M, S, B = dim("N"), dim("M"), dim("S"), dim("B")


def paged(
    dtype: str,
    heads: int,
    groups: int,
    width: int,
    values: int,
    *,
    shared: bool = False,
    **options: object,
) -> Graph:
    """A paged attention whose result is given as [T, heads * values]."""
    q = given("q", dtype, T, heads, width)
    keys = cache("k", dtype, groups, width)
    stored = keys if shared else cache("v", dtype, groups, values)
    table, starts, lengths = (
        given("table", "i32", N, M),
        given("starts", "i32", N + 1),
        given("lengths", "i32", N),
    )
    words = tuple(options.pop("extras", ()))
    shapes = {"sinks": (dtype, heads), "slopes": ("f32", heads), "bias": ("f32", heads, 9)}
    extras = [given(w, *shapes[w]) for w in words]
    y = serving.paged_attention(
        q,
        keys,
        stored,
        table,
        starts,
        lengths,
        *extras,
        scale=width**-0.5,
        value_size=values,
        extras=words,
        **options,
    )
    inputs = (q, keys, *([] if shared else [stored]), table, starts, lengths, *extras)
    return Graph("paged", inputs, (t.reshape(y, shape=(T, heads * values)),))


def ragged() -> Graph:
    q, k, v = given("q", "f32", T, 4, 20), given("k", "f32", T, 2, 20), given("v", "f32", T, 2, 7)
    starts = given("starts", "i32", N + 1)
    y = serving.ragged_attention(q, k, v, starts, scale=0.2, window=5)
    return Graph("ragged", (q, k, v, starts), (y,))


def dense(*, mask: str = "", causal: bool = False) -> Graph:
    q, k, v = (
        given("q", "f32", B, 4, S, 20),
        given("k", "f32", B, 2, S, 20),
        given("v", "f32", B, 2, S, 33),
    )
    m = [given("mask", mask, 1, 1, S, S)] if mask else []
    y = model.attention(
        q, t.add(k, k), v, *m, scale=0.2, causal=causal, extras=("mask",) if mask else ()
    )
    return Graph(
        "dense",
        (q, k, v, *m),
        (t.reshape(t.transpose(y, permutation=(0, 2, 1, 3)), shape=(B, S, 132)),),
    )


BODIES = {
    "plain": paged("f32", 8, 2, 64, 64),
    "odd": paged("f32", 3, 3, 33, 20, window=7),
    "latent": paged("bf16", 4, 1, 36, 28, shared=True, value_start=4, softcap=5.0),
    "sinks": paged("f16", 4, 2, 20, 20, chunk=16, extras=("sinks",)),
    "slopes": paged("bf16", 5, 5, 16, 16, extras=("slopes",)),
    "bias": paged("f32", 2, 1, 16, 16, causal=False, extras=("bias",)),
    "ragged": ragged(),
    "dense": dense(causal=True),
    "masked": dense(mask="bool"),
    "added": dense(mask="f32"),
}
TARGETS = {
    "cpu": tuple(BODIES),
    "cpu:x86-64-v4": ("latent",),
    "cpu:x86-64-v3": ("plain",),
    "cpu:x86-64": ("odd",),
}
CASES = [(target, name) for target, names in TARGETS.items() for name in names]
BATCHES = (([1, 1, 1], [0, 40, 99]), ([5, 1, 70, 18], [0, 33, 10, 50]), ([33], [0]))


@pytest.fixture(scope="module")
def libraries() -> dict[str, Kernels]:
    """One library for each target, made when it is first asked for."""
    return {}


@pytest.mark.parametrize(("target", "name"), CASES)
def test_values(libraries: dict[str, Kernels], target: str, name: str) -> None:
    if target not in libraries:
        libraries[target] = Kernels(target, {n: BODIES[n] for n in TARGETS[target]})
    kernels = libraries[target]
    if name in ("dense", "masked", "added"):
        diagonal = (
            {"mask": lambda s: torch.rand(s).ge(0.3) | torch.eye(s[-1]).bool()}
            if name == "masked"
            else {}
        )
        for length in (1, 19, 70):
            kernels.check(name, diagonal, B=2, S=length)
        return
    for new, old in BATCHES:
        inputs, dims = batch(new, old)
        if name == "ragged":
            inputs = {"starts": inputs["starts"]}
        kernels.check(name, inputs, **dims)


def batch(new: list[int], old: list[int]) -> tuple[dict[str, torch.Tensor], dict[str, int]]:
    """Inputs of a ragged batch: each sequence's new tokens and those already cached, its blocks
    scattered over the pool.
    """
    lengths = torch.tensor(new) + torch.tensor(old)
    blocks = -(-int(lengths.max()) // 16)
    pool = blocks * len(new) + 3
    table = torch.randperm(pool)[: blocks * len(new)].reshape(len(new), blocks)
    starts = torch.cat([torch.zeros(1), torch.tensor(new).cumsum(0)])
    dims = {"T": sum(new), "N": len(new), "M": blocks, "C": pool}
    return {"table": table, "starts": starts, "lengths": lengths}, dims
