"""Scans in the spellings of people: recognized by their values, whatever the graph looks like."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from check import check_pass
from ferrule.compiler.capture import capture
from ferrule.compiler.evaluator import part_runner
from ferrule.compiler.import_aten import import_captured
from ferrule.compiler.pipeline import raising
from ferrule.compiler.reference import evaluate
from ferrule.ir.text import parse_graph
from ferrule.passes.base import run_passes
from ferrule.passes.raise_scans import RaiseScans
from ferrule.passes.scan_roles import NoScanError, find_roles
from models.recurrent import SPELLINGS

BEFORE = """
graph m(%ids: i64[B, S]) where B in [1, 3], S in [1, 9] {
  %0 = parameter {name = "q"} : f32[11, 3]
  %1 = take %0 %ids {axis = 0} : f32[B, S, 3]
  %2 = parameter {name = "k"} : f32[11, 3]
  %3 = take %2 %ids {axis = 0} : f32[B, S, 3]
  %4 = parameter {name = "v"} : f32[11, 5]
  %5 = take %4 %ids {axis = 0} : f32[B, S, 5]
  %6 = transpose %3 {permutation = (0, 2, 1)} : f32[B, 3, S]
  %7 = matmul %1 %6 : f32[B, S, S]
  %8 = iota {size = S, dtype = "i64"} : i64[S]
  %9 = reshape %8 {shape = (S, 1)} : i64[S, 1]
  %10 = le %8 %9 : bool[S, S]
  %11 = constant {value = 0.0, dtype = "f32"} : f32[]
  %12 = where %10 %7 %11 : f32[B, S, S]
  %13 = matmul %12 %5 : f32[B, S, 5]
  return %13 as y
}
"""
AFTER = """
graph m(%ids: i64[B, S]) where B in [1, 3], S in [1, 9] {
  %0 = parameter {name = "q"} : f32[11, 3]
  %1 = take %0 %ids {axis = 0} : f32[B, S, 3]
  %2 = reshape %1 {shape = (B, S, 1, 3)} : f32[B, S, 1, 3]
  %3 = parameter {name = "k"} : f32[11, 3]
  %4 = take %3 %ids {axis = 0} : f32[B, S, 3]
  %5 = reshape %4 {shape = (B, S, 1, 3)} : f32[B, S, 1, 3]
  %6 = parameter {name = "v"} : f32[11, 5]
  %7 = take %6 %ids {axis = 0} : f32[B, S, 5]
  %8 = reshape %7 {shape = (B, S, 1, 5)} : f32[B, S, 1, 5]
  %9 = constant {value = 0.0, dtype = "f32"} : f32[]
  %10 = broadcast %9 {shape = (B, S, 1, 1)} : f32[B, S, 1, 1]
  %11 = linear_scan %2 %5 %8 %10 : f32[B, S, 1, 5]
  %12 = reshape %11 {shape = (B, S, 5)} : f32[B, S, 5]
  return %12 as y
}
"""


def test_scores_without_a_softmax():
    check_pass(RaiseScans(part_runner({})), BEFORE, AFTER)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("le %8 %9", "ge %8 %9"),
        ("%13 = matmul %12 %5", "%14 = exp %12 : f32[B, S, S]\n  %13 = matmul %14 %5"),
        ("where %10 %7 %11", "where %10 %7 %7"),
        ("where %10 %7 %11", "where %10 %20 %11"),
        ("where %10 %7 %11", "where %10 %21 %11"),
    ],
    ids=["reads later tokens", "bent scores", "reads all tokens", "no less than 0", "a most"],
)
def test_what_is_no_scan_is_left(old: str, new: str):
    bent = """  %20 = relu %7 : f32[B, S, S]
  %22 = constant {value = 500.0, dtype = "f32"} : f32[]
  %21 = minimum %7 %22 : f32[B, S, S]
  %12 = """
    graph = parse_graph(BEFORE.replace(old, new).replace("  %12 = ", bent))
    assert check_pass(RaiseScans(part_runner({})), graph) == graph


@pytest.mark.parametrize(("window", "is_scan"), [(300, False), (600, True)])
def test_a_window_that_a_long_sequence_shows_is_no_scan(window: int, is_scan: bool):
    near = f"""  %14 = sub %9 %8 : i64[S, S]
  %15 = constant {{value = {window}, dtype = "i64"}} : i64[]
  %16 = lt %14 %15 : bool[S, S]
  %17 = logical_and %10 %16 : bool[S, S]
  %12 = where %17 %7 %11"""
    text = BEFORE.replace("  %12 = where %10 %7 %11", near).replace("[1, 9]", "[1, 600]")
    after = RaiseScans(part_runner({})).run(parse_graph(text))
    assert ("linear_scan" in [n.op.name for n in after.nodes()]) == is_scan


@pytest.mark.parametrize("name", SPELLINGS)
def test_spellings(name: str):
    torch.manual_seed(0)
    model = SPELLINGS[name]().eval()
    imported = import_captured(capture(model, max_context=400))
    weights = {p["name"]: imported.weights[p["name"]] for p in imported.graph.parameters()}
    after = run_passes(imported.graph, raising(part_runner(weights)))
    names = [n.op.name for n in after.nodes()]
    assert names.count("linear_scan") == (2 if name == "running sums" else 1)
    assert not {"cumsum", "cumprod"} & set(names)
    for length in (1, 6, 43):
        ids = torch.randint(0, 31, (2, length))
        (given,) = evaluate(after, [ids], weights)
        torch.testing.assert_close(given, model(ids), rtol=1e-5, atol=1e-5)


def recurrence(q, k, v, g, beta):
    """The gated delta rule, token by token: q, k [B, S, K], v[B, S, H, V], g and beta [B, S, H]."""
    state, rows = np.zeros((len(v), v.shape[2], k.shape[2], v.shape[3])), []
    for t in range(v.shape[1]):
        state = state * np.exp(g[:, t])[..., None, None]
        held = np.einsum("bhkv,bk->bhv", state, k[:, t])
        new = beta[:, t, :, None] * (v[:, t] - held)
        state = state + k[:, t, None, :, None] * new[:, :, None]
        rows.append(np.einsum("bhkv,bk->bhv", state, q[:, t]))
    return np.stack(rows, 1)


def test_the_roles_of_a_delta_rule():
    roles = find_roles(lambda x: recurrence(*x), [(5,), (5,), (3, 4), (3,), (3,)])
    assert (roles.queries, roles.keys, roles.numbers) == ((0,), (1,), (2,))
    assert (roles.decay, roles.beta, roles.is_delta) == (3, (4,), True)
    assert (roles.heads, roles.values, roles.rows) == ((0,), (1,), 5)


def test_heads_in_groups_and_in_an_order_of_their_own():
    def groups(order: str):
        def probe(x):
            k = np.repeat(x[0], 2, axis=2) if order == "groups" else np.tile(x[0], (1, 1, 2))
            return np.cumsum(k * x[1], axis=1)

        return probe

    roles = find_roles(groups("groups"), [(3,), (6,)])
    assert [axis.repeat for mark in roles.marks for axis in mark.axes] == [2, 1]
    with pytest.raises(NoScanError, match="order of their own"):
        find_roles(groups("tiles"), [(3,), (6,)])


def test_later_tokens_are_refused():
    with pytest.raises(NoScanError, match="depends on later tokens"):
        find_roles(lambda x: x[0][:, ::-1], [(3,)])


LOGARITHM = """
graph m(%ids: i64[B, S]) where B in [1, 3], S in [1, 9] {
  %0 = parameter {name = "q"} : f32[11, 6]
  %1 = take %0 %ids {axis = 0} : f32[B, S, 6]
  %2 = reshape %1 {shape = (B, S, 2, 3)} : f32[B, S, 2, 3]
  %3 = parameter {name = "g"} : f32[11, 2]
  %4 = take %3 %ids {axis = 0} : f32[B, S, 2]
  %5 = exp %4 : f32[B, S, 2]
  %6 = reshape %5 {shape = (B, S, 2, 1)} : f32[B, S, 2, 1]
  %7 = log %6 : f32[B, S, 2, 1]
  %8 = broadcast %7 {shape = (B, S, 2, 3)} : f32[B, S, 2, 3]
  %9 = linear_scan %2 %2 %2 %8 : f32[B, S, 2, 3]
  return %9 as y
}
"""


def test_the_logarithm_of_a_decay_that_is_an_exponential():
    after = check_pass(RaiseScans(), LOGARITHM)
    names = [n.op.name for n in after.nodes()]
    assert "exp" not in names and "log" not in names
    other = check_pass(RaiseScans(), LOGARITHM.replace("= exp %4", "= sigmoid %4"))
    assert "log" in [n.op.name for n in other.nodes()]
