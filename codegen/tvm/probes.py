"""Probe kernels: what a machine really reads and computes, for cost models.

Each is a short kernel like those of the templates, timed here. The read probe sums a buffer that no
cache holds; the others multiply and add in registers, as many independent chains as fill them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import tvm
from tvm import tirx
from tvm.script import tirx as T
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as B

from ...ir.target import Target
from ..backend import integer_dot
from . import amx
from .dots import Dot
from .isa import DOT_BF16, isa_of, tvm_target
from .values import i64

LANES = 16
STREAMS = 4  # places in memory that a core reads from at once
ROUNDS = 1 << 20  # multiply-adds of one chain in one call: milliseconds
SECONDS = 0.6  # a busy machine has quiet moments: the best of the calls in this time counts
OPERANDS = (len(amx.X + amx.W), amx.ROWS, amx.ROW_BYTES)  # tiles that are multiplied
DOT_INT8 = "llvm.x86.avx512.vpdpbusd.512"

_BYTES = ("uint8", "int8")

Step = Callable[[object], object]


@dataclass(frozen=True)
class Probe:
    """A dtype's multiply-add: the accumulator's dtype, operations a step, how a step is written,
    accumulators of a step.
    """

    accumulator: str
    operations: int
    step: Step
    snippet: str = ""
    lanes: int = LANES


def read_bandwidth(target: Target, bytes_: int) -> float:
    """Bytes a second that the cores together read from a buffer of so many bytes.

    That is no less than one core reads in its own time of use, which counts where other work keeps
    the cores from running at once.
    """
    threads = max(1, target.cores)
    together = _read_rate(target, threads, bytes_, time.perf_counter)
    return (
        max(together, _read_rate(target, 1, bytes_, time.thread_time)) if threads > 1 else together
    )


def _read_rate(target: Target, threads: int, bytes_: int, clock: Callable[[], float]) -> float:
    chunk = max(1, bytes_ // (4 * threads * STREAMS * 4 * LANES))
    kernel = _compiled(_read(threads, chunk), target)
    # Not numpy's memory: it has huge pages, which memory-mapped weights have not.
    source = tvm.runtime.tensor(np.ones((threads, STREAMS, chunk, 4 * LANES), "float32"))
    result = tvm.runtime.tensor(np.full((threads, LANES), np.nan, "float32"))
    best = _best(lambda: kernel(source, result), clock, SECONDS)
    assert (result.numpy() == STREAMS * 4 * chunk).all(), f"the sums of ones are {result.numpy()}"
    return 4 * threads * STREAMS * chunk * 4 * LANES / best


def peak_operations(target: Target) -> dict[str, float]:
    """Operations a second of all cores, by the dtypes that the target has dot instructions for.

    A multiply-add is two operations. f32 is always there. All cores run at once: what one computes
    alone is not theirs to multiply where two share the units of one. The process must have been
    allowed the tile registers of a target that has them.
    """
    rates = {dtype: _rate(target, probe) for dtype, probe in _probes(target).items()}
    for dtype, kind in _tile_kinds(target).items():
        rates[dtype] = max(rates[dtype], _tile_rate(target, kind))
    return rates


def _tile_kinds(target: Target) -> Mapping[str, str]:
    isa = isa_of(target)
    found = {"bf16": "tdpbf16ps"} if isa.has_bf16_tiles else {}
    return found | ({"i8": "tdpbssd"} if isa.has_integer_tiles else {})


def _tile_rate(target: Target, kind: str) -> float:
    """Operations a second of products of tiles, four independent sums at a time.

    Tiles hold random numbers: a core multiplies zeros at a higher clock, up to a quarter faster.
    """
    cores = max(1, target.cores)
    kernel = _compiled(_tile_chains(kind, cores), target)
    operands = np.random.default_rng(0).integers(0, 256, OPERANDS, "uint8")
    if kind == "tdpbf16ps":  # of 0.5 to 2: none that is no number
        operands[..., 1::2] = operands[..., 1::2] & 0x80 | 0x3F
    source = tvm.runtime.tensor(operands)
    result = tvm.runtime.tensor(np.zeros((cores, amx.ROWS, LANES), "int32"))
    best = _best(lambda: kernel(source, result), time.perf_counter, SECONDS / 2)
    depth = amx.ROW_BYTES // (2 if kind == "tdpbf16ps" else 1)
    return cores * (ROUNDS >> 2) * len(amx.SUMS) * 2 * amx.ROWS * LANES * depth / best


def _tile_chains(kind: str, cores: int) -> tirx.PrimFunc:
    with IRBuilder() as builder, B.prim_func():
        B.func_name("probe")
        source = B.arg("S", B.buffer(OPERANDS, "uint8"))
        result = B.arg("R", B.buffer((cores, amx.ROWS, LANES), "int32"))
        with B.parallel(i64(0), i64(cores)) as t, amx.configured():
            for tile in amx.SUMS:
                amx.zero(tile)
            for number, tile in enumerate(amx.X + amx.W):
                amx.load(tile, source[i64(number), i64(0), i64(0)])
            with B.serial(i64(0), i64(ROUNDS >> 2)):
                for number, tile in enumerate(amx.SUMS):
                    amx.multiply(kind, tile, amx.X[number // 2], amx.W[number % 2])
            amx.store(amx.SUMS[0], result[t, i64(0), i64(0)])
    function = builder.get()
    assert isinstance(function, tirx.PrimFunc), function
    return function


def _rate(target: Target, probe: Probe) -> float:
    chains, cores = {512: 10, 256: 5, 128: 3}[target.vector_bits], max(1, target.cores)
    chains = chains * LANES // probe.lanes
    function = _chains(cores, chains, probe)
    if probe.snippet:
        text = tvm.ir.StringImm(probe.snippet)
        pragma = tirx.IntImm("int32", 0)
        function = function.with_body(
            tirx.AttrStmt(pragma, "pragma_import_llvm", text, function.body)
        )
    kernel = _compiled(function, target)
    result = tvm.runtime.tensor(np.zeros((cores, chains, probe.lanes), probe.accumulator))
    best = _best(lambda: kernel(result), time.perf_counter, SECONDS / 2)
    return cores * chains * ROUNDS * probe.operations / best


def _probes(target: Target) -> Mapping[str, Probe]:
    found = {"f32": Probe("float32", 2 * LANES, _fused if target.has("fma") else _separate)}
    if target.has("avx512f", "avx512_bf16"):
        found["bf16"] = Probe("float32", 4 * LANES, _dot_bf16, DOT_BF16)
    if target.has("avx512f", "avx512_vnni"):
        found["i8"] = Probe("int32", 8 * LANES, _dot_int8)
    elif kind := integer_dot(target):
        dot = Dot(kind, "u4")  # codes as they are: those of 8 bits take one instruction more
        found["i8"] = Probe("int32", 8 * dot.lanes, partial(_dot_narrow, dot), lanes=dot.lanes)
    return found


def _fused(a: object) -> object:
    one = T.broadcast(T.float32(1), LANES)
    return T.call_llvm_pure_intrin("float32x16", "llvm.fma.v16f32", a, one, one)


def _separate(a: object) -> object:
    half = T.broadcast(T.float32(0.5), LANES)
    return a * half + half


def _dot_bf16(a: object) -> object:
    ones = T.broadcast(T.int16(0x3F80), 2 * LANES)
    return T.call_extern("float32x16", "ferrule_dot_bf16", a, ones, ones)


def _dot_int8(a: object) -> object:
    unsigned, signed = T.broadcast(T.uint8(1), 4 * LANES), T.broadcast(T.int8(1), 4 * LANES)
    return T.call_llvm_pure_intrin("int32x16", DOT_INT8, a, unsigned, signed)


def _dot_narrow(dot: Dot, a: object) -> object:
    # Of constants the compiler would make one.
    unsigned, signed = (tirx.op.reinterpret(f"{kind}x{4 * dot.lanes}", a) for kind in _BYTES)
    return dot.sum(a, (unsigned,), signed)


def _chains(cores: int, chains: int, of: Probe) -> tirx.PrimFunc:
    """result[t, c] = step applied ROUNDS times to what it held, for every chain, on every core."""

    dtype, step, lanes = of.accumulator, of.step, of.lanes

    @T.prim_func
    def probe(R: T.Buffer((cores, chains, lanes), dtype)) -> None:
        for t in T.parallel(cores):
            a = T.alloc_buffer((chains, lanes), dtype)
            for c in T.unroll(chains):
                a[c, T.ramp(0, 1, lanes)] = R[t, c, T.ramp(0, 1, lanes)]
            for _ in T.serial(ROUNDS):
                for c in T.unroll(chains):
                    a[c, T.ramp(0, 1, lanes)] = step(a[c, T.ramp(0, 1, lanes)])
            for c in T.unroll(chains):
                R[t, c, T.ramp(0, 1, lanes)] = a[c, T.ramp(0, 1, lanes)]

    return probe


def _read(threads: int, chunk: int) -> tirx.PrimFunc:
    """result[t] = the sum of the vectors of thread t's streams, read side by side: a core that
    follows one place in memory waits at every page.
    """

    @T.prim_func
    def probe(
        X: T.Buffer((threads, STREAMS, chunk, 4 * LANES), "float32"),
        R: T.Buffer((threads, LANES), "float32"),
    ) -> None:
        for t in T.parallel(threads):
            a = T.alloc_buffer((8, LANES), "float32")
            for c in T.unroll(8):
                a[c, T.ramp(0, 1, LANES)] = T.broadcast(T.float32(0), LANES)
            for k in T.serial(chunk):
                for s in T.unroll(STREAMS):
                    for c in T.unroll(4):
                        a[4 * (s % 2) + c, T.ramp(0, 1, LANES)] = (
                            a[4 * (s % 2) + c, T.ramp(0, 1, LANES)]
                            + X[t, s, k, T.ramp(c * LANES, 1, LANES)]
                        )
            R[t, T.ramp(0, 1, LANES)] = T.broadcast(T.float32(0), LANES)
            for c in T.unroll(8):
                R[t, T.ramp(0, 1, LANES)] = R[t, T.ramp(0, 1, LANES)] + a[c, T.ramp(0, 1, LANES)]

    return probe


def _compiled(function: tirx.PrimFunc, target: Target) -> Callable[..., object]:
    named = function.with_attr("global_symbol", "probe")
    return tvm.compile(tvm.IRModule({"probe": named}), target=tvm_target(target))["probe"]


def _best(call: Callable[[], object], clock: Callable[[], float], seconds: float) -> float:
    """Seconds on a clock of the fastest of the calls made in a time, after one that warms up."""
    call()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        begin = clock()
        call()
        if (taken := clock() - begin) > 0:  # a thread's clock may stand still in a short call
            times.append(taken)
    return min(times)
