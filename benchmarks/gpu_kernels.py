"""Single kernels on a device, built from their bodies: large linears, attention over a prompt."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ferrule.codegen.backend import KernelBody
from ferrule.codegen.triton.build import build_kernels
from ferrule.ir.dims import dim
from ferrule.ir.graph import Graph
from ferrule.ir.launches import LAUNCHES, LaunchTable
from ferrule.ir.node import Node, input_
from ferrule.ir.ops import model as m
from ferrule.ir.ops import serving as s
from ferrule.ir.plan import Argument, Call, Entry, Plan, tensor_bytes
from ferrule.ir.target import Target
from ferrule.ir.types import CacheType, TensorType
from ferrule.runtime.cuda.binding import Binding
from ferrule.runtime.cuda.driver import Driver
from ferrule.runtime.tensors import Array

T, N, M = dim("T"), dim("N"), dim("M")
BLOCK = 16


def given(name: str, dtype: str, *shape: object) -> Node:
    """An input of a body."""
    return input_(name=name, type=TensorType(dtype, tuple(shape)))  # pyright: ignore[reportArgumentType]


def linear_body(n: int, k: int, most: int) -> Graph:
    """x[T, K] by w[N, K]."""
    x, w = given("x", "bf16", T, k), given("w", "bf16", n, k)
    return Graph("kernel", (x, w), (m.linear(x, w),), bounds={"T": (1, most)})


def attention_body(heads: int, groups: int, width: int, most: int) -> Graph:
    """Causal attention of T new tokens over pages of the cache."""
    q = given("q", "bf16", T, heads, width)
    keys, values = (
        input_(name=n, type=CacheType("bf16", BLOCK, (groups, width))) for n in ("keys", "values")
    )
    table = given("table", "i32", N, M)
    starts, lengths = given("starts", "i32", N + 1), given("lengths", "i32", N)
    inputs = (q, keys, values, table, starts, lengths)
    y = s.paged_attention(*inputs, scale=width**-0.5, causal=True, value_size=width)
    bounds = {"T": (1, most), "N": (1, 4), "M": (1, -(-most // BLOCK))}
    return Graph("kernel", inputs, (y,), bounds=bounds)


@dataclass
class Alone:
    """One kernel on a device: its arguments lie one after another, results last."""

    driver: Driver
    replay: Callable[[], None]
    addresses: Mapping[str, int]
    result: tuple[int, tuple[int, ...]]
    memory: tuple[int, ...]

    @staticmethod
    def of(
        body: Graph,
        target: Target,
        folder: Path,
        opened: Callable[[Path], Driver],
        inputs: Mapping[str, Array],
        dims: Mapping[str, int],
        result: tuple[int, ...],
        *,
        machine_code: bool = True,
    ) -> Alone:
        """A kernel built into a folder, on what `opened` gives for it; bfloat16 as bits."""
        build_kernels({"k": KernelBody(body)}, target, folder, machine_code=machine_code)
        table = LaunchTable.from_json((folder / LAUNCHES).read_bytes())
        driver = opened(folder)
        if machine_code:
            driver.load([(n, b, (folder / b.file).read_bytes()) for n, b in table.binaries.items()])
        arguments: list[Argument] = []
        addresses: dict[str, int] = {}
        for node in body.inputs:
            assert isinstance(node.type, TensorType | CacheType), node
            name, array = str(node["name"]), inputs[str(node["name"])]
            addresses[name] = driver.allocate(array.nbytes)
            driver.write(addresses[name], np.ascontiguousarray(array))
            arguments.append(Argument("input", name, 0, node.type.dtype, array.shape))
        size = tensor_bytes(body.outputs[0].dtype, result)
        addresses["y"] = driver.allocate(size)
        arguments.append(Argument("input", "y", 0, body.outputs[0].dtype, result))
        scratch = driver.allocate(max(table.scratch_bytes, 256))
        plan = Plan({"main": Entry((Call("k", tuple(arguments)),))}, {})
        binding = Binding(plan, table, lambda a: addresses[str(a.name)], scratch)
        recorded = driver.record(driver.pack(binding.bind("main", dims)))

        def replay() -> None:
            driver.replay(recorded)

        # The last first, as an interpreted device takes it back.
        memory = (scratch, *reversed(addresses.values()))
        return Alone(driver, replay, addresses, (addresses["y"], result), memory)

    def close(self) -> None:
        """Give back what the kernel was given."""
        for address in self.memory:
            self.driver.release(address)
        self.driver.close()

    def values(self) -> Array:
        """The result's bits, as uint16."""
        found = np.empty(self.result[1], np.uint16)
        self.replay()
        self.driver.read(self.result[0], found)
        self.driver.synchronize()
        return found

    def seconds(self, runs: int = 20) -> float:
        """The time of one run, of several in a row."""
        self.replay()
        self.driver.synchronize()
        begin = time.perf_counter()
        for _ in range(runs):
            self.replay()
        self.driver.synchronize()
        return (time.perf_counter() - begin) / runs


def bits(values: Array) -> Array:
    """float32 as the bits of bfloat16, rounded to nearest even."""
    wide = values.astype(np.float32).view(np.uint32)
    return ((wide + 0x7FFF + ((wide >> 16) & 1)) >> 16).astype(np.uint16)


def floats(values: Array) -> Array:
    """The bits of bfloat16 as float32."""
    return (values.astype(np.uint32) << 16).view(np.float32)


def linear_inputs(rows: int, n: int, k: int) -> dict[str, Array]:
    """Random operands of a linear."""
    random = np.random.default_rng(0)
    return {
        "x": bits(random.standard_normal((rows, k), np.float32)),
        "w": bits(random.standard_normal((n, k), np.float32) / np.sqrt(np.float32(k))),
    }


def attention_inputs(tokens: int, heads: int, groups: int, width: int) -> dict[str, Array]:
    """One prompt, its keys and values in the first blocks."""
    random = np.random.default_rng(0)
    blocks = -(-tokens // BLOCK)
    pages = (blocks, BLOCK, groups, width)
    return {
        "q": bits(random.standard_normal((tokens, heads, width), np.float32)),
        "keys": bits(random.standard_normal(pages, np.float32)),
        "values": bits(random.standard_normal(pages, np.float32)),
        "table": np.arange(blocks, dtype=np.int32)[None],
        "starts": np.array([0, tokens], np.int32),
        "lengths": np.array([tokens], np.int32),
    }
