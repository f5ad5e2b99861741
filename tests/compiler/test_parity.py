"""The comparison of logits: its figures against ones worked out by hand, its verdicts, its
batches.
"""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from ferrule.compiler import verify
from ferrule.compiler.build import Options
from ferrule.compiler.errors import CompileError
from ferrule.compiler.parity import (
    TOLERANCES,
    Tolerance,
    built_rows,
    check,
    compare,
    compared_positions,
    computed_dtype,
    eager_rows,
    random_prompts,
    relative_error,
    text_prompts,
)
from ferrule.ir.graph import Graph
from ferrule.ir.node import input_
from ferrule.ir.ops import tensor as t
from ferrule.ir.types import TensorType
from ferrule.runtime.executor import Batch


def rows(*values: list[float]) -> dict[tuple[int, int], np.ndarray]:
    return {(0, i): np.array(v, np.float32) for i, v in enumerate(values)}


def test_figures_are_those_of_the_formulas():
    found = compare(rows([0.0, 1.0], [4.0, 0.0]), rows([0.5, 0.0], [4.0, 0.0]), 0.1)
    p = np.exp([0, 1]) / np.exp([0, 1]).sum()
    q = np.exp([0.5, 0]) / np.exp([0.5, 0]).sum()
    kl = float((p * np.log(p / q)).sum())
    assert found.positions == 2
    assert (found.top1, found.fair) == (0.5, 0.5)
    assert found.kl == pytest.approx(kl / 2, rel=1e-6)
    assert found.kl_largest == pytest.approx(kl, rel=1e-6)
    assert (found.error, found.relative, found.outliers) == (1.0, 1.0, 0.5)
    assert found.errors == (1.0, 0.0)


def test_a_best_token_that_is_nearly_eagers_is_fair():
    eager = rows([1.0, 0.9, 0.0], [1.0, 0.4, 0.0], [1.0, 0.2, 0.0])
    found = compare(eager, rows([0.9, 1.0, 0.0], [0.4, 1.0, 0.0], [0.2, 1.0, 0.0]), 10)
    assert (found.top1, found.fair) == (0.0, pytest.approx(2 / 3))
    check(found, "f32", Tolerance(10.0, 0.0, 1.0, fair=0.6))
    with pytest.raises(CompileError, match="half as likely to eager as its own, at least 70%"):
        check(found, "f32", Tolerance(10.0, 0.0, 1.0, fair=0.7))


def test_what_eager_departs_from_float32_by_comes_on_top_of_a_tolerance():
    wide, eager = rows([1.0, 0.0], [1.0, 0.0]), rows([1.0, 0.0], [0.4, 0.0])
    built = rows([1.0, 0.0], [1.0, 0.7])
    tolerance = Tolerance(0.1, 0.0, 0.02)
    found = compare(wide, built, 0.1)
    with pytest.raises(CompileError, match=r"KL(.|\n)*50% of positions"):
        check(found, "bf16", tolerance)
    beside = replace(found, own=compare(wide, eager, 0.1))
    check(beside, "bf16", tolerance)
    assert json.loads(json.dumps(beside.to_json()))["own"]["outliers"] == 0.5
    assert "from which eager departs too" in str(beside)


def test_forbidden_tokens_must_be_forbidden_by_both():
    low = float("-inf")
    same = compare(rows([low, 1.0, 2.0]), rows([low, 1.0, 2.0]), 0.1)
    assert (same.error, same.top1) == (0.0, 1.0)
    other = compare(rows([low, 1.0, 2.0]), rows([0.0, 1.0, 2.0]), 0.1)
    with pytest.raises(CompileError, match="departs from eager f32"):
        check(other, "f32")


@pytest.mark.parametrize("dtype", list(TOLERANCES))
def test_nan_is_never_within_tolerance(dtype: str):
    found = compare(rows([1.0, 2.0]), rows([float("nan"), 2.0]), TOLERANCES[dtype].relative)
    with pytest.raises(CompileError):
        check(found, dtype)


def test_a_small_departure_is_a_departure_in_float32_alone():
    eager = np.random.default_rng(1).normal(0, 2, 50).astype(np.float32)
    found = compare({(0, 0): eager}, {(0, 0): eager * 1.01}, TOLERANCES["f32"].relative)
    with pytest.raises(CompileError, match="100% of positions"):
        check(found, "f32")
    check(compare({(0, 0): eager}, {(0, 0): eager * 1.01}, TOLERANCES["bf16"].relative), "bf16")


def test_a_part_in_half_precision_decides_the_tolerance():
    x = input_(name="x", type=TensorType("f32", (3,)))
    plain, half = t.exp(x), t.cast(t.exp(t.cast(x, dtype="bf16")), dtype="f32")
    assert computed_dtype(Graph("g", (x,), (plain,)), "f32") == "f32"
    assert computed_dtype(Graph("g", (x,), (half,)), "f32") == "bf16"


def test_the_build_and_verify_judge_alike(monkeypatch):
    """A float32 model of which a part is in half precision."""
    x = input_(name="x", type=TensorType("f32", (3,)))
    step = Graph("g", (x,), (t.cast(t.exp(t.cast(x, dtype="bf16")), dtype="f32"),))
    built = SimpleNamespace(path=None, plan=None, manifest={"options": {}})
    monkeypatch.setattr(verify, "load", lambda _: built)
    monkeypatch.setattr(verify, "source_of", lambda *_: SimpleNamespace(dtype="f32"))
    monkeypatch.setattr(verify, "step_of", lambda _: step)
    monkeypatch.setattr(verify, "measure_parity", lambda *_: None)
    _, dtype, tolerance = verify.verify_artifact(Path())
    assert dtype == "f32"
    assert tolerance is Options().tolerance(step, "f32") is TOLERANCES["bf16"]


def test_relative_error_wants_the_same_shape_and_the_same_infinities():
    one = np.array([1.0, np.inf])
    assert relative_error(one, one) == 0.0
    assert relative_error(one, one[:1]) == float("inf")
    assert relative_error(one, np.array([np.inf, 1.0])) == float("inf")
    assert relative_error(np.array([2.0, 4.0]), np.array([2.0, 3.0])) == 0.25


def test_prompts_stay_within_the_limits():
    assert all(0 < len(p) <= 9 and max(p) < 5 for p in random_prompts(5, 9))
    prompts = text_prompts(lambda text: [len(w) for w in text.split()], 30, 6)
    assert [len(p) for p in prompts] == [6, 6, 6, 6]
    # A tokenizer that knows more tokens than the model: random ids instead.
    assert text_prompts(lambda text: [99], 30, 6) == random_prompts(30, 6)


class Echo:
    """A runner whose logits say which token and position it was asked for, and that checks its
    batches.
    """

    def __init__(self, max_batch: int, chunk: int) -> None:
        self.block, self.max_batch, self.chunk = 4, max_batch, chunk
        self.blocks = self.max_context = 1 << 20
        self.written: dict[int, tuple[int, int]] = {}

    def step(self, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        assert len(batch.tokens) <= self.chunk
        assert len(batch.context_length) <= self.max_batch
        for token, position, slot in zip(batch.tokens, batch.positions, batch.slots, strict=True):
            self.written[slot] = (token, position)
        logits = np.array([[batch.tokens[r], batch.positions[r]] for r in batch.logit_rows])
        for n, length in enumerate(batch.context_length):
            table = batch.block_table[n]
            assert batch.positions[batch.query_start[n + 1] - 1] == length - 1
            seen = [self.written[table[p // 4] * 4 + p % 4][1] for p in range(length)]
            assert seen == list(range(length))
        return logits[:, 0].astype(np.int32), logits.astype(np.float32)


@pytest.mark.parametrize(("max_batch", "chunk"), [(1, 3), (2, 5), (4, 64)])
def test_every_compared_position_is_computed_whatever_the_limits(max_batch: int, chunk: int):
    sequences = random_prompts(97, 40)
    found = built_rows(Echo(max_batch, chunk), sequences)
    assert list(found) == compared_positions(sequences)
    wanted = eager_rows(
        lambda ids, first: np.array([[t, p] for p, t in enumerate(ids)][first:]), sequences
    )
    assert all(np.array_equal(found[key], wanted[key]) for key in wanted)
