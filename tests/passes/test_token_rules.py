"""The rule of each op: every op has one or is known to mix tokens."""

from __future__ import annotations

from typing import cast

import ferrule.ir.ops
from ferrule.ir.node import OPS, Node, Op
from ferrule.passes.token_rules import RULES, elementwise, mixes, reduction, rule_for

assert ferrule.ir.ops


class _Probe:
    """Just enough of a node to ask for its rule."""

    def __init__(self, op: Op) -> None:
        self.op = op


def rule_of(op: Op) -> object:
    """The rule that a node of this op has."""
    return rule_for(cast("Node", _Probe(op)))


def test_every_tensor_op_that_is_no_leaf_has_a_rule():
    ops = [o for o in OPS.values() if o.family == "tensor" and not o.has("leaf")]
    without = [o.name for o in ops if rule_of(o) is mixes and o.name != "conv1d"]
    assert not without


def test_families_share_a_rule():
    assert rule_of(OPS["gelu"]) is elementwise
    assert rule_of(OPS["argmax"]) is reduction
    assert rule_of(OPS["paged_attention"]) is mixes
    assert RULES["layer_norm"] is RULES["rms_norm"]
