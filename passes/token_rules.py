"""How each op of a captured graph is done on flattened values: one rule an op, or an error that it
mixes tokens.

A rule gets the node and its operands (a TokenValue, or a Node where the operand is constant) and
gives the TokenValue.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

from ..ir.dims import Dim, equal, product
from ..ir.node import Node
from ..ir.node import item as item_of
from ..ir.ops import model, selection, serving, tensor
from .token_values import (
    Axis,
    B,
    MixesTokensError,
    S,
    T,
    TokenValue,
    aligned,
    aligned_constant,
    as_token,
    common_axes,
    factors_of,
    is_token,
    merged,
    numbers_of,
    permuted,
    regroup,
    reshaped,
    spread,
    tidy,
)

Operand = TokenValue | Node
Rule = Callable[[Node, Sequence[Operand]], TokenValue]


def elementwise(node: Node, operands: Sequence[Operand]) -> TokenValue:
    """The op on operands brought to one set of factors."""
    what = node.op.name
    values = [v for v in operands if isinstance(v, TokenValue)]
    axes = common_axes(values, [v.shape for v in operands if isinstance(v, Node)], what)
    values = [_refined(v, axes, what) for v in values]
    fixed = iter(values)
    inputs = tuple(
        aligned(next(fixed), axes) if isinstance(v, TokenValue) else aligned_constant(v, axes, what)
        for v in operands
    )
    return tidy(node.op.build(inputs, node.attributes), axes)


def _refined(value: TokenValue, axes: Sequence[Axis], what: str) -> TokenValue:
    """The value with its factors split as finely as those of `axes`."""
    shift = len(axes) - len(value.axes)
    own = tuple(axes[i + shift] if axis else axis for i, axis in enumerate(value.axes))
    if own == value.axes:
        return value
    kept = tuple(
        tuple(f for f in mine if not is_token(f) or f in axis)
        for mine, axis in zip(own, value.axes, strict=True)
    )
    if not equal(product(numbers_of(kept)), product(value.numbers())):
        raise MixesTokensError(
            f"{what} puts {value.axes} beside {tuple(axes)}: the factors do not fit"
        )
    return TokenValue(reshaped(value.node, (T, *numbers_of(kept))), kept)


def reshape(node: Node, operands: Sequence[Operand]) -> TokenValue:
    """Factors regrouped."""
    return regroup(_token(operands[0]), node["shape"], "reshape")


def transpose(node: Node, operands: Sequence[Operand]) -> TokenValue:
    """Axes in another order; batch and length cost nothing."""
    return permuted(_token(operands[0]), node["permutation"])


def broadcast(node: Node, operands: Sequence[Operand]) -> TokenValue:
    """New numbers are repeated; batch or length are what a value has anyway."""
    value = _token(operands[0])
    shift = len(node.shape) - len(value.axes)
    axes: list[Axis] = []
    for at, d in enumerate(node.shape):
        axis = value.axes[at - shift] if at >= shift else ()
        axes.append(axis or _new_axis(d))
    if sum(a.count(S) for a in axes) > 1 or sum(a.count(B) for a in axes) > 1:
        raise MixesTokensError("broadcast repeats tokens beside each other")
    return spread(value, axes)


def _new_axis(d: Dim) -> Axis:
    factors = factors_of(d)
    if factors is None:
        raise MixesTokensError(f"broadcast makes an axis of {d}")
    return factors


def slice_(node: Node, operands: Sequence[Operand]) -> TokenValue:
    """A part of a number's range."""
    value, axis = _number_axis(node, operands[0])
    cut = node.op.build((value.node,), {**node.attributes, "axis": value.position(axis)})
    return tidy(cut, _with_axis(value, axis, node.shape[axis]))


def concat(node: Node, operands: Sequence[Operand]) -> TokenValue:
    """Parts along a number, the other axes brought to the same factors."""
    axis, what = int(node["axis"]), node.op.name
    values = [v if isinstance(v, TokenValue) else as_token(v) for v in operands]
    whole = [merged(v, axis) for v in values]
    axes = common_axes([_dropped(v, axis) for v in whole], [], what)
    parts = [
        spread(
            _refined(v, _patched(axes, axis, v.axes[axis]), what),
            _patched(axes, axis, v.axes[axis]),
        )
        for v in whole
    ]
    joined = tensor.concat(*(p.node for p in parts), axis=parts[0].position(axis))
    return tidy(joined, _patched(axes, axis, (node.shape[axis],)))


def _dropped(value: TokenValue, axis: int) -> TokenValue:
    return TokenValue(value.node, _patched(value.axes, axis, ()))


def _patched(axes: Sequence[Axis], axis: int, new: Axis) -> tuple[Axis, ...]:
    return (*axes[:axis], new, *axes[axis + 1 :])


def pad(node: Node, operands: Sequence[Operand]) -> TokenValue:
    """Constants around numbers; an axis with batch or length may not be padded."""
    value = _token(operands[0])
    padded = [
        i
        for i, (b, a) in enumerate(zip(node["before"], node["after"], strict=True))
        if (b, a) != (0, 0)
    ]
    for axis in padded:
        if value.is_token_axis(axis):
            raise MixesTokensError("pad shifts tokens")
        value = merged(value, axis)
    before, after = [0] * len(value.node.shape), [0] * len(value.node.shape)
    for axis in padded:
        before[value.position(axis)], after[value.position(axis)] = (
            node["before"][axis],
            node["after"][axis],
        )
    wide = tensor.pad(value.node, before=tuple(before), after=tuple(after), value=node["value"])
    axes = tuple((node.shape[i],) if i in padded else axis for i, axis in enumerate(value.axes))
    return tidy(wide, axes)


def flip(node: Node, operands: Sequence[Operand]) -> TokenValue:
    """Numbers in reverse."""
    value = _token(operands[0])
    for axis in node["axes"]:
        if value.is_token_axis(axis):
            raise MixesTokensError("flip turns the tokens around")
        value = merged(value, axis)
    return tidy(
        tensor.flip(value.node, axes=tuple(value.position(a) for a in node["axes"])), value.axes
    )


def reduction(node: Node, operands: Sequence[Operand]) -> TokenValue:
    """A reduction over numbers; dims of 1 are left out."""
    value = _token(operands[0])
    axes = node["axes"] if "axes" in node.attributes else (node["axis"],)
    for axis in axes:
        if value.is_token_axis(axis):
            raise MixesTokensError(f"{node.op.name} runs over the tokens")
        value = merged(value, axis)
    stored = tuple(value.position(a) for a in axes)
    which = {"axes": stored} if "axes" in node.attributes else {"axis": stored[0]}
    result = node.op.build((value.node,), {**node.attributes, **which, "keepdims": False})
    kept = [() if i in axes else axis for i, axis in enumerate(value.axes)]
    if not node["keepdims"]:
        kept = [axis for i, axis in enumerate(kept) if i not in axes]
    return tidy(result, kept)


def along_axis(node: Node, operands: Sequence[Operand]) -> TokenValue:
    """softmax and what runs along an axis: along a number."""
    value, axis = _number_axis(node, operands[0])
    return tidy(
        node.op.build((value.node,), {**node.attributes, "axis": value.position(axis)}), value.axes
    )


def several_results(node: Node, operands: Sequence[Operand]) -> TokenValue:
    """topk, sort: along a number; the axes are those of either result."""
    value, axis = _number_axis(node, operands[0])
    result = node.op.build((value.node,), {**node.attributes, "axis": value.position(axis)})
    size = int(node["k"]) if node.op is tensor.topk else value.axes[axis][0]
    return TokenValue(result, _with_axis(value, axis, size))


def item(node: Node, operands: Sequence[Operand]) -> TokenValue:
    """One of several results."""
    value = _token(operands[0])
    return tidy(item_of(value.node, index=node["index"]), value.axes)


def take(node: Node, operands: Sequence[Operand]) -> TokenValue:
    """Rows of a constant by token indices (embedding), or fixed numbers of a token value."""
    x, index = operands
    axis = int(node["axis"])
    if isinstance(x, Node) and isinstance(index, TokenValue):
        return _take_constant(x, index, axis)
    if isinstance(x, TokenValue) and isinstance(index, Node):
        if x.is_token_axis(axis):
            raise MixesTokensError("take picks other tokens")
        value = merged(x, axis)
        taken = tensor.take(value.node, index, axis=value.position(axis))
        return tidy(
            taken, (*value.axes[:axis], *((d,) for d in index.shape), *value.axes[axis + 1 :])
        )
    return _take_own(_token(x), _token(index), axis)


def _take_constant(x: Node, index: TokenValue, axis: int) -> TokenValue:
    taken = tensor.take(x, index.node, axis=axis)  # x[:axis] + [T, numbers...] + x[axis + 1:]
    order = (axis, *range(axis), *range(axis + 1, len(taken.shape)))
    moved = tensor.transpose(taken, permutation=order) if axis else taken
    sides = [(d,) for d in x.shape]
    return tidy(moved, (*sides[:axis], *index.axes, *sides[axis + 1 :]))


def _take_own(x: TokenValue, index: TokenValue, axis: int) -> TokenValue:
    """Each token's own numbers by its own indices, as a take_along over axes made equal."""
    value = merged(x, axis)
    before, after = numbers_of(value.axes[:axis]), numbers_of(value.axes[axis + 1 :])
    if value.is_token_axis(axis) or any(
        is_token(f) for a in index.axes for f in a if f not in (B, S)
    ):
        raise MixesTokensError("take picks other tokens")
    count = product(index.numbers())
    flat = reshaped(index.node, (T, *(1 for _ in before), count, *(1 for _ in after)))
    wide = tensor.broadcast(flat, shape=(T, *before, count, *after))
    taken = tensor.take_along(value.node, wide, axis=value.position(axis))
    own = [tuple(f for f in a if not is_token(f)) for a in index.axes]
    axes = (*value.axes[:axis], *own, *value.axes[axis + 1 :])
    return tidy(reshaped(taken, (T, *numbers_of(axes))), axes)


def take_along(node: Node, operands: Sequence[Operand]) -> TokenValue:
    """Gather along a number, x and index on the same tokens."""
    axis = int(node["axis"])
    x, index = (merged(_as_token(v), axis) for v in operands)
    axes = common_axes([_dropped(x, axis), _dropped(index, axis)], [], "take_along")
    x = spread(x, _patched(axes, axis, x.axes[axis]))
    index = spread(index, _patched(axes, axis, index.axes[axis]))
    taken = tensor.take_along(x.node, index.node, axis=x.position(axis))
    return tidy(taken, index.axes)


def scatter(node: Node, operands: Sequence[Operand]) -> TokenValue:
    """Scatter along a number, x, index and source on the same tokens."""
    axis = int(node["axis"])
    x, index, source = (merged(_as_token(v), axis) for v in operands)
    axes = common_axes([_dropped(v, axis) for v in (x, index, source)], [], "scatter")
    x, index, source = (spread(v, _patched(axes, axis, v.axes[axis])) for v in (x, index, source))
    result = tensor.scatter(
        x.node, index.node, source.node, axis=x.position(axis), reduce=node["reduce"]
    )
    return tidy(result, x.axes)


def linear(node: Node, operands: Sequence[Operand]) -> TokenValue:
    """A constant weight on the last axis."""
    value = merged(_token(operands[0]), len(node.shape) - 1)
    weights = _constants(node, operands[1:])
    axes = (*value.axes[:-1], (node.shape[-1],))
    return tidy(model.linear(value.node, *weights), axes)


def norm(node: Node, operands: Sequence[Operand]) -> TokenValue:
    """A norm over the last axis with constant weights."""
    value = merged(_token(operands[0]), len(node.shape) - 1)
    weights = _constants(node, operands[1:])
    return tidy(node.op.build((value.node, *weights), node.attributes), value.axes)


def expert_linear(node: Node, operands: Sequence[Operand]) -> TokenValue:
    """Each row by its own expert's weights."""
    last = len(node.shape) - 1
    x = merged(_token(operands[0]), last)
    index = _token(operands[2])
    axes = common_axes(
        [_dropped(x, last), TokenValue(index.node, (*index.axes, ()))], [], "expert_linear"
    )
    x = spread(x, (*axes[:-1], x.axes[last]))
    index = spread(_refined(index, axes[:-1], "expert_linear"), axes[:-1])
    weights = _constants(node, (operands[1], *operands[3:]))
    result = model.expert_linear(x.node, weights[0], index.node, *weights[1:])
    return tidy(result, (*axes[:-1], (node.shape[last],)))


def conv1d(node: Node, operands: Sequence[Operand]) -> TokenValue:
    """A convolution inside each token, whose channels and length are numbers."""
    value = _token(operands[0])
    if value.is_token_axis(1) or value.is_token_axis(2):
        mixes(node, operands)
    value = merged(merged(value, 1), 2)
    weights = _constants(node, operands[1:])
    *lead, channels, length = value.node.shape
    rows = reshaped(value.node, (product(lead), channels, length))
    made = node.op.build((rows, *weights), node.attributes)
    axes = (value.axes[0], *((d,) for d in made.shape[1:]))
    return tidy(reshaped(made, (*lead, *made.shape[1:])), axes)


def matmul(node: Node, operands: Sequence[Operand]) -> TokenValue:
    """A token value by a constant matrix, a constant by a token value, or a product inside each
    token."""
    x, y = operands
    if isinstance(y, Node):
        return _matmul_constant(node, _token(x), y)
    if isinstance(x, Node):
        swapped = _matmul_constant(node, _swapped(y), _transposed(x))
        return _swapped(swapped)
    return _matmul_own(node, x, y)


def _swapped(value: TokenValue) -> TokenValue:
    rank = len(value.axes)
    return permuted(value, (*range(rank - 2), rank - 1, rank - 2))


def _transposed(node: Node) -> Node:
    rank = len(node.shape)
    return tensor.transpose(node, permutation=(*range(rank - 2), rank - 1, rank - 2))


def _matmul_constant(node: Node, x: TokenValue, y: Node) -> TokenValue:
    rank = max(len(x.axes), len(y.shape))
    x = TokenValue(x.node, (*((),) * (rank - len(x.axes)), *x.axes))
    x = merged(x, rank - 1)
    batch = (*(1 for _ in range(rank - len(y.shape))), *y.shape[:-2])
    n = y.shape[-1]
    if all(d == 1 for d in batch):
        w = _transposed(reshaped(y, y.shape[-2:]))
        return tidy(model.linear(x.node, w), (*x.axes[:-1], (n,)))
    return _batched_constant(x, y, batch)


def _batched_constant(x: TokenValue, y: Node, batch: Sequence[Dim]) -> TokenValue:
    """x[T, batch, rows, K] by y[batch, K, N]: batch first, then T and the rows as the rows of one
    product."""
    if len([d for d in batch if d != 1]) != 1:
        raise MixesTokensError(f"a product by a constant {y.type} with several batch axes")
    at = next(i for i, d in enumerate(batch) if d != 1)
    if x.is_token_axis(at):
        raise MixesTokensError(f"each token of the batch axis meets its own constant of {y.type}")
    x = merged(x, at)
    size = y.shape[at - len(batch) + len(y.shape) - 2]
    stored = x.position(at)
    lead = [i for i in range(len(x.node.shape) - 1) if i != stored]
    first = tensor.transpose(x.node, permutation=(stored, *lead, len(x.node.shape) - 1))
    rows = product(first.shape[1:-1])
    flat = reshaped(first, (first.shape[0], rows, first.shape[-1]))
    out = tensor.matmul(flat, reshaped(y, (size, *y.shape[-2:])))  # [batch, T rows, N]
    wide = reshaped(out, (size, *first.shape[1:-1], out.shape[-1]))
    back = [1 + lead.index(i) if i != stored else 0 for i in range(len(x.node.shape) - 1)]
    moved = tensor.transpose(wide, permutation=(*back, len(wide.shape) - 1))
    axes = (*x.axes[:at], (size,), *x.axes[at + 1 : -1], (out.shape[-1],))
    return tidy(moved, axes)


def _matmul_own(node: Node, x: TokenValue, y: TokenValue) -> TokenValue:
    """A product inside each token: batch and length are among the batch axes of both."""
    rank = max(len(x.axes), len(y.axes))
    x = TokenValue(x.node, (*((),) * (rank - len(x.axes)), *x.axes))
    y = TokenValue(y.node, (*((),) * (rank - len(y.axes)), *y.axes))
    for value in (x, y):
        if value.is_token_axis(rank - 1) or value.is_token_axis(rank - 2):
            raise MixesTokensError("matmul multiplies tokens with tokens")
    x, y = (merged(merged(v, rank - 1), rank - 2) for v in (x, y))
    lead = common_axes([TokenValue(v.node, (*v.axes[:-2], (), ())) for v in (x, y)], [], "matmul")[
        :-2
    ]
    xs, ys = (aligned(v, (*lead, *v.axes[-2:])) for v in (x, y))
    return tidy(tensor.matmul(xs, ys), (*lead, x.axes[-2], y.axes[-1]))


def attention(node: Node, operands: Sequence[Operand], query_start: Node) -> TokenValue:
    """Attention over [B, H, S, D] as ragged attention over [T, H, D]."""
    if "mask" in node["extras"]:
        raise MixesTokensError("attention has a mask that no pass described")
    heads = [_heads(_token(v), what) for v, what in zip(operands[:3], "qkv", strict=True)]
    extras = [
        _token(v).node if word == "selected" else _constants(node, (v,))[0]
        for word, v in zip(node["extras"], operands[3:], strict=True)
    ]
    result = serving.ragged_attention.build((*heads, query_start, *extras), node.attributes)
    return tidy(result, ((B,), (node.shape[1],), (S,), (node.shape[3],)))


def _heads(value: TokenValue, what: str) -> Node:
    """[B, H, S, D] stored as [T, H, D], whatever H and D are made of."""
    if (value.axes[0], value.axes[2]) not in (((B,), (S,)), ((), (S,))):
        raise MixesTokensError(
            f"attention's {what} has axes {value.axes}, not batch, heads, length, depth"
        )
    return merged(merged(value, 1), 3).node


def selected_keys(node: Node, operands: Sequence[Operand], query_start: Node) -> TokenValue:
    """The selection from q[B, S, H, D], k[B, S, D], weights[B, S, H] as one over ragged rows."""
    if len(operands) > 3 or not node["causal"]:
        raise MixesTokensError(
            f"{node.op.name} has a mask that no pass described, or picks tokens that come later"
        )
    values = [_token(v) for v in operands]
    for value, what in zip(values, ("q", "k", "weights"), strict=True):
        if value.axes[:2] != ((B,), (S,)):
            raise MixesTokensError(f"the indexer's {what} has axes {value.axes}, not batch, length")
    q, k, weights = values
    q, weights = merged(merged(q, 2), 3), merged(weights, 2)
    k = reshaped(merged(k, 2).node, (T, 1, node.inputs[1].shape[2]))
    made = selection.ragged_selected_keys(q.node, k, weights.node, query_start, **node.attributes)
    return TokenValue(made, ((B,), (S,), (node["count"],)))


def mixes(node: Node, operands: Sequence[Operand]) -> TokenValue:
    """An op that reads other tokens and has no serving form."""
    raise MixesTokensError(f"{node.op.name} reads other tokens and has no serving form")


def _token(operand: Operand) -> TokenValue:
    assert isinstance(operand, TokenValue), operand
    return operand


def _as_token(operand: Operand) -> TokenValue:
    return operand if isinstance(operand, TokenValue) else as_token(operand)


def _constants(node: Node, operands: Sequence[Operand]) -> list[Node]:
    for value in operands:
        if isinstance(value, TokenValue):
            raise MixesTokensError(
                f"{node.op.name} wants a constant weight, not one that depends on tokens"
            )
    return [cast("Node", v) for v in operands]


def _number_axis(node: Node, operand: Operand) -> tuple[TokenValue, int]:
    value, axis = _token(operand), int(node["axis"])
    if value.is_token_axis(axis):
        raise MixesTokensError(f"{node.op.name} runs along the tokens")
    return merged(value, axis), axis


def _with_axis(value: TokenValue, axis: int, size: Dim) -> tuple[Axis, ...]:
    return _patched(value.axes, axis, (size,))


RULES: dict[str, Rule] = {
    "reshape": reshape,
    "transpose": transpose,
    "broadcast": broadcast,
    "slice": slice_,
    "concat": concat,
    "pad": pad,
    "flip": flip,
    "softmax": along_axis,
    "cumsum": along_axis,
    "cumprod": along_axis,
    "cummax": along_axis,
    "logcumsumexp": along_axis,
    "topk": several_results,
    "sort": several_results,
    "item": item,
    "take": take,
    "take_along": take_along,
    "scatter": scatter,
    "linear": linear,
    "rms_norm": norm,
    "layer_norm": norm,
    "expert_linear": expert_linear,
    "matmul": matmul,
    "conv1d": conv1d,
}


def rule_for(node: Node) -> Rule:
    """The rule of a node's op; an op with no rule is one that mixes tokens."""
    if node.op.has("elementwise"):
        return elementwise
    return reduction if node.op.has("reduction") else RULES.get(node.op.name, mixes)
