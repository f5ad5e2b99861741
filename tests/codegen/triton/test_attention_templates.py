"""The attention templates: every mask and extra over pages, groups of heads, odd widths, coded
caches; sequences with one new token beside others; registers and shared memory of default tiles.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import pytest
import torch
from cross_compiled import compiled, taken, target_of
from ferrule.codegen.triton.tiles import (
    ATTEND_SPLITS,
    ATTEND_TOKENS,
    WIDE,
    rows_of,
    split_width,
)
from interpreted import Interpreter
from triton_entries import attention as entries

MODULE = "triton_entries.attention"
TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}


@dataclass(frozen=True)
class Layer:
    """An attention: heads and groups of them, widths, the mask, what joins the scores."""

    heads: int = 4
    groups: int = 2
    width: int = 16
    value_width: int = 16
    block: int = 4
    causal: bool = True
    window: int = 0
    chunk: int = 0
    softcap: float = 0.0
    extras: tuple[str, ...] = ()
    shared: bool = False
    first: int = 0
    dtype: torch.dtype = torch.float32
    cached: torch.dtype | None = None

    @property
    def stored(self) -> torch.dtype:
        return self.cached or self.dtype

    def constants(self) -> dict[str, object]:
        (da, db), (ea, eb) = split_width(self.width), split_width(self.value_width)
        return {
            "H": self.heads, "G": self.groups, "D": self.width, "E": self.value_width,
            "BLOCK": self.block, "WIDTH": self.width if self.shared else self.value_width,
            "FIRST": self.first, "SAME": self.shared, "SCALE": 0.3, "CAUSAL": self.causal,
            "WINDOW": self.window, "CHUNK": self.chunk, "SOFTCAP": self.softcap, "REACH": 9,
            "DA": da, "DB": db, "EA": ea, "EB": eb,
        }  # fmt: skip


@dataclass
class Step:
    """Fresh operands of a layer for a ragged batch, blocks scattered over a pool."""

    layer: Layer
    new: list[int]
    old: list[int]

    def __post_init__(self) -> None:
        a = self.layer
        lengths = torch.tensor(self.new) + torch.tensor(self.old)
        self.blocks = ceil(int(lengths.max()) / a.block)
        pool = self.blocks * len(self.new) + 2
        order = torch.randperm(pool)[: self.blocks * len(self.new)]
        self.table = order.reshape(len(self.new), -1).int()
        self.starts = torch.tensor([0, *torch.tensor(self.new).cumsum(0)]).int()
        self.lengths = lengths.int()
        self.q = torch.randn(sum(self.new), a.heads, a.width).to(a.dtype)
        self.k = self._cache(pool, a.width)
        self.v = self.k if a.shared else self._cache(pool, a.value_width)
        made = {
            "sinks": torch.randn(a.heads), "slopes": torch.rand(a.heads),
            "bias": torch.randn(a.heads, 9), "k_scale": torch.rand(pool, a.block, a.groups),
            "v_scale": torch.rand(pool, a.block, a.groups),
        }  # fmt: skip
        self.extras = {name: x if name in a.extras else None for name, x in made.items()}
        self.y = torch.full((sum(self.new), a.heads, a.value_width), torch.nan).to(a.dtype)

    def _cache(self, pool: int, width: int) -> torch.Tensor:
        shape = (pool, self.layer.block, self.layer.groups, width)
        if self.layer.stored == torch.int8:
            return torch.randint(-20, 20, shape, dtype=torch.int8)
        return torch.randn(shape).to(self.layer.stored)

    def wanted(self) -> torch.Tensor:
        return torch.cat([self._sequence(n) for n in range(len(self.new))])

    def _read(self, cache: torch.Tensor, scale: torch.Tensor | None, n: int) -> torch.Tensor:
        pages = cache.double() if scale is None else cache.double() * scale.double()[..., None]
        tokens = pages[self.table[n].long()].flatten(0, 1)[: int(self.lengths[n])]
        return tokens.repeat_interleave(self.layer.heads // self.layer.groups, 1).transpose(0, 1)

    def _sequence(self, n: int) -> torch.Tensor:
        a, x = self.layer, self.extras
        q = self.q[self.starts[n] : self.starts[n + 1]].double().transpose(0, 1)
        k, v = self._read(self.k, x["k_scale"], n), self._read(self.v, x["v_scale"], n)
        v = v[..., a.first : a.first + a.value_width]
        s = 0.3 * q @ k.transpose(1, 2)
        s = a.softcap * torch.tanh(s / a.softcap) if a.softcap else s
        i = torch.arange(self.old[n], int(self.lengths[n]))[:, None]
        j = torch.arange(int(self.lengths[n]))[None]
        if x["slopes"] is not None:
            s = s + x["slopes"].double()[:, None, None] * (j - i)
        if x["bias"] is not None:
            s = s + x["bias"].double()[:, (i - j).clamp(0, 8)]
        seen = (j <= i) | (not a.causal)
        seen = seen & (((i - j).abs() < a.window) if a.window else True)
        seen = seen & ((i // a.chunk == j // a.chunk) if a.chunk else True)
        s = s.masked_fill(~seen, -torch.inf)
        if x["sinks"] is not None:
            sink = x["sinks"].double()[:, None, None].expand(-1, s.shape[1], 1)
            s = torch.cat([s, sink], -1)
        p = torch.softmax(s, -1)[..., : k.shape[1]]
        return (p @ v).transpose(0, 1)

    def by_tokens(self, interpreter: Interpreter, *, singles: bool) -> torch.Tensor:
        a, tile = self.layer, {"HEADS": 2, "TOKENS": 8, "BK": 16}
        repeat = a.heads // a.groups
        grid = (len(self.q) // 8 + len(self.new), a.groups * ceil(repeat / 2))
        values = (self.table, self.starts, self.lengths, *self.extras.values(), self.y)
        return interpreter.run(
            f"{MODULE}:tokens", grid, self.q, self.k, self.v, *values, len(self.new), self.blocks,
            **a.constants(), **tile, SINGLES=singles,
        )[-1]  # fmt: skip

    def by_splits(self, interpreter: Interpreter, split: int) -> torch.Tensor:
        a, sequences = self.layer, len(self.new)
        grid = (sequences, a.groups * ceil(a.heads // a.groups / 16), split)
        partial = torch.full((sequences, a.heads, split, a.value_width), torch.nan)
        stats = torch.full((sequences, a.heads, split, 2), torch.nan)
        extras = [self.extras[e] for e in ("slopes", "bias", "k_scale", "v_scale")]
        values = (self.table, self.starts, self.lengths, *extras, partial, stats, self.blocks)
        *_, partial, stats = interpreter.run(
            f"{MODULE}:splits", grid, self.q, self.k, self.v, *values, **a.constants(),
            HEADS=16, BK=16, SPLITS=split,
        )  # fmt: skip
        values = (self.starts, self.extras["sinks"], partial, stats, self.y)
        choices = {"H": a.heads, "E": a.value_width, "SPLITS": split, "WAYS": 4, "BE": 16}
        return interpreter.run(f"{MODULE}:joined", (sequences, a.heads), *values, **choices)[-1]

    def check(self, y: torch.Tensor) -> None:
        wanted = self.wanted()
        error = (y.double() - wanted).abs().max() / wanted.abs().max()
        assert error < TOLERANCE[self.layer.dtype], f"{self.layer}: {error:.1e}"


LAYERS = {
    "plain": Layer(),
    "window": Layer(heads=3, groups=3, width=33, value_width=20, window=7),
    "window to both sides": Layer(heads=3, groups=1, causal=False, window=6),
    "latent": Layer(heads=5, groups=1, width=36, value_width=28, shared=True, first=4, softcap=5.0),
    "same": Layer(heads=4, groups=1, width=32, value_width=32, shared=True, dtype=torch.bfloat16),
    "chunk and sinks": Layer(chunk=16, extras=("sinks",), dtype=torch.float16),
    "slopes": Layer(extras=("slopes",), dtype=torch.bfloat16),
    "bias": Layer(heads=2, groups=1, causal=False, extras=("bias", "slopes")),
    "codes": Layer(cached=torch.int8, extras=("k_scale", "v_scale"), dtype=torch.bfloat16),
    "short cache": Layer(width=80, value_width=24, cached=torch.bfloat16, block=16),
}


@pytest.mark.parametrize("name", list(LAYERS))
def test_values(interpreter: Interpreter, name: str) -> None:
    step = Step(LAYERS[name], [5, 1, 18], [0, 33, 4])
    step.y = step.by_splits(interpreter, 3)
    others = torch.arange(24) != 5
    assert step.y[others].isnan().all()  # left to the other kernel
    step.check(step.by_tokens(interpreter, singles=False))


def test_tiles_of_tokens_take_single_tokens_too(interpreter: Interpreter) -> None:
    step = Step(LAYERS["plain"], [1, 9, 1], [0, 7, 20])
    step.check(step.by_tokens(interpreter, singles=True))


def test_rows_of_the_step_as_keys(interpreter: Interpreter) -> None:
    layer, new = Layer(heads=2, groups=1), [9, 2, 14]
    step = Step(layer, new, [0, 0, 0])
    slots = [step.table[n, j // 4] * 4 + j % 4 for n, c in enumerate(new) for j in range(c)]
    k, v = (c.flatten(0, 1)[torch.stack(slots).long()] for c in (step.k, step.v))
    values = (None, step.starts, None, *step.extras.values(), step.y, len(new), 1)
    tile = {"HEADS": 2, "TOKENS": 8, "BK": 16, "SINGLES": True}
    grid = (sum(new) // 8 + len(new), 1)
    back = interpreter.run(
        f"{MODULE}:tokens", grid, step.q, k, v, *values, **layer.constants(), **tile
    )
    step.check(back[-1])


def test_a_sequence_does_not_depend_on_those_beside_it(interpreter: Interpreter) -> None:
    step = Step(LAYERS["short cache"], [1, 1, 1], [20, 7, 40])
    whole = step.by_splits(interpreter, 3)
    step.table, step.lengths = step.table[2:], step.lengths[2:]
    step.q, step.y, step.new = step.q[2:], step.y[2:], [1]
    step.starts = step.starts[:2]
    assert torch.equal(step.by_splits(interpreter, 3)[0], whole[2])


SHAPES = {
    "llama": Layer(heads=32, groups=8, width=128, value_width=128, block=16),
    "latent": Layer(heads=128, groups=1, width=576, value_width=512, block=64, shared=True),
}
COMPILED = (
    ("tokens", "llama", "sm_90"),
    ("tokens", "llama", "gfx942"),
    ("splits", "llama", "sm_80"),
    ("splits", "latent", "sm_90"),
)


@pytest.mark.parametrize(("entry", "shape", "arch"), COMPILED)
def test_default_tiles_fit_and_spill_nothing(entry: str, shape: str, arch: str) -> None:
    found = taken(cross_compiled(entry, SHAPES[shape], arch))
    assert found.fits(arch), f"{found}"


def cross_compiled(entry: str, layer: Layer, arch: str, **more: int):
    """An attention in bfloat16 with default tiles."""
    target = target_of(arch)
    tiles = {"tokens": ATTEND_TOKENS, "splits": ATTEND_SPLITS}[entry]
    wide = layer.width > WIDE
    choice = tiles[wide].default(target)
    tile = dict(choice.values) | more
    if entry == "tokens":
        tile |= rows_of(choice, layer.heads // layer.groups)
    warps, stages = tile.pop("WARPS"), tile.pop("STAGES")
    types = dict.fromkeys(("q", "k", "v", "y"), "*bf16") | {"N": "i32", "M": "i32"}
    types |= dict.fromkeys(("table", "starts", "lengths"), "*i32")
    types |= dict.fromkeys(("partial", "stats"), "*fp32")
    made = getattr(entries, entry)
    types = {n: t for n, t in types.items() if n in made.arg_names}
    names = ("sinks", "slopes", "bias", "k_scale", "v_scale")
    choices = dict.fromkeys(names) | layer.constants() | {"SINGLES": False} | tile
    return compiled(made, arch, types, choices, warps=warps, stages=stages)
