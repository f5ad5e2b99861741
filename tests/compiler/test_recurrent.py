"""Reference values of the recurrent ops, beside their formulas written another way."""

import pytest
import torch
from ferrule.compiler.reference import evaluate
from ferrule.ir.graph import Graph
from ferrule.ir.node import input_
from ferrule.ir.ops import recurrent as r
from ferrule.ir.types import TensorType


def value_of(made, *tensors):
    """What an op gives for tensors in order, in the dtypes they have."""
    names = {torch.float32: "f32", torch.float64: "f64", torch.bfloat16: "bf16"}
    inputs = tuple(
        input_(name=f"i{n}", type=TensorType(names[t.dtype], tuple(t.shape)))
        for n, t in enumerate(tensors)
    )
    (value,) = evaluate(Graph("g", inputs, (made(*inputs),)), list(tensors))
    return value


@pytest.mark.parametrize(("length", "taps"), [(1, 4), (3, 4), (9, 3), (5, 1)])
def test_a_causal_convolution_is_torchs_with_zeros_in_front(length, taps):
    x, w = torch.randn(2, length, 5), torch.randn(5, taps)
    padded = torch.nn.functional.pad(x.transpose(1, 2), (taps - 1, 0))
    wanted = torch.nn.functional.conv1d(padded, w[:, None], groups=5).transpose(1, 2)
    torch.testing.assert_close(value_of(r.causal_conv, x, w), wanted)


def operands(decays, heads=4, groups=2, k=6, v=5, length=7):
    """q, k, v, log_decay and beta of two sequences, in float64."""
    q, keys = (torch.randn(2, length, groups, k).double() for _ in range(2))
    decay = -torch.rand(2, length, heads, decays).double()
    beta = torch.rand(2, length, heads).double()
    return q, keys, torch.randn(2, length, heads, v).double(), decay, beta


@pytest.mark.parametrize("decays", [1, 6])
def test_a_scan_is_attention_with_decayed_scores(decays):
    q, k, v, g, _ = operands(decays)
    total = g.cumsum(1).expand(-1, -1, -1, 6)
    a, b = (x.repeat_interleave(2, dim=2) for x in (q, k))
    scores = torch.einsum("bthk,bshk->bhts", a * total.exp(), b * (-total).exp()).tril()
    wanted = torch.einsum("bhts,bshv->bthv", scores, v)
    torch.testing.assert_close(value_of(r.linear_scan, q, k, v, g), wanted)


@pytest.mark.parametrize("decays", [1, 6])
def test_the_delta_rule_reflects_the_state_before_it_adds(decays):
    q, k, v, g, beta = operands(decays)
    wanted = torch.zeros_like(v)
    for b in range(2):
        for h in range(4):
            state = torch.zeros(6, 5).double()
            for t in range(7):
                key = k[b, t, h // 2]
                turn = torch.eye(6).double() - beta[b, t, h] * torch.outer(key, key)
                decayed = g[b, t, h].expand(6).exp().diag() @ state
                state = turn @ decayed + beta[b, t, h] * torch.outer(key, v[b, t, h])
                wanted[b, t, h] = q[b, t, h // 2] @ state
    torch.testing.assert_close(value_of(r.linear_scan, q, k, v, g, beta), wanted)


def test_a_scan_of_rounded_values_keeps_its_state_in_float32():
    q, k, v, g, _ = operands(1, length=40)
    rounded = [x.bfloat16() for x in (q, k, v)]
    value = value_of(r.linear_scan, *rounded, g.float())
    wanted = value_of(r.linear_scan, *(x.double() for x in rounded), g)
    assert value.dtype == torch.bfloat16
    torch.testing.assert_close(value, wanted.float().bfloat16(), rtol=1e-2, atol=1e-5)
