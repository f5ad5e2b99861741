"""Drives an engine to the end of its requests."""

from ferrule.runtime.sampling import SamplingParams


def greedy(count, **rest):
    return SamplingParams(temperature=0.0, max_tokens=count, **rest)


def drain(engine, into=None):
    """Steps to the end; tokens, reason and error of each request."""
    ended = {} if into is None else into
    while engine.has_work:
        collect(engine.step(), ended)
        engine.check()
    return ended


def collect(deltas, ended):
    for delta in deltas:
        tokens, reason, _ = ended.setdefault(delta.request_id, ([], None, None))
        assert reason is None, f"{delta.request_id} went on after its end"
        tokens.extend(delta.token_ids)
        ended[delta.request_id] = (tokens, delta.finish_reason, delta.error)


def drain_one(engine, prompt, params):
    name = engine.submit(prompt, params)
    return drain(engine)[name]


def drain_all(engine):
    deltas = []
    while engine.has_work:
        deltas += engine.step()
        engine.check()
    return deltas


def prompt_of(length):
    return [(7 * i) % 5 for i in range(length)]


def sampled(count, n, seed=5):
    return SamplingParams(temperature=30.0, seed=seed, n=n, max_tokens=count)
