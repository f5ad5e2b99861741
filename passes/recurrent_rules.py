"""How convolutions, scans, loops and contexts are done on flattened values: each sequence apart,
in ragged form.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..ir.node import Node
from ..ir.ops import contexts, loops, recurrent, tensor
from .token_values import (
    Axis,
    B,
    MixesTokensError,
    S,
    TokenValue,
    as_token,
    merged,
    tidy,
)

Operand = TokenValue | Node
Rule = Callable[[Node, Sequence[Operand], Node], TokenValue]


def conv(node: Node, operands: Sequence[Operand], query_start: Node) -> TokenValue:
    """causal_conv over [B, S, C] as ragged_conv over [T, C]."""
    x, w = _tokens(node, operands[0]), operands[1]
    if isinstance(w, TokenValue):
        raise MixesTokensError(f"{node.op.name} wants a constant weight, not one of each token")
    taps = tensor.transpose(w, permutation=(1, 0))
    if w.shape[1] == 1:  # no token before
        return tidy(tensor.mul(x, taps), _axes(node))
    return tidy(recurrent.ragged_conv(x, taps, query_start), _axes(node))


def scan(node: Node, operands: Sequence[Operand], query_start: Node) -> TokenValue:
    """linear_scan over [B, S, heads, size] as ragged_scan over [T, heads, size]."""
    q, k, v, decay, *beta = (_tokens(i, x) for i, x in zip(node.inputs, operands, strict=True))
    return tidy(recurrent.ragged_scan(q, k, v, decay, query_start, *beta), _axes(node))


def loop(node: Node, operands: Sequence[Operand], query_start: Node) -> TokenValue:
    """token_loop over [B, S, ...] as ragged_loop over [T, ...]."""
    count: int = node["tokens"]
    given = [_tokens(i, x) for i, x in zip(node.inputs, operands[:count], strict=False)]
    rest = [x for x in operands[count:] if isinstance(x, Node)]
    if len(rest) != len(operands) - count:
        raise MixesTokensError(
            "the states that a loop begins with, and what its step reads beside the token's own "
            "values, are the same for every sequence; one of them depends on tokens or positions"
        )
    made = loops.ragged_loop(*given, query_start, *rest, **node.attributes)
    return tidy(made, _axes(node))


def context(node: Node, operands: Sequence[Operand], query_start: Node) -> TokenValue:
    """token_context over [B, S, ...] as ragged_context over [T, ...]."""
    count = int(node["own"] + node["seen"])
    given = [_tokens(i, x) for i, x in zip(node.inputs, operands[:count], strict=False)]
    rest = [x for x in operands[count:] if isinstance(x, Node)]
    assert len(rest) == len(operands) - count, f"{node!r} reads tokens where constants stand"
    made = contexts.ragged_context(*given, query_start, *rest, **node.attributes)
    return tidy(made, _axes(node))


def _axes(node: Node) -> tuple[Axis, ...]:
    return ((B,), (S,), *((d,) for d in node.shape[2:]))


def _tokens(of: Node, operand: Operand) -> Node:
    """An operand [B, S, numbers...] stored as [T, numbers...], one dim an axis."""
    value = operand if isinstance(operand, TokenValue) else as_token(operand)
    if any(a not in ((t,), ()) for a, t in zip(value.axes[:2], (B, S), strict=True)):
        raise MixesTokensError(f"{of.op.name} of axes {value.axes}, not batch, length, numbers")
    for axis in range(2, len(value.axes)):
        value = merged(value, axis)
    return value.node


RULES: dict[str, Rule] = {
    "causal_conv": conv,
    "linear_scan": scan,
    "token_loop": loop,
    "token_context": context,
}
"""By op; a rule gets the batch's query_start beside the op's own operands."""
