"""Decides what each step runs: plain integers, no tensors.

Every step is made anew: decodes first, then chunks of prompts, then new sequences, as far as
tokens and blocks go. Blocks are taken when they are needed; where there are none left, the
sequence that came last gives its own back and is computed again later. The sequence that came
first never waits for another, and `admit` refuses what the whole pool could not hold, so every
sequence ends.
"""

from bisect import insort
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from .blocks import BlockPool
from .executor import Batch

Priority = Callable[["Sequence"], tuple[int, ...]]


@dataclass(eq=False)
class Sequence:
    """One request's tokens and its place in the cache.

    `tokens` holds prompt and output, `computed` counts those whose keys and values are in `blocks`.
    """

    id: str
    tokens: list[int]
    prompt_length: int
    arrival: int = 0
    computed: int = 0
    blocks: list[int] = field(default_factory=list[int])

    @property
    def pending(self) -> int:
        """Tokens that a step must still compute; 1 for a sequence that decodes."""
        return len(self.tokens) - self.computed

    @property
    def generated(self) -> int:
        """Tokens after the prompt."""
        return len(self.tokens) - self.prompt_length


@dataclass(frozen=True)
class Part:
    """`count` tokens of a sequence in one step; `fresh` are the blocks taken for them."""

    sequence: Sequence
    count: int
    fresh: tuple[int, ...]

    @property
    def ends(self) -> bool:
        """Whether it computes the sequence's last token, so that a next one can be chosen."""
        return self.count == self.sequence.pending


@dataclass(frozen=True)
class Step:
    """What one step runs; blocks are reserved until it is committed or rolled back."""

    parts: tuple[Part, ...]

    def batch(self, block: int) -> Batch:
        """The step's tokens for the executor."""
        return _batch(self.parts, block)


def first_come(sequence: Sequence) -> tuple[int, ...]:
    """The policy that serves in the order of arrival."""
    return (sequence.arrival,)


class Scheduler:
    """Waiting and running sequences over one pool; `policy` orders who goes first."""

    def __init__(
        self,
        pool: BlockPool,
        *,
        block: int,
        max_batch: int,
        chunk: int,
        policy: Priority = first_come,
    ) -> None:
        assert max_batch <= chunk, f"max_batch {max_batch} over chunk {chunk}: decodes would starve"
        self.pool, self.block = pool, block
        self.max_batch, self.chunk = max_batch, chunk
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.preemptions = 0
        self._policy = policy
        self._arrivals = 0

    def blocks_of(self, tokens: int) -> int:
        """Blocks that hold this many tokens."""
        return -(-tokens // self.block)

    def admit(self, sequence: Sequence) -> None:
        """Queue a sequence."""
        sequence.arrival = self._arrivals
        self._arrivals += 1
        insort(self.waiting, sequence, key=self._policy)

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out, wherever it is, and free its blocks."""
        queue = self.running if sequence in self.running else self.waiting
        queue.remove(sequence)
        self._vacate(sequence)

    def next_step(self) -> Step | None:
        """Plan a step and reserve its blocks; None where there is nothing to run."""
        parts: dict[Sequence, Part] = {}
        preempted: list[Sequence] = []
        budget = self.chunk
        decodes_first = sorted(self.running, key=lambda s: (s.pending > 1, *self._policy(s)))
        for sequence in decodes_first:
            if not budget or sequence in preempted:
                continue
            if part := self._part(sequence, budget, parts, preempted):
                parts[sequence] = part
                budget -= part.count
        while budget and not preempted and (sequence := self._next_waiting()):
            part = self._start(sequence, budget)
            if part is None:
                break
            parts[sequence] = part
            budget -= part.count
        return Step(tuple(parts.values())) if parts else None

    def _part(
        self,
        sequence: Sequence,
        budget: int,
        parts: dict[Sequence, Part],
        preempted: list[Sequence],
    ) -> Part | None:
        count = min(sequence.pending, budget)
        needed = self._missing(sequence, count)
        while needed > self.pool.free:
            victim = self.running[-1]
            parts.pop(victim, None)
            self._preempt(victim)
            preempted.append(victim)
            if victim is sequence:
                return None
        return self._reserve(sequence, count, needed)

    def _missing(self, sequence: Sequence, count: int) -> int:
        return max(0, self.blocks_of(sequence.computed + count) - len(sequence.blocks))

    def _reserve(self, sequence: Sequence, count: int, needed: int) -> Part:
        fresh = self.pool.allocate(needed)
        sequence.blocks.extend(fresh)
        return Part(sequence, count, tuple(fresh))

    def _next_waiting(self) -> Sequence | None:
        return self.waiting[0] if self.waiting and len(self.running) < self.max_batch else None

    def _start(self, sequence: Sequence, budget: int) -> Part | None:
        """Begin with the first waiting sequence if its whole prompt fits.

        One more block is kept free for each that runs, as each will soon want one.
        """
        whole = self.blocks_of(len(sequence.tokens))
        if whole + len(self.running) > self.pool.free and self.running:
            return None
        count = min(sequence.pending, budget)
        part = self._reserve(sequence, count, self._missing(sequence, count))
        self.waiting.pop(0)
        insort(self.running, sequence, key=self._policy)
        return part

    def _preempt(self, sequence: Sequence) -> None:
        self.preemptions += 1
        self.running.remove(sequence)
        self._vacate(sequence)
        insort(self.waiting, sequence, key=self._policy)

    def _vacate(self, sequence: Sequence) -> None:
        self.pool.release(reversed(sequence.blocks))
        sequence.blocks.clear()
        sequence.computed = 0

    def commit(self, step: Step) -> None:
        """The step has run: its tokens are in the cache. Call before new tokens are appended."""
        for part in step.parts:
            part.sequence.computed += part.count

    def roll_back(self, step: Step) -> None:
        """The step has not run: give back what it reserved; what it preempted stays queued."""
        for part in step.parts:
            if part.fresh:
                del part.sequence.blocks[-len(part.fresh) :]
                self.pool.release(part.fresh)

    def alone(self, part: Part) -> Step:
        """A step with one part of a step that was rolled back: its blocks are free again."""
        needed = self._missing(part.sequence, part.count)
        return Step((self._reserve(part.sequence, part.count, needed),))

    def sequences(self) -> Iterator[Sequence]:
        """All sequences, running ones first."""
        yield from self.running
        yield from self.waiting

    def check(self) -> None:
        """Raise AssertionError unless every block and every sequence is accounted for."""
        self.pool.check(s.blocks for s in self.sequences())
        held = [s.id for s in self.waiting if s.blocks or s.computed]
        assert not held, f"waiting sequences hold blocks or computed tokens: {held}"
        for sequence in self.running:
            room = len(sequence.blocks) * self.block
            assert sequence.computed <= room, f"{sequence.id}: {sequence.computed} tokens in {room}"


def _batch(parts: tuple[Part, ...], block: int) -> Batch:
    tokens: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    starts, rows = [0], []
    for part in parts:
        sequence, begin = part.sequence, part.sequence.computed
        span = range(begin, begin + part.count)
        tokens += sequence.tokens[begin : begin + part.count]
        positions += span
        slots += [sequence.blocks[p // block] * block + p % block for p in span]
        starts.append(len(tokens))
        if part.ends:
            rows.append(len(tokens) - 1)
    return Batch(
        tokens=tokens,
        positions=positions,
        query_start=starts,
        context_length=[p.sequence.computed + p.count for p in parts],
        block_table=[p.sequence.blocks for p in parts],
        slots=slots,
        # Kernels take at least one row; where no part ends, nobody reads it.
        logit_rows=rows or [len(tokens) - 1],
    )
