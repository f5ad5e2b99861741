"""Beam search over HTTP finds what a plain search over the same model finds."""

import asyncio
import json

import numpy as np
import pytest
from ferrule.runtime.artifact import beam_search
from ferrule.runtime.beam import BeamSearchParams
from ferrule.runtime.engine import Engine
from ferrule.runtime.front import Front
from ferrule.runtime.text import Text
from scripted import END, VOCABULARY, ScriptRunner, serving, wait_for
from test_errors import post


class Unsure(ScriptRunner):
    """Logits that depend on all tokens so far, among them the end now and then."""

    def step(self, batch):
        _, logits = super().step(batch)
        for place, row in enumerate(batch.logit_rows):
            seed = (batch.tokens[row] + 1) * (batch.positions[row] + 7)
            logits[place] = np.random.default_rng(seed).normal(size=VOCABULARY) * 3
        return logits.argmax(-1).astype(np.int32), logits


@pytest.fixture(scope="module")
def unsure(tokenizer):
    with serving(tokenizer, {"fox": Unsure()}) as running:
        yield running


@pytest.mark.parametrize("penalty", [1.0, 0.3])
def test_the_beams_are_those_of_the_engine_alone(unsure, tokenizer, penalty):
    params = BeamSearchParams(beam_width=3, max_tokens=6, length_penalty=penalty, logprobs=1)
    front = Front(Engine(Unsure(), Text(tokenizer), [END]))
    wanted = [beam_search(front, prompt, params) for prompt in ("ab", "the")]
    body = {"prompt": ["ab", "the"], "max_tokens": 6, "n": 3, "use_beam_search": True}
    body |= {"length_penalty": penalty, "logprobs": 1, "cache_salt": "mine"}
    status, answer = post(unsure, "/v1/completions", body)
    assert status == 200, answer
    choices = answer["choices"]
    assert [c["index"] for c in choices] == list(range(6))
    for choice, each in zip(choices, [c for found in wanted for c in found], strict=True):
        assert (choice["text"], choice["finish_reason"]) == (each.text, each.finish_reason)
        score = sum(choice["logprobs"]["token_logprobs"])
        assert score == pytest.approx(each.cumulative_logprob, abs=1e-4)
    usage = answer["usage"]
    assert usage["prompt_tokens"] == 5
    assert usage["completion_tokens"] == sum(len(c.token_ids) for found in wanted for c in found)
    stats = asyncio.run_coroutine_threadsafe(
        unsure.service.models["fox"].front.stats(), unsure.loop
    ).result(10)
    assert stats.blocks_used == 0 and stats.prefix_hits == 0  # prompts under a block share none


def test_chat_takes_beams_and_a_client_that_leaves_ends_them(unsure):
    body = {"messages": [{"role": "user", "content": "hi"}], "n": 2, "use_beam_search": True}
    status, answer = post(unsure, "/v1/chat/completions", body | {"max_tokens": 4})
    assert status == 200 and len(answer["choices"]) == 2
    assert all(c["message"]["role"] == "assistant" for c in answer["choices"])
    from test_lifetime import leave

    unsure.runner.delay = 0.01
    leave(unsure, {"prompt": "a", "max_tokens": 1500, "n": 4, "use_beam_search": True})
    (front,) = unsure.service.models.fronts.values()
    wait_for(lambda: unsure.service.unfinished == 0 and not front.engine.has_work)
    unsure.runner.delay = 0.0
    front.engine.check()
    assert front.engine.stats().blocks_used == 0 and front.sequences == 0


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"echo": True, "logprobs": 1}, "prompt_logprobs"),
        ({"structured_outputs": {"regex": "a"}}, "structured_outputs"),
        ({"response_format": {"type": "json_object"}}, "structured_outputs"),
        ({"seed": 1}, "seed"),
        ({"temperature": 0.7}, "temperature"),
        ({"n": 0}, "n"),
    ],
)
def test_what_a_search_cannot_do_is_refused(unsure, extra, param):
    body = {"prompt": "ab", "use_beam_search": True, "n": 2, "max_tokens": 2}
    status, answer = post(unsure, "/v1/completions", json.dumps(body | extra).encode())
    assert (status, answer["error"]["param"]) == (400, param), answer


def test_more_beams_than_may_be_in_flight_are_refused(tokenizer):
    with serving(tokenizer, {"fox": Unsure()}, limit=3) as running:
        body = {"prompt": "ab", "use_beam_search": True, "n": 4, "max_tokens": 2}
        status, answer = post(running, "/v1/completions", body)
        assert (status, answer["error"]["code"]) == (429, "queue_full")
