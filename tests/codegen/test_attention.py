"""The attention template: ragged batches over pages, over rows, over whole tensors; every
option, odd sizes, four targets.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from ferrule.codegen.space import Choice
from ferrule.codegen.tvm import tunable
from ferrule.codegen.tvm.attention import ANY, SPACE, VALUES
from ferrule.codegen.tvm.isa import isa_of
from ferrule.ir.dims import dim
from ferrule.ir.graph import Graph
from ferrule.ir.ops import model, serving
from ferrule.ir.ops import tensor as t
from ferrule.ir.target import Target
from ferrule.ir.types import CacheType
from kernels import Kernels, T, cache, given, ragged_batch, value_of

N, M, S, B = dim("N"), dim("M"), dim("S"), dim("B")


def paged(
    dtype: str,
    heads: int,
    groups: int,
    width: int,
    values: int,
    *,
    shared: bool = False,
    block: int = 16,
    cached: str = "",
    **options: object,
) -> Graph:
    """A paged attention whose result is given as [T, heads * values]."""
    q = given("q", dtype, T, heads, width)
    keys = cache("k", cached or dtype, groups, width, block=block)
    stored = keys if shared else cache("v", cached or dtype, groups, values, block=block)
    table, starts, lengths = (
        given("table", "i32", N, M),
        given("starts", "i32", N + 1),
        given("lengths", "i32", N),
    )
    words = tuple(options.pop("extras", ()))
    shapes = {"sinks": (dtype, heads), "slopes": ("f32", heads), "bias": ("f32", heads, 9)}
    extras = [given(w, *shapes[w]) for w in words]
    if cached == "i8":
        scales = [cache(w, "f32", groups, block=block) for w in ("k_scale", "v_scale")]
        words, extras = (*words, "k_scale", "v_scale"), [*extras, *scales]
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


def by_distances() -> Graph:
    q, k, v = given("q", "f32", T, 4, 20), given("k", "f32", T, 2, 20), given("v", "f32", T, 2, 7)
    starts, table = given("starts", "i32", N + 1), given("table", "f32", 4, 37)
    y = serving.ragged_attention(
        q, k, v, starts, table, scale=0.2, causal=False, extras=("distances",)
    )
    return Graph("ragged", (q, k, v, starts, table), (y,))


def ragged(*, causal: bool = True) -> Graph:
    q, k, v = given("q", "f32", T, 4, 20), given("k", "f32", T, 2, 20), given("v", "f32", T, 2, 7)
    starts = given("starts", "i32", N + 1)
    y = serving.ragged_attention(q, k, v, starts, scale=0.2, window=5, causal=causal)
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
    "wide": paged("bf16", 6, 2, 80, 80),
    "one group": paged("f32", 20, 1, 48, 16),
    "small blocks": paged("bf16", 3, 1, 32, 32, block=5, window=40),
    "large blocks": paged("f16", 2, 2, 96, 24, block=32, softcap=9.0),
    "pairs": paged("bf16", 12, 4, 64, 64),
    "pairs by 7": paged("bf16", 14, 2, 64, 64, window=300),
    "pairs by 8": paged("bf16", 16, 2, 80, 80, softcap=20.0),
    "single pairs": paged("bf16", 3, 3, 48, 32, block=32, extras=("slopes",)),
    "latent pairs": paged("bf16", 40, 1, 96, 64, shared=True, value_start=16),
    "half cache": paged("bf16", 4, 2, 64, 48, cached="f16", window=50),
    "halves": paged("f16", 14, 2, 80, 80, window=300),
    "short cache": paged("f32", 4, 2, 32, 32, cached="bf16"),
    "coded cache": paged("f32", 6, 2, 64, 40, cached="i8", extras=("sinks",)),
    "coded cache of pairs": paged("bf16", 6, 2, 80, 64, cached="i8"),
    "codes by 4": paged("bf16", 16, 4, 64, 64, cached="i8", window=300),
    "codes by 7": paged("bf16", 14, 2, 48, 80, cached="i8", softcap=20.0),
    "latent codes": paged("bf16", 40, 1, 96, 64, shared=True, value_start=16, cached="i8"),
    "ragged": ragged(),
    "ragged, both sides": ragged(causal=False),
    "ragged, by distances": by_distances(),
    "both sides": paged("bf16", 4, 2, 32, 32, causal=False, window=40),
    "dense": dense(causal=True),
    "masked": dense(mask="bool"),
    "added": dense(mask="f32"),
}
TARGETS = {
    "cpu": tuple(BODIES),
    "cpu:znver4": ("pairs", "latent pairs", "wide"),
    "cpu:cooperlake": ("codes by 4",),
    "cpu:x86-64-v4": ("latent", "wide", "codes by 4"),
    "cpu:x86-64-v3": (
        *("plain", "wide", "codes by 7", "halves", "half cache", "single pairs"),
        *("latent pairs", "latent codes", "small blocks"),
    ),
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
    kernels = of_target(libraries, target)
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
        inputs, dims = ragged_batch(new, old, blocks_of(name))
        if name.startswith("ragged"):
            inputs = {"starts": inputs["starts"]}
        kernels.check(name, inputs, **dims)


@pytest.mark.parametrize(
    "name",
    [
        *("plain", "wide", "pairs", "pairs by 7", "pairs by 8", "latent pairs", "small blocks"),
        *("codes by 4", "codes by 7", "latent codes", "halves"),
    ],
)
def test_lengths_around_the_edges_of_blocks_and_splits(
    libraries: dict[str, Kernels], name: str
) -> None:
    kernels = of_target(libraries, "cpu")
    whole = list(range(1, 41))
    edges = [SPACE.keys + d for d in (-17, -1, 0, 1)] + [2 * SPACE.keys, 2 * SPACE.keys + 1]
    for new, old in (
        ([1] * 40, [n - 1 for n in whole]),
        (whole, [0] * 40),
        ([1] * 6, [e - 1 for e in edges]),
        ([3] * 6, [e - 2 for e in edges]),
        ([SPACE.keys + 19, 1, 2], [SPACE.keys - 9, 3 * SPACE.keys, 0]),
    ):
        inputs, dims = ragged_batch(new, old, blocks_of(name))
        kernels.check(name, inputs, **dims)


ORDERED = (
    *("plain", "odd", "wide", "pairs", "pairs by 8", "single pairs"),
    *("codes by 4", "codes by 7", "halves"),
)


@pytest.fixture(scope="module")
def ordered() -> Kernels:
    """Kernels that sum in one order: any, but with AMX those of a deterministic target."""
    target = Target.parse("cpu")
    target = replace(target, deterministic=isa_of(target).has_bf16_tiles)
    return Kernels(target, {n: BODIES[n] for n in ORDERED})


@pytest.mark.parametrize("name", ORDERED)
def test_a_row_does_not_depend_on_what_it_is_computed_with(ordered: Kernels, name: str) -> None:
    kernels = ordered
    length = 2 * SPACE.keys + 37
    q, *rest = drawn_inputs(kernels, name, [length], [0])
    whole = kernels.run(name, [q, *rest], [(length, result_width(name))])[0]
    for new, old in (([1, 1, 1], [length - 1, 9, SPACE.keys]), ([5, 40], [length - 5, 3])):
        rows = torch.cat([torch.arange(o, o + n) for n, o in zip(new, old, strict=True)])
        lengths = torch.tensor([n + o for n, o in zip(new, old, strict=True)], dtype=torch.int32)
        starts = torch.tensor([0, *torch.tensor(new).cumsum(0)], dtype=torch.int32)
        table = rest[2].expand(len(new), -1).contiguous()
        values = [q[rows], *rest[:2], table, starts, lengths, *rest[5:]]
        part = kernels.run(name, values, [(len(rows), result_width(name))])[0]
        assert torch.equal(part, whole[rows])


@pytest.mark.parametrize("choice", [(128, 32, 32), (256, 128, 64), (512, 64, 128)])
def test_other_tile_sizes_give_the_same_values(choice: tuple[int, int, int]) -> None:
    names = ("plain", "pairs", "small blocks", "latent pairs")
    taken = Choice.of(dict(zip(VALUES, choice, strict=True)))
    found = [tunable(BODIES[n], Target.parse("cpu")) for n in names]
    chosen = {f.digest: {ANY.name: taken} for f in found if f is not None}
    kernels = Kernels("cpu", {n: BODIES[n] for n in names}, chosen)
    for name in names:
        assert kernels.reports[name].choices == {ANY.name: taken}
        for new, old in (*BATCHES, ([1, 1, 150], [600, 127, 400])):
            inputs, dims = ragged_batch(new, old, blocks_of(name))
            kernels.check(name, inputs, **dims)


def drawn_inputs(kernels: Kernels, name: str, new: list[int], old: list[int]) -> list[torch.Tensor]:
    """Values of a paged body for a batch, in order."""
    inputs, dims = ragged_batch(new, old)
    body = kernels.bodies[name]
    return [value_of(i, inputs, dims) for i in body.inputs]


def blocks_of(name: str) -> int:
    """Slots of a block in a body's caches."""
    kinds = [i.type for i in BODIES[name].inputs]
    return next((k.block for k in kinds if isinstance(k, CacheType)), 16)


def result_width(name: str) -> int:
    return int(BODIES[name].outputs[0].shape[1])


def of_target(libraries: dict[str, Kernels], target: str) -> Kernels:
    """The library of a target, made when it is first asked for."""
    if target not in libraries:
        libraries[target] = Kernels(target, {n: BODIES[n] for n in TARGETS[target]})
    return libraries[target]
