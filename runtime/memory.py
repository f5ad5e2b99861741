"""Moves blocks between steps: copies inside the cache, and copies to the host and back."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from .swap import Host, Store, Stored
from .tensors import Array

_RATE = 0.2  # weight of the newest measurement in a running mean


class BlockRunner(Protocol):
    """An executor's cache, block by block; called between steps only."""

    def copy_block(self, source: int, target: int) -> None:
        """Make the target's keys and values those of the source, in every cache."""
        ...

    def read_blocks(self, blocks: Sequence[int]) -> tuple[Array, ...]:
        """Copies of the blocks' keys and values, one array a cache."""
        ...

    def write_blocks(self, blocks: Sequence[int], content: tuple[Array, ...]) -> None:
        """Put what `read_blocks` gave into blocks, in the same order."""
        ...

    @property
    def state_blocks(self) -> int:
        """The size of a sequence's recurrent state in blocks, rounded up."""
        ...

    def read_state(self, state: int) -> tuple[Array, ...]:
        """Copies of a recurrent state, one array a layer that has one."""
        ...

    def write_state(self, state: int, content: tuple[Array, ...]) -> None:
        """Put what `read_state` gave into a state."""
        ...


@dataclass(frozen=True, eq=False)
class Saved:
    """A sequence's blocks, and its state if it has one, outside the cache; `computed` tokens are in
    them. `size` is the room they take in blocks; of the arrays the first `paged` hold blocks.
    """

    count: int
    computed: int
    content: Stored
    size: int
    paged: int


@dataclass
class Costs:
    """Seconds for a token of a prompt and for a block moved one way, and for a step of decodes by
    how many there are, by powers of two; running means.
    """

    token: float = 0.0
    block: float = 0.0
    decodes: dict[int, float] = field(default_factory=dict[int, float])

    def see_step(self, prompt: int, decodes: int, seconds: float) -> None:
        """A step of so many tokens of prompts and so many decodes took so long."""
        if not prompt:
            size = decodes.bit_length()
            self.decodes[size] = _mean(self.decodes.get(size, 0.0), seconds)
            return
        # Decodes beside a prompt cost what they would alone; it is never taken for free.
        own = seconds - self.of_decodes(decodes)
        self.token = _mean(self.token, max(own, 0.1 * seconds) / prompt)

    def of_decodes(self, count: int) -> float:
        """Seconds of a step of so many decodes: of the nearest number seen, fewer before more; 0
        where none was.
        """
        size = count.bit_length()
        if not count or not self.decodes:
            return 0.0
        fewer = [known for known in self.decodes if known <= size]
        return self.decodes[max(fewer) if fewer else min(self.decodes)]

    def tokens_beside(self, decodes: int, pace: float) -> int | None:
        """Prompt tokens with which a step takes `pace` times as long as its decodes alone.

        None where nothing is known yet.
        """
        alone = self.of_decodes(decodes)
        if not (self.token and alone):
            return None
        return int((pace - 1) * alone / self.token)

    def see_blocks(self, count: int, seconds: float) -> None:
        """So many blocks were moved one way."""
        self.block = _mean(self.block, seconds / count)

    def prefer_saving(self, tokens: int, blocks: int) -> bool:
        """Whether moving blocks out and in again is cheaper than computing their tokens again."""
        return 2 * blocks * self.block < tokens * self.token


def _mean(mean: float, value: float) -> float:
    return value if mean == 0.0 else (1 - _RATE) * mean + _RATE * value


class BlockMemory:
    """The moves over one cache. `room` blocks of the store are there for preempted sequences."""

    def __init__(
        self,
        runner: BlockRunner,
        room: int = 0,
        costs: Costs | None = None,
        store: Store | None = None,
    ) -> None:
        self.room, self.used = room, 0
        self.store = store or Host()
        self.saves = self.failures = 0
        self.costs = costs or Costs()
        self._runner = runner

    def copy(self, source: int, target: int) -> None:
        """Copy a block inside the cache."""
        self._runner.copy_block(source, target)

    def save(self, blocks: Sequence[int], computed: int, state: int = -1) -> Saved | None:
        """Copy blocks and a state (below 0: none) out; None where there is no room or computing
        again is cheaper.

        A host without memory and a disk that is full cost a computation and no request.
        """
        size = len(blocks) + (self._runner.state_blocks if state >= 0 else 0)
        if self.used + size > self.room or not self.costs.prefer_saving(computed, size):
            return None
        start = time.perf_counter()
        try:
            rows = self._runner.read_blocks(blocks)
            own = self._runner.read_state(state) if state >= 0 else ()
            content = self.store.put((*rows, *own))
        except (MemoryError, OSError):
            self.failures += 1
            return None
        self.costs.see_blocks(size, time.perf_counter() - start)
        self.used += size
        self.saves += 1
        return Saved(len(blocks), computed, content, size, len(rows))

    def load(self, saved: Saved, blocks: Sequence[int], known: int = 0, state: int = -1) -> bool:
        """Put saved blocks back into the cache, all but the `known` first, and what was saved of a
        state into `state`; and forget them.

        False where they cannot be read: then nothing is written, and all is to be computed again.
        """
        start = time.perf_counter()
        try:
            content = self.store.get(saved.content)
        except (MemoryError, OSError, ValueError):
            self.failures += 1
            return False
        finally:
            self.discard(saved)
        rows = tuple(a[known : saved.count] for a in content[: saved.paged])
        self._runner.write_blocks(blocks[known:], rows)
        if state >= 0:
            self._runner.write_state(state, content[saved.paged :])
        self.costs.see_blocks(saved.size - known, time.perf_counter() - start)
        return True

    def discard(self, saved: Saved) -> None:
        """Give up what was saved."""
        self.store.drop(saved.content)
        self.used -= saved.size

    def check(self, saved: Sequence[Saved]) -> None:
        """Raise AssertionError unless the room in use is that of these."""
        held = sum(s.size for s in saved)
        assert held == self.used <= self.room, f"{held} saved, {self.used} counted of {self.room}"
