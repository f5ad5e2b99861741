"""Runs steps of a language model on a GPU: the same protocol as on a CPU.

Everything lies in one arena. Inputs are written to fixed places, so that decode steps of one size
are recorded once, as a CUDA graph, and replayed: a batch is filled up to a bucket with sequences of
one token whose slots are -1, which write nothing.

A step is begun and collected apart: the next one's inputs are written to page-locked memory of
their own while it runs, and its tokens are copied out behind it, up to a mark that is waited for.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ...ir.launches import FED, FEED, LaunchTable
from ...ir.plan import (
    Argument,
    CacheSpec,
    Call,
    Plan,
    PlanError,
    evaluate_dim,
    evaluate_shape,
    tensor_bytes,
)
from ..errors import ArtifactError
from ..executor import Batch, bound_of, context_limit, state_blocks, step_sample
from ..kernel_times import StepSample
from ..pools import Pools, pools_for
from ..tensors import STORAGE, Array, place, storage_shape
from ..weights import Weights
from .binding import Binding
from .driver import Driver, Prepared
from .memory import ALIGNMENT, Arena, step_sizes, step_specs, weight_parts

_INPUTS = (
    "tokens", "positions", "query_start", "context_length", "slots", "logit_rows", "state_from",
    "state_to",
)  # fmt: skip
BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


@dataclass
class _Slot:
    """Page-locked memory of a step: its inputs as they lie in the arena, its argmax; the tables of
    blocks that are there, row by row, and the mark behind its last use.
    """

    inputs: Array
    argmax: Array
    tables: dict[int, tuple[int, ...]] = field(default_factory=dict[int, tuple[int, ...]])
    mark: object = None


@dataclass(frozen=True)
class Flight:
    """A step that was begun: its slot, its rows, whether its logits are copied out."""

    slot: _Slot
    rows: int
    logits: bool


class CudaExecutor:
    """A causal language model on a device, with a cache of so many blocks and states.

    `step` returns argmax i32[R] and logits f32[R, V] in host memory that later steps overwrite,
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
        driver.upload(weight_parts(plan, self.arena, self._base, weights))
        scratch = self._base + self.arena.scratch
        self._binding = Binding(plan, table, lambda a: self.arena.address(self._base, a), scratch)
        self.feeds = FEED in table.functions
        sizes = step_sizes(plan, table)
        self._small = self.arena.steps.get("block_table", self._results()) - self.arena.inputs
        self._slots = [self._slot(sizes["argmax"]) for _ in range(2)]
        self._turn = 0
        self._logits = driver.host(0)
        self._decode: dict[int, object] = {}
        self._bound: dict[tuple[int, ...], object] = {}
        self.samples = False
        self.sample: StepSample | None = None

    def _results(self) -> int:
        """Where inputs end."""
        return min(self.arena.steps["argmax"], self.arena.steps["logits"])

    def _slot(self, argmax: int) -> _Slot:
        inputs = self._results() - self.arena.inputs
        return _Slot(self.driver.host(inputs), self.driver.host(argmax))

    def step(self, batch: Batch) -> tuple[Array, Array]:
        """Run one step; raises `StepError` where the device does."""
        return self.collect(self.submit(batch))

    def submit(self, batch: Batch) -> Flight:
        """Begin a step; raises `StepError` where the device refuses it."""
        dims = self._dims(batch)
        self._check(dims)
        slot, self._turn = self._slots[self._turn], 1 - self._turn
        if slot.mark is not None:
            self.driver.wait(slot.mark)
        if self.samples:
            self.samples, self.sample = False, self._sampled(batch, dims, slot)
        elif batch.is_decode:
            self._run_decode(batch, dims, slot)
        else:
            self._fill(batch, dims, slot)
            self.driver.run(self._launches(dims, fed=bool(batch.fed)))
        rows = len(batch.logit_rows)
        self._read("argmax", slot.argmax, rows)
        # Half a megabyte a row: what nobody reads stays on the device.
        if batch.wants_logits:
            self._read("logits", self._logits_of(rows), rows)
        slot.mark = self.driver.mark(slot.mark)
        return Flight(slot, rows, batch.wants_logits)

    def collect(self, flight: object) -> tuple[Array, Array]:
        """What a step that was begun gives, once it is there."""
        assert isinstance(flight, Flight), flight
        self.driver.wait(flight.slot.mark)
        argmax = self._placed("argmax", flight.slot.argmax, flight.rows)
        if flight.logits:
            return argmax, self._placed("logits", self._logits, flight.rows)
        return argmax, np.broadcast_to(np.float32(0), (flight.rows, self.vocabulary))

    def _logits_of(self, rows: int) -> Array:
        """Page-locked memory for the logits of so many rows: that of a full batch, and more where a
        prompt is scored, which may be gigabytes.
        """
        size = tensor_bytes("f32", (max(rows, self.max_batch), self.vocabulary))
        if self._logits.nbytes < size:
            self._logits = self.driver.host(size)
        return self._logits

    def _sampled(self, batch: Batch, dims: Mapping[str, int], slot: _Slot) -> StepSample:
        """A step timed call by call, launched as it is: no graph, nothing filled up."""
        self._fill(batch, dims, slot)
        if batch.fed:
            self.driver.run(self.driver.pack(self._feed(dims)))
        calls = self._binding.by_call("decode" if batch.is_decode else "mixed", dims)
        seconds = self.driver.time([self.driver.pack(launches) for launches in calls])
        return step_sample(batch, self.table_width, bool(self.states), seconds)

    def _dims(self, batch: Batch) -> dict[str, int]:
        sizes = {"T": batch.tokens, "N": batch.context_length, "R": batch.logit_rows}
        fixed = {"M": self.table_width, "C": self.blocks, "Z": self.states}
        return {**{n: len(v) for n, v in sizes.items()}, **fixed}

    def _feed(self, dims: Mapping[str, int]) -> list[Prepared]:
        """What puts tokens of the step before in their places."""
        if not self.feeds:
            raise PlanError(f"tokens to be fed, and no {FEED!r} among the launches")
        tokens, fed = (Argument("input", n, 0, "i32", ("T",)) for n in ("tokens", FED))
        arguments = (tokens, fed, Argument("result", "argmax", 0, "i32", ("R",)), tokens)
        return self._binding.of_call(Call(FEED, arguments), {**dims, "R": self.max_rows})

    def _launches(self, dims: Mapping[str, int], *, fed: bool) -> object:
        """The launches of a mixed step, those of the sizes last seen kept."""
        key = (dims["T"], dims["N"], dims["R"], int(fed))
        if key not in self._bound:
            if len(self._bound) >= 64:
                self._bound.pop(next(iter(self._bound)))
            feed = self._feed(dims) if fed else []
            launches = [*feed, *self._binding.bind("mixed", dims)]
            self._bound[key] = self.driver.pack(launches)
        return self._bound[key]

    def bucket(self, sequences: int) -> int:
        """The size that a decode step of so many sequences is filled up to; where they have
        states, which those added have not, the step stays as it is.
        """
        if self.states:
            return sequences
        fitting = (b for b in BUCKETS if sequences <= b <= self.max_batch)
        return next(fitting, self.max_batch)

    def _run_decode(self, batch: Batch, dims: Mapping[str, int], slot: _Slot) -> None:
        size = self.bucket(len(batch.tokens))
        dims = {**dims, "T": size, "N": size, "R": size}
        self._check(dims)
        if size not in self._decode:
            feed = self._feed(dims) if self.feeds else []
            launches = [*feed, *self._binding.bind("decode", dims)]
            self._decode[size] = self.driver.record(self.driver.pack(launches))
        self._fill(filled_up(batch, size), dims, slot)
        self.driver.replay(self._decode[size])

    def recorded(self, batch: Batch) -> object:
        """A decode step, once it has run, as the driver replays it with the inputs that are there:
        what the device does, without anything of the host's.
        """
        self.step(batch)
        return self._decode[self.bucket(len(batch.tokens))]

    def _check(self, dims: Mapping[str, int]) -> None:
        for name, (least, greatest) in self.plan.dims.items():
            if name in dims and not least <= dims[name] <= greatest:
                raise PlanError(
                    f"a step with {name} = {dims[name]}: the plan has {least} to {greatest}"
                )

    def _fill(self, batch: Batch, dims: Mapping[str, int], slot: _Slot) -> None:
        """Write the inputs to the slot and from there to the device, in two copies: the table of
        blocks, which few steps fill, behind the others.
        """
        for name in _INPUTS:
            self._set(slot, name, getattr(batch, name))
        self._set(slot, FED, batch.fed or [-1] * dims["T"])
        base = self._base + self.arena.inputs
        self.driver.write(base, slot.inputs[: self._small])
        if "block_table" in self.arena.steps:
            table = self._input(slot, "block_table", (dims["N"], dims["M"]))
            for at, blocks in enumerate(batch.block_table):
                # Most are as they were: a sequence takes a block now and then.
                known = tuple(blocks)
                if slot.tables.get(at) != known:
                    table[at, : len(known)] = known
                    table[at, len(known) :] = 0
                    slot.tables[at] = known
            end = self._small + table.nbytes
            self.driver.write(base + self._small, slot.inputs[self._small : end])

    def _input(self, slot: _Slot, name: str, shape: tuple[int, ...]) -> Array:
        return place(slot.inputs, self.arena.steps[name] - self.arena.inputs, "i32", shape)

    def _set(self, slot: _Slot, name: str, values: Sequence[int]) -> None:
        # A model whose step does not read an input has no memory for it.
        if name in self.arena.steps:
            self._input(slot, name, (len(values),))[:] = values

    def _read(self, name: str, memory: Array, rows: int) -> None:
        self.driver.read(self._base + self.arena.steps[name], self._placed(name, memory, rows))

    def _placed(self, name: str, memory: Array, rows: int) -> Array:
        spec = self._specs[name]
        return place(memory, 0, spec.dtype, evaluate_shape(spec.shape, {"R": rows}))

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
        self.driver.synchronize()

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
        self.driver.synchronize()

    def _state_places(self, state: int) -> list[tuple[CacheSpec, int]]:
        return [
            (c, self._base + self.arena.caches[c.name] + state * c.entry_bytes)
            for c in self.plan.caches
            if c.state
        ]

    def close(self) -> None:
        """Give the device's memory back, once it has done with it."""
        self.driver.release(self._base)


def filled_up(batch: Batch, size: int) -> Batch:
    """A decode batch with so many sequences: those added read the first block and write nothing."""
    more = size - len(batch.tokens)
    if not more:
        return batch
    return replace(
        batch,
        tokens=[*batch.tokens, *[0] * more],
        positions=[*batch.positions, *[0] * more],
        query_start=range(size + 1),
        context_length=[*batch.context_length, *[1] * more],
        block_table=[*batch.block_table, *[[0]] * more],
        slots=[*batch.slots, *[-1] * more],
        logit_rows=range(size),
        fed=[*batch.fed, *[-1] * more] if batch.fed else (),
    )


def pools_that_fit(plan: Plan, table: LaunchTable, free: int, budget: int | None) -> Pools:
    """Blocks of cache and states in the memory that is left beside everything else, or in a budget;
    no more than a full batch can use. Raises ArtifactError where no block fits, or the budget does
    not.
    """
    fixed = Arena.of(plan, table, Pools(0, 0)).size
    # Each cache begins at an aligned place, for which some bytes are left.
    room = free - fixed - len(plan.caches) * ALIGNMENT
    pools = pools_for(plan, max(room, 0) if budget is None else budget, free)
    if pools.nbytes(plan) > max(room, 0):
        raise ArtifactError(
            f"KV cache: {pools.nbytes(plan)} bytes, as asked, beside {fixed} of weights and "
            f"workspace; the device has {free} free"
        )
    return pools
