"""Runs steps: fills the inputs, binds the plan's calls, runs them, returns the results."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Protocol, runtime_checkable

import numpy as np

from ..ir.plan import Plan, PlanError, TensorSpec, evaluate_dim, evaluate_shape, tensor_bytes
from .binding import Binder, Bound, Kernels, run_bound, run_timed
from .kernel_times import StepSample
from .pages_ahead import PagesAhead
from .tensors import STORAGE, Array, aligned_bytes, allocate_together, place, release
from .weights import Weights


@dataclass(frozen=True)
class Batch:
    """The tokens of one step, sequence after sequence, as plain integers.

    Sequence n owns tokens query_start[n] to query_start[n + 1]; its context_length counts all its
    tokens up to and including this step; slots are places in the cache; logit_rows say which
    tokens get logits. Where a model has recurrent states, that of sequence n is read at
    state_from[n] (below 0: it begins) and written to state_to[n]. Where nobody looks at logits but
    for their argmax, an executor may leave them where they are and give zeros. A token whose
    number in `fed` is 0 or more is not the one given but the argmax of that row of the step before.
    """

    tokens: Sequence[int]
    positions: Sequence[int]
    query_start: Sequence[int]
    context_length: Sequence[int]
    block_table: Sequence[Sequence[int]]
    slots: Sequence[int]
    logit_rows: Sequence[int]
    state_from: Sequence[int] = ()
    state_to: Sequence[int] = ()
    wants_logits: bool = True
    fed: Sequence[int] = ()

    @property
    def is_decode(self) -> bool:
        """Whether each sequence has one token and a row of logits."""
        return len(self.tokens) == len(self.context_length) == len(self.logit_rows)


class StepRunner(Protocol):
    """What the engine needs: limits, and a step. The limits are those of the memory at hand."""

    block: int
    blocks: int
    chunk: int
    max_batch: int
    max_rows: int
    max_context: int
    vocabulary: int
    window: int
    states: int
    state_blocks: int

    def step(self, batch: Batch) -> tuple[Array, Array]:
        """Run one step: argmax i32[R] and logits f32[R, V], good until the next step.

        argmax is -1 where the largest of a row's logits is no finite number.
        """
        ...

    def copy_block(self, source: int, target: int) -> None:
        """Make a block's keys and values those of another one, in every cache."""
        ...

    def read_blocks(self, blocks: Sequence[int]) -> tuple[Array, ...]:
        """Copies of the blocks' keys and values, one array a cache."""
        ...

    def write_blocks(self, blocks: Sequence[int], content: tuple[Array, ...]) -> None:
        """Put what `read_blocks` gave into blocks, in the same order."""
        ...

    def read_state(self, state: int) -> tuple[Array, ...]:
        """Copies of a sequence's recurrent state, one array a layer that has one."""
        ...

    def write_state(self, state: int, content: tuple[Array, ...]) -> None:
        """Put what `read_state` gave into a state."""
        ...


@runtime_checkable
class Overlapping(Protocol):
    """A runner that can be given a step while the one before runs, and takes tokens of that one by
    itself; `feeds` says whether it can. Steps end in the order in which they were given.
    """

    feeds: bool

    def submit(self, batch: Batch) -> object:
        """Begin a step, which may still run when this returns."""
        ...

    def collect(self, flight: object) -> tuple[Array, Array]:
        """What `step` gives of a step that was begun; good until the second step after it begins,
        logits until the next that wants any.
        """
        ...


@runtime_checkable
class Releasing(Protocol):
    """A runner that can do without the memory of its caches until the next step."""

    def release_caches(self) -> None:
        """Give the memory back; what was in it is lost."""
        ...


class Threaded(Kernels, Protocol):
    """Kernels whose workers belong to the calling thread."""

    def enter_thread(self) -> None:
        """Give the calling thread its workers."""
        ...

    @property
    def crew(self) -> AbstractContextManager[None]:
        """The calling thread's workers, to be entered around each step."""
        ...


class Executor:
    """A causal language model ready to run steps, with a cache of `blocks` blocks, and room for
    the recurrent states of `states` sequences (a full batch's where it is None) if it has any.

    `step` returns argmax i32[R] and logits f32[R, V]: both are views of memory that the next step
    overwrites. Whoever wants to know what kernels take sets `samples`: the next step is timed call
    by call, and is `sample` then.
    """

    def __init__(
        self,
        plan: Plan,
        library: Threaded,
        weights: Weights | Mapping[str, Array],
        blocks: int,
        states: int | None = None,
    ) -> None:
        self.plan = plan
        self.block = plan.block
        self.blocks = blocks
        self.chunk = bound_of(plan, "T")
        self.max_batch = min(bound_of(plan, "N"), bound_of(plan, "R"), self.chunk)
        self.states = 0
        if plan.state_bytes:
            self.states = self.max_batch if states is None else states
            self.max_batch = min(self.max_batch, self.states)
        self.max_rows = bound_of(plan, "R")
        self.table_width = -(-context_limit(plan) // plan.block)
        self.state_blocks = state_blocks(plan, self.table_width)
        self.max_context = min(context_limit(plan), blocks * plan.block)
        self.window = plan.limits.get("window", 0)
        self.samples = False
        self.sample: StepSample | None = None
        self._library = library
        shapes = [(c.dtype, c.array(blocks, plan.block, self.states)) for c in plan.caches]
        names = (c.name for c in plan.caches)
        self._caches = dict(zip(names, allocate_together(shapes), strict=True))
        self._paged = [self._caches[c.name] for c in plan.caches if not c.state]
        self._states = [self._caches[c.name] for c in plan.caches if c.state]
        self._ahead = PagesAhead(self._paged)
        self._signature: dict[str, TensorSpec] = {}
        sizes: dict[str, int] = {}
        for spec in _tensors(plan):
            self._signature[spec.name] = spec
            size = tensor_bytes(spec.dtype, plan.largest(spec.shape))
            sizes[spec.name] = max(size, sizes.get(spec.name, 0))
        for name in ("logits", "argmax"):
            if name not in self._signature:
                raise PlanError(
                    f"the plan has no result {name!r}; it has {', '.join(self._signature)}"
                )
        self.vocabulary = evaluate_dim(self._signature["logits"].shape[-1], {})
        self._memory = {name: aligned_bytes(size) for name, size in sizes.items()}
        self._binder = Binder(plan, library, weights, self._caches, self._memory)

    def step(self, batch: Batch) -> tuple[Array, Array]:
        """Run one step; raises `StepError` where a kernel does."""
        bound = self.prepare(batch)
        self._ahead.reach(max(batch.slots, default=0) // self.block)
        with self._library.crew:
            if self.samples:
                seconds, states = run_timed(bound), bool(self.states)
                self.samples = False
                self.sample = step_sample(batch, self._width(batch), states, seconds)
            else:
                run_bound(bound)
        dims = {"R": len(batch.logit_rows)}
        return self._result("argmax", dims), self._result("logits", dims)

    def copy_block(self, source: int, target: int) -> None:
        """Copy a block's rows in every cache."""
        for cache in self._paged:
            cache[target] = cache[source]

    def read_blocks(self, blocks: Sequence[int]) -> tuple[Array, ...]:
        """Copies of the blocks' rows, one array a cache."""
        return tuple(cache[list(blocks)] for cache in self._paged)

    def write_blocks(self, blocks: Sequence[int], content: tuple[Array, ...]) -> None:
        """Put rows that `read_blocks` gave into blocks."""
        for cache, rows in zip(self._paged, content, strict=True):
            cache[list(blocks)] = rows

    def read_state(self, state: int) -> tuple[Array, ...]:
        """Copies of a sequence's state, one array a layer that has one."""
        return tuple(states[state].copy() for states in self._states)

    def write_state(self, state: int, content: tuple[Array, ...]) -> None:
        """Put what `read_state` gave into a state."""
        for states, entry in zip(self._states, content, strict=True):
            states[state] = entry

    def fill_caches(self) -> None:
        """Write all of caches and states, zeros: what was never written is read from one page."""
        for cache in self._caches.values():
            cache.fill(0)

    def release_caches(self) -> None:
        """Give the memory of caches and states back to the machine; they hold zeros after it."""
        for cache in self._caches.values():
            release(cache)
        self._ahead.forget()

    def prepare(self, batch: Batch) -> Bound:
        """The calls of one step, its inputs filled in, for whoever measures kernels one by one."""
        width = self._width(batch)
        dims = {
            "T": len(batch.tokens),
            "N": len(batch.context_length),
            "R": len(batch.logit_rows),
            "M": width,
            "C": self.blocks,
            "Z": self.states,
        }
        self._check(dims)
        entry = "decode" if batch.is_decode else "mixed"
        bound = self._binder.bind(entry, dims)
        self._fill(batch, width)
        self._library.enter_thread()
        return bound

    def _width(self, batch: Batch) -> int:
        """The block table's width: a power of two where it may be, to bind few variants."""
        needed = max(map(len, batch.block_table))
        return max(needed, min(1 << (needed - 1).bit_length(), self.table_width))

    def _check(self, dims: Mapping[str, int]) -> None:
        for name, (least, greatest) in self.plan.dims.items():
            if name in dims and not least <= dims[name] <= greatest:
                raise PlanError(
                    f"a step with {name} = {dims[name]}: the plan has {least} to {greatest}"
                )

    def _fill(self, batch: Batch, width: int) -> None:
        self._set("tokens", batch.tokens)
        self._set("positions", batch.positions)
        self._set("query_start", batch.query_start)
        self._set("context_length", batch.context_length)
        self._set("slots", batch.slots)
        self._set("logit_rows", batch.logit_rows)
        self._set("state_from", batch.state_from)
        self._set("state_to", batch.state_to)
        if (memory := self._memory.get("block_table")) is not None:
            table = place(memory, 0, "i32", (len(batch.block_table), width))
            for row, blocks in zip(table, batch.block_table, strict=True):
                row[: len(blocks)] = blocks
                row[len(blocks) :] = 0

    def _set(self, name: str, values: Sequence[int]) -> None:
        # A model whose step does not read an input (learned positions are read by some only) has
        # no memory for it.
        if (memory := self._memory.get(name)) is not None:
            place(memory, 0, "i32", (len(values),))[:] = values

    def _result(self, name: str, dims: Mapping[str, int]) -> Array:
        spec = self._signature[name]
        return place(self._memory[name], 0, spec.dtype, evaluate_shape(spec.shape, dims))


def step_sample(batch: Batch, width: int, has_states: bool, seconds: Sequence[float]) -> StepSample:
    """A step that was timed call by call, with the mean of its sequences' tokens for what depends
    on them; `width` is that of its block table.
    """
    count = len(batch.context_length)
    dims = {
        "T": len(batch.tokens),
        "N": count,
        "R": len(batch.logit_rows),
        "M": width,
        "C": sum(map(len, batch.block_table)),
        **({"Z": count} if has_states else {}),
        "L": round(sum(batch.context_length) / count),
    }
    return StepSample("decode" if batch.is_decode else "mixed", dims, seconds)


def state_blocks(plan: Plan, context: int) -> int:
    """The size of a state in blocks, rounded up; all of a context where blocks hold nothing."""
    if plan.state_bytes and not plan.block_bytes:
        return context
    return -(-plan.state_bytes // max(1, plan.block_bytes))


def _tensors(plan: Plan) -> Iterator[TensorSpec]:
    """The inputs and results of all entries."""
    for entry in plan.entries.values():
        yield from entry.signature("input")
        yield from entry.signature("result")


class ModuleExecutor:
    """A compiled module that is no language model: named arrays in, new arrays out."""

    def __init__(
        self,
        plan: Plan,
        library: Threaded,
        weights: Weights | Mapping[str, Array],
        entry: str = "main",
    ) -> None:
        if entry not in plan.entries:
            raise PlanError(f"no entry {entry!r}; the plan has {', '.join(plan.entries)}")
        self.inputs = plan.entries[entry].signature("input")
        self.results = plan.entries[entry].signature("result")
        self._plan, self._entry, self._library = plan, entry, library
        self._memory = {
            spec.name: aligned_bytes(tensor_bytes(spec.dtype, plan.largest(spec.shape)))
            for spec in (*self.inputs, *self.results)
        }
        self._binder = Binder(plan, library, weights, {}, self._memory)
        self._lock = Lock()

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """The results, by name; dims are read from the inputs' shapes, which must agree.

        Callers on several threads take turns.
        """
        dims = module_dims(self._plan, self.inputs, inputs)
        with self._lock:
            return self._run(inputs, dims)

    def prepare(self, inputs: Mapping[str, Array], dims: Mapping[str, int]) -> Bound:
        """The calls for these inputs, filled in; who measures kernels runs them one by one."""
        for spec in self.inputs:
            shape = evaluate_shape(spec.shape, dims)
            place(self._memory[spec.name], 0, spec.dtype, shape)[...] = as_stored(
                inputs[spec.name], spec
            )
        self._library.enter_thread()
        return self._binder.bind(self._entry, dims)

    def _run(self, inputs: Mapping[str, Array], dims: Mapping[str, int]) -> dict[str, Array]:
        run_bound(self.prepare(inputs, dims))
        return {
            spec.name: place(
                self._memory[spec.name], 0, spec.dtype, evaluate_shape(spec.shape, dims)
            ).copy()
            for spec in self.results
        }


class ModuleRunner(Protocol):
    """A compiled module that is no language model, wherever it runs."""

    inputs: tuple[TensorSpec, ...]
    results: tuple[TensorSpec, ...]

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """The results, by name; dims are read from the inputs' shapes, which must agree."""
        ...


def module_dims(
    plan: Plan, specs: Sequence[TensorSpec], inputs: Mapping[str, Array]
) -> dict[str, int]:
    """The dims that the shapes of a module's inputs have; raises ValueError where they disagree
    with one another or with the plan.
    """
    names = [spec.name for spec in specs]
    if sorted(inputs) != sorted(names):
        raise ValueError(f"given inputs {', '.join(inputs)}; wanted {', '.join(names)}")
    dims: dict[str, int] = {}
    for spec in specs:
        _read_dims(spec, inputs[spec.name].shape, dims)
    for spec in specs:
        wanted, given = evaluate_shape(spec.shape, dims), inputs[spec.name].shape
        if wanted != given:
            raise ValueError(f"input {spec.name!r}: given shape {given}, wanted {wanted}")
    for name, size in dims.items():
        least, greatest = plan.dims[name]
        if not least <= size <= greatest:
            raise ValueError(f"dim {name} = {size}: the plan has {least} to {greatest}")
    return dims


def _read_dims(spec: TensorSpec, given: tuple[int, ...], dims: dict[str, int]) -> None:
    if len(given) != len(spec.shape):
        raise ValueError(f"input {spec.name!r}: given shape {given}, wanted {list(spec.shape)}")
    for expr, size in zip(spec.shape, given, strict=True):
        if isinstance(expr, str):
            dims.setdefault(expr, size)


def as_stored(array: Array, spec: TensorSpec) -> Array:
    """The array as stored: bf16 and f8 may come as ml_dtypes or as bits; nothing is converted."""
    storage = STORAGE[spec.dtype]
    if array.dtype == storage:
        return array
    if array.dtype.itemsize == storage.itemsize and array.dtype.kind in "Vb":
        return np.ascontiguousarray(array).view(storage).reshape(array.shape)
    raise ValueError(f"input {spec.name!r}: given {array.dtype}, wanted {spec.dtype}")


def bound_of(plan: Plan, name: str) -> int:
    """The greatest value of a step's dim; `max_batch` for N and R that no kernel reads."""
    if name in plan.dims:
        return plan.dims[name][1]
    if name in ("N", "R") and "max_batch" in plan.limits:
        return plan.limits["max_batch"]
    raise PlanError(f"the plan has no dim {name!r}; it has {', '.join(plan.dims)}")


def context_limit(plan: Plan) -> int:
    """The most tokens of a sequence: the limit `max_context`, or what the block table can name."""
    if "M" not in plan.dims and "max_context" in plan.limits:
        return plan.limits["max_context"]  # no kernel reads a cache
    widest = bound_of(plan, "M") * plan.block
    return min(plan.limits.get("max_context", widest), widest)


def available_memory(root: Path = Path("/")) -> int:
    """Bytes of memory that this process could still take: the machine's, or its group's if less."""
    words = (root / "proc/meminfo").read_text().split()
    machine = int(words[words.index("MemAvailable:") + 1]) << 10
    group = root / "sys/fs/cgroup"
    limit = group / "memory.max"
    if not limit.is_file() or limit.read_text().strip() == "max":
        return machine
    statistics = (group / "memory.stat").read_text().split()
    cached = int(statistics[statistics.index("file") + 1])  # given back when memory runs short
    used = int((group / "memory.current").read_text()) - cached
    return min(machine, max(0, int(limit.read_text()) - used))
