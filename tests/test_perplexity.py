"""The perplexity benchmark's arithmetic: windows, batches, and the sum of log probabilities."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks.perplexity import negative_log_likelihood, perplexity, whole_step, windows


class Uniform:
    """A model for which all of 7 tokens are equally likely; keeps the batches it was given."""

    block = 4

    def __init__(self) -> None:
        self.tokens: list[list[int]] = []

    def step(self, batch):
        self.tokens.append(list(batch.tokens))
        assert not batch.is_decode or len(batch.tokens) == 1
        return None, np.zeros((len(batch.logit_rows), 7), np.float32)


def test_windows_do_not_overlap_and_a_single_token_is_left_out():
    assert list(windows([1, 2, 3, 4, 5, 6, 7], 3, 100)) == [[1, 2, 3], [4, 5, 6]]
    assert list(windows([1, 2, 3, 4, 5, 6, 7], 4, 6)) == [[1, 2, 3, 4], [5, 6]]


def test_a_window_is_one_step_over_its_own_blocks():
    batch = whole_step([5, 6, 7, 8, 9], 4)
    assert list(batch.slots) == [0, 1, 2, 3, 4] and [list(b) for b in batch.block_table] == [[0, 1]]
    assert list(batch.logit_rows) == [0, 1, 2, 3]


def test_the_sum_is_that_of_the_softmax():
    logits = np.random.default_rng(0).normal(size=(3, 7)) * 50
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    wanted = -np.log((shifted / shifted.sum(1, keepdims=True))[[0, 1, 2], [4, 0, 6]]).sum()
    assert negative_log_likelihood(logits, [4, 0, 6]) == pytest.approx(wanted)


def test_equal_odds_have_the_vocabulary_as_their_perplexity():
    model = Uniform()
    assert perplexity(model, [1, 2, 3, 4, 5, 6, 0], 3, 100) == pytest.approx(7.0)
    assert model.tokens == [[1, 2, 3], [4, 5, 6]]
    assert math.isfinite(perplexity(model, [1, 2], 3, 2))
    with pytest.raises(ValueError, match="no two tokens"):
        perplexity(model, [1], 3, 100)
