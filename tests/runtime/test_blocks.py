import pytest
from ferrule.runtime.blocks import BlockPool, extend_chain
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
        self.named: dict[bytes, int] = {}

    @rule(count=st.integers(0, SIZE))
    def allocate(self, count):
        if count <= self.pool.available:
            taken = self.pool.allocate(count)
            assert len(set(taken)) == count
            assert not set(taken) & {b for h in self.holders for b in h}
            # What was in them is no longer found.
            self.named = {k: b for k, b in self.named.items() if b not in taken}
            self.holders.append(taken)
        else:
            with pytest.raises(
                AssertionError, match=f"allocate {count} of {self.pool.available} free"
            ):
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

    @precondition(lambda self: any(self.holders))
    @rule(which=st.integers(0, 99), key=st.sampled_from([b"a", b"b", b"c", b"d"]))
    def name(self, which, key):
        held = [b for h in self.holders for b in h]
        block = held[which % len(held)]
        self.pool.name(block, key)
        if key not in self.named and block not in self.named.values():
            self.named[key] = block

    @rule(keys=st.permutations([b"a", b"b", b"c", b"d"]))
    def find(self, keys):
        found = self.pool.find(keys)
        known = [self.named.get(key) for key in keys]
        assert found == known[: len(found)]
        assert len(found) == len(keys) or known[len(found)] is None
        self.pool.retain(found)
        self.holders.append(found)

    @precondition(lambda self: any(self.holders))
    @rule(which=st.integers(0, 99))
    def unname(self, which):
        blocks = self.holders[which % len(self.holders)]
        self.pool.unname(blocks)
        self.named = {k: b for k, b in self.named.items() if b not in blocks}

    @rule()
    def forget(self):
        self.pool.forget()
        self.named.clear()

    @invariant()
    def accounted(self):
        idle = set(self.named.values()) - {b for h in self.holders for b in h}
        assert self.pool.cached == len(idle)
        self.pool.check(self.holders)
        assert self.pool.used == len({b for h in self.holders for b in h})


TestBlocks = Blocks.TestCase


@given(st.integers(1, 20))
def test_a_lost_block_is_named(size):
    pool = BlockPool(size)
    (block,) = pool.allocate(1)
    with pytest.raises(AssertionError) as caught:
        pool.check([])
    assert f"{size - 1} free + 1 held + 0 cached = {size}" in str(caught.value)
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


def test_blocks_that_were_held_are_taken_before_others():
    pool = BlockPool(9)
    a, b, c = pool.allocate(3)
    pool.release([c, b, a])
    assert pool.allocate(2) == [a, b]
    pool.release([a])
    assert pool.allocate(3) == [a, c, 3]
    with pytest.raises(ValueError, match="a pool of 0 blocks"):
        BlockPool(0)


def test_what_was_held_least_recently_is_evicted_first_and_free_blocks_before_it():
    pool = BlockPool(4)
    a, b, c = pool.allocate(3)
    for block, key in ((a, b"a"), (b, b"b"), (c, b"c")):
        pool.name(block, key)
    pool.release([b, a])
    pool.release([c])
    assert (pool.free, pool.cached, pool.used) == (1, 3, 0)
    pool.retain(pool.find([b"b"]))
    pool.release([b])
    assert pool.allocate(1) == [3]
    assert pool.allocate(2) == [a, c]
    assert pool.find([b"a"]) == pool.find([b"c"]) == [] and pool.find([b"b"]) == [b]


@given(st.lists(st.integers(0, 3), max_size=30), st.integers(1, 5), st.integers(0, 30))
def test_equal_keys_mean_equal_tokens_from_the_beginning(tokens, block, cut):
    keys, stepwise = [], []
    extend_chain(keys, tokens, block)
    extend_chain(stepwise, tokens[:cut], block)
    extend_chain(stepwise, tokens, block)
    assert keys == stepwise and len(keys) == len(tokens) // block == len(set(keys))
    salted, changed = [], []
    extend_chain(salted, tokens, block, b"tenant")
    assert not set(salted) & set(keys)
    if tokens:
        extend_chain(changed, [tokens[0] + 1, *tokens[1:]], block)
        assert not set(changed) & set(keys)


def test_check_finds_a_cached_block_without_content():
    pool = BlockPool(2)
    (a,) = pool.allocate(1)
    pool.name(a, b"a")
    pool.release([a])
    pool.check([])
    del pool._keys[a]
    with pytest.raises(AssertionError, match=f"cached without content: .{a}"):
        pool.check([])
    pool._keys[a], pool._blocks[b"b"] = b"a", 1
    with pytest.raises(AssertionError, match="1 blocks have content, 2 contents"):
        pool.check([])
