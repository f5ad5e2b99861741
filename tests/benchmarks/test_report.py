"""Rates and shares of a report are those of the medians."""

import sys
from pathlib import Path

import pytest
from ferrule.compiler.hardware import Hardware

from benchmarks.cases import CASES, Shape
from benchmarks.checkpoints import LLAMA_1B
from benchmarks.models import Model
from benchmarks.report import Group, as_json, notes, progress, table_head, table_rows
from benchmarks.rounds import Figures
from benchmarks.stacks import STACKS, Installed

CHOSEN = [CASES["pp512"], CASES["tg128"]]
LIMITS = {"cpu": Hardware("cpu", 40e9, {"f32": 0.5e12, "bf16": 4e12, "i8": 8e12})}


def figures(name: str, **given) -> Figures:
    return Figures(Installed(STACKS[name], sys.executable), Model(Path()), **given)


def group(form: str, *all_: Figures) -> Group:
    return Group("llama-1b", Shape.of(LLAMA_1B), form, 5, LIMITS, all_)


def test_a_row_tells_rates_and_shares():
    timed = figures("ferrule", seconds={"pp512": 0.5, "tg128": 12.8}, cold=1.5, peak_bytes=3 << 30)
    (row,) = table_rows(group("bf16", timed), CHOSEN)
    # 2.47 GB of weights and a little cache at 40 GB/s: 62 ms a token; 1.0 TFLOP at 4 TFLOP/s.
    assert row == "| bf16 | ferrule | 1024.0 (51%) | 10.0 (62%) | 1.50 s | 3.00 GiB |"
    head, rule = table_head(CHOSEN)
    assert head.count("|") == rule.count("|") == row.count("|")


def test_fewer_bits_have_a_higher_limit():
    timed = figures("ferrule", seconds={"tg128": 12.8})
    tg128 = CASES["tg128"]
    ratio = group("bf16", timed).share(timed, tg128) / group("int4", timed).share(timed, tg128)
    assert ratio == pytest.approx(16 / 4.25, rel=0.01)


def test_what_failed_is_a_dash_and_told_by_name():
    failed = figures("vllm", seconds={"pp512": 1.0}, failure="vllm ended with 1: no memory")
    (row,) = table_rows(group("bf16", failed), CHOSEN)
    assert row.startswith("| bf16 | vllm | 512.0 (") and row.endswith("| - | - | - |")
    assert "  FAILED: vllm ended with 1: no memory" in notes(group("bf16", failed))


def test_progress_names_the_stacks_that_have_a_figure():
    timed = figures("ferrule", seconds={"tg128": 2.0})
    assert progress([timed, figures("vllm")], CASES["tg128"]) == "tg128: ferrule 64.0"


def test_every_run_is_kept():
    timed = figures("ferrule", seconds={"tg128": 2.0}, runs={"tg128": [1.0, 2.0, 3.0]})
    found = as_json(group("int8", timed))
    assert found["stacks"]["ferrule"]["runs"] == {"tg128": [1.0, 2.0, 3.0]}
    assert found["limits"]["cpu"]["read_bandwidth"] == 40e9
