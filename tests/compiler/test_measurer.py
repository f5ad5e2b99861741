"""Measuring in another process: arguments as in a step, real times, and what a crash costs."""

from pathlib import Path

import numpy as np
import pytest
from ferrule.codegen.space import DEFAULT, Choice, Sample
from ferrule.codegen.tvm import tunable
from ferrule.codegen.tvm.row_tiles import MANY
from ferrule.compiler import measurer
from ferrule.compiler.budget import Budget, OutOfTime
from ferrule.compiler.duel import CandidateFault, Prepared, contest_seconds
from ferrule.compiler.errors import CompileError
from ferrule.compiler.measurer import TaskMeasurer, WorkerEnded, Workers
from ferrule.compiler.trial_arguments import Arguments, step_dims, step_values
from ferrule.compiler.trial_requests import MINIMUM
from ferrule.compiler.tune_tasks import Task
from ferrule.ir.graph import Graph
from ferrule.ir.ops import serving
from ferrule.ir.plan import Argument
from ferrule.ir.target import Target
from kernels import T, given

CPU = Target.parse("cpu")
BOUNDS = {"T": (1, 64), "N": (1, 4), "R": (1, 4), "M": (1, 8)}
GOOD, BAD = (Choice.of({"rows": 4, "columns": c, "unroll": 1}) for c in (1, 2))


@pytest.fixture(scope="module")
def task() -> Task:
    x, w = given("x", "f32", T, 32), given("w", "f32", 3, 32, 16)
    made = tunable(Graph("g", (x, w), (serving.packed_linear(x, w, n=40, layout="n16"),)), CPU)
    assert made is not None
    space = next(s for s in made.spaces if s.bucket is MANY)
    arguments = (
        Argument("workspace", dtype="f32", shape=("T", 32)),
        Argument("weight", "w", dtype="f32", shape=(3, 32, 16)),
        Argument("result", "y", dtype="f32", shape=("T", 40)),
    )
    return Task("k", "", 1, made, space, (Sample(20), Sample(64)), arguments, BOUNDS, 16, 1)


# -- arguments


def test_a_steps_dims_stay_within_the_plans():
    assert step_dims(Sample(512), BOUNDS, 16) == {"T": 64, "N": 1, "R": 4, "M": 4, "C": 4}
    decode = step_dims(Sample(4, 4, 100), BOUNDS, 16)
    assert decode == {"T": 4, "N": 4, "R": 4, "M": 7, "C": 28}
    assert step_dims(Sample(8), {"batch": (1, 6)}, 16) == {"batch": 6}


def test_a_steps_inputs_are_sequences_at_the_end_of_their_context():
    sample = Sample(2, 2, 18)
    dims = step_dims(sample, BOUNDS, 16)
    found = step_values(sample, dims, 16)
    assert found["query_start"].tolist() == [0, 1, 2]
    assert found["context_length"].tolist() == [18, 18]
    assert found["positions"].tolist() == [17, 17]
    assert found["block_table"].tolist() == [[0, 1], [2, 3]]
    assert found["slots"].tolist() == [17, 49]
    whole = step_values(Sample(3), step_dims(Sample(3), BOUNDS, 16), 16)
    assert whole["positions"].tolist() == whole["slots"].tolist() == [0, 1, 2]
    assert step_values(Sample(3), {"batch": 3}, 16) == {}


def test_weights_lie_in_more_copies_than_a_cache_holds_and_the_rest_in_one(task: Task):
    made = Arguments(task.arguments, 16, 1)
    copies = made.copies(Sample(20), step_dims(Sample(20), BOUNDS, 16))
    assert len(copies) > 16
    places = [[np.from_dlpack(t).ctypes.data for t in tensors] for tensors in copies]
    assert len({p[1] for p in places}) == len(copies)
    assert len({p[0] for p in places}) == len({p[2] for p in places}) == 1
    first, last = (np.from_dlpack(c[1]) for c in (copies[0], copies[-1]))
    assert np.array_equal(first, last) and np.isfinite(first).all() and first.std() > 0.01


# -- the process


def test_candidates_are_compiled_and_timed(task: Task):
    workers = Workers(CPU)
    try:
        found = workers.on(task)
        made = found.prepare([DEFAULT, GOOD, Choice.of({"rows": 99, "depth": 1})])
        assert made.faults.keys() == {2} and not made.late
        for sample in task.samples:
            times = found.times([0, 1], sample, 3)
            assert len(times) == 2 and all(len(t) == 3 and min(t) > 0 for t in times)
        assert workers._worker is not None
        workers._worker._process.kill()
        with pytest.raises(CompileError, match=r"k \[17-\]: the process"):
            found.times([0, 1], Sample(20), 3)
        # Begun anew: what was compiled is there.
        assert [len(t) for t in found.times([0, 1], Sample(20), 2)] == [2, 2]
    finally:
        workers.end()


def test_a_process_that_does_not_answer_is_ended(task: Task, monkeypatch):
    workers = Workers(CPU)
    monkeypatch.setattr(measurer, "COMPILE", 0.0)
    monkeypatch.setattr(measurer, "EACH", 0.0)
    try:
        made = workers.on(task).prepare([DEFAULT])
        assert made.faults == {0: "no answer in 0 s"}
        assert workers._worker is None
    finally:
        workers.end()


class Fragile:
    """Workers whose process ends where BAD is compiled, or run; a candidate takes `each` seconds to
    compile.
    """

    def __init__(
        self, *, compiling: bool = False, budget: float = 1e9, each: float = 0.0, together: int = 1
    ) -> None:
        self.compiling, self.each, self.together = compiling, each, together
        self.now, self.prepared = 0.0, {}
        self.budget = Budget(budget, lambda: self.now)

    def ask(self, asking, request, seconds):
        bad = dict(BAD.values)
        if request["do"] == "compile":
            if self.compiling and bad in request["choices"].values():
                raise WorkerEnded("the process ended with signal 11", None)
            took = self.each * len(request["choices"])
            left = self.budget.left
            self.now += min(took, left)
            if took > left:
                raise OutOfTime("the budget is spent")
            self.prepared |= request["choices"]
            return {"faults": {}}
        for at in request["which"]:
            if self.prepared[at] == bad:
                raise WorkerEnded("the process ended with signal 4", at)
        return {"seconds": [[1.0]] * len(request["which"])}


@pytest.mark.parametrize("together", [1, 4])
def test_a_candidate_that_ends_the_compiler_is_found_and_left_out(task: Task, together: int):
    found = TaskMeasurer(Fragile(compiling=True, together=together), task, CPU)
    assert found.prepare([DEFAULT, GOOD, BAD]) == Prepared({2: "the process ended with signal 11"})
    assert found.times([0, 1], Sample(20), 1) == [[1.0], [1.0]]


def test_a_candidate_that_ends_the_process_is_named_and_the_others_go_on(task: Task):
    found = TaskMeasurer(Fragile(), task, CPU)
    assert found.prepare([DEFAULT, BAD, GOOD]) == Prepared()
    with pytest.raises(CandidateFault, match="signal 4") as fault:
        found.times([0, 1, 2], Sample(20), 1)
    assert fault.value.at == 1
    assert found.times([0, 2], Sample(20), 1) == [[1.0], [1.0]]


# -- the budget


def test_candidates_are_compiled_while_there_is_time_for_one_more_and_for_measuring(task: Task):
    measuring = contest_seconds(2, len(task.samples), 2 * MINIMUM)
    workers = Fragile(budget=3 * 10 + measuring + 1, each=10.0)
    found = TaskMeasurer(workers, task, CPU)
    assert found.prepare([DEFAULT, GOOD, BAD, GOOD, BAD]) == Prepared(late=(3, 4))
    assert workers.now == 30 and list(workers.prepared) == [0, 1, 2]


def test_a_compilation_that_the_budget_ends_in_is_late_and_so_are_those_behind_it(task: Task):
    workers = Fragile(budget=25.0, each=10.0, together=2)
    found = TaskMeasurer(workers, task, CPU)
    assert found.prepare([DEFAULT, GOOD, BAD, GOOD, BAD]) == Prepared(late=(1, 2, 3, 4))
    assert workers.now <= workers.budget.seconds


def test_where_not_even_the_templates_own_is_compiled_in_time_this_is_said(task: Task):
    workers = Fragile(budget=5.0, each=10.0)
    with pytest.raises(OutOfTime, match=r"k \[17-\]: its own code is not compiled"):
        TaskMeasurer(workers, task, CPU).prepare([DEFAULT, GOOD])
    assert workers.now == 5.0


def test_the_process_is_ended_with_the_budget(task: Task):
    """A real one, by a clock that stands until the process works."""
    now = [0.0]
    workers = Workers(CPU, Budget(1000.0, lambda: now[0]))
    try:
        found = workers.on(task)
        assert found.prepare([DEFAULT]) == Prepared()
        assert workers._worker is not None
        process = workers._worker._process
        now[0] = 999.9999
        with pytest.raises(OutOfTime, match="no answer in 0 s"):
            found.times([0], Sample(64), 1000)
        assert process.poll() is not None and workers._worker is None
        now[0] = 1001.0
        with pytest.raises(OutOfTime, match="the budget is spent"):
            found.times([0], Sample(64), 1)
        folder = found._folder.name
    finally:
        workers.end()
    assert not Path(folder).exists()
