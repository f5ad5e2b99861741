"""Prompts that end with a vector: every one, whatever the batch, the chunks and the pool."""

import numpy as np
import pytest
from ferrule.runtime.engine import Engine
from ferrule.runtime.errors import ArtifactError, LogitsError, RequestError
from ferrule.runtime.pooling import Pooling, probabilities
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import VOCABULARY, FakeRunner

WIDTH = 3


class RowRunner(FakeRunner):
    """A row for each token: the sum of the tokens that it reads, its position, and itself. With
    `whole` it reads all of its prompt, which has to be in the step.
    """

    def __init__(self, *, whole, **sizes):
        super().__init__(**sizes)
        self.whole, self.vocabulary = whole, WIDTH

    def step(self, batch):
        super().step(batch)
        rows = np.array([self._made(batch, r) for r in batch.logit_rows], np.float32)
        return np.zeros(len(rows), np.int32), rows

    def _made(self, batch, row):
        n = int(np.searchsorted(batch.query_start, row, side="right")) - 1
        begin, end, position = *batch.query_start[n : n + 2], batch.positions[row]
        if batch.tokens[row] == self.not_finite:
            return (np.nan,) * WIDTH
        if self.whole:
            assert batch.context_length[n] == end - begin, "a prompt in parts"
            return sum(batch.tokens[begin:end]), position, batch.tokens[row]
        return sum(self._known(batch, n, position)), position, batch.tokens[row]

    def _known(self, batch, n, position):
        blocks = batch.block_table[n]
        places = [(blocks[j // self.block], j % self.block) for j in range(position + 1)]
        return [int(self.cache[p]) for p in places]


def wanted(prompt, kind, whole):
    sums = [sum(prompt)] * len(prompt) if whole else np.cumsum(prompt)
    rows = np.stack([sums, np.arange(len(prompt)), prompt], axis=1)
    return {"last": rows[-1], "cls": rows[0], "mean": rows.mean(0)}[kind]


def drained(engine):
    found = {}
    while engine.has_work:
        for delta in engine.step():
            assert delta.request_id not in found and not delta.token_ids
            found[delta.request_id] = delta
        engine.check()
    return found


PROMPTS = st.lists(st.lists(st.integers(0, 66), min_size=1, max_size=24), min_size=1, max_size=9)


@settings(max_examples=60, deadline=None)
@given(PROMPTS, st.sampled_from(["last", "cls", "mean"]), st.booleans(), st.integers(6, 20))
def test_every_prompt_gets_its_own_vector(prompts, kind, whole, blocks):
    chunk = 24 if whole else 7
    runner = RowRunner(
        whole=whole, blocks=blocks, chunk=chunk, max_batch=4, max_rows=chunk, max_context=24
    )
    engine = Engine(runner, pooling=Pooling(kind, whole, VOCABULARY))
    names = [engine.submit(prompt) for prompt in prompts]
    found = drained(engine)
    for name, prompt in zip(names, prompts, strict=True):
        assert found[name].finish_reason == "stop" and found[name].error is None
        np.testing.assert_allclose(found[name].vector, wanted(prompt, kind, whole), rtol=1e-6)
        assert found[name].times.finished is not None
    assert engine.pool.used == 0 and engine.generated_tokens == 0
    assert engine.prompt_tokens == sum(map(len, prompts))


@pytest.mark.parametrize(("kind", "hits"), [("last", 8), ("mean", 0)])
def test_beginnings_are_found_again_where_no_row_of_theirs_is_wanted(kind, hits):
    runner = RowRunner(whole=False, max_rows=8)
    engine = Engine(runner, pooling=Pooling(kind, False, VOCABULARY))
    prompt = [3, 1, 4, 1, 5, 9, 2, 6, 5]
    for _ in range(2):
        name = engine.submit(prompt)
        delta = drained(engine)[name]
    assert (delta.cached_tokens, engine.stats().prefix_hits) == (hits, hits)
    np.testing.assert_allclose(delta.vector, wanted(prompt, kind, False))


def test_one_that_fails_ends_alone():
    runner = RowRunner(whole=True, chunk=24, max_rows=24)
    runner.fails_on, runner.not_finite = 60, 61
    engine = Engine(runner, pooling=Pooling("mean", True, VOCABULARY))
    good, failed, broken = (engine.submit(p) for p in ([1, 2], [3, 60], [4, 61]))
    found = drained(engine)
    np.testing.assert_allclose(found[good].vector, wanted([1, 2], "mean", True))
    assert "no kernel for token 60" in str(found[failed].error)
    assert isinstance(found[broken].error, LogitsError) and engine.corrupted == 1


def test_a_prompt_that_waits_or_runs_can_be_ended():
    runner = RowRunner(whole=False, chunk=4, max_batch=1)
    engine = Engine(runner, pooling=Pooling("last", False, VOCABULARY))
    runs, waits, last = (engine.submit([7] * 9) for _ in range(3))
    assert engine.step() == []
    for name in (runs, waits):
        assert engine.abort(name).finish_reason == "abort"
        engine.check()
    assert list(drained(engine)) == [last]


def test_the_longest_prompt_finds_room_in_a_step():
    sizes = {"chunk": 20, "max_context": 30, "blocks": 16}
    for kind, rows, longest in (("cls", 4, 20), ("mean", 12, 12)):
        runner = RowRunner(whole=True, max_rows=rows, **sizes)
        engine = Engine(runner, pooling=Pooling(kind, True, VOCABULARY))
        assert engine.max_context == longest
        name = engine.submit([1] * longest)
        assert drained(engine)[name].error is None
        with pytest.raises(RequestError, match=f"has {longest + 1} tokens, the limit is {longest}"):
            engine.submit([1] * (longest + 1))
    with pytest.raises(RequestError, match=f"token id 67: wanted 0 to {VOCABULARY - 1}"):
        engine.submit([VOCABULARY])


def test_manifests_say_how():
    pooling = Pooling("cls", True, 9, ("a", "b"), "sigmoid", 2)
    assert Pooling.of_manifest({"pooling": pooling.to_json()}) == pooling
    assert Pooling.of_manifest({}) is None
    for fields, message in (
        ({"kind": "best"}, "pooling by 'best'; known: last, mean, cls"),
        ({"activation": "tanh"}, "an activation 'tanh'; known: softmax, sigmoid, none"),
    ):
        with pytest.raises(ArtifactError, match=message):
            Pooling.of_manifest({"pooling": pooling.to_json() | fields})
    with pytest.raises(ArtifactError, match="lacks 'whole'"):
        Pooling.of_manifest({"pooling": {"kind": "cls"}})


def test_probabilities():
    scores = np.array([800.0, -1.0, 799.0], np.float32)
    np.testing.assert_allclose(probabilities(scores, "softmax"), [0.7310586, 0, 0.2689414])
    np.testing.assert_allclose(probabilities(scores, "sigmoid"), [1, 0.2689414, 1], rtol=1e-6)
    assert probabilities(scores, "none") is scores
