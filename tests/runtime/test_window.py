"""Sequences whose layers all see a window of tokens: the blocks out of sight are given back."""

from driving import collect, drain, greedy
from ferrule.runtime.engine import Engine
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import FakeRunner, toy_next

prompts = st.lists(st.lists(st.integers(0, 66), min_size=1, max_size=40), min_size=1, max_size=5)


def windowed(prompt: list[int], count: int, window: int) -> list[int]:
    """What the toy model gives when it sees the last `window` tokens only."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(toy_next(tokens[-window:]))
    return tokens[len(prompt) :]


@settings(max_examples=60, deadline=None)
@given(prompts, st.integers(1, 9), st.integers(16, 30), st.integers(1, 30), st.booleans())
def test_tokens_are_those_of_the_window_whatever_the_company(prompts, window, blocks, count, cache):
    runner = FakeRunner(blocks=blocks, max_batch=3, chunk=8, window=window)
    engine = Engine(runner, prefix_caching=cache)
    names = [engine.submit(p, greedy(count)) for p in prompts]
    ended = {}
    while engine.has_work:
        collect(engine.step(), ended)
        engine.check()
    for name, prompt in zip(names, prompts, strict=True):
        assert ended[name] == (windowed(prompt, count, window), "length", None)
    assert engine.pool.used == 0


def test_blocks_stay_constant_once_the_window_is_full():
    engine = Engine(FakeRunner(block=4, blocks=64, chunk=8, window=16), prefix_caching=False)
    engine.submit([1, 2, 3], greedy(200))
    used = []
    while engine.has_work:
        engine.step()
        used.append(engine.pool.used)
    assert max(used) == 5  # 16 tokens back touch five blocks of four at most
    assert set(used[40:-1]) <= {4, 5}


def test_a_preempted_sequence_goes_on_with_the_same_tokens():
    engine = Engine(FakeRunner(block=4, blocks=10, chunk=8, max_batch=4, window=6))
    wanted = {engine.submit([i, i + 1], greedy(30)): windowed([i, i + 1], 30, 6) for i in range(4)}
    ended = drain(engine)
    assert engine.scheduler.preemptions > 0
    assert {n: ended[n][0] for n in wanted} == wanted
    engine.check()
