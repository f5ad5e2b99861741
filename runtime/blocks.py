"""KV cache blocks: who holds which, and the proof that none is lost."""

from collections import Counter, deque
from collections.abc import Iterable, Sequence


class BlockPool:
    """`size` blocks with reference counts; a block is free exactly where its count is zero.

    A block may be held by several sequences (`retain`), which is what sharing a prefix and copying
    on write need. Blocks are handed out first freed, first taken, so that one that is free keeps
    its content for as long as possible.
    """

    def __init__(self, size: int) -> None:
        if size < 1:
            raise ValueError(f"a pool of {size} blocks: wanted 1 or more")
        self.size = size
        self._counts = [0] * size
        self._free = deque(range(size))

    @property
    def free(self) -> int:
        """How many blocks nobody holds."""
        return len(self._free)

    @property
    def used(self) -> int:
        """How many blocks somebody holds."""
        return self.size - len(self._free)

    def allocate(self, count: int) -> list[int]:
        """Take `count` blocks, each with one reference; there must be as many free."""
        assert 0 <= count <= self.free, f"allocate {count} of {self.free} free blocks"
        taken = [self._free.popleft() for _ in range(count)]
        for block in taken:
            self._counts[block] = 1
        return taken

    def retain(self, blocks: Iterable[int]) -> None:
        """Add a reference to blocks that somebody holds."""
        for block in blocks:
            assert self._counts[block] > 0, f"retain of free block {block}"
            self._counts[block] += 1

    def release(self, blocks: Iterable[int]) -> None:
        """Drop one reference to each; a block without any is free."""
        for block in blocks:
            assert self._counts[block] > 0, f"release of free block {block}"
            self._counts[block] -= 1
            if self._counts[block] == 0:
                self._free.append(block)

    def is_shared(self, block: int) -> bool:
        """Whether writing to the block would be seen by another holder."""
        return self._counts[block] > 1

    def check(self, holders: Iterable[Sequence[int]]) -> None:
        """Raise AssertionError, with both sides, unless every block is free or held as counted.

        `holders` are the block lists of all sequences that hold any.
        """
        held = Counter(block for blocks in holders for block in blocks)
        counted = {b: c for b, c in enumerate(self._counts) if c}
        repeated = [b for b, c in Counter(self._free).items() if c > 1 or self._counts[b]]
        if dict(held) == counted and not repeated and len(counted) + self.free == self.size:
            return
        wrong = next(
            (
                f"block {b}: {held[b]} holders, count {c}"
                for b, c in self._both(held)
                if held[b] != c
            ),
            f"free twice, or free and held: {repeated}",
        )
        raise AssertionError(
            f"BlockPool: {self.free} free + {len(counted)} held = {self.free + len(counted)},"
            f" expected {self.size}; holders name {len(held)}; {wrong}"
        )

    def _both(self, held: Counter[int]) -> list[tuple[int, int]]:
        return [
            (b, self._counts[b] if 0 <= b < self.size else 0) for b in {*held, *range(self.size)}
        ]
