"""Leading axes regrouped: by shape here, by value in test_raise_attention."""

from __future__ import annotations

import pytest
from ferrule.ir.dims import dim
from ferrule.ir.node import Node, input_
from ferrule.ir.ops import tensor as t
from ferrule.ir.types import TensorType
from ferrule.passes.batch_frames import best_target, groups, key_heads, moved

B, S = dim("B"), dim("S")


def of(*shape: object) -> Node:
    return input_(name="x", type=TensorType("f32", shape))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("frame", "target", "wanted"),
    [
        ((B, 4), (B, 4), [(0, 1, 0, 1), (1, 2, 1, 2)]),
        ((4 * B,), (B, 4), [(0, 1, 0, 2)]),
        ((B, 2, 2), (B, 4), [(0, 1, 0, 1), (1, 3, 1, 2)]),
        ((B,), (B, 1), [(0, 1, 0, 1), (1, 1, 1, 2)]),
        ((B, 3), (B, 4), None),
    ],
)
def test_groups(frame: tuple[object, ...], target: tuple[object, ...], wanted: object):
    assert groups(frame, target) == wanted  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("shape", "frame", "target", "wanted"),
    [
        ((4 * B, S, S), (4 * B,), (B, 4), (B, 4, S, S)),
        ((S, S), (4 * B,), (B, 4), (1, 1, S, S)),
        ((B, 1, 1, S, S), (B, 2, 2), (B, 4), (B, 1, S, S)),
        ((2, 1, S, S), (B, 2, 2), (B, 4), (1, 4, S, S)),
        ((B, S, 5), (B,), (B, 1), (B, 1, S, 5)),
    ],
)
def test_moved(shape: object, frame: object, target: object, wanted: object):
    result = moved(of(*shape), frame, target)  # type: ignore[misc, arg-type]
    assert result is not None and result.shape == wanted


@pytest.mark.parametrize(
    ("shape", "frame", "wanted"),
    [
        ((B, 2, 1, S, 5), (B, 2, 2), (B, 2, S, 5)),
        ((B, 1, 2, S, 5), (B, 2, 2), (B, 4, S, 5)),
        ((B, 1, S, 5), (B, 4), (B, 1, S, 5)),
        ((4, S, 5), (B, 4), (B, 4, S, 5)),
        ((4 * B, S, 5), (4 * B,), (B, 4, S, 5)),
    ],
)
def test_key_heads(shape: object, frame: object, wanted: object):
    result = key_heads(of(*shape), frame, (B, 4))  # type: ignore[misc, arg-type]
    assert result is not None and result.shape == wanted


def test_best_target():
    assert best_target([(4 * B,), (B, 4)], []) == (B, 4)
    assert best_target([(B, 2, 2)], []) == (B, 4)
    folded = t.reshape(of(B, 4, S, 6), shape=(4 * B, S, 6))
    assert best_target([(4 * B,)], [folded]) == (B, 4)
    assert best_target([(B,)], [of(B, S, 6)]) == (B, 1)
    assert best_target([()], [of(S, 6)]) == (1, 1)
