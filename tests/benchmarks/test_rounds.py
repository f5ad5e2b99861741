"""Workers in processes of their own: asked in turn, timed, and failing alone."""

import math

import pytest

from benchmarks.cases import Case, Room
from benchmarks.models import Model
from benchmarks.processes import Worker, WorkerError, cold_start
from benchmarks.rounds import Figures, measure_cold, measure_warm

ROOM = Room(tokens=64, sequences=4, threads=2)
READ, STEPS = Case("read", 8, 0), Case("steps", 4, 5)
MANY, KEPT = Case("many", 8, 2, sequences=3), Case("kept", 8, 3, keeps=True)


def test_a_worker_times_prefill_and_steps_apart(sleeper, tmp_path):
    worker = Worker(sleeper("openvino", prefill=0.05, step=0.01), tmp_path, ROOM, tmp_path / "log")
    read, steps = worker.ask(READ, 5), worker.ask(STEPS, 5)
    worker.close()
    assert worker.loaded and worker.loaded["details"] == {"threads": "2", "mode": ""}
    assert 0.05 <= read["prefill"] < 0.09 and read["decode"] < 0.01
    assert 0.05 <= steps["decode"] < 0.09
    assert "a library says hello" in (tmp_path / "log").read_text()


def test_kept_sequences_are_read_once(sleeper, tmp_path):
    worker = Worker(sleeper("openvino", prefill=0.05), tmp_path, ROOM, tmp_path / "log")
    prefills = [worker.ask(case, 5)["prefill"] for case in (KEPT, KEPT, READ, KEPT)]
    worker.close()
    assert [p is None for p in prefills] == [False, True, False, False]


def test_a_worker_that_ends_tells_why(sleeper, tmp_path):
    worker = Worker(sleeper("openvino", falls_over=3), tmp_path, ROOM, tmp_path / "log")
    worker.ask(READ, 5)
    with pytest.raises(WorkerError, match="openvino ended with 1: out of chairs"):
        worker.ask(MANY, 5)
    worker.close()


def test_a_cold_start_counts_from_the_start_of_the_process(sleeper, tmp_path):
    seconds, peak = cold_start(sleeper("vllm", prefill=0.1), tmp_path, ROOM, tmp_path / "log")
    assert seconds > 0.1 and peak > 1 << 20


def test_medians_by_case_and_a_failure_that_leaves_the_others(sleeper, tmp_path):
    fast = Figures(sleeper("llama.cpp", step=0.001), Model(tmp_path))
    slow = Figures(sleeper("openvino", step=0.02), Model(tmp_path))
    falls = Figures(sleeper("vllm", falls_over=3), Model(tmp_path))
    told: list[Case] = []
    all_ = [fast, slow, falls]
    measure_warm(all_, [STEPS, MANY], ROOM, 2, tmp_path, told.append)
    assert told == [STEPS, MANY]
    assert [sorted(f.seconds) for f in all_] == [["many", "steps"], ["many", "steps"], ["steps"]]
    assert fast.seconds["steps"] < slow.seconds["steps"]
    assert len(slow.runs["many"]) == 2 and "out of chairs" in falls.failure
    assert falls.said["loaded"] > 0


def test_cold_starts_are_medians_after_one_that_does_not_count(sleeper, tmp_path):
    figures = Figures(sleeper("llama.cpp"), Model(tmp_path))
    measure_cold([figures], ROOM, 2, tmp_path)
    assert len(figures.runs["cold"]) == 2 and figures.cold == math.fsum(figures.runs["cold"]) / 2
    assert figures.peak_bytes and figures.peak_bytes > 1 << 20
