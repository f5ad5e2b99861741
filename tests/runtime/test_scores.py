"""Log probabilities of prompt and output, and beam search over them."""

import numpy as np
import pytest
from driving import drain_all, greedy, prompt_of
from ferrule.runtime.beam import BeamSearchParams, beam_search
from ferrule.runtime.engine import Engine
from ferrule.runtime.front import Front
from ferrule.runtime.sampling import SamplingParams
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import FakeRunner, toy_generate, toy_next


def log_softmax(known):
    logits = -np.abs(np.arange(67) - toy_next(known)).astype(np.float64)
    return logits - np.log(np.exp(logits).sum())


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 20), st.integers(1, 4), st.integers(0, 3), st.integers(1, 3))
def test_logprobs_of_prompt_and_output_are_the_models(length, max_rows, count, others):
    runner = FakeRunner(blocks=12, chunk=8, max_batch=1, max_rows=max_rows)
    engine = Engine(runner)
    prompt = prompt_of(length)
    for _ in range(others):
        engine.submit(prompt, greedy(2))
    name = engine.submit(prompt, greedy(4, logprobs=count, prompt_logprobs=count))
    deltas = [d for d in drain_all(engine) if d.request_id == name]
    scores = deltas[0].prompt_logprobs
    assert len(scores) == length and scores[0] is None and deltas[0].cached_tokens == 0
    known = [*prompt, *toy_generate(prompt, 4)]
    for place in range(1, length):
        check_scores(scores[place], known[:place], known[place], count)
    for number, delta in enumerate(deltas):
        (own,) = delta.logprobs
        check_scores(own, known[: length + number], known[length + number], count)
        assert delta.prompt_logprobs is None or number == 0


def check_scores(scores, known, token, count):
    wanted = log_softmax(known)
    assert next(iter(scores)) == token and count <= len(scores) <= count + 1
    for each, entry in scores.items():
        assert abs(entry.logprob - wanted[each]) < 1e-4


def test_prompt_logprobs_survive_preemption():
    engine = Engine(FakeRunner(blocks=9, max_batch=3, chunk=6))
    prompts = [prompt_of(9) for _ in range(4)]
    for number, prompt in enumerate(prompts):
        engine.submit(prompt, greedy(22, prompt_logprobs=1), str(number))
    deltas = drain_all(engine)
    assert engine.scheduler.preemptions >= 2
    given = [d for d in deltas if d.prompt_logprobs]
    assert len(given) == 4
    for delta in given:
        for place in range(1, 9):
            check_scores(delta.prompt_logprobs[place], prompts[0][:place], prompts[0][place], 1)


@pytest.mark.parametrize(("width", "length"), [(1, 5), (3, 4), (4, 2)])
@pytest.mark.parametrize("penalty", [1.0, 0.5])
def test_beams_are_the_best_of_a_plain_search(width, length, penalty):
    end = toy_next([*prompt_of(6), toy_next(prompt_of(6))])
    engine = Engine(FakeRunner(blocks=40), ends=[end])
    params = BeamSearchParams(beam_width=width, max_tokens=length, length_penalty=penalty)
    found = beam_search(Front(engine), prompt_of(6), params)
    beams, ended = [((), 0.0)], []
    for _ in range(length):
        grown = []
        for tokens, score in beams:
            row = log_softmax([*prompt_of(6), *tokens])
            best = np.argsort(-row, kind="stable")[: 2 * width]
            grown += [((*tokens, int(t)), score + row[t]) for t in best]
        ended += [g for g in grown if g[0][-1] == end]
        rest = [g for g in grown if g[0][-1] != end]
        beams = sorted(rest, key=lambda g: (-g[1] / len(g[0]) ** penalty, g[0]))[:width]

    def score(beam):
        size = len(beam[0]) - (beam[0][-1] == end)
        return beam[1] / max(1, size) ** penalty

    wanted = sorted([score(b) for b in [*ended, *beams]], reverse=True)[:width]
    np.testing.assert_allclose([score((c.token_ids, c.cumulative_logprob)) for c in found], wanted)
    for done in found:
        assert done.finish_reason == ("stop" if done.token_ids[-1] == end else "length")
    assert len({done.token_ids for done in found}) == width
    engine.check()


def test_completions_come_for_each_sequence_with_its_score():
    front = Front(Engine(FakeRunner()))
    name = front.submit([1, 2], SamplingParams(n=3, temperature=9.0, seed=1, logprobs=0))
    done = front.completions(name)
    front.close(name)
    assert [c.index for c in done] == [0, 1, 2]
    for each in done:
        assert len(each.logprobs) == len(each.token_ids) == 16
        own = sum(s[t].logprob for s, t in zip(each.logprobs, each.token_ids, strict=True))
        assert each.cumulative_logprob == own and each.times.finished
    assert len({c.token_ids for c in done}) == 3
