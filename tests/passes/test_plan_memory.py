"""The plan: no two live buffers share a byte, the peak is what is used, caches are in place."""

from __future__ import annotations

import pytest
from ferrule.codegen.backend import cpu_backend
from ferrule.ir.dims import dim
from ferrule.ir.errors import IRError
from ferrule.ir.graph import Graph
from ferrule.ir.plan import Plan, evaluate_dim, tensor_bytes
from ferrule.ir.plan_dims import expression
from ferrule.ir.target import Target
from ferrule.ir.text import parse_graph
from ferrule.passes.buffers import Buffer, place_buffers
from ferrule.passes.cache_attention import CacheAttention
from ferrule.passes.group_kernels import GroupKernels
from ferrule.passes.layout_weights import LayoutWeights
from ferrule.passes.plan_memory import Planned, plan_memory
from ferrule.passes.select_logit_rows import SelectLogitRows
from ferrule.passes.split_preparation import split_preparation
from hypothesis import given
from hypothesis import strategies as st
from llama_graph import llama

BACKEND = cpu_backend(Target.parse("cpu:x86-64-v3"))


def planned(graph: Graph) -> Planned:
    graph = SelectLogitRows().run(CacheAttention(block=4).run(graph))
    step = split_preparation(LayoutWeights(BACKEND.layouts).run(graph)).step
    return plan_memory(GroupKernels(BACKEND.templates).run(step), limits={"max_batch": 4})


LLAMA = planned(llama(4))

intervals = st.lists(
    st.tuples(st.integers(0, 5000), st.integers(0, 12), st.integers(0, 6)), max_size=24
)


@given(intervals)
def test_no_two_live_buffers_share_a_byte(spans: list[tuple[int, int, int]]):
    buffers = [Buffer(i, size, a, a + n) for i, (size, a, n) in enumerate(spans)]
    place, size = place_buffers(buffers)
    for x in buffers:
        assert place[x.name] % 64 == 0 and place[x.name] + x.size <= size
        for y in buffers:
            if x.name < y.name and x.meets(y):
                apart = place[x.name] + x.aligned <= place[y.name]
                assert apart or place[y.name] + y.aligned <= place[x.name]
    most = max(
        (sum(b.aligned for b in buffers if b.first <= t <= b.last) for t in range(20)), default=0
    )
    assert most <= size <= sum(b.aligned for b in buffers)


def written(plan: Plan) -> list[tuple[int, int, int, int]]:
    """(call, first byte, end, shape's bytes) of every workspace argument of the decode entry."""
    found = []
    for at, call in enumerate(plan.entries["decode"].calls):
        for a in call.arguments:
            if a.kind == "workspace":
                size = tensor_bytes(a.dtype, plan.largest(a.shape))
                found.append((at, a.offset, a.offset + size, size))
    return found


def test_a_call_never_writes_over_what_it_or_a_later_call_reads():
    """Replay: every read finds the bytes as the call that made the value left them."""
    plan = LLAMA.plan
    owner: dict[int, tuple[int, int]] = {}  # first byte -> (end, writer)
    for at, call in enumerate(plan.entries["decode"].calls):
        results = len(LLAMA.kernels[call.kernel].body.outputs)
        caches = sum("cache" in str(o.type) for o in LLAMA.kernels[call.kernel].body.outputs)
        count = len(call.arguments) - (results - caches)
        spans = [
            (a.offset, a.offset + tensor_bytes(a.dtype, plan.largest(a.shape)))
            for a in call.arguments
            if a.kind == "workspace"
        ]
        reads = sum(a.kind == "workspace" for a in call.arguments[:count])
        for start, end in spans[:reads]:
            assert owner[start][0] == end, f"call {at} reads what is no longer there"
        for start, end in spans[reads:]:
            assert all(end <= s or e <= start for s, e in spans if (s, e) != (start, end))
            owner = {s: o for s, o in owner.items() if o[0] <= start or s >= end}
            owner[start] = (end, at)


def test_the_peak_is_predicted_and_reuse_saves_a_third():
    plan = LLAMA.plan
    assert max(end for _, _, end, _ in written(plan)) <= plan.workspace_bytes
    calls = plan.entries["decode"].calls
    bodies = [LLAMA.kernels[c.kernel].body for c in calls]
    without = sum(
        tensor_bytes(a.dtype, plan.largest(a.shape))
        for call, body in zip(calls, bodies, strict=True)
        for a in call.arguments[len(body.inputs) :]
        if a.kind == "workspace"
    )
    assert plan.workspace_bytes <= 0.7 * without


def test_both_entries_read_back_from_json():
    plan = LLAMA.plan
    assert Plan.from_json(plan.to_json()) == plan
    assert set(plan.entries) == {"decode", "mixed"} and plan.block == 4
    assert plan.token_bytes == 4 * 2 * 2 * 8 * 4
    assert plan.limits == {"max_batch": 4} and plan.dims["T"] == (1, 64)
    assert [s.name for s in plan.entries["mixed"].results] == ["logits", "argmax"]
    assert {s.name for s in plan.entries["mixed"].inputs} == {
        "tokens", "positions", "query_start", "context_length", "block_table", "slots",
        "logit_rows",
    }  # fmt: skip


def test_layers_and_rows_share_kernels():
    assert len(LLAMA.plan.entries["decode"].calls) > 30
    assert len(LLAMA.kernels) == 12
    assert LLAMA.plan.kernels() == tuple(LLAMA.kernels)


def test_calls_say_what_they_are_and_where_they_come_from():
    calls = LLAMA.plan.entries["decode"].calls
    first = next(c for c in calls if "silu" in c.ops)
    assert (first.ops, first.label) == ("packed_linear+silu+mul", "linear")
    assert first.origin == "layers.0.mlp (m.py:5)"


TAIL = """    return %0 as out
  }, template = "rows"} : cache<f32>[4; 2]"""
APPEND = """{body = graph append(%p0: cache<f32>[4; 2], %p1: f32[T, 2], %p2: i32[T]) {
    %0 = cache_append %p0 %p1 %p2 : cache<f32>[4; 2]
""" + TAIL  # fmt: skip


def caches(lines: str, results: str) -> Graph:
    return parse_graph(
        "graph g(%x: f32[T, 2], %slots: i32[T], %c: cache<f32>[4; 2]) where T in [1, 8] {\n"
        f"{lines}  return {results}\n}}\n".replace("APPEND", APPEND)
    )


def test_a_cache_may_be_appended_to_twice_in_order():
    graph = caches(
        f"  %a = kernel %c %x %slots {APPEND}\n  %b = kernel %a %x %slots {APPEND}\n", "%b as c"
    )
    plan = plan_memory(graph).plan
    arguments = [a for c in plan.entries["decode"].calls for a in c.arguments]
    assert [a.name for a in arguments if a.kind == "cache"] == ["c", "c"]


def test_a_cache_that_is_read_after_an_append_is_refused_with_both_places():
    other = APPEND.replace("graph append", "graph other")
    graph = caches(
        f"  %a = kernel %c %x %slots {APPEND}   from here (m.py:1)\n"
        f"  %b = kernel %c %x %slots {other}   from there (m.py:2)\n",
        "%a as a, %b as b",
    )
    with pytest.raises(IRError, match=r"c is appended to in place(.|\n)*m\.py:2(.|\n)*m\.py:1"):
        plan_memory(graph)


def test_an_older_cache_may_not_be_given_back():
    graph = caches(
        f"  %a = kernel %c %x %slots {APPEND}\n  %b = kernel %a %x %slots {APPEND}\n",
        "%a as a, %b as b",
    )
    with pytest.raises(IRError, match="output of the graph"):
        plan_memory(graph)


def test_an_op_in_no_kernel_is_refused():
    graph = parse_graph("graph g(%x: f32[2]) {\n  %y = neg %x : f32[2]\n  return %y as y\n}\n")
    with pytest.raises(IRError, match="neg is in no kernel"):
        plan_memory(graph)


def test_dims_become_plain_expressions():
    t, n = dim("T"), dim("N")
    for d in (3 * t * n, n + 1, (t + 15) // 16, 2 * t + 3, 7):
        value = evaluate_dim(expression(d), {"T": 37, "N": 5})
        assert value == (d if isinstance(d, int) else d.subs({t: 37, n: 5}))
    with pytest.raises(IRError, match="subtracts"):
        expression(t - 2)
