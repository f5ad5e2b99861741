"""Recurrent states under the engine: what a step reads and writes, whoever shares, waits or fails.

The runner takes the next token from the state alone, and refuses a state that is not the one that
stands before a step's tokens.
"""

import pytest
from driving import collect, drain, greedy, prompt_of, sampled
from ferrule.runtime.engine import Engine
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import FakeRunner, toy_generate


@st.composite
def traffic(draw):
    """(prompt, tokens, step at which it comes, sequences); prompts begin alike."""
    common = draw(st.lists(st.integers(0, 66), min_size=0, max_size=13))
    rest = st.lists(st.integers(0, 66), min_size=1, max_size=9)
    count = draw(st.integers(1, 6))
    return [
        (
            common + draw(rest),
            draw(st.integers(1, 9)),
            draw(st.integers(0, 9)),
            draw(st.integers(1, 3)),
        )
        for _ in range(count)
    ]


def _asked(count, n):
    return greedy(count) if n == 1 else sampled(count, n)


@settings(max_examples=80, deadline=None)
@given(traffic(), st.integers(12, 30), st.integers(1, 4), st.integers(4, 9), st.integers(0, 5))
def test_tokens_do_not_depend_on_the_company(requests, blocks, max_batch, chunk, spare):
    runner = FakeRunner(blocks=blocks, max_batch=max_batch, chunk=chunk, states=max_batch + spare)
    engine = Engine(runner, swap_blocks=blocks)
    pending = sorted(enumerate(requests), key=lambda r: r[1][2])
    found, step = {}, 0
    while pending or engine.has_work:
        while pending and pending[0][1][2] <= step:
            number, (prompt, count, _, n) = pending.pop(0)
            engine.submit(prompt, _asked(count, n), str(number))
        for delta in engine.step():
            assert delta.error is None, delta.error
            found.setdefault((delta.request_id, delta.index), []).extend(delta.token_ids)
        engine.check()
        step += 1
    for number, (prompt, count, _, n) in enumerate(requests):
        for index in range(n):
            tokens = found[str(number), index]
            # Sampled ones are what the runner's states allow: it checks them at every step.
            assert n > 1 or tokens == list(toy_generate(prompt, count))
            assert len(tokens) == count
    assert engine.pool.used == engine.scheduler.states.pool.used == 0


@pytest.mark.parametrize("swap", [0, 30])
def test_preempted_requests_come_back_to_the_same_tokens(swap):
    engine = Engine(FakeRunner(blocks=9, max_batch=3, chunk=6, states=4), swap_blocks=swap)
    engine.memory.costs.token = 1e9
    prompts = [[n, 2 * n, 3] * 3 for n in range(1, 5)]
    names = [engine.submit(p, greedy(22)) for p in prompts]
    ended = drain(engine)
    assert engine.scheduler.preemptions >= 2 and (engine.memory.saves > 0) == bool(swap)
    assert [ended[n][0] for n in names] == [list(toy_generate(p, 22)) for p in prompts]


def test_a_request_that_no_kernel_survives_ends_alone_though_states_were_updated():
    runner = FakeRunner(states=5)
    runner.fails_on = 66
    engine = Engine(runner)
    good = [engine.submit([1, n] * 5, greedy(9)) for n in range(2)]
    ended = {}
    for _ in range(5):
        collect(engine.step(), ended)
    bad = engine.submit([3, 66], greedy(5))
    ended = drain(engine, ended)
    assert ended[bad][1] == "error" and "no kernel for token 66" in str(ended[bad][2])
    for n, name in enumerate(good):
        assert ended[name] == (list(toy_generate([1, n] * 5, 9)), "length", None)
    assert engine.scheduler.states.pool.used == 0


def test_a_prompt_goes_on_from_the_state_of_one_that_began_like_it():
    runner = FakeRunner(chunk=16, states=6)
    engine = Engine(runner)
    prompt = prompt_of(14)
    names = [engine.submit([*prompt[:n], 9], greedy(3)) for n in (14, 13)]
    first = drain(engine)
    assert [first[n][0] for n in names] == [
        list(toy_generate([*prompt[:k], 9], 3)) for k in (14, 13)
    ]
    runner.batches.clear()
    again = engine.submit([*prompt, 1, 2], greedy(3))
    assert drain(engine)[again][0] == list(toy_generate([*prompt, 1, 2], 3))
    assert runner.batches[0].positions[0] == 12  # three blocks of four were not computed again
    assert engine.stats().prefix_hits == 12


def test_states_that_are_kept_for_prefixes_give_way_to_sequences():
    engine = Engine(FakeRunner(blocks=30, chunk=16, max_batch=2, states=2))
    for n in range(5):
        prompt = [n] * 9
        names = [engine.submit([*prompt, k], greedy(6)) for k in range(2)]
        ended = drain(engine)
        assert [ended[x][0] for x in names] == [
            list(toy_generate([*prompt, k], 6)) for k in range(2)
        ]


def test_sampled_sequences_of_a_request_go_on_from_one_state():
    requests = sampled(6, 3)
    alone, beside = Engine(FakeRunner()), Engine(FakeRunner(states=5))
    results = []
    for engine in (alone, beside):
        found = {}
        engine.submit(prompt_of(9), requests, "r")
        while engine.has_work:
            for delta in engine.step():
                found.setdefault(delta.index, []).extend(delta.token_ids)
            engine.check()
        results.append(found)
    assert results[0] == results[1] and len(results[0]) == 3
