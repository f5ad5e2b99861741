"""The arguments of a kernel that is measured alone: random numbers in the shapes of a step, weights
and caches in so many copies that no cache of the processor holds them all.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..codegen.space import Sample
from ..ir.plan import ALIGNMENT, Argument, evaluate_shape, tensor_bytes
from ..runtime.executor import available_memory
from ..runtime.tensors import STORAGE, Array, aligned_bytes, place, to_tensor
from .hardware import MOST_PROBED

MOST_COPIES = 128
STREAMED = ("weight", "cache")
_PATTERN = 1 << 16  # numbers that are drawn; they repeat


class Arguments:
    """The arguments of one kernel, by size of the step; `block` is slots of a block of the cache,
    `indices` the number that whole numbers which are no input of the step stay below.
    """

    def __init__(self, arguments: Sequence[Argument], block: int, indices: int) -> None:
        self._arguments, self._block, self._indices = tuple(arguments), block, indices
        self._random = np.random.default_rng(0)
        self._sizes: tuple[int, ...] = ()
        self._arena: list[dict[Argument, Any]] = []

    def copies(self, sample: Sample, dims: Mapping[str, int]) -> list[tuple[Any, ...]]:
        """Tensors for calls of the kernel: copies differ in the memory of weights and caches."""
        shared = {
            a: to_tensor(self.filled(a, dims, step_values(sample, dims, self._block)))
            for a in self._arguments
            if a.kind not in STREAMED
        }
        return [
            tuple(own[a] if a.kind in STREAMED else shared[a] for a in self._arguments)
            for own in self._streamed(dims)
        ]

    def _streamed(self, dims: Mapping[str, int]) -> list[dict[Argument, Any]]:
        streamed = [a for a in dict.fromkeys(self._arguments) if a.kind in STREAMED]
        sizes = tuple(argument_bytes(a, dims) for a in streamed)
        if not streamed:
            return [{}]
        if sizes != self._sizes:
            self._arena = self._made(streamed, sizes, dims)
            self._sizes = sizes
        return self._arena

    def _made(
        self, streamed: Sequence[Argument], sizes: tuple[int, ...], dims: Mapping[str, int]
    ) -> list[dict[Argument, Any]]:
        total = sum(sizes)
        pool = min(MOST_PROBED, available_memory() // 4)
        count = max(1, min(MOST_COPIES, pool // total))
        self._arena = []  # let go of the one before
        # Not numpy's memory: it has huge pages, which memory-mapped weights have not.
        memory = np.frombuffer(mmap.mmap(-1, count * total), np.uint8)
        first: dict[Argument, Array] = {}
        made: list[dict[Argument, Any]] = []
        for copy in range(count):
            offset, own = copy * total, {}
            for argument, size in zip(streamed, sizes, strict=True):
                shape = evaluate_shape(argument.shape, dims)
                array = place(memory, offset, argument.dtype, shape)
                if argument in first:
                    array[...] = first[argument]
                else:
                    self._fill(array, argument.dtype)
                    first[argument] = array
                own[argument] = to_tensor(array)
                offset += size
            made.append(own)
        return made

    def filled(self, argument: Argument, dims: Mapping[str, int], step: Mapping[str, Any]) -> Array:
        """An argument's memory: what a step's input of its name holds, else random numbers."""
        memory = aligned_bytes(argument_bytes(argument, dims))
        array = place(memory, 0, argument.dtype, evaluate_shape(argument.shape, dims))
        value = step.get(argument.name or "") if argument.kind == "input" else None
        if value is not None:
            array[...] = np.asarray(value).reshape(array.shape)
        else:
            self._fill(array, argument.dtype)
        return array

    def _fill(self, array: Array, dtype: str) -> None:
        """Random numbers near a tenth; whole numbers from 0 up where they may be indices."""
        if dtype in ("f64", "f32", "f16", "bf16"):
            drawn = self._random.normal(0.0, 0.1, _PATTERN).astype(np.float32)
            bits = (drawn.view(np.uint32) >> 16).astype(np.uint16)
            pattern = bits if dtype == "bf16" else drawn.astype(STORAGE[dtype])
        elif dtype in ("i64", "i32"):
            pattern = self._random.integers(0, self._indices, _PATTERN).astype(STORAGE[dtype])
        elif dtype == "bool":
            pattern = np.ones(_PATTERN, STORAGE[dtype])
        else:
            pattern = self._random.integers(0, 100, _PATTERN).astype(STORAGE[dtype])
        array[...] = np.resize(pattern, array.shape)


def argument_bytes(argument: Argument, dims: Mapping[str, int]) -> int:
    """Bytes of an argument, up to where the next one may begin."""
    size = tensor_bytes(argument.dtype, evaluate_shape(argument.shape, dims))
    return -(-size // ALIGNMENT) * ALIGNMENT


def step_values(sample: Sample, dims: Mapping[str, int], block: int) -> dict[str, Any]:
    """What a step's inputs hold: sequences of as many tokens each, at the end of their context."""
    if "N" not in dims:
        return {}
    count, each = dims["N"], dims["T"] // dims["N"]
    context, width = max(sample.context, each), dims.get("M", 1)
    places = np.arange(context - each, context)
    tables = np.arange(count * width).reshape(count, width)
    slots = tables[:, places // block] * block + places % block if "M" in dims else places
    return {
        "tokens": np.zeros(dims["T"]),
        "positions": np.tile(places, count),
        "query_start": np.arange(count + 1) * each,
        "context_length": np.full(count, context),
        "block_table": tables,
        "slots": np.resize(slots, dims["T"]),
        "logit_rows": np.minimum(np.arange(dims["R"]), dims["T"] - 1),
    }


def step_dims(sample: Sample, bounds: Mapping[str, tuple[int, int]], block: int) -> dict[str, int]:
    """The dims of a step for a sample, within a plan's bounds; a module's are at their largest."""
    dims = {name: high for name, (_, high) in bounds.items()}
    if "T" not in dims:
        return dims
    tokens = min(sample.tokens, dims["T"])
    count = min(sample.sequences, tokens, dims.get("N", sample.sequences))
    context = max(sample.context, tokens // count)
    width = min(-(-context // block), dims.get("M", 1))
    step = {"T": tokens, "N": count, "R": min(tokens, dims.get("R", tokens)), "M": width}
    return {**dims, **step, "C": count * width}
