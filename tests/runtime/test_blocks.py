import pytest
from ferrule.runtime.blocks import BlockPool
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

SIZE = 7


class Blocks(RuleBasedStateMachine):
    """Holders take, share and give back blocks; every block stays accounted for."""

    def __init__(self):
        super().__init__()
        self.pool = BlockPool(SIZE)
        self.holders: list[list[int]] = []

    @rule(count=st.integers(0, SIZE))
    def allocate(self, count):
        if count <= self.pool.free:
            taken = self.pool.allocate(count)
            assert len(set(taken)) == count
            assert not set(taken) & {b for h in self.holders for b in h}
            self.holders.append(taken)
        else:
            with pytest.raises(AssertionError, match=f"allocate {count} of {self.pool.free} free"):
                self.pool.allocate(count)

    @precondition(lambda self: self.holders)
    @rule(which=st.integers(0, 99), count=st.integers(0, SIZE))
    def share(self, which, count):
        shared = self.holders[which % len(self.holders)][:count]
        self.pool.retain(shared)
        self.holders.append(list(shared))
        assert all(self.pool.is_shared(b) for b in shared)

    @precondition(lambda self: self.holders)
    @rule(which=st.integers(0, 99))
    def release(self, which):
        self.pool.release(self.holders.pop(which % len(self.holders)))

    @invariant()
    def accounted(self):
        self.pool.check(self.holders)
        assert self.pool.used == len({b for h in self.holders for b in h})


TestBlocks = Blocks.TestCase


@given(st.integers(1, 20))
def test_a_lost_block_is_named(size):
    pool = BlockPool(size)
    (block,) = pool.allocate(1)
    with pytest.raises(AssertionError) as caught:
        pool.check([])
    assert f"{size - 1} free + 1 held = {size}" in str(caught.value)
    assert f"block {block}: 0 holders, count 1" in str(caught.value)
    with pytest.raises(AssertionError, match=f"block {block}: 2 holders, count 1"):
        pool.check([[block], [block]])
    pool.release([block])
    with pytest.raises(AssertionError, match="release of free block"):
        pool.release([block])
    with pytest.raises(AssertionError, match="retain of free block"):
        pool.retain([block])
    with pytest.raises(AssertionError, match="block -1: 1 holders, count 0"):
        pool.check([[-1]])
    pool._free.append(block)
    with pytest.raises(AssertionError, match="free twice"):
        pool.check([])


def test_blocks_freed_first_are_taken_first():
    pool = BlockPool(3)
    a, b, c = pool.allocate(3)
    pool.release([b, a, c])
    assert pool.allocate(2) == [b, a]
    with pytest.raises(ValueError, match="a pool of 0 blocks"):
        BlockPool(0)
