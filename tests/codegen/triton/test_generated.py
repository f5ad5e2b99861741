"""Generated kernels of the GPU: values against the reference through the interpreter, at odd sizes,
outputs poisoned; and their text.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ferrule.codegen.errors import CodegenError
from ferrule.codegen.triton.lower import lower
from ferrule.ir.dims import dim
from ferrule.ir.graph import Graph
from ferrule.ir.node import Node, item
from ferrule.ir.ops import model as m
from ferrule.ir.ops import quantized as q
from ferrule.ir.ops import recurrent as r
from ferrule.ir.ops import serving as s
from ferrule.ir.ops import tensor as t
from ferrule.ir.target import Target
from interpreted_kernels import Interpreted
from kernels import cache, given, state

T, N = dim("T"), dim("N")
BOUNDS = {"T": (1, 64), "N": (1, 8), "M": (1, 4)}
GOLDEN = Path(__file__).parent.parent / "golden"


def body(*outputs: Node) -> Graph:
    inputs = dict.fromkeys(
        n for o in Graph("x", (), outputs).nodes() for n in (o,) if n.op.name == "input"
    )
    return Graph("kernel", tuple(inputs), outputs, bounds=BOUNDS)


def _norms() -> Graph:
    x, r, w = given("x", "bf16", T, 48), given("r", "bf16", T, 48), given("w", "bf16", 48)
    total = t.add(x, r)
    return body(total, m.rms_norm(total, w, eps=1e-5))


def _softmax_topk() -> Graph:
    top = t.topk(t.softmax(given("x", "f32", T, 13), axis=1), k=3, axis=1)
    values = item(top, index=0)
    share = t.div(values, t.reduce_sum(values, axes=(1,), keepdims=True))
    return body(share, item(top, index=1))


def _rotary_append() -> Graph:
    k, cos = given("k", "f32", T, 2 * 14), given("cos", "f32", T, 1, 14)
    slots, held = given("slots", "i32", T), cache("c", "f32", 2, 14, block=4)
    heads = t.reshape(k, shape=(T, 2, 14))
    halves = (t.slice_(heads, axis=2, start=a, stop=a + 7) for a in (0, 7))
    low, high = halves
    turned = t.concat(t.neg(high), low, axis=2)
    return body(s.cache_append(held, t.add(t.mul(heads, cos), turned), slots))


def _many_ops() -> Graph:
    x, y = given("x", "f32", T, 5, 7), given("y", "f32", 7)
    values = [
        t.tanh(x), t.gelu(x, approximate="none"), t.gelu(x, approximate="tanh"), t.silu(x),
        t.maximum(x, y), t.round_(t.mul(x, y)), t.sign(x), t.softplus(x), t.erf(x),
        t.mod(x, t.add(t.abs_(y), t.scalar(0.5, "f32"))), t.cast(t.gt(x, y), dtype="f32"),
        t.where(t.lt(x, y), x, t.exp(y)), t.log1p(t.abs_(x)), t.expm1(x), t.sqrt(t.abs_(x)),
        t.pow_(t.abs_(x), y), t.sin(x), t.cos(x), t.reciprocal(x), t.relu(x),
    ]  # fmt: skip
    return body(*values)


def _movement() -> Graph:
    x, rows = given("x", "f32", T, 6, 5), given("rows", "i64", T)
    return body(
        t.transpose(x, permutation=(1, 0, 2)),
        t.pad(x, before=(0, 1, 2), after=(0, 0, 1), value=1.5),
        t.flip(t.slice_(x, axis=1, start=1, stop=6, step=2), axes=(1, 2)),
        t.take(x, rows, axis=0),
        t.broadcast(t.reshape(x, shape=(T, 1, 30)), shape=(T, 3, 30)),
    )


def _reductions() -> Graph:
    x = given("x", "f32", T, 6, 5)
    return body(
        t.reduce_sum(x, axes=(0,)),
        t.reduce_max(x, axes=(1, 2)),
        t.reduce_prod(x, axes=(1,)),
        t.argmax(x, axis=2),
        t.cumsum(x, axis=1),
        t.cumprod(x, axis=2),
        t.cummax(x, axis=1),
        t.logcumsumexp(t.mul(x, t.scalar(40.0, "f32")), axis=2),
        t.reduce_min(t.mul(x, x), axes=(2,), keepdims=True),
        t.sub(x, t.reduce_sum(x, axes=(1,), keepdims=True)),
    )


def _matmul() -> Graph:
    x, y = given("x", "bf16", 3, T, 10), given("y", "bf16", 3, 10, 17)
    return body(t.matmul(x, y))


def _gated() -> Graph:
    y = m.linear(given("x", "f32", T, 40), given("w", "f32", 2 * 37, 40))
    gate, up = (t.slice_(y, axis=1, start=a, stop=a + 37) for a in (0, 37))
    return body(t.mul(t.silu(gate), up))


def _residual() -> Graph:
    x, w, b, r = (
        given(n, "f32", *d)
        for n, d in zip("xwbr", ((T, 40), (21, 40), (21,), (T, 21)), strict=True)
    )
    return body(t.add(m.linear(x, w, b), r))


def _expert() -> Graph:
    x, w = given("x", "f32", T, 2, 20), given("w", "f32", 4, 18, 20)
    index, bias = given("index", "i64", T, 2), given("b", "f32", 4, 18)
    return body(m.expert_linear(x, w, index, bias))


def _expert_codes() -> Graph:
    """Codes in groups that no tile divides, and a gate."""
    x, codes = given("x", "f32", T, 2, 40), given("q", "u4", 4, 36, 5, 8)
    index, scale = given("index", "i32", T, 2), given("s", "bf16", 4, 36, 5)
    zeros, bias = given("z", "u8", 4, 36, 5), given("b", "f32", 4, 36)
    y = q.quantized_expert_linear(x, codes, scale, index, zeros, bias, offset=0)
    gate, up = (t.slice_(y, axis=2, start=a, stop=a + 18) for a in (0, 18))
    return body(t.mul(t.silu(gate), up))


def _expert_rows() -> Graph:
    """Codes of 8 bits with a scale a row, as int8 has them."""
    x, codes = given("x", "bf16", T, 1, 48), given("q", "u8", 4, 19, 1, 48)
    index, scale = given("index", "i64", T, 1), given("s", "f32", 4, 19, 1)
    return body(q.quantized_expert_linear(x, codes, scale, index, offset=128))


def _expert_floats() -> Graph:
    """Float8 with a scale a row, a bias, and a gate."""
    x, codes = given("x", "bf16", T, 2, 40), given("q", "f8e4m3", 4, 36, 1, 40)
    index, scale = given("index", "i32", T, 2), given("s", "f32", 4, 36, 1)
    y = q.quantized_expert_linear(x, codes, scale, index, given("b", "bf16", 4, 36), offset=0)
    gate, up = (t.slice_(y, axis=2, start=a, stop=a + 18) for a in (0, 18))
    return body(t.mul(t.silu(gate), up))


def _greedy() -> Graph:
    logits = t.cast(given("x", "bf16", T, 5000), dtype="f32")
    return body(logits, t.cast(t.argmax(logits, axis=1), dtype="i32"))


def _checked() -> Graph:
    """Rows by several programs, by one program's lanes and step by step; columns one by one."""
    long, short = given("long", "bf16", T, 5000), given("short", "f32", T, 40)
    many, tall = given("many", "f32", 3, N), given("tall", "f32", 7, T)
    places = [t.argmax(x, axis=1, checked=True) for x in (long, short, many)]
    return body(*places, t.argmax(tall, axis=0, checked=True))


BODIES = {
    "norms": _norms, "topk": _softmax_topk, "append": _rotary_append, "many": _many_ops,
    "movement": _movement, "reductions": _reductions, "matmul": _matmul, "gated": _gated,
    "residual": _residual, "expert": _expert, "expert_codes": _expert_codes,
    "expert_rows": _expert_rows, "expert_floats": _expert_floats, "greedy": _greedy,
    "checked": _checked,
}  # fmt: skip


@pytest.fixture(scope="module")
def interpreted():
    kernels = Interpreted({name: make() for name, make in BODIES.items()})
    yield kernels
    kernels.close()


CASES = [
    *((name, count) for name in BODIES for count in (1, 17)),
    # Experts have a form for rows of which several are of one expert.
    *((name, 50) for name in BODIES if name.startswith("expert")),
]


@pytest.mark.parametrize(("name", "count"), CASES)
def test_values_are_those_of_the_reference(interpreted: Interpreted, name: str, count: int):
    inputs = {
        "rows": torch.randint(0, count, (count,)),
        # Expert 2 has no rows.
        "index": lambda shape: torch.tensor([0, 1, 3])[torch.randint(0, 3, shape)],
        # One token writes nothing; the others stand in no order.
        "slots": torch.randperm(64)[:count].int() - (torch.arange(count) == 1).int() * 100,
    }
    if name == "append":
        inputs["c"] = torch.randn(16, 4, 2, 14)
    if name == "expert_rows":  # codes of 8 bits times other scales are rounded to bfloat16
        inputs["s"] = lambda shape: 2.0 ** torch.randint(-3, 4, shape)
    interpreted.check(name, inputs, T=count, C=16, N=1500)


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_a_checked_place_is_none_where_a_row_is_not_finite(interpreted: Interpreted, wrong: float):
    shapes = {"long": (5, 5000), "short": (5, 40), "many": (3, 1500), "tall": (7, 5)}
    inputs = {name: torch.randn(shape) for name, shape in shapes.items()}
    inputs["long"] = inputs["long"].bfloat16()
    for name, x in inputs.items():
        lines = x.T if name == "tall" else x
        lines[0, lines.shape[1] - 2] = wrong
        lines[1, :-1] = -torch.inf  # as of tokens that may not come
        lines[2] = -torch.inf
    interpreted.check("checked", inputs, T=5, N=1500)
    values = [inputs[str(i["name"])] for i in interpreted.bodies["checked"].inputs]
    for found in interpreted.run("checked", values, {"T": 5, "N": 1500}):
        assert found.tolist()[0] == found.tolist()[2] == -1 and found.tolist()[1] >= 0


def _scan(wide: bool, delta: bool) -> Graph:
    """Its decay is made where it is read; keys of length one where they are float32."""
    x, k = (given(n, "bf16", T, 1, 16) for n in "qk")
    v, g, rate = given("v", "bf16", T, 2, 16), given("g", "f32", T, 2, 1), given("a", "f32", 2, 1)
    batch = (given("starts", "i32", N + 1), given("source", "i32", N), given("target", "i32", N))
    if wide:
        x, k, v = (t.cast(each, dtype="f32") for each in (x, k, v))
        length = t.reduce_sum(t.mul(k, k), axes=(2,), keepdims=True)
        k = t.mul(k, t.rsqrt(t.add(length, t.scalar(1e-6, "f32"))))
    beta = (given("b", "bf16", T, 2),) if delta else ()
    decay = t.neg(t.mul(t.exp(rate), g))
    made = r.state_scan(x, k, v, decay, state("s", "f32", 2, 16, 16), *batch, *beta)
    return body(item(made, index=0), item(made, index=1))


SCANS = {
    f"{'wide' if wide else 'halves'}{'_delta' if delta else ''}": _scan(wide, delta)
    for wide in (False, True)
    for delta in (False, True)
}


def test_scans_of_halves_take_blocks_of_rows():
    """Sequences of a block and a rest, of a row, of one less than two blocks."""
    kernels = Interpreted({n: s for n, s in SCANS.items() if n != "halves_delta"})
    try:
        for name, scan in kernels.bodies.items():
            assert "BLOCK=BLOCK" in lower("k4_scan", scan, Target.parse("cuda:sm_90")).text, name
            inputs = {
                "starts": torch.tensor([0, 40, 41, 104]), "source": torch.tensor([2, -1, 0]),
                "target": torch.tensor([2, 3, 0]), "g": torch.rand(104, 2, 1),
                "b": torch.rand(104, 2).bfloat16(),
            }  # fmt: skip
            own = [str(i["name"]) for i in scan.inputs]
            kernels.check(name, {n: v for n, v in inputs.items() if n in own}, T=104, N=3, C=4)
    finally:
        kernels.close()


def test_the_delta_rule_goes_row_by_row_where_registers_do_not_hold_a_block():
    for name, target, blocks in (
        ("halves_delta", "cuda:sm_90", True), ("wide_delta", "cuda:sm_80", False),
        ("wide", "cuda:sm_80", True), ("wide", "rocm:gfx942", False),
        ("halves", "rocm:gfx942", True),
    ):  # fmt: skip
        text = lower("k4_scan", SCANS[name], Target.parse(target)).text
        assert ("BLOCK=BLOCK" in text) == blocks, (name, target)


def test_two_results_over_the_same_rows_share_a_program_and_its_loads():
    text = lower("k0_rows", _norms(), Target.parse("cuda:sm_90")).text
    assert text.count("@triton.jit") == 1
    assert text.count("tl.load(") == 3
    assert text == (GOLDEN / "triton_norms.py.txt").read_text()


def test_a_gate_is_fused_behind_its_linear():
    lowered = lower("k1_linear", _gated(), Target.parse("cuda:sm_90"))
    assert [f.most for f in lowered.forms] == [1, 64]
    assert all(len(f.starts) == 1 for f in lowered.forms)
    assert "PARTS=2" in lowered.text
    assert lowered.text == (GOLDEN / "triton_gated.py.txt").read_text()


def test_a_deterministic_target_has_one_form_for_every_number_of_rows():
    target = Target("cuda", "sm_90", deterministic=True)
    assert [f.most for f in lower("k1_linear", _gated(), target).forms] == [None]


def test_a_norm_of_heads_inside_a_flat_result_is_kept_whole_first():
    x = given("x", "f32", T, 4, 300)
    norm = m.rms_norm(x, eps=1e-5)
    flat = body(t.reshape(t.transpose(norm, permutation=(0, 2, 1)), shape=(T, 1200)))
    lowered = lower("k2_rows", flat, Target.parse("cuda:sm_90"))
    assert len(lowered.forms[0].starts) == 2
    assert len(lowered.scratch) == 1


def test_an_op_without_a_value_is_named():
    order = t.sort(given("x", "f32", T, 300), axis=1)
    with pytest.raises(CodegenError, match="sort of 300 among 300: at most 128"):
        lower("k3_rows", body(item(order, index=0)), Target.parse("cuda:sm_90"))
