"""Reference values: an entry for every op, and the ops that torch has no word for by hand."""

import math

import ferrule.ir.ops  # noqa: F401 - declares the ops
import pytest
import sympy
import torch
from ferrule.compiler.reference import TABLE, evaluate
from ferrule.ir.dims import dim
from ferrule.ir.errors import IRError
from ferrule.ir.graph import Graph
from ferrule.ir.node import OPS, input_, parameter
from ferrule.ir.ops import model as m
from ferrule.ir.ops import serving as s
from ferrule.ir.ops import tensor as t
from ferrule.ir.types import CacheType, TensorType

T, N, M, C = (dim(n) for n in "TNMC")


def tensor_input(name: str, dtype: str, *shape):
    return input_(name=name, type=TensorType(dtype, shape))


def test_every_op_has_an_entry():
    assert set(OPS) - set(TABLE) == {"input", "parameter"}


def test_dims_are_read_off_inputs_and_checked():
    x = tensor_input("x", "f32", T, 2 * N)
    graph = Graph("g", (x,), (t.add(t.cast(t.dim_value(dim=T * N, dtype="i64"), dtype="f32"), x),))
    (value,) = evaluate(graph, [torch.zeros(3, 8)])
    assert value[0, 0] == 12
    with pytest.raises(IRError, match=r"input x: \[3, 7\]"):
        evaluate(graph, [torch.zeros(3, 7)])
    with pytest.raises(IRError, match="no value for input x"):
        evaluate(graph, {})


def test_what_is_computed_of_dims_need_not_be_whole():
    x = tensor_input("x", "f32", T)
    root = t.dim_value(dim=(T / 4 - 2) ** sympy.Float(0.5), dtype="f32")
    graph = Graph("g", (x,), (t.add(x, root),))
    assert evaluate(graph, [torch.zeros(17)])[0][0] == 1.5
    assert evaluate(graph, [torch.zeros(3)])[0].isnan().all()  # of no number there


def test_missing_and_misshapen_parameters_are_named():
    w = parameter(name="w", type=TensorType("f32", (2, 3)))
    graph = Graph("g", (), (t.neg(w),))
    with pytest.raises(IRError, match="'w'"):
        evaluate(graph, [], {})
    with pytest.raises(IRError, match=r"parameter w: \[3, 2\] given, f32\[2, 3\] wanted"):
        evaluate(graph, [], {"w": torch.zeros(3, 2)})


def test_wide_does_floats_in_float64():
    x = tensor_input("x", "bf16", 3)
    graph = Graph("g", (x,), (t.exp(t.cast(x, dtype="f32")),))
    given = torch.tensor([0.1, 1.0, 2.0], dtype=torch.bfloat16)
    (value,) = evaluate(graph, [given], wide=True)
    assert value.dtype == torch.float64
    torch.testing.assert_close(value, given.double().exp(), rtol=1e-15, atol=0)


def test_rms_norm_and_expert_linear_follow_their_formulas():
    x, w = torch.randn(5, 7), torch.randn(7)
    a, b = tensor_input("x", "f32", T, 7), tensor_input("w", "f32", 7)
    (value,) = evaluate(Graph("g", (a, b), (m.rms_norm(a, b, eps=1e-3, offset=1.0),)), [x, w])
    rms = (x.square().mean(-1, keepdim=True) + 1e-3).sqrt()
    torch.testing.assert_close(value, x / rms * (1 + w))
    e, c = tensor_input("e", "f32", 3, 4, 7), tensor_input("c", "f32", 3, 4)
    i = tensor_input("i", "i64", T)
    experts, bias, index = torch.randn(3, 4, 7), torch.randn(3, 4), torch.tensor([2, 0, 0, 1, 2])
    graph = Graph("g", (a, e, i, c), (m.expert_linear(a, e, i, c),))
    (value,) = evaluate(graph, [x, experts, index, bias])
    rows = [experts[k] @ x[n] + bias[k] for n, k in enumerate(index.tolist())]
    torch.testing.assert_close(value, torch.stack(rows))


def naive(
    q, k, v, start, *, scale, window=0, chunk=0, softcap=0.0, sinks=None, slopes=None, bias=None
):
    """Attention of one query row [H, D] at a position over keys [L, G, D], written out."""
    heads, groups = q.shape[0], k.shape[1]
    out = torch.zeros(heads, v.shape[-1])
    for h in range(heads):
        g = h * groups // heads
        scores = {}
        for j in range(k.shape[0]):
            seen = j <= start and (not window or start - j < window)
            if seen and (not chunk or start // chunk == j // chunk):
                score = scale * float(q[h] @ k[j, g])
                score = softcap * math.tanh(score / softcap) if softcap else score
                score += float(slopes[h]) * (j - start) if slopes is not None else 0.0
                score += (
                    float(bias[h, min(start - j, bias.shape[1] - 1)]) if bias is not None else 0.0
                )
                scores[j] = score
        total = sum(math.exp(x) for x in scores.values())
        total += math.exp(float(sinks[h])) if sinks is not None else 0.0
        for j, score in scores.items():
            out[h] += math.exp(score) / total * v[j, g]
    return out


OPTIONS = [{}, {"window": 3}, {"chunk": 4}, {"softcap": 2.0}]
EXTRAS = [(), ("sinks",), ("slopes",), ("bias", "sinks")]


def extra_values(extras):
    shapes = {"sinks": (4,), "slopes": (4,), "bias": (4, 5)}
    return {e: torch.randn(shapes[e]) for e in extras}


@pytest.mark.parametrize("extras", EXTRAS, ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_paged_attention_sees_what_its_blocks_hold(options, extras):
    lengths, fresh = [9, 6, 3], [2, 6, 1]
    rows = sum(fresh)
    block, heads, groups, size = 4, 4, 2, 5
    cache = torch.full((8, block, groups, size), float("nan"))
    table = torch.tensor([[5, 0, 7], [2, 6, 0], [1, 0, 0]], dtype=torch.int32)
    keys = [torch.randn(n, groups, size) for n in lengths]
    for n, length in enumerate(lengths):
        for p in range(length):
            cache[table[n, p // block], p % block] = keys[n][p]
    q = torch.randn(rows, heads, size)
    more = extra_values(extras)
    starts = torch.tensor([0, 2, 8, 9], dtype=torch.int32)
    context = torch.tensor(lengths, dtype=torch.int32)

    nodes = [
        tensor_input("q", "f32", T, heads, size),
        input_(name="cache", type=CacheType("f32", block, (groups, size))),
        tensor_input("table", "i32", N, M),
        tensor_input("starts", "i32", N + 1),
        tensor_input("context", "i32", N),
        *(tensor_input(e, "f32", *v.shape) for e, v in more.items()),
    ]
    query, pages, *rest = nodes
    attended = s.paged_attention(
        query, pages, pages, *rest, scale=0.4, value_start=1, value_size=3, extras=extras, **options
    )
    (value,) = evaluate(
        Graph("g", tuple(nodes), (attended,)), [q, cache, table, starts, context, *more.values()]
    )
    row = 0
    for n, count in enumerate(fresh):
        for i in range(count):
            position = lengths[n] - count + i
            wanted = naive(
                q[row], keys[n], keys[n][..., 1:4], position, scale=0.4, **options, **more
            )
            torch.testing.assert_close(value[row], wanted, rtol=1e-4, atol=1e-5)
            row += 1


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_ragged_attention_keeps_sequences_apart(options):
    q, k, v = torch.randn(9, 4, 5), torch.randn(9, 2, 5), torch.randn(9, 2, 3)
    starts = torch.tensor([0, 4, 4, 9], dtype=torch.int32)
    nodes = (
        tensor_input("q", "f32", T, 4, 5),
        tensor_input("k", "f32", T, 2, 5),
        tensor_input("v", "f32", T, 2, 3),
        tensor_input("starts", "i32", N + 1),
    )
    graph = Graph("g", nodes, (s.ragged_attention(*nodes, scale=0.4, **options),))
    (value,) = evaluate(graph, [q, k, v, starts])
    for first, last in ((0, 4), (4, 9)):
        for i in range(first, last):
            wanted = naive(q[i], k[first:last], v[first:last], i - first, scale=0.4, **options)
            torch.testing.assert_close(value[i], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("extras", [(), ("mask",), ("mask", "sinks"), ("slopes",)], ids=str)
def test_attention_of_a_batch_is_ragged_attention_of_its_rows(extras):
    q, k, v = torch.randn(2, 4, 6, 5), torch.randn(2, 2, 6, 5), torch.randn(2, 2, 6, 3)
    values = {
        "mask": torch.ones(6, 6).tril().bool(),
        "sinks": torch.randn(4),
        "slopes": torch.randn(4),
    }
    nodes = [tensor_input(n, "f32", *x.shape) for n, x in (("q", q), ("k", k), ("v", v))]
    more = [values[e] for e in extras]
    nodes += [
        tensor_input(e, "bool" if x.dtype == torch.bool else "f32", *x.shape)
        for e, x in zip(extras, more, strict=True)
    ]
    causal = "mask" not in extras
    made = m.attention(*nodes, scale=0.4, causal=causal, extras=extras)
    (value,) = evaluate(Graph("g", tuple(nodes), (made,)), [q, k, v, *more])
    named = {e: values[e] for e in extras if e != "mask"}
    for b in range(2):
        for i in range(6):
            wanted = naive(
                q[b, :, i], k[b].transpose(0, 1), v[b].transpose(0, 1), i, scale=0.4, **named
            )
            torch.testing.assert_close(value[b, :, i], wanted, rtol=1e-4, atol=1e-5)


def test_cache_append_writes_slots_and_skips_negative_ones():
    cache = input_(name="cache", type=CacheType("f32", 4, (3,)))
    value, slots = tensor_input("value", "f32", T, 3), tensor_input("slots", "i32", T)
    graph = Graph("g", (cache, value, slots), (s.cache_append(cache, value, slots),))
    before, rows = torch.zeros(2, 4, 3), torch.randn(3, 3)
    (after,) = evaluate(graph, [before, rows, torch.tensor([6, -1, 1], dtype=torch.int32)])
    assert not before.any()
    torch.testing.assert_close(after[1, 2], rows[0])
    torch.testing.assert_close(after[0, 1], rows[2])
    assert after.count_nonzero() == 6


@pytest.mark.parametrize("layout", ["n4", "n4k2"])
def test_packed_linear_is_linear(layout: str):
    x, w = torch.randn(3, 7), torch.randn(10, 7)
    columns, depth = 4, 2 if "k" in layout else 1
    padded = torch.nn.functional.pad(w, (0, -7 % depth, 0, 2))
    packed = padded.reshape(3, columns, -1, depth).transpose(1, 2)
    packed = packed if depth > 1 else packed[..., 0]
    a, b = tensor_input("x", "f32", T, 7), tensor_input("w", "f32", *packed.shape)
    graph = Graph("g", (a, b), (s.packed_linear(a, b, n=10, layout=layout),))
    torch.testing.assert_close(evaluate(graph, [x, packed])[0], x @ w.T)


def test_a_kernel_is_worth_its_body():
    a = tensor_input("a", "f32", T, 3)
    body = Graph("body", (a,), (t.neg(a), t.exp(a)))
    x = tensor_input("x", "f32", T, 3)
    both = s.kernel(x, body=body, template="rows")
    from ferrule.ir.node import item

    graph = Graph("g", (x,), (t.add(item(both, index=0), item(both, index=1)),))
    given = torch.randn(4, 3)
    torch.testing.assert_close(evaluate(graph, [given])[0], given.exp() - given)
