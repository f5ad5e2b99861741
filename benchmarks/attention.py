"""The attention kernel alone: time, bytes of cache and operations a second, beside the machine's.

    python -m benchmarks.attention [--dtype bf16] [--cached i8] [--scattered] [CASE ...]

Caches are walked through in turn, so that what decode reads is no longer in the caches of the
cores; they have large pages, as an engine's have. A sequence's blocks lie one after the other, as a
fresh engine gives them, or anywhere with --scattered. Each case is measured beside the machine's
reading, whose rate changes from minute to minute. Operations are those of the keys that are seen.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tvm_ffi
from ferrule.codegen.backend import KernelBody
from ferrule.codegen.tvm import build_library
from ferrule.codegen.tvm.probes import read_bandwidth
from ferrule.compiler.hardware import measure
from ferrule.ir.dims import dim
from ferrule.ir.graph import Graph
from ferrule.ir.node import Node, input_
from ferrule.ir.ops import serving
from ferrule.ir.target import Target
from ferrule.ir.types import BITS, CacheType, TensorType
from ferrule.runtime.library import KernelLibrary
from ferrule.runtime.tensors import Array, allocate, to_tensor
from ferrule.runtime.tiles import allow_tiles

BLOCK = 16
APART = 300_000_000  # bytes of caches that decode goes through before it comes back to one
MOST_SETS = 64
SECONDS = 1.0


@dataclass(frozen=True)
class Case:
    """Heads, groups and width; for each sequence its new tokens and those before."""

    heads: int
    groups: int
    width: int
    new: tuple[int, ...]
    old: tuple[int, ...]

    @property
    def pairs(self) -> int:
        """Queries by the keys that they see."""
        both = zip(self.new, self.old, strict=True)
        return sum(n * o + n * (n + 1) // 2 for n, o in both)

    @property
    def lengths(self) -> list[int]:
        """Keys of each sequence."""
        return [n + o for n, o in zip(self.new, self.old, strict=True)]


CASES = {
    "decode-512": Case(32, 8, 64, (1,), (511,)),
    "decode-4096": Case(32, 8, 64, (1,), (4095,)),
    "decode-4096x8": Case(32, 8, 64, (1,) * 8, (4095,) * 8),
    "decode-4096-by-7": Case(14, 2, 64, (1,), (4095,)),
    "decode-4096-by-8": Case(32, 4, 64, (1,), (4095,)),
    "decode-200x32": Case(32, 8, 64, (1,) * 32, tuple(range(40, 360, 10))),
    "decode-200x32-by-7": Case(14, 2, 64, (1,) * 32, tuple(range(40, 360, 10))),
    "decode-wide-4096": Case(16, 4, 128, (1,), (4095,)),
    "decode-one-group-16384": Case(8, 1, 64, (1,), (16383,)),
    "decode-ragged": Case(32, 8, 64, (1,) * 8, (4000, 17, 100, 3, 250, 60, 900, 1)),
    "prefill-512": Case(32, 8, 64, (512,), (0,)),
    "prefill-2048": Case(32, 8, 64, (2048,), (0,)),
    "chunk-512-of-2560": Case(32, 8, 64, (512,), (2048,)),
}


def graph_of(case: Case, dtype: str, cached: str) -> Graph:
    """The kernel's body."""
    n, m, t = dim("N"), dim("M"), dim("T")
    q = input_(name="q", type=TensorType(dtype, (t, case.heads, case.width)))
    kind = CacheType(cached, BLOCK, (case.groups, case.width))
    caches = [input_(name=name, type=kind) for name in "kv"]
    shapes = {"table": (n, m), "starts": (n + 1,), "lengths": (n,)}
    batch = [input_(name=name, type=TensorType("i32", s)) for name, s in shapes.items()]
    words = ("k_scale", "v_scale") if cached == "i8" else ()
    scales = [input_(name=w, type=CacheType("f32", BLOCK, (case.groups,))) for w in words]
    y = serving.paged_attention(
        q, *caches, *batch, *scales, scale=case.width**-0.5, value_size=case.width, extras=words
    )
    return Graph("attention", (q, *caches, *batch, *scales), (y,))


def random(dtype: str, shape: tuple[int, ...]) -> Array:
    """Random elements as the kernel's border wants them."""
    x = np.random.default_rng(0).standard_normal(shape, dtype="float32")
    made = allocate(dtype, shape)
    made[...] = x.view("uint32") >> 16 if dtype == "bf16" else x * 40 if dtype == "i8" else x
    return made


def sets_of(case: Case, body: Graph, *, scattered: bool) -> list[list[tvm_ffi.Tensor]]:
    """Arguments of the kernel; several sets of caches for decode."""
    counts = [-(-n // BLOCK) for n in case.lengths]
    table = np.zeros((len(counts), max(counts)), "int32")
    free = np.arange(sum(counts))
    if scattered:
        free = np.random.default_rng(1).permutation(free)
    for row, (count, end) in enumerate(zip(counts, np.cumsum(counts), strict=True)):
        table[row, :count] = free[end - count : end]
    given = {
        "table": table,
        "starts": np.cumsum([0, *case.new]),
        "lengths": np.array(case.lengths),
    }

    def value(node: Node) -> tvm_ffi.Tensor:
        kind = node.type
        if isinstance(kind, CacheType):
            return to_tensor(random(kind.dtype, (sum(counts), BLOCK, *kind.entry)))
        if node["name"] in given:
            made = allocate("i32", given[node["name"]].shape)
            made[...] = given[node["name"]]
            return to_tensor(made)
        return to_tensor(random(node.dtype, (sum(case.new), case.heads, case.width)))

    copies = 1 if max(case.new) > 1 else max(1, min(MOST_SETS, APART // bytes_of(case, body)))
    return [[value(i) for i in body.inputs] for _ in range(copies)]


def bytes_of(case: Case, body: Graph) -> int:
    """Bytes of the sequences' keys and values, scales included."""
    kinds = [i.type for i in body.inputs if isinstance(i.type, CacheType)]
    return sum(case.lengths) * sum(k.entry_bytes() for k in kinds)


def measured(case: Case, dtype: str, cached: str, *, scattered: bool) -> tuple[float, int]:
    """Seconds of a call, the median over a second of calls; bytes of cache."""
    body = graph_of(case, dtype, cached)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernels.so"
        report = build_library({"attention": KernelBody(body)}, Target.parse("cpu"), path)
        library = KernelLibrary(path)
    library.enter_thread()
    kernel = library[report["attention"].function]
    sets = sets_of(case, body, scattered=scattered)
    result = to_tensor(random(dtype, (sum(case.new), case.heads, case.width)))
    times: list[float] = []
    end = time.perf_counter() + SECONDS
    while len(times) < 5 or time.perf_counter() < end:
        arguments = sets[len(times) % len(sets)]
        begin = time.perf_counter()
        kernel(*arguments, result)
        times.append(time.perf_counter() - begin)
    return statistics.median(times[2:]), bytes_of(case, body)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", choices=("f32", "bf16", "f16"), default="bf16")
    parser.add_argument("--cached", choices=[d for d in BITS if d in ("f32", "bf16", "f16", "i8")])
    parser.add_argument("--scattered", action="store_true")
    parser.add_argument("cases", nargs="*", default=list(CASES))
    given = parser.parse_args()
    allow_tiles()
    machine = measure(Target.parse("cpu"))
    peaks = ", ".join(f"{name} {rate / 1e9:.0f}" for name, rate in machine.peak.items())
    print(f"reads {machine.read_bandwidth / 1e9:.1f} GB/s; GFLOP/s: {peaks}")
    for name in given.cases:
        case = CASES[name]
        cached = given.cached or given.dtype
        seconds, read = measured(case, given.dtype, cached, scattered=given.scattered)
        reads = read_bandwidth(Target.parse("cpu"), 256 << 20)
        operations = 4 * case.heads * case.width * case.pairs
        print(
            f"{name:24}{seconds * 1e6:10.1f} us {read / seconds / 1e9:7.2f} GB/s of cache, "
            f"{read / seconds / reads:4.0%} of {reads / 1e9:5.1f}; "
            f"{operations / seconds / 1e9:8.1f} GFLOP/s",
            flush=True,
        )


if __name__ == "__main__":
    main()
