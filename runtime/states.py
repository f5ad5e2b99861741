"""Recurrent states of sequences: who holds which, and where a step reads and writes them.

A state is as large as any other, whatever the length of its sequence, so states are the blocks of a
pool of their own. A sequence alone with its state has it updated in place. A state that others
share, or that the prefix cache knows, is left as it is: the step reads it and writes another.
"""

from collections.abc import Container, Iterable
from collections.abc import Sequence as Keys

from .blocks import BlockPool
from .sequence import NO_BLOCK, Sequence


class States:
    """The states of a scheduler's sequences, `count` of them; none where a model has no states."""

    def __init__(self, count: int) -> None:
        self.pool = BlockPool(count) if count else None

    @property
    def available(self) -> int:
        """How many states can be taken."""
        return self.pool.available if self.pool else 0

    def needed(self, sequence: Sequence) -> int:
        """How many states a step of the sequence has to take: one, or none."""
        if self.pool is None:
            return 0
        return int(sequence.state == NO_BLOCK or self.pool.is_shared(sequence.state))

    def reserve(self, sequence: Sequence) -> None:
        """Decide where the sequence's next step puts its state; there must be as many available as
        are needed.
        """
        if self.pool is None:
            return
        kept = self.pool.is_named(sequence.state)
        if kept and not self.needed(sequence) and not self.pool.available:
            self.pool.unname([sequence.state])
            kept = False
        if kept or self.needed(sequence):
            (sequence.next_state,) = self.pool.allocate(1)
        else:
            sequence.next_state = sequence.state

    def commit(self, sequence: Sequence) -> None:
        """The step has run: the state is where it was put."""
        if self.pool is None:
            return
        if sequence.state not in (NO_BLOCK, sequence.next_state):
            self.pool.release([sequence.state])
        sequence.state, sequence.next_state = sequence.next_state, NO_BLOCK

    def is_lost(self, sequence: Sequence) -> bool:
        """Whether a step that did not end was to update the state in place: nobody knows what it
        holds.
        """
        return NO_BLOCK != sequence.state == sequence.next_state

    def roll_back(self, sequence: Sequence) -> None:
        """The step has not run: give back what it was to write."""
        if self.pool is not None and sequence.next_state not in (NO_BLOCK, sequence.state):
            self.pool.release([sequence.next_state])
        sequence.next_state = NO_BLOCK

    def vacate(self, sequence: Sequence) -> None:
        """Give back all that the sequence holds."""
        self.roll_back(sequence)
        if self.pool is not None and sequence.state != NO_BLOCK:
            self.pool.release([sequence.state])
        sequence.state = NO_BLOCK

    def share(self, parent: Sequence, child: Sequence) -> None:
        """Let a sequence go on from another one's state."""
        if self.pool is not None and parent.state != NO_BLOCK:
            self.pool.retain([parent.state])
            child.state = parent.state

    def name(self, sequence: Sequence, key: bytes) -> None:
        """Say what tokens the sequence's state stands behind, so that others may go on from it."""
        if self.pool is not None:
            self.pool.name(sequence.state, key)

    def drop(self, keys: Keys[bytes]) -> None:
        """Forget the states behind these blocks."""
        if self.pool is not None:
            self.pool.drop(keys)

    def find(self, sequence: Sequence, keys: Keys[bytes]) -> int:
        """Take the state that stands behind the most of these blocks; gives how many, all where
        there are no states.
        """
        if self.pool is None:
            return len(keys)
        for count in range(len(keys), 0, -1):
            if found := self.pool.find(keys[count - 1 : count]):
                self.pool.retain(found)
                (sequence.state,) = found
                return count
        return 0

    def check(self, sequences: Iterable[Sequence], begun: Container[Sequence] = ()) -> None:
        """Raise AssertionError unless every state is accounted for, and is where computed tokens
        are; those that a step is to write belong to sequences of steps that are `begun`.
        """
        held: list[list[int]] = []
        for s in sequences:
            free = s.next_state == NO_BLOCK or s in begun
            assert free, f"{s.id}: state {s.next_state} reserved between steps"
            held.append(sorted({s.state, s.next_state} - {NO_BLOCK}))
            has, wanted = s.state != NO_BLOCK, bool(self.pool and s.computed)
            assert has == wanted, f"{s.id}: {s.computed} computed, state {s.state}"
        if self.pool is not None:
            self.pool.check(held)
