"""Steps begun behind a step that runs: the same tokens, whatever ends meanwhile."""

import random
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ferrule.runtime.engine import Engine

sys.path.insert(0, str(Path(__file__).parent))

from driving import collect, drain, drain_all, greedy, sampled
from ferrule.runtime.sampling import SamplingParams
from toys import FakeRunner, toy_generate, toy_next


class OverlappingRunner(FakeRunner):
    """Takes a step while another one runs: what that one gives is known when it is collected."""

    feeds = True

    def __init__(self, **options):
        super().__init__(**options)
        self.begun = self.behind = self.collected = 0
        self.argmax = None
        self.lost = None  # the number of a step whose results do not come

    def submit(self, batch):
        assert self.begun - self.collected in (0, 1)
        self.behind += self.begun - self.collected
        fed = batch.fed or [-1] * len(batch.tokens)
        assert len(fed) == len(batch.tokens)
        tokens = [
            t if row < 0 else max(0, int(self.argmax[row]))
            for t, row in zip(batch.tokens, fed, strict=True)
        ]
        argmax, logits = self.step(replace(batch, tokens=tokens))
        wrong = ~np.isfinite(logits).all(-1)
        self.argmax = np.where(wrong, -1, argmax)
        self.begun += 1
        return self.begun, self.argmax, logits if batch.wants_logits else np.zeros_like(logits)

    def collect(self, ticket):
        number, argmax, logits = ticket
        if number == self.lost:
            raise RuntimeError("an illegal address")
        assert number == self.collected + 1
        self.collected = number
        return argmax, logits


def runs(runner, work):
    """The tokens, reason and error of each sequence of some work, and the engine."""
    engine = Engine(runner, ends=[5])
    names = [engine.submit(prompt, params) for prompt, params in work]
    found = {}
    for delta in drain_all(engine):
        tokens, reason, _ = found.get((delta.request_id, delta.index), ((), None, None))
        assert reason is None, f"{delta.request_id} went on after its end"
        ended = (delta.finish_reason, delta.error and str(delta.error))
        found[delta.request_id, delta.index] = ((*tokens, *delta.token_ids), *ended)
    return [found[key] for key in sorted(found, key=lambda k: (names.index(k[0]), k[1]))], engine


def test_decodes_are_begun_before_the_tokens_of_the_step_before_are_known():
    runner = OverlappingRunner()
    found, engine = runs(runner, [([1, 2, 3], greedy(12, ignore_eos=True)), ([9], greedy(4))])
    assert found[0][0] == tuple(toy_generate([1, 2, 3], 12))
    assert runner.behind >= runner.begun - 2
    assert engine.pool.used == 0 and engine.stats().generated_tokens == len(found[0][0]) + 4


@pytest.mark.parametrize("seed", range(6))
def test_tokens_are_those_of_one_step_after_another(seed: int):
    random.seed(seed)
    shape = {"blocks": random.choice((12, 24)), "chunk": random.choice((4, 8))}
    work = []
    for _ in range(14):
        prompt = [random.randrange(60) for _ in range(random.randrange(1, 14))]
        kind = random.random()
        params = greedy(random.randrange(1, 18))  # many meet an end token, or their limit
        if kind < 0.15:
            params = sampled(random.randrange(1, 6), random.choice((1, 2)))
        elif kind < 0.3:
            params = greedy(6, logprobs=2)
        elif kind < 0.4:
            params = SamplingParams(temperature=1.0, top_k=1, n=2, max_tokens=5)
        work.append((prompt, params))
    wanted, _ = runs(FakeRunner(**shape), work)
    runner = OverlappingRunner(**shape)
    found, engine = runs(runner, work)
    assert found == wanted
    assert runner.behind and engine.pool.used == 0


def test_a_state_of_its_own_is_updated_step_behind_step():
    work = [([1, 2, 3, 4, 5], greedy(9, ignore_eos=True)), ([7], greedy(7, ignore_eos=True))]
    wanted, _ = runs(FakeRunner(states=6), work)
    assert runs(OverlappingRunner(states=6), work)[0] == wanted


def test_an_abort_beside_a_step_that_runs():
    runner = OverlappingRunner()
    engine = Engine(runner)
    gone, stays = engine.submit([1, 2], greedy(30)), engine.submit([3], greedy(9))
    ended = {}
    for _ in range(3):
        collect(engine.step(), ended)
    assert runner.begun == runner.collected + 1
    engine.abort(gone)
    engine.check()
    late = engine.submit([1, 2, 3, 4], greedy(3))
    drain(engine, ended)
    assert ended[stays][0] == list(toy_generate([3], 9))
    assert ended[late][0] == list(toy_generate([1, 2, 3, 4], 3))
    # Nobody is left, and a step may still be on its way; the next request is served all the same.
    again = engine.submit([8], greedy(2))
    assert drain(engine)[again][0] == list(toy_generate([8], 2))


def test_logits_that_are_not_finite_end_their_request_alone():
    runner = OverlappingRunner()
    runner.not_finite = toy_next([4, 4])
    found, _ = runs(runner, [([4, 4], greedy(5)), ([9, 1], greedy(6, ignore_eos=True))])
    assert found[0][1] == "error" and "a NaN or an infinity" in found[0][2]
    assert found[1][0] == tuple(toy_generate([9, 1], 6))


def test_a_step_that_cannot_be_begun_behind_another_is_tried_again_alone():
    runner = OverlappingRunner()
    runner.fails_on = toy_next([3, 3])
    found, engine = runs(runner, [([3, 3], greedy(5)), ([1], greedy(5, ignore_eos=True))])
    assert found[0][1] == "error" and "no kernel for token" in found[0][2]
    assert found[1][0] == tuple(toy_generate([1], 5)) and engine.pool.used == 0


def test_results_that_do_not_come_end_what_was_built_on_them():
    runner = OverlappingRunner()
    runner.lost = 3
    found, engine = runs(runner, [([1], greedy(9)), ([2], greedy(9))])
    assert all(reason == "error" and "illegal address" in error for _, reason, error in found)
    assert engine.pool.used == 0


def test_an_interrupt_while_results_are_waited_for_loses_nothing():
    runner = OverlappingRunner()
    engine = Engine(runner)
    name = engine.submit([1, 2, 3], greedy(6))
    ended = {}
    collect(engine.step(), ended)
    take, runner.collect = runner.collect, interrupt
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    runner.collect = take
    drain(engine, ended)
    assert ended[name][0] == list(toy_generate([1, 2, 3], 6))


def interrupt(_flight):
    raise KeyboardInterrupt
