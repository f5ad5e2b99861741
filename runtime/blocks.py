"""KV cache blocks: who holds which, what they contain, and the proof that none is lost."""

from array import array
from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Sequence
from hashlib import blake2b

from .block_times import BlockTimes


def extend_chain(keys: list[bytes], tokens: Sequence[int], block: int, salt: bytes = b"") -> None:
    """Append the keys of the full blocks of `tokens` that have none yet.

    A key is a hash of the block's tokens and of the key before it, so that equal keys mean equal
    tokens from the beginning on. The first follows the salt: tenants with different salts share
    nothing, and cannot learn from the time of an answer what others asked.
    """
    for start in range(len(keys) * block, len(tokens) - block + 1, block):
        content = array("q", tokens[start : start + block]).tobytes()
        parent = keys[-1] if keys else blake2b(salt, digest_size=16).digest()
        keys.append(blake2b(parent + content, digest_size=16).digest())


class BlockPool:
    """`size` blocks with reference counts, and a cache of those that nobody holds.

    A block may be held by several sequences (`retain`), which is what sharing a prefix and copying
    on write need. A block that nobody holds is cached where its content was named, and free
    otherwise; the cached ones are given away last, the least recently held first. A free block that
    was held is taken again before one that never was: its memory is there. `evictions` counts
    those that are evicted, `times` is what blocks live through.
    """

    def __init__(self, size: int) -> None:
        if size < 1:
            raise ValueError(f"a pool of {size} blocks: wanted 1 or more")
        self.size, self.evictions = size, 0
        self._counts = [0] * size
        self._free = deque(range(size))
        self._cached: OrderedDict[int, None] = OrderedDict()
        self._keys: dict[int, bytes] = {}
        self._blocks: dict[bytes, int] = {}
        self.times = BlockTimes(size)

    @property
    def free(self) -> int:
        """How many blocks nobody holds and nobody could use again."""
        return len(self._free)

    @property
    def cached(self) -> int:
        """How many blocks nobody holds whose content is known."""
        return len(self._cached)

    @property
    def available(self) -> int:
        """How many blocks can be allocated: free and cached ones."""
        return len(self._free) + len(self._cached)

    @property
    def used(self) -> int:
        """How many blocks somebody holds."""
        return self.size - self.available

    def allocate(self, count: int) -> list[int]:
        """Take `count` blocks, each with one reference; there must be as many available."""
        assert 0 <= count <= self.available, f"allocate {count} of {self.available} free blocks"
        taken = [self._free.popleft() if self._free else self._evict() for _ in range(count)]
        for block in taken:
            self._counts[block] = 1
        self.times.take(taken)
        return taken

    def _evict(self) -> int:
        block, _ = self._cached.popitem(last=False)
        self.evictions += 1
        self.times.evict(block)
        del self._blocks[self._keys.pop(block)]
        return block

    def retain(self, blocks: Iterable[int]) -> None:
        """Add a reference to blocks that somebody holds or that are cached."""
        for block in blocks:
            if self._counts[block] == 0:
                assert block in self._cached, f"retain of free block {block}"
                del self._cached[block]
                self.times.find(block)
            self._counts[block] += 1

    def release(self, blocks: Iterable[int]) -> None:
        """Drop one reference to each; a block without any is cached or free."""
        for block in blocks:
            assert self._counts[block] > 0, f"release of free block {block}"
            self._counts[block] -= 1
            if self._counts[block]:
                continue
            if block in self._keys:
                self._cached[block] = None
                self.times.leave(block)
            else:
                self._free.appendleft(block)

    def is_shared(self, block: int) -> bool:
        """Whether writing to the block would be seen by another holder."""
        return self._counts[block] > 1

    def name(self, block: int, key: bytes) -> None:
        """Say what a held block contains; of two with the same content one is remembered."""
        assert self._counts[block] > 0, f"name of free block {block}"
        if key not in self._blocks and block not in self._keys:
            self._blocks[key] = block
            self._keys[block] = key

    def is_named(self, block: int) -> bool:
        """Whether the block's content is known, so that somebody may find it."""
        return block in self._keys

    def unname(self, blocks: Iterable[int]) -> None:
        """Forget what held blocks contain, so that nobody finds them again."""
        for block in blocks:
            assert self._counts[block] > 0, f"unname of free block {block}"
            if (key := self._keys.pop(block, None)) is not None:
                del self._blocks[key]

    def drop(self, keys: Iterable[bytes]) -> None:
        """Forget these contents, whoever holds them."""
        for key in keys:
            if (block := self._blocks.pop(key, None)) is None:
                continue
            del self._keys[block]
            if not self._counts[block]:
                del self._cached[block]
                self._free.appendleft(block)

    def find(self, keys: Iterable[bytes]) -> list[int]:
        """The blocks with these contents, up to the first that is not known."""
        found: list[int] = []
        for key in keys:
            block = self._blocks.get(key)
            if block is None:
                break
            found.append(block)
        return found

    def forget(self) -> None:
        """Forget every content: nothing is found until blocks are named again."""
        self._free.extendleft(reversed(self._cached))
        for known in (self._cached, self._keys, self._blocks):
            known.clear()

    def check(self, holders: Iterable[Sequence[int]]) -> None:
        """Raise AssertionError, with both sides, unless every block is accounted for exactly once.

        `holders` are the block lists of all sequences that hold any.
        """
        held = Counter(block for blocks in holders for block in blocks)
        counted = {b: c for b, c in enumerate(self._counts) if c}
        wrong = self._wrong(held)
        if wrong is None and len(counted) + self.available == self.size:
            return
        raise AssertionError(
            f"BlockPool: {self.free} free + {len(counted)} held + {self.cached} cached ="
            f" {self.available + len(counted)}, expected {self.size};"
            f" holders name {len(held)}; {wrong}"
        )

    def _wrong(self, held: Counter[int]) -> str | None:
        for block in sorted({*held, *range(self.size)}):
            count = self._counts[block] if 0 <= block < self.size else 0
            if held[block] != count:
                return f"block {block}: {held[block]} holders, count {count}"
        unheld = Counter([*self._free, *self._cached])
        if repeated := [b for b, c in unheld.items() if c > 1 or self._counts[b]]:
            return f"free twice, or free and held: {repeated}"
        if unnamed := [b for b in self._cached if b not in self._keys]:
            return f"cached without content: {unnamed}"
        if {key: block for block, key in self._keys.items()} != self._blocks:
            return f"{len(self._keys)} blocks have content, {len(self._blocks)} contents a block"
        return None
