"""Decides what each step runs: plain integers, no tensors.

Every step is made anew: decodes first, then chunks of prompts, then new sequences, as far as
tokens and blocks go. Blocks are taken when they are needed; where there are none left, the
sequence that the policy puts last gives its own back and is computed again, or copied back, later.
The one that goes first never gives way, and the engine refuses what the whole pool could not hold,
so every sequence ends.
"""

from collections.abc import Container, Iterator
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush, heapreplace

from .blocks import BlockPool, extend_chain
from .memory import BlockMemory
from .policies import FirstCome, Key, Policy
from .sequence import NO_BLOCK, Sequence
from .states import States
from .step import Part, Step

_SPARE = 4  # running sequences for which one block is kept free


class Waiting:
    """The sequences that wait, the policy's first one first.

    A heap whose keys may have grown since: the top is looked at again before it is believed.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._heap: list[tuple[Key, int, Sequence]] = []

    def __len__(self) -> int:
        return len(self._heap)

    def __iter__(self) -> Iterator[Sequence]:
        return (entry[2] for entry in self._heap)

    def push(self, sequence: Sequence) -> None:
        """Add a sequence."""
        heappush(self._heap, self._entry(sequence))

    def _entry(self, sequence: Sequence) -> tuple[Key, int, Sequence]:
        # Arrivals are unique, so that sequences are never compared.
        return (self._policy.key(sequence), sequence.arrival, sequence)

    def first(self) -> Sequence | None:
        """The sequence to be served next."""
        while self._heap:
            top = self._heap[0]
            now = self._entry(top[2])
            if now[0] == top[0]:
                return top[2]
            heapreplace(self._heap, now)
        return None

    def pop(self) -> None:
        """Take out what `first` gave."""
        heappop(self._heap)

    def remove(self, sequence: Sequence) -> None:
        """Take out any sequence."""
        self._heap = [entry for entry in self._heap if entry[2] is not sequence]
        heapify(self._heap)


@dataclass
class _Room:
    """What is left of a step while it is planned, and what it has so far."""

    tokens: int
    rows: int
    prompt_tokens: int
    parts: dict[Sequence, Part] = field(default_factory=dict[Sequence, Part])
    preempted: set[Sequence] = field(default_factory=set[Sequence])


class Scheduler:
    """Waiting and running sequences over one pool; `policy` orders who goes first.

    A step has at most `budget` tokens (`chunk`, what the executor can run, where it is None), and
    at most `beside_decodes` of prompts where others decode; with a `pace` also no more than let
    such a step take so many times as long as its decodes alone, by what was measured. `rows` bounds
    the tokens that get logits. `memory` moves blocks and knows what steps cost; without one nothing
    is forked and preempted sequences are computed again. Where every layer sees at most `window`
    tokens back (0: some see all), blocks that are out of sight are given back while the sequence
    runs. `states` recurrent states are there (0: the model has none); a prompt is then computed to
    the ends of blocks, where the prefix cache keeps its state.
    """

    def __init__(
        self,
        pool: BlockPool,
        *,
        block: int,
        max_batch: int,
        chunk: int,
        policy: Policy | None = None,
        memory: BlockMemory | None = None,
        rows: int | None = None,
        budget: int | None = None,
        beside_decodes: int | None = None,
        pace: float | None = None,
        prefix_caching: bool = True,
        window: int = 0,
        states: int = 0,
    ) -> None:
        self.pool, self.block, self.memory = pool, block, memory
        self.states = States(states)
        self.max_batch, self.chunk = max_batch, min(chunk, budget or chunk)
        self.rows = rows or max_batch
        self.beside_decodes, self.pace = beside_decodes or self.chunk, pace
        limits = f"chunk {self.chunk}, rows {self.rows}"
        assert max_batch <= min(self.chunk, self.rows), f"max_batch {max_batch} over {limits}"
        self.prefix_caching, self.window = prefix_caching, window
        self.policy = policy or FirstCome()
        self.waiting = Waiting(self.policy)
        self.running: list[Sequence] = []
        self.preemptions = self.prefix_queries = self.prefix_hits = 0
        self._arrivals = 0

    def blocks_of(self, tokens: int) -> int:
        """Blocks that hold this many tokens."""
        return -(-tokens // self.block)

    def admit(self, sequence: Sequence) -> None:
        """Queue a sequence."""
        self._arrive(sequence)
        self.waiting.push(sequence)

    def _arrive(self, sequence: Sequence) -> None:
        sequence.arrival = self._arrivals
        self._arrivals += 1
        self.policy.admit(sequence)

    def fork(self, parent: Sequence, child: Sequence) -> None:
        """Add a sequence that begins with all that is computed of a running one.

        It shares the parent's blocks until one of them writes; where no more may run it waits, and
        finds what the prefix cache still has.
        """
        child.cached, child.charged = 0, parent.charged
        self._arrive(child)
        if len(self.running) >= self.max_batch or self.memory is None:
            self.waiting.push(child)
            return
        child.computed = parent.computed
        child.blocks = parent.blocks[: self.blocks_of(child.computed)]
        child.keys, child.freed = list(parent.keys), parent.freed
        self.pool.retain(child.held)
        self.states.share(parent, child)
        self.running.append(child)

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out, wherever it is, and free its blocks."""
        if sequence in self.running:
            self.running.remove(sequence)
        else:
            self.waiting.remove(sequence)
        self._vacate(sequence)
        if sequence.saved and self.memory:
            self.memory.discard(sequence.saved)
            sequence.saved = None
        self.policy.leave(sequence)

    def next_step(self) -> Step | None:
        """Plan a step and reserve its blocks; None where there is nothing to run."""
        room = _Room(self.chunk, self.rows, self.chunk)
        decodes = [s for s in self.running if len(s.tokens) - s.computed == 1]
        prompts = [s for s in self.running if len(s.tokens) - s.computed != 1]
        if self.pool.available < len(decodes):  # somebody may have to give way
            decodes.sort(key=self.policy.key)
        for sequence in decodes:
            if not self._decode(sequence, room):
                self._continue(sequence, room)
        if room.parts:
            room.prompt_tokens = self._beside(len(room.parts))
        for sequence in sorted(prompts, key=self.policy.key):
            self._continue(sequence, room)
        while not room.preempted and self._start(room):
            pass
        return Step(tuple(room.parts.values())) if room.parts else None

    def _decode(self, sequence: Sequence, room: _Room) -> bool:
        """Plan one token where its place is there and is its own, which is what most parts are; all
        else takes longer to decide.
        """
        place = sequence.computed // self.block
        if place >= len(sequence.blocks) or self.states.pool is not None:
            return False
        if not (room.tokens and room.rows) or self.pool.is_shared(sequence.blocks[place]):
            return False
        if sequence in room.preempted:
            return False
        room.parts[sequence] = Part(sequence, 1, (), sequence.computed + 1, 1)
        room.tokens -= 1
        room.rows -= 1
        return True

    def _beside(self, decodes: int) -> int:
        """Tokens of prompts beside so many decodes: whole blocks where the pace decides."""
        if self.pace is None or self.memory is None:
            return self.beside_decodes
        tokens = self.memory.costs.tokens_beside(decodes, self.pace)
        if tokens is None:
            return self.beside_decodes
        return min(self.beside_decodes, max(self.block, tokens // self.block * self.block))

    def _continue(self, sequence: Sequence, room: _Room) -> None:
        """Plan tokens of a running sequence, taking blocks from the last ones where needed."""
        count = self._count(sequence, room)
        if not count or sequence in room.preempted:
            return
        while not self._fits(sequence, count):
            victim = max(self.running, key=self.policy.key)
            if part := room.parts.pop(victim, None):
                _spend(room, part, -1)
            self._preempt(victim)
            room.preempted.add(victim)
            if victim is sequence:
                return
        self._plan(sequence, count, room)

    def _fits(self, sequence: Sequence, count: int) -> bool:
        """Whether there are blocks for new tokens, and a state to write."""
        blocks = self._needed(sequence, count) <= self.pool.available
        return blocks and self.states.needed(sequence) <= self.states.available

    def _count(self, sequence: Sequence, room: _Room) -> int:
        count = self._room_for(sequence, room)
        border = (sequence.computed + count) // self.block * self.block
        if count > 1 and self._keeps_states and border > sequence.computed:
            return border - sequence.computed
        return count

    @property
    def _keeps_states(self) -> bool:
        """Whether the prefix cache keeps states, at the ends of blocks."""
        return self.states.pool is not None and self.prefix_caching

    def _room_for(self, sequence: Sequence, room: _Room) -> int:
        pending = len(sequence.tokens) - sequence.computed
        if sequence.whole:
            rows = pending if sequence.all_rows else 1
            return pending if pending <= room.tokens and rows <= room.rows else 0
        if pending > 1:
            pending = min(pending, room.prompt_tokens)
        if sequence.all_rows and sequence.computed < sequence.prompt_length:
            pending = min(pending, room.rows)
        return min(pending, room.tokens) if room.rows else 0

    def _plan(self, sequence: Sequence, count: int, room: _Room) -> None:
        part = self._reserve(sequence, count)
        room.parts[sequence] = part
        _spend(room, part, 1)

    def _needed(self, sequence: Sequence, count: int) -> int:
        """Blocks to allocate: for new tokens, and for a copy of one that others hold too."""
        growth = self.blocks_of(sequence.computed + count) - len(sequence.blocks)
        return max(0, growth) + self._writes_shared(sequence)

    def _writes_shared(self, sequence: Sequence) -> bool:
        place = sequence.computed // self.block
        return place < len(sequence.blocks) and self.pool.is_shared(sequence.blocks[place])

    def _reserve(self, sequence: Sequence, count: int) -> Part:
        if self._writes_shared(sequence):
            self._own(sequence, sequence.computed // self.block)
        self.states.reserve(sequence)
        end = sequence.computed + count
        rows = int(end == len(sequence.tokens))
        if sequence.all_rows and sequence.computed < sequence.prompt_length:
            rows = count
        growth = -(-end // self.block) - len(sequence.blocks)
        if growth <= 0:
            return Part(sequence, count, (), end, rows)
        fresh = self.pool.allocate(growth)
        sequence.blocks.extend(fresh)
        return Part(sequence, count, tuple(fresh), end, rows)

    def _own(self, sequence: Sequence, place: int) -> None:
        """Copy on write. Done at once: between steps the cache belongs to nobody else."""
        assert self.memory is not None, "blocks are shared for writing, and nothing copies them"
        shared = sequence.blocks[place]
        (own,) = self.pool.allocate(1)
        self.memory.copy(shared, own)
        sequence.blocks[place] = own
        self.pool.release([shared])

    def _start(self, room: _Room) -> bool:
        """Begin with the first waiting sequence if its whole prompt fits.

        What running prompts will still take is kept free, and a block for every fourth that runs,
        as they will soon want some: with none kept, a tenth of the work is done twice; with one for
        each, 7 percent of the pool lie idle (64 sequences of 64 to 256 and 32 to 128 tokens).
        """
        sequence = self.waiting.first() if len(self.running) < self.max_batch else None
        if sequence is None or not self._count(sequence, room):
            return False
        self._find(sequence)
        ahead = sum(self.blocks_of(len(s.tokens)) - len(s.blocks) for s in self.running)
        whole = self.blocks_of(len(sequence.tokens)) - len(sequence.blocks)
        spare = -(-len(self.running) // _SPARE)
        stateless = self.states.needed(sequence) > self.states.available
        if self.running and (stateless or whole + ahead + spare > self.pool.available):
            self._vacate(sequence)
            return False
        self.waiting.pop()
        self.running.append(sequence)
        self._resume(sequence)
        self._note_start(sequence)
        self._plan(sequence, self._count(sequence, room), room)
        return True

    def _find(self, sequence: Sequence) -> None:
        """Take the blocks that the prefix cache has; the last token is always computed."""
        if not (self.prefix_caching and sequence.reads_cache):
            return
        tokens, useful = sequence.tokens, (len(sequence.tokens) - 1) // self.block
        extend_chain(sequence.keys, tokens, self.block, sequence.salt)
        found = self.pool.find(sequence.keys[:useful])
        sequence.blocks = found[: self.states.find(sequence, sequence.keys[: len(found)])]
        self.pool.retain(sequence.blocks)
        sequence.computed = len(sequence.blocks) * self.block

    def _resume(self, sequence: Sequence) -> None:
        """Copy back what a preempted sequence had, as far as it does not have it again."""
        if not (saved := sequence.saved) or self.memory is None:
            return
        sequence.saved = None
        known = len(sequence.blocks)
        if saved.computed <= sequence.computed:
            self.memory.discard(saved)
            return
        sequence.blocks += self.pool.allocate(saved.count - known)
        self.states.reserve(sequence)
        if self.memory.load(saved, sequence.blocks, known, sequence.next_state):
            sequence.computed = saved.computed
            self.states.commit(sequence)
        else:
            self.states.roll_back(sequence)

    def _note_start(self, sequence: Sequence) -> None:
        if sequence.cached is None:
            sequence.cached = sequence.computed
            if self.prefix_caching and sequence.reads_cache:
                self.prefix_queries += sequence.prompt_length
                self.prefix_hits += sequence.computed
        if not sequence.charged:
            sequence.charged = sequence.prompt_length
            self.policy.charge(sequence, sequence.prompt_length, 0)

    def _preempt(self, sequence: Sequence) -> None:
        self.preemptions += 1
        self.running.remove(sequence)
        if self.memory and sequence.computed:
            blocks = sequence.blocks[: self.blocks_of(sequence.computed)]
            # What was given back is saved as any block: nothing will read it.
            held = [max(b, 0) for b in blocks]
            sequence.saved = self.memory.save(held, sequence.computed, sequence.state)
        self._vacate(sequence)
        self.waiting.push(sequence)

    def _vacate(self, sequence: Sequence) -> None:
        # The end first: of a prefix that is cached the beginning is of use to the most.
        self.pool.release(reversed(sequence.held))
        self.states.vacate(sequence)
        sequence.blocks.clear()
        sequence.computed = sequence.freed = 0

    def commit(self, step: Step) -> None:
        """The step has run: its tokens are in the cache. Call before new tokens are appended."""
        charges = self.policy.charges
        for sequence, count, _, end, _ in step.parts:
            sequence.computed = end
            self.states.commit(sequence)
            if end % self.block < count and self.prefix_caching:
                self._name(sequence, end - count)
            if self.window:
                self._free_unseen(sequence)
            if charges and sequence.computed == len(sequence.tokens) >= sequence.charged:
                sequence.charged = len(sequence.tokens) + 1
                self.policy.charge(sequence, 0, 1)

    def _free_unseen(self, sequence: Sequence) -> None:
        """Give back the blocks that lie wholly before what the next token sees."""
        first_seen = max(0, sequence.computed - self.window + 1) // self.block
        if first_seen > sequence.freed:
            self.pool.release(sequence.blocks[sequence.freed : first_seen])
            sequence.blocks[:first_seen] = [NO_BLOCK] * first_seen
            sequence.freed = first_seen

    def _name(self, sequence: Sequence, before: int) -> None:
        """Make the blocks that are full now known to the prefix cache."""
        extend_chain(sequence.keys, sequence.tokens, self.block, sequence.salt)
        for place in range(before // self.block, sequence.computed // self.block):
            self.pool.name(sequence.blocks[place], sequence.keys[place])
        # States of outputs are not kept: each would push out one of a prompt.
        if sequence.computed % self.block == 0 and sequence.computed <= sequence.prompt_length:
            self.states.name(sequence, sequence.keys[sequence.computed // self.block - 1])

    def distrust(self, sequence: Sequence) -> None:
        """Let nobody find what was computed for a sequence."""
        self.pool.drop(sequence.keys)
        self.states.drop(sequence.keys)

    def roll_back(self, step: Step) -> None:
        """The step has not run: give back what it reserved; what it preempted stays queued.

        A sequence whose state may have been updated begins anew.
        """
        for part in step.parts:
            sequence = part.sequence
            if part.fresh:
                del sequence.blocks[-len(part.fresh) :]
                self.pool.release(part.fresh)
            if self.states.is_lost(sequence):
                self._vacate(sequence)
            self.states.roll_back(sequence)

    def alone(self, part: Part) -> Step | None:
        """A step towards the end of one part of a step that was rolled back, with that part alone.

        None where its sequence has to begin anew and has no room to: then it waits.
        """
        sequence = part.sequence
        if not sequence.computed:
            self._find(sequence)
        count = min(part.end - sequence.computed, self.chunk)
        if sequence.all_rows and sequence.computed < sequence.prompt_length:
            count = min(count, self.rows)
        if self._fits(sequence, count):
            return Step((self._reserve(sequence, count),))
        self._preempt(sequence)
        return None

    def sequences(self) -> Iterator[Sequence]:
        """All sequences, running ones first."""
        yield from self.running
        yield from self.waiting

    def check(self, begun: Container[Sequence] = ()) -> None:
        """Raise AssertionError unless every block and every sequence is accounted for; `begun` are
        those of steps that run.
        """
        self.pool.check(s.held for s in self.sequences())
        self.states.check(self.sequences(), begun)
        held = [s.id for s in self.waiting if s.blocks or s.computed]
        assert not held, f"waiting sequences hold blocks or computed tokens: {held}"
        for sequence in self.running:
            room = len(sequence.blocks) * self.block
            assert sequence.computed <= room, f"{sequence.id}: {sequence.computed} tokens in {room}"
            assert not sequence.saved, f"{sequence.id} runs and is saved on the host"
        if self.memory:
            self.memory.check([s.saved for s in self.waiting if s.saved])


def _spend(room: _Room, part: Part, times: int) -> None:
    """Take a part out of what is left, or put it back with times -1."""
    sequence = part.sequence
    whole = sequence.all_rows and sequence.computed < sequence.prompt_length
    room.tokens -= times * part.count
    # One row at least, so that whoever runs has one when its prompt ends.
    room.rows -= times * (part.count if whole else 1)
    if part.count > 1:
        room.prompt_tokens -= times * part.count
