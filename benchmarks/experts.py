"""Expert linears alone: both products of a mixture's layer, beside the machine's rates.

    python -m benchmarks.experts [--format int4-g32] [--rows 1 8 64 512]

Tokens go to `top` of the experts, drawn at random. Bytes are those of the experts that a step's
tokens name, each counted once; operations those of all tokens. Set TVM_NUM_THREADS for another
number of threads.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tvm
from ferrule.codegen.backend import KernelBody, cpu_backend
from ferrule.codegen.tvm import build_library
from ferrule.compiler.hardware import measure
from ferrule.ir.dims import Dim, dim
from ferrule.ir.graph import Graph
from ferrule.ir.node import Node, input_
from ferrule.ir.ops import quantized, serving
from ferrule.ir.ops import tensor as t
from ferrule.ir.target import Target
from ferrule.ir.types import BITS, TensorType
from ferrule.passes.layout_codes import PackedCodes
from ferrule.passes.weight_formats import Format

from .attention import random

SECONDS = 1.0
FLOATS = ("f32", "bf16", "f16")
TOKENS = dim("T")


@dataclass(frozen=True)
class Mixture:
    """Sizes of a layer: experts, choices of a token, width, width inside an expert; the weights'
    format.
    """

    experts: int
    top: int
    width: int
    inner: int
    form: str

    def product(self, x: Node, index: Node, n: int) -> tuple[list[Node], Node]:
        """The weights of a product with n columns, packed, and the product."""
        backend, k = cpu_backend(Target.parse("cpu")), int(x.shape[-1])
        if self.form in FLOATS:
            layout = backend.layouts[self.form]
            packed = layout.packed(_given("w", self.form, self.experts, n, k))
            w = _given("w", self.form, *packed.shape)
            return [w], serving.packed_expert_linear(x, w, index, n=n, layout=layout.word)
        codes, scale, zeros = Format.parse(self.form).quantized(
            _given("w", "f32", self.experts, n, k)
        )
        layout, integer = backend.layouts[codes.dtype], backend.integer_dots
        packed = PackedCodes.of(codes, scale, layout, zeros, levels=integer)
        parts = (packed.codes, packed.scale, packed.zeros, packed.multipliers)
        given = [p and _given(f"w{i}", p.dtype, *p.shape) for i, p in enumerate(parts)]
        offset = Format.parse(self.form).offset
        more = () if zeros is None else (zeros,)
        plain = quantized.quantized_expert_linear(x, codes, scale, index, *more, offset=offset)
        q, s, z, m = given
        assert q is not None and s is not None
        held = PackedCodes(q, s, layout, z, m)
        return [w for w in given if w is not None], held.linear(plain, integer=integer)

    def bodies(self) -> dict[str, Graph]:
        """The gated product of each token's rows, and the product back, weighed."""
        dtype = self.form if self.form in FLOATS else "f32"
        x, index = _given("x", dtype, TOKENS, 1, self.width), _given("i", "i64", TOKENS, self.top)
        rows = t.broadcast(x, shape=(TOKENS, self.top, self.width))
        up, y = self.product(rows, index, 2 * self.inner)
        halves = (t.slice_(y, axis=2, start=s, stop=s + self.inner) for s in (0, self.inner))
        gate, value = halves
        inner = _given("x", dtype, TOKENS, self.top, self.inner)
        share = _given("share", dtype, TOKENS, self.top, 1)
        down, z = self.product(inner, index, self.width)
        return {
            "gated": Graph("gated", (x, index, *up), (t.mul(t.silu(gate), value),)),
            "back": Graph("back", (inner, index, share, *down), (t.mul(z, share),)),
        }


def _given(name: str, dtype: str, *shape: Dim) -> Node:
    return input_(name=name, type=TensorType(dtype, shape))


def arguments(body: Graph, rows: int, chosen: np.ndarray) -> list[tvm.runtime.Tensor]:
    """Random inputs, and room for the result."""
    found: list[tvm.runtime.Tensor] = []
    for node in (*body.inputs, *body.outputs):
        shape = tuple(rows if d == TOKENS else int(d) for d in node.shape)
        if node.attributes.get("name") == "i":
            found.append(tvm.runtime.tensor(chosen))
        elif node.dtype in ("u8", "u4"):
            size = (*shape[:-1], shape[-1] // 2) if node.dtype == "u4" else shape
            codes = np.random.default_rng(0).integers(0, 256, tuple(size)).astype(np.uint8)
            found.append(tvm.runtime.tensor(codes))
        else:
            found.append(tvm.runtime.tensor(random(node.dtype, shape)))
    return found


def weight_bytes(body: Graph, experts: int, named: int) -> int:
    """Bytes of the weights of so many experts."""
    weights = [i for i in body.inputs if i.shape[0] == experts and i.shape[0] != TOKENS]
    whole = sum(int(np.prod([int(d) for d in w.shape])) * BITS[w.dtype] // 8 for w in weights)
    return whole * named // experts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--format", default="f32", help=f"{', '.join(FLOATS)}, int8, int4-g32, ...")
    parser.add_argument("--rows", type=int, nargs="*", default=[1, 8, 64, 512])
    for name, size in (("experts", 64), ("top", 8), ("width", 1024), ("inner", 512)):
        parser.add_argument(f"--{name}", type=int, default=size)
    given = parser.parse_args()
    mixture = Mixture(given.experts, given.top, given.width, given.inner, given.format)
    machine = measure(Target.parse("cpu"))
    peaks = ", ".join(f"{name} {rate / 1e9:.0f}" for name, rate in machine.peak.items())
    print(f"reads {machine.read_bandwidth / 1e9:.1f} GB/s; GFLOP/s: {peaks}")
    bodies = mixture.bodies()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernels.so"
        wanted = {name: KernelBody(body) for name, body in bodies.items()}
        reports = build_library(wanted, Target.parse("cpu"), path)
        library = tvm.runtime.load_module(str(path))
    draw = np.random.default_rng(1)
    for rows in given.rows:
        chosen = np.stack(
            [draw.choice(given.experts, given.top, replace=False) for _ in range(rows)]
        ).astype("int64")
        for name, body in bodies.items():
            values = arguments(body, rows, chosen)
            seconds = timed(library[reports[name].function], values)
            read = weight_bytes(body, given.experts, len(np.unique(chosen)))
            columns = 2 * given.inner if name == "gated" else given.inner
            operations = 2 * rows * given.top * columns * given.width
            print(
                f"{rows:5} tokens {name:6}{seconds * 1e6:11.1f} us "
                f"{read / seconds / 1e9:7.2f} GB/s of weights "
                f"{operations / seconds / 1e9:8.1f} GFLOP/s"
            )


def timed(kernel: Callable[..., object], values: list[tvm.runtime.Tensor]) -> float:
    """Seconds of a call, the median over a second of calls."""
    times: list[float] = []
    end = time.perf_counter() + SECONDS
    while len(times) < 5 or time.perf_counter() < end:
        begin = time.perf_counter()
        kernel(*values)
        times.append(time.perf_counter() - begin)
    return statistics.median(times[2:])


if __name__ == "__main__":
    main()
