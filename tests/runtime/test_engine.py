"""The engine over an executor in plain Python: every request ends, and ends alone."""

import numpy as np
import pytest
from driving import collect, drain, drain_all, drain_one, greedy, prompt_of, sampled
from ferrule.runtime.engine import Engine
from ferrule.runtime.errors import QueueFullError, RequestError
from ferrule.runtime.sampling import SamplingParams
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import FakeRunner, toy_generate, toy_next


@st.composite
def traffic(draw):
    count = draw(st.integers(1, 7))
    prompts = st.lists(st.integers(0, 66), min_size=1, max_size=24)
    return [
        (draw(prompts), draw(st.integers(1, 12)), draw(st.integers(0, 9))) for _ in range(count)
    ]


@settings(max_examples=60, deadline=None)
@given(traffic(), st.integers(9, 30), st.integers(1, 4), st.integers(4, 9))
def test_tokens_do_not_depend_on_the_company(requests, blocks, max_batch, chunk):
    engine = Engine(FakeRunner(blocks=blocks, max_batch=max_batch, chunk=chunk))
    pending = sorted(enumerate(requests), key=lambda r: r[1][2])
    ended, step = {}, 0
    while pending or engine.has_work:
        while pending and pending[0][1][2] <= step:
            number, (prompt, count, _) = pending.pop(0)
            engine.submit(prompt, greedy(count), str(number))
        collect(engine.step(), ended)
        engine.check()
        step += 1
    for number, (prompt, count, _) in enumerate(requests):
        assert ended[str(number)] == (list(toy_generate(prompt, count)), "length", None)
    assert engine.pool.used == 0


def test_preempted_requests_are_computed_again_to_the_same_tokens():
    engine = Engine(FakeRunner(blocks=9, max_batch=3, chunk=6))
    prompts = [[n, 2 * n, 3] * 3 for n in range(1, 5)]
    names = [engine.submit(p, greedy(22)) for p in prompts]
    ended = drain(engine)
    assert engine.scheduler.preemptions >= 2
    assert [ended[n][0] for n in names] == [list(toy_generate(p, 22)) for p in prompts]


def test_an_end_token_ends_and_may_be_ignored_or_put_off():
    prompt = [1, 2, 3]
    tokens = toy_generate(prompt, 9)
    runner = FakeRunner()
    first = drain_one(Engine(runner, ends=[tokens[2]]), prompt, greedy(9))
    assert first == (list(tokens[:3]), "stop", None)
    ignoring = drain_one(Engine(runner, ends=[tokens[2]]), prompt, greedy(9, ignore_eos=True))
    assert ignoring == (list(tokens), "length", None)
    own = drain_one(Engine(runner), prompt, greedy(9, stop_token_ids=[tokens[3]]))
    assert own == (list(tokens[:4]), "stop", None)
    put_off = drain_one(Engine(runner, ends=[tokens[2], 99_999]), prompt, greedy(9, min_tokens=4))
    assert len(put_off[0]) >= 4 and tokens[2] not in put_off[0][:4]


def test_the_context_limits_length():
    engine = Engine(FakeRunner(blocks=4, block=4, max_context=13))
    tokens, reason, _ = drain_one(engine, [5] * 10, greedy(None))
    assert (len(tokens), reason) == (3, "length")
    with pytest.raises(RequestError, match="the prompt has 13 tokens, the limit is 12"):
        engine.submit([5] * 13, greedy(1))


def test_a_request_that_no_kernel_survives_ends_alone():
    runner = FakeRunner()
    runner.fails_on = 66
    engine = Engine(runner)
    good = [engine.submit([1, n], greedy(5)) for n in range(2)]
    bad = engine.submit([3, 66], greedy(5))
    late = engine.submit([7, 7], greedy(5))
    ended = drain(engine)
    assert ended[bad][1] == "error" and "no kernel for token 66" in str(ended[bad][2])
    for n, name in enumerate(good):
        assert ended[name] == (list(toy_generate([1, n], 5)), "length", None)
    assert ended[late][1] == "length"


def test_logits_that_are_not_finite_end_their_request_alone():
    runner = FakeRunner()
    runner.not_finite = toy_next([4, 4])
    engine = Engine(runner)
    bad, good = engine.submit([4, 4], greedy(5)), engine.submit([1, 1], greedy(2))
    ended = drain(engine)
    assert ended[bad][1] == "error" and "nan as its greatest logit" in str(ended[bad][2])
    assert engine.stats().corrupted == 1
    assert ended[good][1] == "length"


def test_an_interrupted_step_is_rolled_back_and_can_be_run_again():
    runner = FakeRunner()
    engine = Engine(runner)
    name = engine.submit([1, 2, 3], greedy(4))
    step, runner.step = runner.step, interrupt
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    engine.check()
    assert engine.pool.used == 0
    runner.step = step
    assert drain(engine)[name] == (list(toy_generate([1, 2, 3], 4)), "length", None)


def interrupt(_batch):
    raise KeyboardInterrupt


def test_abort_ends_at_any_time():
    engine = Engine(FakeRunner(max_batch=1))
    running, waiting = engine.submit([1], greedy(9)), engine.submit([2], greedy(9))
    engine.step()
    assert engine.abort(waiting).finish_reason == "abort"
    assert engine.abort(running).finish_reason == "abort"
    assert engine.abort(running) is None
    engine.check()
    assert not engine.has_work and engine.pool.used == 0 and engine.step() == []


def test_prompts_and_ids_are_checked():
    engine = Engine(FakeRunner())
    with pytest.raises(RequestError, match="the prompt is empty"):
        engine.submit([], greedy(1))
    with pytest.raises(RequestError, match=r"a prompt is text or token ids, given 1\.5"):
        engine.submit([1.5], greedy(1))
    with pytest.raises(RequestError, match="token id -1: wanted 0 to 66"):
        engine.submit([-1], greedy(1))
    with pytest.raises(RequestError, match="no tokenizer"):
        engine.submit("text", greedy(1))
    with pytest.raises(RequestError, match="stop: the artifact has no tokenizer"):
        engine.submit([1], greedy(1, stop="x"))
    engine.submit(np.array([1, 2]), greedy(1), "mine")
    with pytest.raises(RequestError, match="request id 'mine' is taken"):
        engine.submit([1], greedy(1), "mine")
    assert list(drain(engine)) == ["mine"]


def test_seeded_requests_give_the_same_tokens_in_any_company():
    params = SamplingParams(temperature=30.0, seed=7, max_tokens=12)
    alone = drain_one(Engine(FakeRunner()), [3, 4], params)[0]
    engine = Engine(FakeRunner(blocks=9, max_batch=3))
    others = [engine.submit([n], SamplingParams(temperature=5.0, max_tokens=14)) for n in range(3)]
    name = engine.submit([3, 4], params)
    ended = drain(engine)
    assert ended[name][0] == alone and len(set(alone)) > 3
    assert all(len(ended[o][0]) == 14 for o in others)


def test_stats_count_what_the_engine_holds():
    engine = Engine(FakeRunner(blocks=16, max_batch=1))
    for n in range(2):
        engine.submit([1, 2, n, 4, 5], greedy(3))
    engine.step()
    stats = engine.stats()
    assert (stats.running, stats.waiting, stats.steps) == (1, 1, 1)
    assert stats.blocks_used == 2
    assert stats.blocks_used + stats.blocks_cached + stats.blocks_free == 16
    drain(engine)
    stats = engine.stats()
    assert (stats.running, stats.waiting, stats.blocks_used) == (0, 0, 0)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 20), st.integers(1, 5), st.integers(1, 9), st.integers(0, 9)),
        min_size=1,
        max_size=6,
    ),
    st.integers(8, 30),
    st.integers(1, 4),
    st.sampled_from([0, 40]),
    st.booleans(),
)
def test_sequences_that_share_blocks_see_their_own_tokens(asked, blocks, max_batch, swap, caching):
    """Prompts that begin alike, several sequences each: the fake's cache holds real tokens."""
    engine = Engine(
        FakeRunner(blocks=blocks, max_batch=max_batch, chunk=7),
        swap_blocks=swap,
        prefix_caching=caching,
    )
    engine.memory.costs.token = 1e9
    pending = [(*each[:3], each[3], str(i)) for i, each in enumerate(asked)]
    ended, now = {}, 0
    while pending or engine.has_work:
        for length, n, count, _, name in [p for p in pending if p[3] <= now]:
            engine.submit(prompt_of(length), sampled(count, n), name)
            pending = [p for p in pending if p[4] != name]
        for delta in engine.step():
            ended.setdefault((delta.request_id, delta.index), []).extend(delta.token_ids)
        engine.check()
        now += 1
    for number, (length, n, count, _) in enumerate(asked):
        for i in range(n):
            alone = drain_one(Engine(FakeRunner()), prompt_of(length), sampled(count, 1, 5 + i))
            assert ended[str(number), i] == alone[0]
    assert engine.pool.used == 0 and engine.memory.used == 0


def test_several_sequences_share_the_prompt_until_they_write():
    runner = FakeRunner(blocks=16, max_batch=4, chunk=16)
    engine = Engine(runner)
    engine.submit(prompt_of(10), sampled(6, 3))
    assert [d.index for d in engine.step()] == [0, 1, 2]
    assert engine.pool.used == 3
    engine.step()
    assert engine.pool.used == 5  # two full ones, and the last of each
    engine.check()
    drain_all(engine)
    assert sum(len(b.tokens) for b in runner.batches) == 10 + 3 * 5


def test_the_prompt_is_found_again_and_reported_per_tenant():
    engine = Engine(FakeRunner(blocks=16, max_batch=4, chunk=16))
    cached = []
    for salt in ("", "", "tenant", "tenant"):
        engine.submit(prompt_of(14), greedy(2), cache_salt=salt)
        cached.append({d.cached_tokens for d in drain_all(engine)})
    assert cached == [{0}, {12}, {0}, {12}]
    stats = engine.stats()
    assert (stats.prefix_queries, stats.prefix_hits) == (56, 24)
    assert (stats.prompt_tokens, stats.generated_tokens) == (56, 8)
    assert stats.blocks_cached > 0 and stats.blocks_used == 0


def test_a_full_queue_refuses():
    engine = Engine(FakeRunner(), max_waiting=2)
    names = [engine.submit([1], greedy(3)) for _ in range(2)]
    assert engine.is_full
    with pytest.raises(QueueFullError, match="2 requests wait"):
        engine.submit([1], greedy(3))
    engine.step()
    engine.submit([1], greedy(3))
    assert len(drain(engine)) == len(names) + 1


def test_times_are_in_order():
    engine = Engine(FakeRunner(max_batch=1))
    engine.submit([1], greedy(3))
    engine.submit([2], greedy(1))
    for delta in drain_all(engine):
        assert bool(delta.times) == bool(delta.finish_reason)
        if times := delta.times:
            order = (times.arrived, times.started, times.first_token, times.finished)
            assert list(order) == sorted(order)


def test_an_error_ends_all_sequences_of_a_request_and_no_other():
    runner = FakeRunner(blocks=30)
    engine = Engine(runner)
    engine.submit([1, 2, 3], sampled(9, 3), "bad")
    good = engine.submit([5], greedy(9))
    engine.step()
    runner.fails_on = engine._requests["bad"].tracks[1].sequence.tokens[-1]
    errors = [d for d in engine.step() if d.error]
    assert [d.request_id for d in errors] == ["bad"]
    runner.fails_on = None
    engine.check()
    assert list(drain(engine)) == [good]


def test_penalties_count_the_prompt_and_the_output():
    engine = Engine(FakeRunner())
    plain = drain_one(engine, [1, 2, 3], greedy(12))[0]
    rules = greedy(12, frequency_penalty=2.0, presence_penalty=2.0)
    free = drain_one(engine, [1, 2, 3], rules)[0]
    assert len(set(free)) >= len(set(plain))
    allowed = drain_one(engine, [1, 2, 3], greedy(12, allowed_token_ids=[4, 9]))[0]
    assert set(allowed) <= {4, 9}
    with pytest.raises(RequestError, match="bad_words: the artifact has no tokenizer"):
        engine.submit([1], greedy(1, bad_words=["x"]))
    with pytest.raises(RequestError, match="logit_bias=67: wanted an integer, 0 to 66"):
        engine.submit([1], greedy(1, logit_bias={67: 1.0}))


def test_what_a_failed_request_computed_is_not_found_again():
    runner = FakeRunner(blocks=16, chunk=16)
    engine = Engine(runner)
    runner.not_finite = 4
    bad = engine.submit([1, 2, 3, 4] * 3, greedy(2))
    assert drain(engine)[bad][1] == "error"
    assert engine.stats().blocks_cached == 0
    runner.not_finite = None
    good = engine.submit([1, 2, 3, 4] * 3, greedy(2))
    (first, *_) = deltas = drain_all(engine)
    assert first.request_id == good and first.cached_tokens == 0 and deltas[-1].finish_reason


def test_prompts_are_cut_to_the_pace_of_decodes(monkeypatch):
    runner = FakeRunner(blocks=40, chunk=32)
    clock = [0.0]
    step = runner.step

    def slow(batch):
        clock[0] += 0.010 + 0.001 * len(batch.tokens)
        return step(batch)

    monkeypatch.setattr("ferrule.runtime.engine.time.monotonic", lambda: clock[0])
    runner.step = slow
    engine = Engine(runner, pace=2.0)
    engine.submit([1, 2, 3], greedy(60))
    for _ in range(5):
        engine.step()
    engine.submit([4] * 60, greedy(2))
    slowest = 0.0
    while engine.has_work:
        before = clock[0]
        engine.step()
        slowest = max(slowest, clock[0] - before)
    # A decode takes 11 ms, a token of a prompt 1 ms: the first prompt was cut blindly.
    assert slowest <= 0.026
    assert max(len(b.tokens) for b in runner.batches[5:]) <= 13
    with pytest.raises(ValueError, match=r"pace=1\.0: wanted more than 1"):
        Engine(runner, pace=1.0)
