"""What kernels of a running step cost: formulas, timed steps, shares of what a machine allows."""

from dataclasses import dataclass

import pytest
from ferrule.ir.plan import PlanError
from ferrule.runtime.artifact import load
from ferrule.runtime.costs import value_of
from ferrule.runtime.executor import Batch, Executor
from ferrule.runtime.kernel_times import StepSample, kernel_report

DIMS = {"T": 7, "N": 2, "L": 5, "R": 2, "M": 1, "C": 3}


@pytest.mark.parametrize(
    ("formula", "value"),
    [
        ("12", 12),
        ("512*T", 3584),
        ("4*N + 4", 12),
        ("1024*L*N*floor(T/N) - 512*N*floor(T/N)**2", 1024 * 30 - 512 * 18),
        ("ceiling(T/N)", 4),
        ("-T + Max(N, 9) + Mod(T, 4) + T//2 + T % 3", -7 + 9 + 3 + 3 + 1),
    ],
)
def test_formulas_have_the_value_that_they_say(formula, value):
    assert value_of(formula, DIMS) == value


@pytest.mark.parametrize("formula", ["X", "T/2", "T +", "__import__('os')", "T.real", "[T]"])
def test_what_is_no_formula_is_refused(formula):
    with pytest.raises(PlanError, match="the cost"):
        value_of(formula, DIMS)


@dataclass(frozen=True)
class Rates:
    read_bandwidth: float = 1e9
    cache_bandwidth: float = 4e9

    def peak_of(self, dtype):
        return {"f32": 1e9, "bf16": 2e9}[dtype]


def test_a_step_is_timed_call_by_call_when_asked(toy):
    artifact = load(toy)
    runner = Executor(artifact.plan, artifact.library, artifact.weights, 8)
    batch = Batch(
        tokens=[1, 2, 3], positions=[0, 1, 2], query_start=[0, 3], context_length=[3],
        block_table=[[0]], slots=[0, 1, 2], logit_rows=[2],
    )  # fmt: skip
    plain = [a.copy() for a in runner.step(batch)]
    assert runner.sample is None
    runner.samples = True
    timed = runner.step(batch)
    assert all((a == b).all() for a, b in zip(plain, timed, strict=True))
    sample = runner.sample
    assert (sample.entry, runner.samples) == ("mixed", False)
    assert sample.dims == {"T": 3, "N": 1, "R": 1, "M": 1, "C": 1, "L": 3}
    assert len(sample.seconds) == 3 and min(sample.seconds) > 0
    runner.step(batch)
    assert runner.sample is sample
    report = kernel_report(artifact.plan, artifact.manifest, sample, None)
    assert report["seconds"] == pytest.approx(sum(sample.seconds)) and report["share"] is None


def test_shares_are_limits_over_times(toy):
    artifact = load(toy)
    costs = {
        "append": {"reads": ["4*T", "4*T", "4", "0"], "writes": "1000*T", "template": "rows"},
        "attend": {"reads": ["4000*L"], "writes": "0", "operations": {"bf16": "9000*T"}},
        "score": {"reads": ["0"], "writes": "0", "operations": {"f32": "5000*R"}},
    }
    manifest = {"report": {"kernels": costs}}
    seconds = [1e-5, 4e-5, 1e-5]
    sample = StepSample("mixed", {"T": 4, "N": 1, "R": 2, "M": 1, "C": 1, "L": 6}, seconds)
    report = kernel_report(artifact.plan, manifest, sample, Rates())
    slowest, *others = report["kernels"]
    assert slowest["kernel"] == "attend" and slowest["bytes"] == 24_000
    limits = {k["kernel"]: k["limit"] for k in (slowest, *others)}
    # 32 and 4,000 bytes from the caches, 4 of a weight from memory; then a cache from memory
    # against operations; then operations alone.
    assert limits["append"] == pytest.approx(4032 / 4e9 + 4 / 1e9)
    assert limits["attend"] == pytest.approx(max(24_000 / 1e9, 36_000 / 2e9))
    assert limits["score"] == pytest.approx(10_000 / 1e9)
    assert slowest["share"] == pytest.approx(limits["attend"] / 4e-5)
    assert report["share"] == pytest.approx(sum(limits.values()) / 6e-5)
