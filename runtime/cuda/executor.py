"""Runs steps of a language model on a GPU: the same protocol as on a CPU.

Everything lies in one arena. Inputs are written to fixed places, so that decode steps of one size
are recorded once, as a CUDA graph, and replayed: a batch is filled up to a bucket with sequences of
one token whose slots are -1, which write nothing.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ...ir.launches import LaunchTable
from ...ir.plan import CacheSpec, Plan, PlanError, evaluate_dim, evaluate_shape
from ..executor import Batch, bound_of, context_limit, state_blocks, step_sample
from ..kernel_times import StepSample
from ..pools import Pools, pools_for
from ..tensors import STORAGE, Array, place, storage_shape
from ..weights import Weights
from .binding import Binding
from .driver import Driver, Prepared
from .memory import ALIGNMENT, Arena, step_sizes, step_specs

_INPUTS = (
    "tokens", "positions", "query_start", "context_length", "slots", "logit_rows", "state_from",
    "state_to",
)  # fmt: skip
BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class CudaExecutor:
    """A causal language model on a device, with a cache of so many blocks and states.

    `step` returns argmax i32[R] and logits f32[R, V] in host memory that the next step overwrites,
    zeros where the batch does not want them. Whoever wants to know what kernels take sets
    `samples`: the next step is timed call by call, and is `sample` then.
    """

    def __init__(
        self,
        plan: Plan,
        table: LaunchTable,
        weights: Weights | Mapping[str, Array],
        pools: Pools,
        driver: Driver,
        folder: Path | None = None,
    ) -> None:
        self.plan, self.driver, self.blocks = plan, driver, pools.blocks
        self.block = plan.block
        self.chunk = bound_of(plan, "T")
        self.max_batch = min(bound_of(plan, "N"), bound_of(plan, "R"), self.chunk)
        self.states = pools.states if plan.state_bytes else 0
        if plan.state_bytes:
            self.max_batch = min(self.max_batch, self.states)
        self.max_rows = bound_of(plan, "R")
        self.table_width = -(-context_limit(plan) // plan.block)
        self.state_blocks = state_blocks(plan, self.table_width)
        self.max_context = min(context_limit(plan), pools.blocks * plan.block)
        self.window = plan.limits.get("window", 0)
        self._specs = step_specs(plan)
        for name in ("logits", "argmax"):
            if name not in self._specs:
                raise PlanError(f"the plan has no result {name!r}; it has {', '.join(self._specs)}")
        self.vocabulary = evaluate_dim(self._specs["logits"].shape[-1], {})
        self.arena = Arena.of(plan, table, pools)
        self._base = driver.allocate(self.arena.size)
        if folder is not None:
            images = [(n, b, (folder / b.file).read_bytes()) for n, b in table.binaries.items()]
            driver.load(images)
        self._write_weights(weights)
        scratch = self._base + self.arena.scratch
        self._binding = Binding(plan, table, lambda a: self.arena.address(self._base, a), scratch)
        sizes = step_sizes(plan)
        self._host = {n: driver.host(sizes[n]) for n in ("argmax", "logits")}
        self._decode: dict[int, object] = {}
        self._bound: dict[tuple[int, ...], list[Prepared]] = {}
        self.samples = False
        self.sample: StepSample | None = None

    def _write_weights(self, weights: Weights | Mapping[str, Array]) -> None:
        for name, argument in self.plan.weights().items():
            array = (
                weights.select(name, argument.dtype, evaluate_shape(argument.shape, {}))
                if isinstance(weights, Weights)
                else weights[name]
            )
            self.driver.write(self._base + self.arena.weights[name], np.ascontiguousarray(array))
        self.driver.synchronize()

    def step(self, batch: Batch) -> tuple[Array, Array]:
        """Run one step; raises `StepError` where the device does."""
        rows = len(batch.logit_rows)
        if self.samples:
            self.samples, self.sample = False, self._sampled(batch)
        elif batch.is_decode:
            self._run_decode(batch)
        else:
            dims = self._dims(len(batch.tokens), len(batch.context_length), rows)
            self._check(dims)
            self._fill(batch, dims)
            self.driver.run(self._launches("mixed", dims))
        argmax = self._result("argmax", rows)
        # Half a megabyte a row: what nobody reads stays on the device.
        wanted = batch.wants_logits
        logits = (
            self._result("logits", rows)
            if wanted
            else np.broadcast_to(np.float32(0), (rows, self.vocabulary))
        )
        self.driver.synchronize()
        return argmax, logits

    def _sampled(self, batch: Batch) -> StepSample:
        """A step timed call by call, launched as it is: no graph, nothing filled up."""
        entry = "decode" if batch.is_decode else "mixed"
        dims = self._dims(len(batch.tokens), len(batch.context_length), len(batch.logit_rows))
        self._check(dims)
        self._fill(batch, dims)
        seconds = self.driver.time(self._binding.by_call(entry, dims))
        return step_sample(batch, self.table_width, bool(self.states), seconds)

    def _dims(self, tokens: int, sequences: int, rows: int) -> dict[str, int]:
        width = self.table_width
        pools = {"C": self.blocks, "Z": self.states}
        return {"T": tokens, "N": sequences, "R": rows, "M": width, **pools}

    def _launches(self, entry: str, dims: Mapping[str, int]) -> list[Prepared]:
        key = (dims["T"], dims["N"], dims["R"])
        if key not in self._bound:
            if len(self._bound) >= 64:
                self._bound.pop(next(iter(self._bound)))
            self._bound[key] = self._binding.bind(entry, dims)
        return self._bound[key]

    def bucket(self, sequences: int) -> int:
        """The size that a decode step of so many sequences is filled up to; where they have
        states, which those added have not, the step stays as it is.
        """
        if self.states:
            return sequences
        fitting = (b for b in BUCKETS if sequences <= b <= self.max_batch)
        return next(fitting, self.max_batch)

    def _run_decode(self, batch: Batch) -> None:
        size = self.bucket(len(batch.tokens))
        dims = self._dims(size, size, size)
        self._check(dims)
        self._fill(filled_up(batch, size), dims)
        if size not in self._decode:
            self._decode[size] = self.driver.record(self._binding.bind("decode", dims))
        self.driver.replay(self._decode[size])

    def _check(self, dims: Mapping[str, int]) -> None:
        for name, (least, greatest) in self.plan.dims.items():
            if name in dims and not least <= dims[name] <= greatest:
                raise PlanError(
                    f"a step with {name} = {dims[name]}: the plan has {least} to {greatest}"
                )

    def _fill(self, batch: Batch, dims: Mapping[str, int]) -> None:
        for name in _INPUTS:
            self._set(name, np.asarray(getattr(batch, name), np.int32))
        table = np.zeros((dims["N"], dims["M"]), np.int32)
        for row, blocks in zip(table, batch.block_table, strict=True):
            row[: len(blocks)] = blocks
        self._set("block_table", table)

    def _set(self, name: str, values: Array) -> None:
        # A model whose step does not read an input has no memory for it.
        if name in self.arena.steps:
            self.driver.write(self._base + self.arena.steps[name], values)

    def _result(self, name: str, rows: int) -> Array:
        spec = self._specs[name]
        shape = evaluate_shape(spec.shape, {"R": rows})
        array = place(self._host[name], 0, spec.dtype, shape)
        self.driver.read(self._base + self.arena.steps[name], array)
        return array

    def _parts(self, block: int) -> list[tuple[int, int]]:
        """Where a block lies in each cache, and how many bytes it has there."""
        found: list[tuple[int, int]] = []
        for cache in self.plan.caches:
            if cache.state:
                continue
            size = cache.entry_bytes * self.plan.block
            found.append((self._base + self.arena.caches[cache.name] + block * size, size))
        return found

    def copy_block(self, source: int, target: int) -> None:
        """Copy a block's rows in every cache."""
        for (a, size), (b, _) in zip(self._parts(source), self._parts(target), strict=True):
            self.driver.copy(b, a, size)

    def read_blocks(self, blocks: Sequence[int]) -> tuple[Array, ...]:
        """Copies of the blocks' rows, one array a cache."""
        found: list[Array] = []
        paged = [c for c in self.plan.caches if not c.state]
        for at, cache in enumerate(paged):
            shape = (len(blocks), self.plan.block, *storage_shape(cache.dtype, cache.entry))
            array = np.empty(shape, STORAGE[cache.dtype])
            for row, block in zip(array, blocks, strict=True):
                self.driver.read(self._parts(block)[at][0], row)
            found.append(array)
        self.driver.synchronize()
        return tuple(found)

    def write_blocks(self, blocks: Sequence[int], content: tuple[Array, ...]) -> None:
        """Put rows that `read_blocks` gave into blocks."""
        for at, rows in enumerate(content):
            for row, block in zip(rows, blocks, strict=True):
                self.driver.write(self._parts(block)[at][0], np.ascontiguousarray(row))

    def read_state(self, state: int) -> tuple[Array, ...]:
        """Copies of a sequence's state, one array a layer that has one."""
        found: list[Array] = []
        for cache, address in self._state_places(state):
            array = np.empty(storage_shape(cache.dtype, cache.entry), STORAGE[cache.dtype])
            self.driver.read(address, array)
            found.append(array)
        self.driver.synchronize()
        return tuple(found)

    def write_state(self, state: int, content: tuple[Array, ...]) -> None:
        """Put what `read_state` gave into a state."""
        for (_, address), array in zip(self._state_places(state), content, strict=True):
            self.driver.write(address, np.ascontiguousarray(array))

    def _state_places(self, state: int) -> list[tuple[CacheSpec, int]]:
        return [
            (c, self._base + self.arena.caches[c.name] + state * c.entry_bytes)
            for c in self.plan.caches
            if c.state
        ]

    def close(self) -> None:
        """Give the device's memory back."""
        self.driver.release(self._base)


def filled_up(batch: Batch, size: int) -> Batch:
    """A decode batch with so many sequences: those added read the first block and write nothing."""
    more = size - len(batch.tokens)
    if not more:
        return batch
    return Batch(
        tokens=[*batch.tokens, *[0] * more],
        positions=[*batch.positions, *[0] * more],
        query_start=range(size + 1),
        context_length=[*batch.context_length, *[1] * more],
        block_table=[*batch.block_table, *[[0]] * more],
        slots=[*batch.slots, *[-1] * more],
        logit_rows=range(size),
        wants_logits=batch.wants_logits,
    )


def pools_that_fit(plan: Plan, table: LaunchTable, free: int, budget: int | None) -> Pools:
    """Blocks of cache and states in the memory that is left beside everything else, or in a budget;
    no more than a full batch can use. Raises ArtifactError where no block fits.
    """
    fixed = Arena.of(plan, table, Pools(0, 0)).size
    # Each cache begins at an aligned place, for which some bytes are left.
    room = free - fixed - len(plan.caches) * ALIGNMENT
    return pools_for(plan, max(room, 0) if budget is None else budget, free)
