"""The rule of each op: every op has one or is known to mix tokens."""

from __future__ import annotations

import ferrule.ir.ops
from ferrule.ir.node import OPS
from ferrule.passes.token_rules import RULES, elementwise, mixes, reduction, rule_for

assert ferrule.ir.ops


class _Probe:
    """Just enough of a node to ask for its rule."""

    def __init__(self, op):
        self.op = op


def test_every_tensor_op_that_is_no_leaf_has_a_rule():
    ops = [o for o in OPS.values() if o.family == "tensor" and not o.has("leaf")]
    without = [o.name for o in ops if rule_for(_Probe(o)) is mixes and o.name != "conv1d"]
    assert not without


def test_families_share_a_rule():
    assert rule_for(_Probe(OPS["gelu"])) is elementwise
    assert rule_for(_Probe(OPS["argmax"])) is reduction
    assert rule_for(_Probe(OPS["paged_attention"])) is mixes
    assert RULES["layer_norm"] is RULES["rms_norm"]
