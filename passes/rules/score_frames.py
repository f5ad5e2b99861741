"""Scores in other orders of axes than [batch, heads, queries, keys], brought to that one.

    [S, H, L] beside one key for all heads, [S H, L] for the product, [2 H, S, L] cut in two

What a model moves between the product of queries and keys, the softmax and the product with values
are leading axes alone: the moves go through to the queries, the keys and the mask. Of a sum of
products one product is made, and of weights that are a sum of softmaxes a sum of attentions.
"""

from __future__ import annotations

from ...ir.dims import Dim, equal_shapes, names_in
from ...ir.node import Node
from ...ir.ops import model
from ...ir.ops import tensor as t
from ...ir.rewrite import Rules, hole
from .values import reshaped, spread

SCORE_FRAMES = Rules("score frames")
x, y = hole("x"), hole("y")


def _is_moved(node: Node) -> bool:
    return node.op in (t.transpose, t.slice_, t.reshape)


@SCORE_FRAMES.on(hole("root", _is_moved))
def moved_softmax(root: Node) -> Node | None:
    """move(softmax(z)) = softmax(move(z)), where the axis of the keys stays the last and whole."""
    inner = root.inputs[0]
    rank = len(inner.shape)
    if inner.op is t.cast:
        made = _moved_weights(root, inner.inputs[0])
        return None if made is None else t.cast(made, dtype=root.dtype)
    return _moved_weights(root, inner) if inner.op is t.softmax and rank > 2 else None


def _moved_weights(root: Node, softmax: Node) -> Node | None:
    rank = len(softmax.shape)
    if softmax.op is not t.softmax or softmax["axis"] != rank - 1 or not _of_scores(softmax):
        return None
    if not _keeps_keys(root):
        return None
    scores = _through(softmax.inputs[0], root)
    return None if scores is None else t.softmax(scores, axis=len(scores.shape) - 1)


def _of_scores(node: Node) -> bool:
    """Whether a node compares tokens: two of its axes follow the length."""
    return sum(bool(names_in(d)) for d in node.shape) > 1


def _keeps_keys(root: Node) -> bool:
    """Whether a move leaves the last axis as it is."""
    rank = len(root.inputs[0].shape)
    if root.op is t.transpose:
        # Of the last two axes alone: that is the product's own matter.
        return root["permutation"][-1] == rank - 1
    if root.op is t.slice_:
        return root["axis"] < rank - 2
    # One that joins queries and heads is the second product's (product_of_joined_rows).
    return equal_shapes(root.shape[-2:], root.inputs[0].shape[-2:])


def _through(node: Node, move: Node) -> Node | None:
    """What a move makes of scores, done to what they are made of; None where it does not pass."""
    if node.op is t.matmul:
        return _moved_product(node, move)
    if node.op is t.transpose and move.op is t.transpose:
        inner: tuple[int, ...] = node["permutation"]
        outer: tuple[int, ...] = move["permutation"]
        order = tuple(inner[p] for p in outer)
        bare = node.inputs[0]
        return bare if order == tuple(range(len(order))) else None
    if not node.op.has("elementwise"):
        return None
    operands: list[Node] = []
    for value in node.inputs:
        made = _through(value, move) if _of_scores(value) and _product_in(value) else None
        made = _moved_beside(value, node, move) if made is None else made
        if made is None:
            return None
        operands.append(made)
    return node.op.build(tuple(operands), node.attributes)


def _product_in(node: Node) -> bool:
    """Whether a product of matrices is below elementwise ops and moves."""
    if node.op is t.matmul:
        return True
    passing = node.op.has("elementwise") or node.op is t.transpose
    return passing and any(_product_in(i) for i in node.inputs)


def _moved_beside(value: Node, node: Node, move: Node) -> Node | None:
    """An operand that spreads to the scores, moved as they are."""
    if not value.shape:
        return value
    if _product_in(value):
        return None
    rank = len(node.shape)
    full = reshaped(value, ((1,) * (rank - len(value.shape)) + tuple(value.shape)))
    if move.op is t.transpose:
        return move.with_inputs((full,))
    if move.op is t.slice_:
        return full if full.shape[move["axis"]] == 1 else move.with_inputs((full,))
    if all(d == 1 for d in full.shape[:-2]):
        return reshaped(full, (*(1 for _ in move.shape[:-2]), *full.shape[-2:]))
    wide = spread(full, (*node.shape[:-2], *full.shape[-2:]))
    return reshaped(wide, (*move.shape[:-2], *full.shape[-2:]))


def _moved_product(node: Node, move: Node) -> Node | None:
    """A product whose leading axes are cut or regrouped, as one of what it is made of."""
    if move.op is t.transpose:
        return None
    lead = node.shape[:-2]
    operands: list[Node] = []
    for value in node.inputs:
        if not equal_shapes(value.shape[:-2], lead):
            return None
        tail = value.shape[-2:]
        if move.op is t.slice_:
            operands.append(move.with_inputs((value,)))
        else:
            operands.append(reshaped(value, (*move.shape[:-2], *tail)))
    return t.matmul(*operands)


# -- heads beside queries


@SCORE_FRAMES.on(t.reshape(t.matmul(x, y)))
def product_of_apart_rows(root: Node, x: Node, y: Node) -> Node | None:
    """q[.., H S, D] kᵀ[.., D, L] as [.., H, S, L] = q[.., H, S, D] kᵀ[.., 1, D, L]; and what has
    queries before heads is that moved.
    """
    if len(root.shape) != len(x.shape) + 1 or len(x.shape) != len(y.shape) or len(x.shape) < 3:
        return None
    *lead, rows, beside, keys = root.shape
    fits = equal_shapes((*lead, keys), (*x.shape[:-2], y.shape[-1]))
    queries_first = _is_queries_first(rows, beside, keys)
    if not fits or queries_first is None:
        return None
    q = reshaped(x, (*lead, rows, beside, x.shape[-1]))
    if not queries_first:
        return t.matmul(q, _beside_heads(y))
    return _exchanged(t.matmul(_exchanged(q), _beside_heads(y)))


@SCORE_FRAMES.on(t.matmul(t.reshape(x), y))
def product_of_joined_rows(root: Node, x: Node, y: Node) -> Node | None:
    """w[.., H, S, L] as [.., H S, L] times v[.., L, D] = w[.., H, S, L] v[.., 1, L, D] joined; and
    of queries before heads that moved.
    """
    if len(x.shape) != len(root.shape) + 1 or len(y.shape) != len(root.shape):
        return None
    *lead, rows, beside, keys = x.shape
    fits = equal_shapes((*lead, keys), (*root.shape[:-2], y.shape[-2]))
    queries_first = _is_queries_first(rows, beside, keys)
    if not fits or queries_first is None:
        return None
    if not queries_first:
        return reshaped(t.matmul(x, _beside_heads(y)), root.shape)
    return reshaped(_exchanged(t.matmul(_exchanged(x), _beside_heads(y))), root.shape)


def _is_queries_first(rows: Dim, beside: Dim, keys: Dim) -> bool | None:
    """Whether of two axes of scores that were one the first is the queries, the other being heads;
    None where they are no queries and heads.
    """
    if not names_in(keys) or bool(names_in(rows)) == bool(names_in(beside)):
        return None
    return bool(names_in(rows))


def _beside_heads(y: Node) -> Node:
    """One matrix [.., M, N] for all heads, [.., 1, M, N]."""
    return reshaped(y, (*y.shape[:-2], 1, *y.shape[-2:]))


def _exchanged(x: Node) -> Node:
    """[.., S, H, N] as [.., H, S, N], or back."""
    rank = len(x.shape)
    return t.transpose(x, permutation=(*range(rank - 3), rank - 2, rank - 3, rank - 1))


@SCORE_FRAMES.on(t.reshape(hole("mixed", lambda node: node.op is model.linear)))
def heads_mixed_in_rows(root: Node, mixed: Node) -> Node | None:
    """A linear over the heads of scores [B, S, L, H], which einsum does on rows [B S L, H]."""
    rows, *weights = mixed.inputs
    if rows.op is not t.reshape or len(root.shape) != 4:
        return None
    (scores,) = rows.inputs
    alike = equal_shapes(scores.shape[:-1], root.shape[:-1])
    if not alike or not all(names_in(d) for d in root.shape[:-1]):
        return None
    whole = equal_shapes((scores.shape[-1], root.shape[-1]), (rows.shape[-1], mixed.shape[-1]))
    return model.linear(scores, *weights) if whole else None


# -- sums


@SCORE_FRAMES.on(t.add(x, y))
def sum_of_products(root: Node, x: Node, y: Node) -> Node | None:
    """a b + c d = [a, c] [b; d], for scores: a head's parts side by side."""
    if x.op is t.transpose and y.op is t.transpose and x["permutation"] == y["permutation"]:
        made = one_product(x.inputs[0], y.inputs[0])
        return None if made is None else x.with_inputs((made,))
    return one_product(x, y)


def one_product(x: Node, y: Node) -> Node | None:
    """The sum of two products of queries and keys as one; None where they are no such products."""
    if not x.op is y.op is t.matmul or not _of_scores(x) or not equal_shapes(x.shape, y.shape):
        return None
    rows, columns = zip(x.inputs, y.inputs, strict=True)
    return t.matmul(_side_by_side(rows, back=1), _side_by_side(columns, back=2))


def _side_by_side(parts: tuple[Node, Node], back: int) -> Node:
    """Both along an axis of their matrices, in leading axes that both spread to."""
    shapes = [p.shape[:-2] for p in parts]
    rank = max(map(len, shapes))
    leads = [(1,) * (rank - len(lead)) + tuple(lead) for lead in shapes]
    lead = tuple(b if a == 1 else a for a, b in zip(*leads, strict=True))
    wide = [
        spread(reshaped(p, (*own, *p.shape[-2:])), (*lead, *p.shape[-2:]))
        for p, own in zip(parts, leads, strict=True)
    ]
    return t.concat(*wide, axis=rank + 2 - back)


@SCORE_FRAMES.on(t.matmul(x, y))
def product_of_summed_weights(root: Node, x: Node, y: Node) -> Node | None:
    """(a ± c b) v = a v ± c (b v), where a and b are softmaxes and c is of heads or a number."""
    if x.op not in (t.add, t.sub):
        return None
    parts = [_scaled_weights(i) for i in x.inputs]
    if any(p is None or not equal_shapes(p[0].shape, x.shape) for p in parts):
        return None
    made: list[Node] = []
    for part in parts:
        assert part is not None, f"{parts}"
        weights, factor = part
        product = t.matmul(weights, y)
        made.append(product if factor is None else t.mul(product, factor))
    return x.op(*made)


def _scaled_weights(node: Node) -> tuple[Node, Node | None] | None:
    """A softmax, and what it is multiplied by for all queries and keys alike."""
    if _is_weights(node):
        return node, None
    if node.op is t.mul:
        for weights, factor in (node.inputs, node.inputs[::-1]):
            alike = all(d == 1 for d in factor.shape[-2:])
            if _is_weights(weights) and alike:
                return weights, factor
    return None


def _is_weights(node: Node) -> bool:
    while node.op in (t.cast, t.reshape, t.slice_, t.transpose):
        node = node.inputs[0]
    return node.op is t.softmax and _of_scores(node)
