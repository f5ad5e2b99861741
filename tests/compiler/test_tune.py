"""Tuning: what is measured, in which order, what is kept; artifacts and builds that take it up."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from ferrule.codegen.backend import cpu_backend
from ferrule.codegen.space import DEFAULT, MOST, Choice
from ferrule.codegen.tvm.row_tiles import BUCKETS, ONE, SOME
from ferrule.compiler.budget import Budget
from ferrule.compiler.build import Options, compile_to
from ferrule.compiler.cli import app
from ferrule.compiler.console import Silent, print_tuning
from ferrule.compiler.duel import CandidateFault, Prepared
from ferrule.compiler.errors import CompileError
from ferrule.compiler.hardware import Hardware, fingerprint
from ferrule.compiler.records import append_record, read_records
from ferrule.compiler.retune import artifact_target, kernels_of, tune_artifact, tune_model
from ferrule.compiler.tune import tune_tasks
from ferrule.compiler.tune_tasks import Task, tasks_of
from ferrule.compiler.tuning import TUNING, tuned
from ferrule.ir.target import Target
from ferrule.runtime.artifact import load
from ferrule.runtime.sampling import SamplingParams
from typer.testing import CliRunner

TINY = Path(__file__).resolve().parents[2] / "examples/models/tiny-llama"
CPU = Target.parse("cpu")
MACHINE = Hardware(fingerprint(CPU), 4e10, {"f32": 2e11, "bf16": 8e11, "i8": 2e12})
LAST = SamplingParams(temperature=0.0, max_tokens=12)


class Stub:
    """Measurers that run nothing: the last candidate of each task is the fastest. Each task takes
    `each` seconds, and of its candidates there is time for `most`.
    """

    def __init__(self, *, stop_at: int = 1 << 30, each: float = 0.0, most: int = 1 << 30) -> None:
        self.tasks: list[Task] = []
        self.choices: list[list[Choice]] = []
        self.stop_at, self.each, self.most, self.now = stop_at, each, most, 0.0

    def on(self, task: Task):
        if len(self.tasks) == self.stop_at:
            raise KeyboardInterrupt
        self.tasks.append(task)
        return self

    def prepare(self, choices):
        self.now += self.each
        self.choices.append(list(choices))
        self.count = min(len(choices), 1 + self.most)
        return Prepared(late=tuple(range(self.count, len(choices))))

    def times(self, which, sample, rounds):
        return [[0.5 if at == self.count - 1 else 1.0] * rounds for at in which]


class Refusing(Stub):
    """Measurers whose templates cannot be run."""

    def prepare(self, choices):
        raise CandidateFault(0, "no such instruction")


@pytest.fixture(scope="module")
def tasks(tiny: Path) -> list[Task]:
    artifact = load(tiny)
    target = artifact_target(artifact)
    return tasks_of(*kernels_of(artifact, target), target)


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "copy"))


def run(tasks, records: Path, stub: Stub, budget: float = 1e9):
    spent = Budget(budget, lambda: stub.now)
    return tune_tasks(tasks, stub, MACHINE, records, spent, Silent())


# -- what there is to tune


def test_every_linear_of_the_plan_is_tuned_in_each_bucket(tasks: list[Task], tiny: Path):
    linears = {c.kernel for c in load(tiny).plan.entries["decode"].calls if "linear" in c.ops}
    assert {t.kernel for t in tasks} >= linears
    of_one = [t for t in tasks if "silu" in t.ops]
    assert [t.space.bucket.name for t in of_one] == [b.name for b in BUCKETS]
    assert [[s.tokens for s in t.samples] for t in of_one] == [[1], [2, 4], [8, 16], [64]]
    of_logits = next(t for t in tasks if t.ops == "packed_linear+cast")
    assert max(s.tokens for t in tasks for s in t.samples if t.kernel == of_logits.kernel) == 4
    assert sum(t.calls for t in tasks if t.space.bucket is ONE) == sum(
        "linear" in c.ops for c in load(tiny).plan.entries["decode"].calls
    )


def test_the_model_rules_out_most_choices(tasks: list[Task]):
    for task in tasks:
        kept = task.candidates(MACHINE)
        assert 0 < len(kept) <= MOST and set(kept) <= set(task.space.choices())
    some = next(t for t in tasks if t.space.bucket is SOME)
    slowest = max(some.space.choices(), key=lambda c: some.seconds(c, MACHINE))
    assert slowest not in some.candidates(MACHINE)


# -- what is measured and kept


def test_results_are_recorded_and_a_second_run_measures_nothing(tasks, tmp_path):
    path = tmp_path / "records.jsonl"
    first = run(tasks, path, Stub())
    assert first.measurements > 0 and not first.left and not first.faults
    assert all(line.measured and line.gain == pytest.approx(2.0) for line in first.lines)
    kept = tuned(read_records(path), fingerprint(CPU))
    assert {(t.tunable.digest, t.space.bucket.name) for t in tasks} == {
        (digest, bucket) for digest, found in kept.items() for bucket in found
    }
    again = Stub()
    second = run(tasks, path, again)
    assert second.measurements == 0 and again.tasks == []
    assert [line.choice for line in second.lines] == [line.choice for line in first.lines]
    assert not any(line.measured for line in second.lines)


def test_what_is_expected_to_gain_most_comes_first_and_the_budget_ends_it(tasks, tmp_path):
    stub = Stub(each=1.0)
    report = run(tasks, tmp_path / "r.jsonl", stub, budget=2.5)
    assert len(stub.tasks) == 3 == len(report.lines) and len(report.left) == len(tasks) - 3
    assert stub.now == report.seconds == 3.0 and report.budget == 2.5

    def gain(task: Task) -> float:
        alike = [t for t in tasks if t.space.bucket is task.space.bucket]
        share = task.weight(MACHINE) / max(t.weight(MACHINE) for t in alike)
        return share * task.expected(MACHINE)

    others = [t for t in tasks if t not in stub.tasks]
    assert min(map(gain, stub.tasks)) >= max(map(gain, others))
    for task, choices in zip(stub.tasks, stub.choices, strict=True):
        seconds = [task.seconds(c, MACHINE) for c in choices[1:]]
        assert seconds == sorted(seconds)


def test_what_a_task_had_no_time_for_is_tried_next_time(tasks, tmp_path):
    path = tmp_path / "records.jsonl"
    task = max(tasks[:4], key=lambda t: len(t.candidates(MACHINE)))
    known = task.candidates(MACHINE)
    assert len(known) > 3
    first = run([task], path, Stub(most=2))
    assert first.measurements == 2 and len(first.lines) == 1
    assert first.left == [f"{task.name} ({len(known) - 2} choices)"] and not first.is_idle
    again = Stub()
    second = run([task], path, again)
    # Its choice, and then what was left.
    assert again.choices == [[DEFAULT, known[1], *known[2:]]] and not second.left
    assert run([task], path, Stub()).measurements == 0


def test_where_nothing_could_be_tried_this_is_said(tasks, tmp_path, capsys):
    path = tmp_path / "records.jsonl"
    for stub, budget in ((Stub(), 0.0), (Stub(most=0), 5.0)):
        report = run(tasks, path, stub, budget)
        assert report.is_idle and len(report.left) == len(tasks) and not read_records(path)
        print_tuning(report, "records")
        said = " ".join(capsys.readouterr().out.split())
        assert f"nothing could be tried: 0.0 s of a budget of {budget:g} s had gone" in said
    run(tasks, path, Stub())
    assert not run(tasks, path, Stub(), 0.0).is_idle  # there is nothing to try


def test_what_was_measured_before_a_ctrl_c_is_kept(tasks, tmp_path):
    path = tmp_path / "records.jsonl"
    report = run(tasks, path, Stub(stop_at=2))
    assert report.interrupted and len(report.lines) == 2 and len(report.left) == len(tasks) - 2
    assert len(read_records(path)) == 2


def test_a_kernel_that_cannot_be_measured_does_not_end_the_others(tasks, tmp_path):
    path = tmp_path / "records.jsonl"
    report = run(tasks[:3], path, Refusing())
    assert len(report.faults) == 3 and "no such instruction" in report.faults[0]
    assert read_records(path) == {} and report.lines == []


def test_a_record_for_other_sizes_or_of_no_choice_is_measured_again(tasks, tmp_path):
    path = tmp_path / "records.jsonl"
    run(tasks[:2], path, Stub())
    key, other = list(read_records(path))
    value = read_records(path)[key]
    append_record(path, key, {**value, "seconds": {"3": [1.0, 1.0]}})
    append_record(path, other, {**value, "choice": {"rows": 1000}})
    assert run(tasks[:2], path, Stub()).measurements > 0
    assert run(tasks[:2], path, Stub()).measurements == 0


# -- artifacts and builds


def test_an_artifact_is_built_anew_with_what_won(copy: Path, tmp_path: Path):
    path = tmp_path / "records.jsonl"
    before = load(copy)
    (wanted,) = before.generate(["def add(a, b):"], LAST)
    had = before.manifest["files"]
    stub = Stub()
    tune_artifact(copy, 1e9, path, show_progress=False, measurers=stub)
    after = load(copy)  # checks every file
    files = after.manifest["files"]
    assert files["kernels.so"]["xxh3"] != had["kernels.so"]["xxh3"]
    assert files["weights.safetensors"] == had["weights.safetensors"]
    choices = {n: k["choices"] for n, k in after.manifest["report"]["kernels"].items()}
    for task in stub.tasks:
        won = choices[task.kernel][task.space.bucket.name]
        assert Choice.of(won) == task.candidates(MACHINE)[-1] or task.space.allows(Choice.of(won))
    own = read_records(copy / TUNING)
    assert own.items() <= read_records(path).items() and len(own) == len(stub.tasks) + 1
    (found,) = after.generate(["def add(a, b):"], LAST)
    assert found.text == wanted.text
    assert [p.name for p in copy.parent.iterdir() if p.name.startswith(".")] == []


def test_an_artifacts_own_records_are_reused(copy: Path, tmp_path: Path):
    tune_artifact(copy, 1e9, tmp_path / "one.jsonl", show_progress=False, measurers=Stub())
    other = tmp_path / "two.jsonl"
    report = tune_artifact(copy, 1e9, other, show_progress=False, measurers=Stub())
    assert report.measurements == 0 and len(report.lines) > 0
    assert read_records(other) == read_records(tmp_path / "one.jsonl")


def test_time_is_kept_for_building_anew_which_is_done_for_other_choices_alone(
    copy: Path, tmp_path: Path, monkeypatch
):
    from ferrule.compiler import retune

    kept = load(copy).manifest["report"]["seconds"]["kernels"]
    path, none, built = tmp_path / "records.jsonl", Stub(), []
    monkeypatch.setattr(retune, "rebuild", lambda *_: built.append(1))
    given = {"show_progress": False, "measurers": none, "clock": lambda: 0.0}
    report = tune_artifact(copy, kept, path, **given)
    assert report.is_idle and report.kept == kept and not none.tasks and not built
    slower = Stub()
    slower.times = lambda which, sample, rounds: [[1.0 + bool(at)] * rounds for at in which]
    had = load(copy).manifest["files"]
    report = tune_artifact(copy, 1e9, path, show_progress=False, measurers=slower)
    assert report.measurements and not built
    files = load(copy).manifest["files"]
    assert {n for n in files if files[n] != had.get(n)} == {TUNING}
    assert len(read_records(copy / TUNING)) == len(slower.tasks) + 1


def test_after_a_ctrl_c_the_artifact_is_as_it_was(copy: Path, tmp_path: Path):
    before = load(copy).manifest
    stub = Stub(stop_at=2)
    report = tune_artifact(copy, 1e9, tmp_path / "r.jsonl", show_progress=False, measurers=stub)
    assert report.interrupted and load(copy).manifest == before


def test_an_artifact_of_another_plan_is_refused_and_left(copy: Path, tmp_path: Path, monkeypatch):
    from ferrule.compiler import retune

    another = lambda plan, *_: replace(plan, block=plan.block + 1)  # noqa: E731
    monkeypatch.setattr(retune, "write_plan", another)
    before = load(copy).manifest
    with pytest.raises(CompileError, match="makes another plan of its graph: compile again"):
        tune_artifact(copy, 1e9, tmp_path / "r.jsonl", show_progress=False, measurers=Stub())
    assert load(copy).manifest == before


def test_a_model_tuned_first_is_compiled_with_what_won(tmp_path: Path):
    path = tmp_path / "records.jsonl"
    sizes = {"max_context": 64, "max_batch": 2, "chunk": 32, "progress": False}
    stub = Stub()
    report = tune_model(TINY, Options(**sizes), 1e9, path, measurers=stub)
    assert report.measurements > 0 and list(tmp_path.iterdir()) == [path]
    options = Options(**sizes, parity=True, tuning=path)
    artifact = compile_to(TINY, tmp_path / "artifact", options)
    kernels = artifact.manifest["report"]["kernels"].values()
    chosen = sum(len(k["choices"]) for k in kernels)
    assert chosen == len(stub.tasks) > 0
    assert len(read_records(artifact.path / TUNING)) == chosen + 1


def test_a_tuning_file_that_is_not_there_is_said_before_anything_is_built(tmp_path: Path):
    with pytest.raises(CompileError, match="no file of tuning records"):
        Options(tuning=tmp_path / "none.jsonl")


def test_code_for_another_machine_cannot_be_tuned_here(copy: Path, tmp_path: Path, monkeypatch):
    from ferrule.compiler import retune

    foreign = Target("cpu", "diamond", frozenset({"avx1024"}))
    monkeypatch.setattr(retune, "artifact_target", lambda _: foreign)
    with pytest.raises(CompileError, match="cannot be tuned here: this machine lacks avx1024"):
        tune_artifact(copy, 1.0, tmp_path / "r.jsonl", show_progress=False, measurers=Stub())


def test_the_command_measures_records_and_says_so(copy: Path, tmp_path: Path):
    """The real thing, for less than a minute."""
    path = tmp_path / "records.jsonl"
    budget = load(copy).manifest["report"]["seconds"]["kernels"] + 30
    flags = ["tune", str(copy), "--budget", str(budget), "--tuning", str(path), "--quiet"]
    first = CliRunner().invoke(app, [*flags, "--json"])
    assert first.exit_code == 0, first.output
    found = json.loads(first.output)
    # A machine that has much else to do may not get to any.
    assert (found["measurements"] > 0 or found["left"]) and not found["faults"]
    assert found["seconds"] < 10 * budget
    assert all(line["gain"] >= 1.0 for line in found["lines"])
    flags[3] = "0"
    second = CliRunner().invoke(app, flags)
    assert second.exit_code == 0, second.output
    text = " ".join(second.output.split())
    told = re.search(r"0 measurements in \S+ s; (\d+) of \1 results were recorded", text)
    assert told, text
    # What the budget ended in the middle of is measured anew.
    assert found["left"] or int(told[1]) == len(found["lines"])
    assert ("the budget is spent" in text) == bool(found["left"])
    shown = CliRunner().invoke(app, ["explain", str(copy), "--no-measure"])
    won = [line for line in found["lines"] if line["choice"] != str(DEFAULT)]
    assert ("chosen by tuning" in shown.output) == bool(won)


def test_the_backends_templates_say_what_may_be_chosen():
    """A linear of any layout that the backend asks for has spaces."""
    from ferrule.codegen.tvm.build import ANCHORS

    anchors = cpu_backend(CPU).templates["linear"].anchors & ANCHORS.keys()
    assert all(ANCHORS[op].spaces.__name__ != "_no_space" for op in anchors)
