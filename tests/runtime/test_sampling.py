import numpy as np
import pytest
from ferrule.runtime.adjust import Adjuster
from ferrule.runtime.errors import RequestError
from ferrule.runtime.logprobs import token_logprobs
from ferrule.runtime.sampling import Sampler, SamplingParams, greatest, nucleus, typical
from hypothesis import given, settings
from hypothesis import strategies as st

DRAWS = 4000


def draw(logits, ends=(), count=DRAWS, **params):
    logits = np.asarray(logits, np.float32)
    sampler = Sampler(SamplingParams(max_tokens=None, seed=11, **params), ends)
    return [sampler.choose(logits, int(logits.argmax()), n) for n in range(count)]


def shares(tokens, size):
    return np.bincount(tokens, minlength=size) / len(tokens)


def test_draws_follow_the_softmax_at_each_temperature():
    logits = np.random.default_rng().standard_normal(9)
    for temperature in (0.3, 1.0, 2.5):
        wanted = np.exp(logits / temperature)
        found = shares(draw(logits, temperature=temperature), 9)
        np.testing.assert_allclose(found, wanted / wanted.sum(), atol=0.04)


def test_temperature_zero_and_top_k_one_are_greedy():
    logits = np.random.default_rng().standard_normal(31)
    assert set(draw(logits, temperature=0.0, count=20)) == {int(logits.argmax())}
    assert set(draw(logits, top_k=1, count=20)) == {int(logits.argmax())}
    assert set(draw(logits, temperature=1e-6, count=20)) == {int(logits.argmax())}


def test_top_k_keeps_the_greatest():
    logits = np.random.default_rng().permutation(50).astype(np.float32) / 50
    assert set(draw(logits, top_k=7)) == set(np.argsort(logits)[-7:].tolist())
    assert len(set(draw(logits, top_k=-1))) == len(set(draw(logits, top_k=999))) == 50


def test_top_p_keeps_the_fewest_that_reach_it():
    logits = np.log([0.05, 0.5, 0.3, 0.15])
    assert set(draw(logits, top_p=0.4)) == {1}
    assert set(draw(logits, top_p=0.7)) == {1, 2}
    assert set(draw(logits, top_p=0.9)) == {1, 2, 3}
    np.testing.assert_allclose(shares(draw(logits, top_p=0.7), 4)[1], 0.5 / 0.8, atol=0.04)
    assert set(draw(np.log([0.4, 0.4, 0.2]), top_k=2, top_p=0.99)) == {0, 1}


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 3000), st.integers(1, 400), st.integers(0, 2**32), st.booleans())
def test_the_greatest_are_those_of_a_full_sort(size, count, seed, repeated):
    generator = np.random.default_rng(seed)
    logits = generator.standard_normal(size).astype(np.float32)
    if repeated:
        logits = logits.round()
    wanted = np.sort(np.argsort(-logits, kind="stable")[:count])
    np.testing.assert_array_equal(greatest(logits, count), wanted)
    among = np.flatnonzero(generator.random(size) < 0.7)
    order = np.sort(np.argsort(-logits[among], kind="stable")[:count])
    np.testing.assert_array_equal(greatest(logits, count, among), among[order])


@pytest.mark.parametrize("spread", [0.1, 1.0, 6.0])
@pytest.mark.parametrize("top_p", [0.01, 0.5, 0.95, 0.999])
def test_the_nucleus_is_that_of_a_full_sort(spread, top_p):
    logits = (np.random.default_rng().standard_normal(5003) * spread).astype(np.float32)
    shares = np.exp(logits.astype(np.float64) - logits.max())
    order = np.argsort(-shares, kind="stable")
    wanted = int(np.searchsorted(np.cumsum(shares[order]), top_p * shares.sum())) + 1
    tokens, weights = nucleus(logits, float(logits.max()), 1.0, top_p)
    assert abs(len(tokens) - wanted) <= 1 + wanted // 1000
    np.testing.assert_allclose(weights, shares[tokens], rtol=1e-5)
    assert set(tokens) <= set(order[: wanted + 2 + wanted // 1000].tolist())


def test_large_vocabularies_are_drawn_from_as_a_whole():
    logits = np.full(40_001, -np.inf, np.float32)
    places = [0, 1023, 1024, 20_000, 40_000]
    logits[places] = np.log([1, 2, 3, 2, 2])
    found = shares(draw(logits), 40_001)[places]
    np.testing.assert_allclose(found, np.array([1, 2, 3, 2, 2]) / 10, atol=0.04)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("size", [300, 9000])
@pytest.mark.parametrize("temperature", [5e-324, 1e-46, 1e-38, 1e39, 1.7e308])
def test_temperatures_beyond_single_precision_are_the_limits_of_those_within(size, temperature):
    logits = np.random.default_rng().standard_normal(size).astype(np.float32)
    logits[100:] = -np.inf
    for more in ({}, {"top_p": 0.9}, {"min_p": 1e-9}, {"top_k": 90}, {"typical_p": 0.9}):
        found = set(draw(logits, temperature=temperature, count=300, **more))
        assert max(found) < 100, "what was kept out came"
        assert len(found) > 50 if temperature > 1 else found == {int(logits.argmax())}


def test_min_p_drops_what_is_far_below_the_best():
    logits = np.log([0.04, 0.5, 0.3, 0.16])
    assert set(draw(logits, min_p=0.5)) == {1, 2}
    assert set(draw(logits, min_p=1.0)) == {1}


def test_the_seed_decides_and_without_one_nothing_repeats():
    logits = np.zeros(1000)
    assert draw(logits, count=20) == draw(logits, count=20)
    free = [Sampler(SamplingParams(), ()) for _ in range(2)]
    rows = [[s.choose(logits.astype(np.float32), 0, 0) for _ in range(9)] for s in free]
    assert rows[0] != rows[1]


def test_ends_are_kept_out_until_min_tokens():
    logits = np.array([0.0, 9.0, 8.0, 1.0], np.float32)
    tokens = draw(logits, ends=[1, 2], temperature=0.0, min_tokens=3, count=5)
    assert tokens == [3, 3, 3, 1, 1]
    assert not {1, 2} & set(draw(logits, ends=[1, 2], min_tokens=DRAWS))
    np.testing.assert_array_equal(logits, [0, 9, 8, 1])


def test_logits_that_are_not_finite_are_an_error():
    for value in (np.nan, np.inf, -np.inf):
        with pytest.raises(RequestError, match="as its greatest logit"):
            Sampler(SamplingParams(), ()).choose(np.full(3, value, np.float32), 0, 0)
    with pytest.raises(RequestError, match="a NaN or an infinity as its greatest logit"):
        Sampler(SamplingParams(temperature=0.0), ()).choose(np.zeros(3, np.float32), -1, 0)
    masked = np.array([-np.inf, 0.0, -np.inf], np.float32)
    assert set(draw(masked, count=9)) == {1}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"n": 0}, "n=0: wanted an integer, 1 or more"),
        ({"temperature": -0.1}, "temperature=-0.1: wanted a number, 0.0 or more"),
        ({"temperature": float("nan")}, "temperature=nan: wanted a number"),
        ({"temperature": "hot"}, "temperature='hot': wanted a number"),
        ({"top_p": 0.0}, "top_p=0.0: wanted a number above 0"),
        ({"top_p": 1.1}, "top_p=1.1: wanted a number, 0.0 to 1.0"),
        ({"top_k": -2}, "top_k=-2: wanted an integer, -1 or more"),
        ({"top_k": 1.5}, "top_k=1.5: wanted an integer"),
        ({"min_p": 2}, "min_p=2: wanted a number, 0.0 to 1.0"),
        ({"max_tokens": 0}, "max_tokens=0: wanted an integer, 1 or more"),
        ({"min_tokens": 17}, "min_tokens=17: wanted max_tokens=16 or less"),
        ({"seed": True}, "seed=True: wanted an integer"),
        ({"stop": [""]}, "stop: wanted strings that are not empty"),
        ({"stop_token_ids": [-1]}, "stop_token_ids=-1: wanted an integer, 0 or more"),
        ({"temprature": 1}, "no sampling parameter 'temprature'; did you mean 'temperature'?"),
        ({"zzz": 1}, "no sampling parameter 'zzz'; known: n, presence_penalty"),
        ({"best_of": 1}, "sampling parameter 'best_of' is not supported"),
        ({"presence_penalty": 2.5}, "presence_penalty=2.5: wanted a number, -2.0 to 2.0"),
        ({"frequency_penalty": -3}, "frequency_penalty=-3: wanted a number, -2.0 to 2.0"),
        ({"repetition_penalty": 0.0}, "repetition_penalty=0.0: wanted a number above 0"),
        ({"typical_p": 0}, "typical_p=0.0: wanted a number above 0 and up to 1.0"),
        ({"logprobs": -2}, "logprobs=-2: wanted an integer, -1 or more"),
        ({"prompt_logprobs": 1.0}, "prompt_logprobs=1.0: wanted an integer"),
        ({"logit_bias": {3: 101}}, "logit_bias[3]=101: wanted a number, -100.0 to 100.0"),
        ({"logit_bias": {"3": 1}}, "logit_bias='3': wanted an integer"),
        ({"allowed_token_ids": []}, "allowed_token_ids=[]: wanted at least one token"),
        ({"bad_words": [""]}, "bad_words: wanted strings that are not empty"),
        ({"stop": "x", "detokenize": False}, "stop: wanted with detokenize=True"),
    ],
)
def test_values_out_of_range_are_named_with_their_range(values, message):
    with pytest.raises(RequestError) as caught:
        SamplingParams.parse(values)
    assert message in str(caught.value)


def test_the_defaults_are_those_that_users_know():
    params = SamplingParams()
    assert (params.temperature, params.top_p, params.top_k, params.max_tokens) == (1.0, 1.0, 0, 16)
    assert SamplingParams(stop="x").stop_strings == ("x",)


def choose(logits, params, *, generated=0, prompt=(), bad_words=(), came=()):
    """The greedy token once `came` have been chosen."""
    sampler = Sampler(SamplingParams(temperature=0.0, **params), (), prompt, bad_words)
    for token in came:
        sampler._adjuster.accept(token)
    row = np.asarray(logits, np.float32)
    before = row.copy()
    token = sampler.choose(row, int(row.argmax()), generated)
    np.testing.assert_array_equal(row, before)
    return token


def test_penalties_are_those_of_their_formulas():
    logits = (np.random.default_rng().standard_normal(37) * 4).astype(np.float32)
    prompt, came = [3, 3, 5], [5, 7, 7, 7]
    params = SamplingParams(repetition_penalty=1.7, frequency_penalty=0.3, presence_penalty=-0.9)
    adjuster = Adjuster(params, (), prompt)
    for token in came:
        adjuster.accept(token)
    wanted = logits.copy()
    for token in (3, 5, 7):
        wanted[token] = wanted[token] / 1.7 if wanted[token] > 0 else wanted[token] * 1.7
    for token, count in ((5, 1), (7, 3)):
        wanted[token] -= 0.3 * count - 0.9
    np.testing.assert_allclose(adjuster.apply(logits, 4), wanted, rtol=1e-6, atol=2e-6)


def test_bias_allowed_and_bad_words_decide():
    logits = [4.0, 3.0, 2.0, 1.0, 0.0]
    assert choose(logits, {}) == 0
    assert choose(logits, {"logit_bias": {3: 5.0}}) == 3
    assert choose(logits, {"logit_bias": {0: -100.0}}) == 1
    assert choose(logits, {"allowed_token_ids": [4, 2, 2]}) == 2
    words = ((0,), (9, 1), (8, 9, 2))
    assert choose(logits, {}, bad_words=words) == 1
    assert choose(logits, {}, bad_words=words, came=[9]) == 2
    assert choose(logits, {}, bad_words=words, came=[8, 9]) == 3
    assert choose(logits, {}, bad_words=words, came=[9, 8]) == 1
    with pytest.raises(RequestError, match="leave no token"):
        choose(logits, {"allowed_token_ids": [0]}, bad_words=words)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.floats(0.01, 1.0), st.integers(0, 2**32))
def test_typical_keeps_what_surprises_as_expected(size, share, seed):
    weights = np.exp(np.random.default_rng(seed).standard_normal(size) * 2)
    kept = typical(weights, share)
    shares = weights / weights.sum()
    entropy = -(shares * np.log(shares)).sum()
    distance = np.abs(-np.log(shares) - entropy)
    assert len(set(kept)) == len(kept)
    assert shares[kept].sum() >= share - 1e-9
    assert shares[kept[:-1]].sum() < share + 1e-9
    others = np.setdiff1d(np.arange(size), kept)
    assert not others.size or distance[kept].max() <= distance[others].min()


def test_typical_draws_from_what_it_keeps():
    logits = np.log([0.7, 0.1, 0.1, 0.1])
    # The entropy is 0.94: the likeliest surprises by 0.36, the others by 2.3.
    assert set(draw(logits, typical_p=0.5)) == {0}
    assert set(draw(logits, typical_p=0.5, top_k=3)) == {0}
    assert set(draw(logits, typical_p=1.0)) == {0, 1, 2, 3}


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 300), st.integers(-1, 20), st.integers(0, 2**32))
def test_logprobs_are_those_of_the_softmax(size, count, seed):
    generator = np.random.default_rng(seed)
    logits = (generator.standard_normal(size) * 5).astype(np.float32)
    count, token = min(count, size), int(generator.integers(size))
    found = token_logprobs(logits, token, count, str)
    precise = logits.astype(np.float64)
    wanted = precise - precise.max() - np.log(np.exp(precise - precise.max()).sum())
    order = np.argsort(-logits, kind="stable").tolist()
    assert next(iter(found)) == token
    kept = order[: size if count == -1 else count]
    assert [t for t in found if t != token] == [t for t in kept if t != token]
    for t, entry in found.items():
        assert abs(entry.logprob - wanted[t]) < 1e-5 * (1 + abs(wanted[t]))
        assert (entry.rank, entry.decoded_token) == (order.index(t) + 1, str(t))


def test_each_of_several_sequences_has_a_seed_of_its_own():
    params = SamplingParams(seed=(1 << 63) - 1, n=2)
    assert params.of_sequence(0) == params and params.of_sequence(1).seed == -(1 << 63)
    assert SamplingParams().of_sequence(3).seed is None
    with pytest.raises(RequestError, match="allowed_token_ids=9: wanted an integer, 0 to 8"):
        SamplingParams(allowed_token_ids=[9]).check_vocabulary(9)
    with pytest.raises(RequestError, match="logprobs=10: wanted an integer, -1 to 9"):
        SamplingParams(logprobs=10).check_vocabulary(9)
