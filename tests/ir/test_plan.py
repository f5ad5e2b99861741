import json

import pytest
from ferrule.ir.plan import (
    Argument,
    CacheSpec,
    Call,
    Entry,
    Plan,
    PlanError,
    TensorSpec,
    evaluate_dim,
    tensor_bytes,
)
from hypothesis import given
from hypothesis import strategies as st

TEXT = {
    "format": 1,
    "dims": {"T": [1, 8], "N": [1, 4]},
    "entries": {
        "decode": {
            "calls": [
                {
                    "kernel": "k0",
                    "arguments": [
                        {"kind": "input", "name": "tokens", "dtype": "i32", "shape": ["T"]},
                        {"kind": "weight", "name": "w", "dtype": "i4", "shape": [3, 5]},
                        {"kind": "cache", "name": "kv", "dtype": "bf16", "shape": ["C", 16, 2]},
                        {
                            "kind": "workspace",
                            "dtype": "f32",
                            "shape": [["*", 2, "T"]],
                            "offset": 64,
                        },
                        {"kind": "result", "name": "logits", "dtype": "f32", "shape": ["T", 7]},
                    ],
                    "origin": "model.layers.0 (m.py:1)",
                    "ops": "linear+add",
                }
            ]
        }
    },
    "caches": [{"name": "kv", "dtype": "bf16", "entry": [2]}],
    "block": 16,
    "workspace_bytes": 128,
    "limits": {"max_context": 64},
}


def read(**changes):
    return Plan.from_json(json.dumps({**TEXT, **changes}))


def with_argument(**fields):
    argument = {"kind": "workspace", "dtype": "f32", "shape": [1], **fields}
    return {"decode": {"calls": [{"kernel": "k", "arguments": [argument]}]}}


def test_what_is_written_reads_back():
    plan = read()
    assert Plan.from_json(plan.to_json()) == plan
    spec = TensorSpec("x", "f32", ("N", ("//", ("+", "T", 3), 2)))
    made = Plan(
        entries={
            "main": Entry((Call("k", (Argument("input", "x", 0, "f32", spec.shape),)),), (spec,))
        },
        dims={"N": (1, 3), "T": (0, 9)},
        caches=(CacheSpec("c", "f8e4m3", (4, 64)),),
    )
    assert Plan.from_json(made.to_json()) == made


def test_memory_is_counted_to_the_byte():
    plan = read()
    assert plan.weight_bytes == 3 * 3
    assert plan.token_bytes == 4
    assert plan.block_bytes == 64
    assert plan.sequences_that_fit(64 * 10, 17) == 5
    assert plan.sequences_that_fit(63, 1) == 0
    assert plan.kernels() == ("k0",)
    assert tensor_bytes("f32", ()) == 4
    assert tensor_bytes("i2", (2, 5)) == 4


def test_the_signature_is_listed_or_found():
    entry = read().entries["decode"]
    assert entry.signature("input") == (TensorSpec("tokens", "i32", ("T",)),)
    assert entry.signature("result") == (TensorSpec("logits", "f32", ("T", 7)),)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "plan.format: given 2, this version reads 1"),
        ({"blok": 3}, "plan: no field 'blok'; did you mean 'block'?"),
        ({"block": -1}, "plan.block: wanted an integer, 0 or more, given -1"),
        ({"block": True}, "plan.block: wanted an integer"),
        ({"dims": {"T": [3, 1]}}, r"plan.dims: wanted \[least, greatest\] for 'T'"),
        ({"limits": {"a": "b"}}, "plan.limits: wanted an object of integers"),
        ({"entries": []}, "plan.entries: wanted an object, given \\[\\]"),
        ({"entries": {"e": {}}}, "entries.e.calls: wanted a list, given nothing"),
        ({"caches": [{"name": "kv", "dtype": "bf16", "entry": ["T"]}]}, "a list of integers"),
        ({"entries": with_argument(kind="wieght")}, "kind: wanted one of input, weight"),
        (
            {"entries": with_argument(kind="weight")},
            r"\(k\).arguments\[0\].name: wanted a name",
        ),
        ({"entries": with_argument(dtype="f31")}, "dtype: wanted one of f64"),
        ({"entries": with_argument(shape=[["-", 1, 2]])}, "shape: wanted dims"),
        ({"entries": with_argument(shape=["Q"])}, "dim 'Q' is not one of C, N, T"),
        ({"entries": with_argument(offset=8)}, "offset: wanted a multiple of 64, given 8"),
        ({"entries": with_argument(shape=["T", 8])}, "ends at byte 256 of a workspace of 128"),
        ({"entries": with_argument(kind="cache", name="x")}, "no cache 'x'; the plan has kv"),
    ],
)
def test_errors_say_where_what_was_given_and_what_was_wanted(changes, message):
    with pytest.raises(PlanError, match=message):
        read(**changes)


def test_text_that_is_no_plan():
    for text in ("", "{", "[]", "3"):
        with pytest.raises(PlanError, match="plan: "):
            Plan.from_json(text)


OPERATORS = {
    "*": lambda a, b: a * b,
    "+": lambda a, b: a + b,
    "max": max,
    "min": min,
}


@st.composite
def expressions(draw, depth=3):
    """A dim expression and its value at T = 5, N = 3."""
    if depth == 0 or draw(st.booleans()):
        name = draw(st.sampled_from(["T", "N", None]))
        number = draw(st.integers(0, 100))
        return (number, number) if name is None else (name, {"T": 5, "N": 3}[name])
    operator = draw(st.sampled_from(sorted(OPERATORS)))
    left, right = draw(expressions(depth=depth - 1)), draw(expressions(depth=depth - 1))
    return (operator, left[0], right[0]), OPERATORS[operator](left[1], right[1])


@given(expressions())
def test_dims_evaluate(case):
    expression, value = case
    assert evaluate_dim(expression, {"T": 5, "N": 3}) == value


def test_a_dim_without_a_value_is_named():
    assert evaluate_dim(("//", "T", 2), {"T": 7}) == 3
    with pytest.raises(PlanError, match="dim 'Q' has no value; given: T"):
        evaluate_dim(("+", "Q", 1), {"T": 7})
    with pytest.raises(PlanError, match="no dim operator 'pow'"):
        evaluate_dim(("pow", 1, 1), {})
