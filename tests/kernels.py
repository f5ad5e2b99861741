"""`Kernels`: bodies compiled together for one target, run on fresh random inputs against the
reference values.

from kernels import Kernels, given

library = Kernels("cpu", {"norm": graph}) library.check("norm", T=5)

TVM is imported where it is used: transformers imports a package of this name where it finds one,
and must not fail for that on a machine with a GPU and no TVM.
"""

from __future__ import annotations

import pathlib
import tempfile
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from ferrule.codegen.backend import KernelBody
from ferrule.codegen.space import Choices
from ferrule.compiler.reference import evaluate
from ferrule.compiler.reference.context import DTYPES as TORCH
from ferrule.ir.dims import Dim, dim, substitute
from ferrule.ir.graph import Graph
from ferrule.ir.node import Node, input_
from ferrule.ir.target import Target
from ferrule.ir.types import CacheType, TensorType
from ferrule.runtime.tiles import allow_tiles

if TYPE_CHECKING:
    import tvm

TOLERANCE = {"f64": 1e-12, "f32": 1e-5, "f16": 2e-3, "bf16": 2e-2}
"""Largest error relative to the largest value of an output. Products of two sums of inputs that are
rounded to bfloat16 are off by more than 1e-2 of the largest of 21 in one draw of 200.
"""

Make = Callable[[tuple[int, ...]], torch.Tensor]


def given(name: str, dtype: str, *shape: Dim) -> Node:
    """An input of a body."""
    return input_(name=name, type=TensorType(dtype, tuple(shape)))


def cache(name: str, dtype: str, *entry: int, block: int = 16) -> Node:
    """A cache input of a body."""
    return input_(name=name, type=CacheType(dtype, block, entry))


class Kernels:
    """One library of kernels for a target, with what was chosen for some by their digests.

    On a machine that lacks what the target needs the kernels are compiled, and running one skips
    the test.
    """

    def __init__(
        self,
        target: str | Target,
        bodies: Mapping[str, Graph],
        chosen: Mapping[str, Choices] | None = None,
    ) -> None:
        import tvm
        from ferrule.codegen.tvm import build_library

        target = Target.parse(target) if isinstance(target, str) else target
        self.bodies = bodies
        self._folder = tempfile.TemporaryDirectory()
        path = pathlib.Path(self._folder.name) / "kernels.so"
        wanted = {name: KernelBody(body) for name, body in bodies.items()}
        self.reports = build_library(wanted, target, path, chosen)
        allow_tiles()  # a target without tiles runs as well without them
        self.library = tvm.runtime.load_module(str(path))
        self.lacking = target.missing_on(Target.parse("cpu"))

    def check(
        self,
        name: str,
        inputs: Mapping[str, torch.Tensor | Make] | None = None,
        *,
        exactly: bool = False,
        **dims: int,
    ) -> None:
        """Run a kernel on random inputs (or those given) at some dims, and compare every result."""
        body = self.bodies[name]
        values = [value_of(i, inputs or {}, dims) for i in body.inputs]
        wanted = evaluate(body, [v.clone() for v in values], {}, dims, wide=True)
        results = self.run(name, values, [tuple(w.shape) for w in wanted])
        for node, have, want in zip(body.outputs, results, wanted, strict=True):
            compare(node.type.dtype, have, want, f"{name} {node} at {dims}")
            assert not exactly or torch.equal(have, want), f"{name} {node} at {dims}: not equal"

    def run(
        self, name: str, values: list[torch.Tensor], shapes: list[tuple[int, ...]]
    ) -> list[torch.Tensor]:
        """The results of a kernel; outputs are poisoned before, appended caches are given back."""
        if self.lacking:
            pytest.skip(f"compiled, not run: the machine has no {', '.join(sorted(self.lacking))}")
        body = self.bodies[name]
        arguments = [as_array(v, i) for i, v in zip(body.inputs, values, strict=True)]
        outputs = [
            (o, poisoned(o.type.dtype, s))
            for o, s in zip(body.outputs, shapes, strict=True)
            if isinstance(o.type, TensorType)
        ]
        import tvm
        from ferrule.codegen.tvm.function import cache_of

        packed = [tvm.runtime.tensor(a) for a in arguments]
        results = [tvm.runtime.tensor(a) for _, a in outputs]
        self.library[self.reports[name].function](*packed, *results)
        after = dict(zip(body.inputs, packed, strict=True))
        done = {o: r for (o, _), r in zip(outputs, results, strict=True)}
        return [_tensor(done[o] if o in done else after[cache_of(o)], o) for o in body.outputs]


def state(name: str, dtype: str, *entry: int) -> Node:
    """An input of states, one a sequence."""
    return input_(name=name, type=CacheType(dtype, 0, entry))


def compare(dtype: str, have: torch.Tensor, want: torch.Tensor, what: str) -> None:
    """Refuse a result that departs from what was wanted."""
    assert have.shape == want.shape, f"{what}: {list(have.shape)}, wanted {list(want.shape)}"
    if not want.is_floating_point():
        assert torch.equal(have, want), f"{what}: {have} differs from {want}"
        return
    have, want = have.double(), want.double()
    same = (have == want) | (have.isnan() & want.isnan())
    finite = want[want.isfinite()]
    scale = max(float(finite.abs().max()) if finite.numel() else 0.0, 1e-30)
    worst = torch.where(same, 0.0, (have - want).abs() / scale)
    assert not worst.isnan().any(), f"{what}: not a number"
    assert float(worst.max() if worst.numel() else 0) <= TOLERANCE[dtype], (
        f"{what}: {worst.max():.2e}"
    )


def size(d: Dim, dims: Mapping[str, int]) -> int:
    """A dim as a number."""
    return int(substitute(d, dims))


def ragged_batch(
    new: list[int], old: list[int], block: int = 16
) -> tuple[dict[str, torch.Tensor], dict[str, int]]:
    """Inputs of a ragged batch and its dims: each sequence's new tokens and those already cached,
    its blocks scattered over the pool.
    """
    lengths = torch.tensor(new) + torch.tensor(old)
    blocks = -(-int(lengths.max()) // block)
    pool = blocks * len(new) + 3
    table = torch.randperm(pool)[: blocks * len(new)].reshape(len(new), blocks)
    starts = torch.cat([torch.zeros(1), torch.tensor(new).cumsum(0)])
    dims = {"T": sum(new), "N": len(new), "M": blocks, "C": pool}
    return {"table": table, "starts": starts, "lengths": lengths}, dims


def value_of(
    node: Node, inputs: Mapping[str, torch.Tensor | Make], dims: Mapping[str, int]
) -> torch.Tensor:
    """The value of an input: the one given, or a random one."""
    t = node.type
    if isinstance(t, CacheType):
        shape = t.array(dims["C"])
    else:
        shape = tuple(size(d, dims) for d in t.shape)
    chosen = inputs.get(node["name"])
    if chosen is None:
        return drawn(t.dtype, shape)
    value = chosen(shape) if callable(chosen) else chosen
    return value.to(TORCH[t.dtype])


def drawn(dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
    """A random tensor: normal floats, small integers."""
    kind = TORCH[dtype]
    if kind.is_floating_point:
        return torch.randn(shape, dtype=torch.float64).to(kind)
    low, high = {"bool": (0, 2), "u8": (0, 200), "i4": (-8, 8), "u4": (0, 16), "i2": (-2, 2)}.get(
        dtype, (-50, 50)
    )
    return torch.randint(low, high, shape).to(kind)


def below(limit: int) -> Make:
    """Random indices from 0 to limit - 1."""
    return lambda shape: torch.randint(0, limit, shape)


_BITS = {"bf16": torch.uint16, "bool": torch.uint8, "f8e4m3": torch.uint8, "f8e5m2": torch.uint8}


def as_array(value: torch.Tensor, node: Node) -> np.ndarray:
    """A tensor as the kernel's border wants it."""
    dtype = node.type.dtype
    if dtype in ("i4", "u4", "i2"):
        return _packed(value, {"i4": 4, "u4": 4, "i2": 2}[dtype])
    value = value.contiguous()
    return (value.view(_BITS[dtype]) if dtype in _BITS else value).numpy().copy()


def _packed(value: torch.Tensor, bits: int) -> np.ndarray:
    per = 8 // bits
    flat = value.numpy().astype(np.uint8) & (2**bits - 1)
    short = -flat.shape[-1] % per
    flat = np.pad(flat, [(0, 0)] * (flat.ndim - 1) + [(0, short)])
    parts = flat.reshape(*flat.shape[:-1], -1, per)
    return sum(parts[..., i] << (bits * i) for i in range(per)).astype(np.uint8)


def poisoned(dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """An output before its kernel ran: NaN, or a number that no test expects."""
    kind = TORCH[dtype]
    if kind.is_floating_point:
        full = torch.full(shape, float("nan")).to(kind)
    else:
        full = torch.full(shape, 1 if dtype == "bool" else 99).to(kind)
    return (full.view(_BITS[dtype]) if dtype in _BITS else full).numpy().copy()


def _tensor(result: tvm.runtime.Tensor, node: Node) -> torch.Tensor:
    value = torch.from_numpy(result.numpy().copy())
    return value.view(TORCH[node.type.dtype]) if node.type.dtype in _BITS else value


T = dim("T")
"""The token dim, for bodies."""
