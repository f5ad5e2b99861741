"""/v1/completions through the official client."""

from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from scripted import ScriptRunner, serving, wait_for
from test_errors import post

FOX = "the quick brown fox jumps over the lazy dog. "


def test_a_completion_with_exact_usage(client):
    done = client.completions.create(model="fox", prompt="th", max_tokens=9, temperature=0)
    (choice,) = done.choices
    assert choice.text == FOX[2:11]
    assert (choice.index, choice.finish_reason) == (0, "length")
    usage = done.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (2, 9, 11)
    assert done.object == "text_completion" and done.id.startswith("cmpl-")
    assert done.model == "fox"


def test_a_stream_is_the_same_text_and_ends_with_usage(client):
    chunks = list(
        client.completions.create(
            model="fox",
            prompt="th",
            max_tokens=12,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert "".join(c.choices[0].text for c in chunks[:-1]) == FOX[2:14]
    assert [c.choices[0].finish_reason for c in chunks[:-1]] == [None] * 11 + ["length"]
    assert chunks[-1].choices == [] and chunks[-1].usage.total_tokens == 14
    assert all(c.usage is None for c in chunks[:-1])
    assert len({c.id for c in chunks}) == 1


class Counting(ScriptRunner):
    """Counts its steps."""

    steps = 0

    def step(self, batch):
        self.steps += 1
        return super().step(batch)


def test_prompts_of_a_request_share_steps(tokenizer):
    runner = Counting(max_batch=16)
    runner.delay = 0.05
    with serving(tokenizer, {"fox": runner}) as running:
        body = {"prompt": ["th"] * 16, "max_tokens": 4, "temperature": 0}
        status, done = post(running, "/v1/completions", body)
    assert status == 200 and [c["index"] for c in done["choices"]] == [*range(16)]
    assert {c["text"] for c in done["choices"]} == {FOX[2:6]}
    assert runner.steps < 12, f"{runner.steps} steps; one prompt after another takes 19"


def test_an_id_that_is_taken_is_refused_and_its_owner_goes_on(tokenizer):
    runner = ScriptRunner()
    runner.delay = 0.02
    with serving(tokenizer, {"fox": runner}) as running:
        body = {"prompt": "th", "max_tokens": 40, "temperature": 0, "request_id": "mine"}
        with ThreadPoolExecutor() as pool:
            first = pool.submit(post, running, "/v1/completions", body)
            wait_for(lambda: running.service.unfinished)
            status, error = post(running, "/v1/completions", body)
            assert (status, error["error"]["param"]) == (400, "request_id")
            status, done = first.result()
        assert status == 200 and done["usage"]["completion_tokens"] == 40


def test_usage_comes_with_every_chunk_where_asked(client):
    options = {"include_usage": True, "continuous_usage_stats": True}
    stream = client.completions.create(
        model="fox", prompt="th", max_tokens=3, temperature=0, stream=True, stream_options=options
    )
    assert [c.usage.completion_tokens for c in stream] == [1, 2, 3, 3]


def test_several_prompts_and_token_ids(client):
    done = client.completions.create(
        model="fox", prompt=["t", "th", "the"], max_tokens=3, temperature=0
    )
    assert [(c.index, c.text) for c in done.choices] == [(n, FOX[n + 1 : n + 4]) for n in range(3)]
    assert done.usage.prompt_tokens == 6
    ids = client.completions.create(model="fox", prompt=[116, 104], max_tokens=3, temperature=0)
    assert ids.choices[0].text == FOX[2:5]


def test_several_sequences(client):
    done = client.completions.create(model="fox", prompt=["t", "th"], n=3, max_tokens=4)
    assert [c.index for c in done.choices] == list(range(6))
    assert [c.text for c in done.choices] == [FOX[1:5]] * 3 + [FOX[2:6]] * 3
    assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (3, 24)
    texts = {}
    for chunk in client.completions.create(
        model="fox", prompt="th", n=2, max_tokens=4, stream=True
    ):
        (choice,) = chunk.choices
        texts[choice.index] = texts.get(choice.index, "") + choice.text
    assert texts == {0: FOX[2:6], 1: FOX[2:6]}


def test_stop_strings_and_end_tokens(client, script):
    done = client.completions.create(
        model="fox", prompt="th", stop=["brown"], max_tokens=40, temperature=0
    )
    assert (done.choices[0].text, done.choices[0].finish_reason) == (FOX[2:10], "stop")
    script["hello"] = "world"
    done = client.completions.create(model="fox", prompt="hello", max_tokens=40, temperature=0)
    assert (done.choices[0].text, done.choices[0].finish_reason) == ("world", "stop")


def test_a_seed_repeats_and_another_differs(client, server):
    server.runner.sure = 0.5

    def text(seed):
        done = client.completions.create(
            model="fox", prompt="th", seed=seed, max_tokens=16, logprobs=None
        )
        return done.choices[0].text

    try:
        assert text(5) == text(5) != text(6)
    finally:
        server.runner.sure = 40.0


def test_echo(client):
    done = client.completions.create(
        model="fox", prompt="th", echo=True, max_tokens=3, temperature=0
    )
    assert done.choices[0].text == FOX[:5]
    stream = client.completions.create(
        model="fox", prompt="th", echo=True, max_tokens=3, temperature=0, stream=True
    )
    assert "".join(c.choices[0].text for c in stream) == FOX[:5]


def test_a_prompt_can_be_cut_to_its_end(client):
    done = client.completions.create(
        model="fox",
        prompt="xxxth",
        max_tokens=3,
        temperature=0,
        extra_body={"truncate_prompt_tokens": 2},
    )
    assert done.usage.prompt_tokens == 2 and done.choices[0].text == FOX[2:5]


def test_models_by_name(client, script):
    assert [m.id for m in client.models.list()] == ["fox", "dog"]
    assert client.models.retrieve("dog").id == "dog"
    script["who"] = "fox"
    asked = {"prompt": "who", "max_tokens": 3, "temperature": 0}
    assert client.completions.create(model="fox", **asked).choices[0].text == "fox"
    assert client.completions.create(model="dog", **asked).choices[0].text == FOX[3:6]
    with pytest.raises(openai.NotFoundError) as caught:
        client.completions.create(model="cat", **asked)
    assert caught.value.code == "model_not_found" and caught.value.param == "model"


def test_the_model_says_how_to_sample_where_a_request_does_not(client, server):
    model = server.service.models["fox"]
    server.runner.sure = 3.0
    model.sampling = {"temperature": 0.0, "top_k": 5}
    try:
        asked = {"model": "fox", "prompt": "th", "max_tokens": 40}
        assert client.completions.create(**asked).choices[0].text == FOX[2:42]
        loud = client.completions.create(**asked, temperature=5.0, extra_body={"top_k": 0})
        assert loud.choices[0].text != FOX[2:42]
    finally:
        model.sampling, server.runner.sure = {}, 40.0
