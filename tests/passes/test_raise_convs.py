"""Causal convolutions and delayed tokens, in the spellings that exports and people write."""

from __future__ import annotations

import pytest
from check import check_pass
from ferrule.ir.dims import dim
from ferrule.ir.graph import Graph
from ferrule.ir.node import Node, input_, parameter
from ferrule.ir.ops import tensor as t
from ferrule.ir.types import TensorType
from ferrule.passes.raise_convs import RaiseConvs

B, S = dim("B"), dim("S")
X = input_(name="x", type=TensorType("f32", (B, S, 6)))
ROWS = t.transpose(X, permutation=(0, 2, 1))
IDS = input_(name="ids", type=TensorType("i64", (B, S)))
HEADS = input_(name="h", type=TensorType("f32", (B, 3, S, 2)))
BEFORE = """
graph m(%x: f32[B, S, 6]) where B in [1, 3], S in [1, 9] {
  %0 = transpose %x {permutation = (0, 2, 1)} : f32[B, 6, S]
  %1 = parameter {name = "w"} : f32[6, 1, 3]
  %2 = parameter {name = "b"} : f32[6]
  %3 = conv1d %0 %1 %2 {padding = 2, groups = 6} : f32[B, 6, S + 2]
  %4 = slice %3 {axis = 2, start = 0, stop = S} : f32[B, 6, S]
  return %4 as y
}
"""
AFTER = """
graph m(%x: f32[B, S, 6]) where B in [1, 3], S in [1, 9] {
  %0 = parameter {name = "w"} : f32[6, 1, 3]
  %1 = reshape %0 {shape = (6, 3)} : f32[6, 3]
  %2 = causal_conv %x %1 : f32[B, S, 6]
  %3 = parameter {name = "b"} : f32[6]
  %4 = add %2 %3 : f32[B, S, 6]
  %5 = transpose %4 {permutation = (0, 2, 1)} : f32[B, 6, S]
  return %5 as y
}
"""


def test_a_convolution_that_pads_both_sides_and_is_cut():
    check_pass(RaiseConvs(), BEFORE, AFTER)


def test_what_is_put_before_and_cut_off_again_is_nothing():
    wide = t.pad(X, before=(0, 2, 0), after=(0, 0, 0), value=-9.0)
    graph = Graph("m", (X,), (t.slice_(wide, axis=1, start=2, stop=S + 2),))
    assert RaiseConvs().run(graph).outputs == (X,)


def weight(*shape: int) -> Node:
    return parameter(name="w", type=TensorType("f32", shape))


def part(x: Node, axis: int, start: object, stop: object) -> Node:
    return t.slice_(x, axis=axis, start=start, stop=stop)


def padded(x: Node, axis: int, before: int, after: int = 0) -> Node:
    sides = [tuple(n if i == axis else 0 for i in range(len(x.shape))) for n in (before, after)]
    return t.pad(x, before=sides[0], after=sides[1])


def zeros(*shape: object) -> Node:
    return t.broadcast(t.scalar(0.0, "f32"), shape=shape)


def conv(x: Node, *shape: int, cut: int = 0, **attributes: int) -> Node:
    return part(t.conv1d(x, weight(*shape), **attributes), 2, cut, S + cut)


CONVOLUTIONS: dict[str, Node] = {
    "zeros by pad": t.conv1d(padded(ROWS, 2, 2), weight(6, 1, 3), groups=6),
    "zeros by pad before the transpose": t.conv1d(
        t.transpose(padded(X, 1, 2), permutation=(0, 2, 1)), weight(6, 1, 3), groups=6
    ),
    "zeros joined": t.conv1d(t.concat(zeros(B, 6, 3), ROWS, axis=2), weight(6, 1, 4), groups=6),
    "both": conv(padded(ROWS, 2, 1), 6, 1, 3, padding=1, groups=6),
    "cut off again": conv(padded(ROWS, 2, 2), 6, 1, 3, padding=1, cut=1, groups=6),
    "tokens before the last": conv(ROWS, 6, 1, 3, padding=4, groups=6),
    "one tap": t.conv1d(ROWS, weight(6, 1, 1), groups=6),
    "dilated": conv(ROWS, 6, 1, 3, padding=4, dilation=2, groups=6),
    "several outputs a channel": conv(ROWS, 12, 1, 3, padding=2, groups=6),
    "all channels with all": conv(ROWS, 5, 6, 3, padding=2),
    "cut after a transpose and an activation": part(
        t.silu(
            t.transpose(t.conv1d(ROWS, weight(6, 1, 3), padding=2, groups=6), permutation=(0, 2, 1))
        ),
        1,
        0,
        S,
    ),
}
DELAYS: dict[str, Node] = {
    "cut, then padded": padded(part(X, 1, 0, S - 1), 1, 1),
    "padded, then cut": part(padded(X, 1, 2), 1, 0, S),
    "a negative pad": padded(X, 1, 1, -1),
    "joined": t.concat(zeros(B, 2, 6), part(X, 1, 0, S - 2), axis=1),
    "of heads": padded(part(HEADS, 2, 0, S - 1), 2, 1),
    "a window on zeros and tokens": part(padded(X, 1, 3, 2), 1, 1, S + 1),
    "padded by something else": t.pad(
        part(X, 1, 0, S - 1), before=(0, 1, 0), after=(0, 0, 0), value=1.0
    ),
    "behind rows of the model": t.concat(
        t.broadcast(weight(1, 2, 6), shape=(B, 2, 6)), part(X, 1, 0, S - 2), axis=1
    ),
    "token ids": padded(part(IDS, 1, 0, S - 1), 1, 1),
    "token ids, another id before them": part(
        t.pad(IDS, before=(0, 2), after=(0, 0), value=7), 1, 0, S
    ),
    "which ids are low": padded(part(t.lt(IDS, t.scalar(3, "i64")), 1, 0, S - 1), 1, 1),
}


def raised(y: Node) -> list[str]:
    inputs = ({2: IDS, 4: HEADS}.get(len(y.shape), X),)
    graph = Graph("m", inputs, (y,), bounds={"B": (1, 3), "S": (3, 9)})
    return [n.op.name for n in check_pass(RaiseConvs(), graph).nodes()]


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name: str):
    names = raised(CONVOLUTIONS[name])
    assert names.count("causal_conv") == 1
    assert "conv1d" not in names


@pytest.mark.parametrize("name", DELAYS)
def test_delays(name: str):
    names = raised(DELAYS[name])
    assert names.count("causal_conv") == 1
    assert not {"slice", "pad"} & set(names)


def test_whole_numbers_that_float32_does_not_hold_are_left():
    hashed = t.mul(IDS, t.scalar(1 << 22, "i64"))
    assert "causal_conv" not in raised(padded(part(hashed, 1, 0, S - 1), 1, 1))


LEFT: dict[str, Node] = {
    "reads the next token": conv(ROWS, 6, 1, 3, padding=1, groups=6),
    "every second token": t.conv1d(padded(ROWS, 2, 2), weight(6, 1, 3), groups=6, stride=2),
    "the next token": padded(part(X, 1, 1, S), 1, 0, 1),
    "zeros in place of the first token": padded(part(X, 1, 1, S), 1, 1),
    "zeros in place of the last tokens": padded(part(X, 1, 0, S - 2), 1, 1, 1),
    "taps of what is padded by something else": t.conv1d(
        t.pad(ROWS, before=(0, 0, 2), after=(0, 0, 0), value=1.0), weight(6, 1, 3), groups=6
    ),
    "groups of channels": conv(ROWS, 6, 3, 3, padding=2, groups=2),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_is_no_causal_convolution_is_left(name: str):
    assert "causal_conv" not in raised(LEFT[name])
