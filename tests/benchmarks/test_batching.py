"""One trace served by every stack."""

import argparse

from benchmarks import batching
from benchmarks.models import Model


def test_each_stack_serves_the_trace_at_once_and_alone(sleeper, tmp_path, monkeypatch):
    monkeypatch.setattr(batching, "checkpoint_of", lambda path, _: path)
    monkeypatch.setattr(batching, "model_of", lambda *_: Model(tmp_path))
    monkeypatch.setattr(batching, "trace", lambda: [(8, 2), (5, 3)] * 4)
    options = argparse.Namespace(work=tmp_path, shape="llama-1b", form="int4", threads=2, rounds=2)
    stacks = [sleeper("llama.cpp", step=0.002), sleeper("openvino", step=0.02)]
    rates = batching.measure(stacks, options)
    assert [len(found) for found in rates.values()] == [2] * 4
    names = [
        f"{stack} {way}"
        for stack in ("llama.cpp,", "openvino,")
        for way in ("8 at once", "6 alone")
    ]
    assert list(rates) == names
    assert all(rate > 0 for found in rates.values() for rate in found)


def test_the_trace_is_the_same_for_every_stack():
    assert batching.trace() == batching.trace()
    assert all(64 <= p <= 256 and 32 <= n <= 128 for p, n in batching.trace())
    assert len(batching.trace()) == 32
