"""Thoughts that are ended in time, and grammars that wait for their end."""

import numpy as np
import pytest
from ferrule.runtime.engine import Engine
from ferrule.runtime.errors import RequestError
from ferrule.runtime.params import SamplingParams, StructuredOutputsParams
from ferrule.runtime.text import Text
from ferrule.runtime.thinking import THOUGHT_TAGS, thinking, thought_tokens
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from toys import FakeRunner

END, BEGIN, CLOSE = 256, 257, 258
VOCABULARY = 259
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
A, B = ALPHABET.index("a"), ALPHABET.index("b")


class Mutters(FakeRunner):
    """Says "a" for ever; behind the end of thoughts "b" twice, and then the end. With `begins` it
    thinks without being asked to.
    """

    def __init__(self, *, begins=False):
        super().__init__(blocks=200, chunk=16, max_context=700)
        self.vocabulary, self.begins = VOCABULARY, begins

    def step(self, batch):
        super().step(batch)
        logits = np.zeros((len(batch.logit_rows), VOCABULARY), np.float32)
        for place, row in enumerate(batch.logit_rows):
            logits[place, self._next(batch, row)] = 9.0
        return logits.argmax(-1), logits

    def _next(self, batch, row):
        n = int(np.searchsorted(batch.query_start, row, side="right")) - 1
        blocks = batch.block_table[n]
        places = [(blocks[j // 4], j % 4) for j in range(batch.positions[row] + 1)]
        known = [int(self.cache[p]) for p in places]
        if CLOSE in known:
            return END if len(known) - known.index(CLOSE) > 2 else B
        return BEGIN if self.begins and BEGIN not in known else A


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(ALPHABET)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["</s>"])
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.save(str(path / "tokenizer.json"))
    return Text(path)


def ended(text, prompt, *, begins=False, **params):
    engine = Engine(Mutters(begins=begins), text, [END])
    given = SamplingParams(temperature=0.0, max_tokens=40, **params)
    name = engine.submit(prompt, given)
    tokens, error = [], None
    while engine.has_work:
        for delta in engine.step():
            assert delta.request_id == name
            tokens += delta.token_ids
            error = error or delta.error
        engine.check()
    if error:
        raise error
    return tokens


def ids(text, shown):
    return text.encode(shown, add_special_tokens=False)


@pytest.mark.parametrize("budget", [0, 1, 7])
@pytest.mark.parametrize("blanks", ["", "\n", " \n\n"])
def test_thoughts_that_the_prompt_begins_end_by_their_budget(text, budget, blanks):
    prompt = ids(text, "hi<think>" + blanks)
    tokens = ended(text, prompt, thinking_token_budget=budget)
    assert tokens == [A] * budget + [CLOSE, B, B, END]


@pytest.mark.parametrize("budget", [0, 3])
def test_so_do_those_that_the_model_begins_itself(text, budget):
    tokens = ended(text, ids(text, "hi"), begins=True, thinking_token_budget=budget)
    assert tokens == [BEGIN, *[A] * budget, CLOSE, B, B, END]


def test_a_budget_that_is_not_spent_changes_nothing(text):
    for prompt in ("hi", "hi<think>", "<think>hi</think>"):
        given = ids(text, prompt)
        assert ended(text, given, thinking_token_budget=50) == ended(text, given)


def test_a_grammar_begins_behind_the_thoughts(text):
    pytest.importorskip("llguidance")
    wanted = StructuredOutputsParams(regex="c[de]f")
    tokens = ended(text, ids(text, "hi<think>"), thinking_token_budget=2, structured_outputs=wanted)
    assert tokens[:3] == [A] * 2 + [CLOSE]
    assert text.decode(tokens[3:]) in ("cdf", "cef")
    plain = ended(text, ids(text, "hi"), thinking_token_budget=2, structured_outputs=wanted)
    assert text.decode(plain) in ("cdf", "cef")
    # Without a budget thoughts may go on to the end of the output.
    tokens = ended(text, ids(text, "hi<think>"), structured_outputs=wanted)
    assert tokens == [A] * 40


def test_who_has_no_tokens_for_thoughts_has_no_budget(text):
    with pytest.raises(RequestError, match="thinking_token_budget: the model's tokenizer has no"):
        Engine(Mutters(), None).submit([1, 2], SamplingParams(thinking_token_budget=4))
    with pytest.raises(RequestError, match="thinking_token_budget=-1: wanted an integer, 0"):
        SamplingParams(thinking_token_budget=-1)
    assert thinking(text, VOCABULARY, [1], None, None) is None
    assert thought_tokens(text) == {BEGIN: CLOSE} and "<think>" in THOUGHT_TAGS
