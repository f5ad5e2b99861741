"""Log probabilities in all their forms."""

FOX = "the quick brown fox jumps over the lazy dog. "


def test_logprobs(client):
    done = client.completions.create(
        model="fox", prompt="th", max_tokens=3, temperature=0, logprobs=2
    )
    found = done.choices[0].logprobs
    assert found.tokens == list(FOX[2:5]) and found.text_offset == [0, 1, 2]
    assert all(len(t) in (2, 3) for t in found.top_logprobs)
    assert all(-0.01 < p <= 0 for p in found.token_logprobs)
    stream = client.completions.create(
        model="fox", prompt="th", max_tokens=3, temperature=0, logprobs=2, stream=True
    )
    pieces = [c.choices[0].logprobs for c in stream]
    assert [t for p in pieces for t in p.tokens] == found.tokens
    assert [o for p in pieces for o in p.text_offset] == [0, 1, 2]
    assert [x for p in pieces for x in p.token_logprobs] == found.token_logprobs


def test_echo_with_logprobs_counts_the_prompt_in(client):
    done = client.completions.create(
        model="fox", prompt="th", max_tokens=2, temperature=0, logprobs=1, echo=True
    )
    found = done.choices[0].logprobs
    assert found.tokens == list(FOX[:4]) and found.token_logprobs[0] is None
    assert found.text_offset == [0, 1, 2, 3]


def test_the_token_that_came_is_among_its_rivals(client):
    done = client.completions.create(
        model="fox", prompt="xz", max_tokens=1, temperature=0, logprobs=1, echo=True
    )
    found = done.choices[0].logprobs
    assert [top and set(top) for top in found.top_logprobs] == [None, {FOX[1], "z"}, {FOX[2]}]
    assert found.top_logprobs[1]["z"] == found.token_logprobs[1] < found.top_logprobs[1][FOX[1]]
