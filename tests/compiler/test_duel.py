"""Which choice wins: faster beyond noise, on all sizes, among those that run."""

import random

import pytest
from ferrule.codegen.space import DEFAULT, Choice, Sample
from ferrule.compiler.budget import OutOfTime
from ferrule.compiler.duel import CandidateFault, Prepared, decide, is_faster

SMALL, LARGE = Sample(2), Sample(16)
A, B, C = (Choice.of({"rows": r}) for r in (1, 2, 3))


class Stub:
    """Times as told, by choice and sample, with noise that moves a whole round or each time."""

    def __init__(self, speeds, noise=0.0, drift=0.0, missing=(), crash=(), late=()):
        self.speeds, self.noise, self.drift = speeds, noise, drift
        self.missing, self.crash, self.late = missing, set(crash), late
        self.random, self.asked = random.Random(0), []

    def prepare(self, choices):
        self.choices = choices
        assert choices[0] == DEFAULT
        missing = {at: "does not compile" for at, c in enumerate(choices) if c in self.missing}
        return Prepared(missing, tuple(at for at, c in enumerate(choices) if c in self.late))

    def times(self, which, sample, rounds):
        self.asked.append((tuple(which), sample, rounds))
        for at in which:
            if self.choices[at] in self.crash:
                raise CandidateFault(at, "the process ended with signal 11")
        found = {at: [] for at in which}
        for _ in range(rounds):
            slow = 1 + self.drift * self.random.random()
            for at in which:
                own = self.speeds[self.choices[at]]
                base = own[sample] if isinstance(own, dict) else own
                found[at].append(base * slow * (1 + self.noise * self.random.random()))
        return [found[at] for at in which]


def test_the_fastest_wins_and_its_times_are_kept():
    found = decide(Stub({DEFAULT: 4.0, A: 3.5, B: 2.0, C: 5.0}), [A, B, C], [SMALL, LARGE])
    assert found.choice == B and found.candidates == 3 and found.faults == ()
    assert found.seconds == {"2": (4.0, 2.0), "16": (4.0, 2.0)}


def test_where_nothing_is_faster_the_templates_own_stays():
    found = decide(Stub({DEFAULT: 1.0, A: 1.0, B: 1.2}), [A, B], [SMALL])
    assert found.choice == DEFAULT and found.seconds == {"2": (1.0, 1.0)}
    assert decide(Stub({DEFAULT: 1.0}), [], [SMALL]).choice == DEFAULT


def test_a_gain_within_the_noise_does_not_win():
    for seed in range(20):
        stub = Stub({DEFAULT: 1e-3, A: 0.99e-3, B: 1e-3, C: 1e-3}, noise=0.3)
        stub.random = random.Random(seed)
        assert decide(stub, [A, B, C], [SMALL]).choice == DEFAULT


def test_what_slows_a_whole_round_does_not_hide_a_gain():
    found = decide(Stub({DEFAULT: 1.0, A: 0.9, B: 1.0}, noise=0.01, drift=3.0), [A, B], [SMALL])
    assert found.choice == A


def test_what_is_slower_at_one_size_does_not_win():
    speeds = {DEFAULT: 1.0, A: {SMALL: 0.5, LARGE: 1.1}, B: {SMALL: 0.9, LARGE: 1.0}}
    assert decide(Stub(speeds), [A, B], [SMALL, LARGE]).choice == B


def test_what_there_was_no_time_for_is_named_and_without_any_candidate_nothing_is_decided():
    speeds = {DEFAULT: 1.0, A: 0.8, B: 0.9, C: 0.1}
    found = decide(Stub(speeds, late=[C]), [A, B, C], [SMALL])
    assert (found.choice, found.candidates, found.late) == (A, 2, (C,))
    with pytest.raises(OutOfTime, match="no candidate is ready"):
        decide(Stub(speeds, late=[A, B]), [A, B], [SMALL])


def test_finalists_alone_are_measured_long():
    stub = Stub({DEFAULT: 0.01, A: 0.005, B: 0.02, C: 0.007})
    decide(stub, [A, B, C], [SMALL])
    (first, _, few), (second, _, many), (last, _, again) = stub.asked
    assert first == (0, 1, 2, 3) and second == (0, 1, 3) and last == (0, 1)
    assert few < many == again


def test_slow_kernels_are_measured_in_fewer_rounds():
    stub = Stub({DEFAULT: 2.0, A: 1.0})
    assert decide(stub, [A], [SMALL]).choice == A
    assert [rounds for _, _, rounds in stub.asked] == [3, 7, 7]


def test_what_does_not_compile_or_crashes_falls_out_and_is_named():
    stub = Stub({DEFAULT: 1.0, A: 0.1, B: 0.1, C: 0.8}, missing=[A], crash=[B])
    found = decide(stub, [A, B, C], [SMALL, LARGE])
    assert found.choice == C and found.candidates == 1
    assert found.faults == (
        "rows 1: does not compile",
        "rows 2: the process ended with signal 11",
    )


def test_a_template_that_cannot_be_run_is_an_error():
    with pytest.raises(CandidateFault, match="the template's own cannot be run: the process"):
        decide(Stub({DEFAULT: 1.0, A: 1.0}, crash=[DEFAULT]), [A], [SMALL])


def test_the_bounds_of_faster():
    assert is_faster([[0.9] * 5]) and not is_faster([[0.99] * 5])
    assert is_faster([[0.8] * 5, [1.0] * 5]) and not is_faster([[0.8] * 5, [1.05] * 5])
    assert not is_faster([[0.2, 0.5, 0.9, 1.4, 1.7]])
