"""Raise selections: attention whose mask keeps the keys that an indexer picks gets them by name.

    attention(q, k, v, mask and picked), picked = scatter(false, topk(where(mask, scores, -inf)))

becomes attention over the places that `selected_keys` gives. The scores are those of a small
attention of its own, summed over its heads; keys that the mask hides may be picked where too few
are left, and the mask hides them again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import sympy

from ..ir.dims import Dim, equal, equal_shapes
from ..ir.errors import IRError
from ..ir.graph import Graph
from ..ir.node import Node
from ..ir.ops import model, selection
from ..ir.ops import tensor as t
from ..ir.verify import quote
from .analyze_tokens import analyze
from .rules.values import literal, reshaped, spread, transposed, without_casts, without_widening

LOWEST = -9e3
"""What is below this hides a key: masks add or put -inf, the dtype's lowest, -1e9 or -1e4."""


@dataclass(frozen=True)
class RaiseSelections:
    """Masks of attention that depend on tokens become the places that an indexer selects.

    A selection of as many keys as `max_context` or more picks all: it is left out, and the indexer
    with it.
    """

    name: ClassVar[str] = "raise-selections"
    max_context: int = 4096

    def run(self, graph: Graph) -> Graph:
        """The graph with selections beside masks by position alone; other masks stay."""
        kinds = analyze(graph).kinds
        mapping: dict[Node, Node] = {}
        for node in graph.nodes():
            if node.op is not model.attention or "mask" not in node["extras"]:
                continue
            words: tuple[str, ...] = node["extras"]
            at = 3 + words.index("mask")
            split = _split(node.inputs[at], kinds)
            if split is None or split.picked is None or split.rest is None:
                continue
            picked = _picked(split.picked, kinds)
            if picked is not None:
                mapping[node] = self._selected(graph, node, at, split.rest, picked)
        return graph.replace(mapping)

    def _selected(self, graph: Graph, node: Node, at: int, rest: Node, picked: Picked) -> Node:
        if picked.mask is not None and _bare(picked.mask) is not _bare(rest):
            raise IRError(
                "the indexer of this attention sees other keys than the attention itself\n"
                f"{quote(graph, node)}"
            )
        inputs = (*node.inputs[:at], rest, *node.inputs[at + 1 :])
        if picked.count >= self.max_context:
            return node.with_inputs(inputs)
        q, k, weights = picked.scores.operands()
        mask = () if picked.mask is None else (_as_bool(picked.mask),)
        chosen = selection.selected_keys(
            q, k, weights, *mask, count=picked.count, **picked.scores.options()
        )
        extras = (*node["extras"], "selected")
        attributes: Mapping[str, Any] = {**node.attributes, "extras": extras}
        return model.attention.build((*inputs, chosen), attributes)


# -- masks


class Split(NamedTuple):
    """A mask as a conjunction: what depends on positions alone, and the one part that depends on
    tokens.
    """

    rest: Node | None
    picked: Node | None


def _split(mask: Node, kinds: Mapping[Node, str]) -> Split | None:
    """The parts of a mask; None where more than one of them depends on tokens."""
    if kinds[mask] != "token":
        return Split(mask, None)
    if mask.op is t.logical_and:
        parts = [_split(i, kinds) for i in mask.inputs]
        if parts[0] is None or parts[1] is None:
            return None
        return _joined(parts[0], parts[1])
    if mask.op is t.where:  # hidden where a condition holds, or where it does not
        condition, a, b = mask.inputs
        low = [(literal(x) or 0.0) < LOWEST for x in (a, b)]
        if any(low) and kinds[b if low[0] else a] != "token":
            return Split(b, t.logical_not(condition)) if low[0] else Split(a, condition)
    return Split(None, mask)


def _joined(a: Split, b: Split) -> Split | None:
    if a.picked is not None and b.picked is not None:
        return None
    if a.rest is not None and b.rest is not None:
        rest = t.logical_and(a.rest, b.rest)
    else:
        rest = a.rest if a.rest is not None else b.rest
    return Split(rest, a.picked if a.picked is not None else b.picked)


def _bare(mask: Node) -> Node:
    """A mask without axes of 1."""
    while mask.op is t.reshape or (mask.op is t.cast and mask.dtype == "bool"):
        mask = mask.inputs[0]
    return mask


def _as_bool(mask: Node) -> Node:
    """A mask [B, S, L] or [B, 1, S, L] as bool [B, S, L]."""
    if mask.dtype != "bool":
        mask = t.gt(mask, t.scalar(LOWEST, mask.dtype))
    return reshaped(mask, (*(d for d in mask.shape[:-2] if d != 1), *mask.shape[-2:]))


# -- what was picked


@dataclass(frozen=True)
class Picked:
    """How many keys are picked by which scores, and which keys take part."""

    count: int
    scores: Scores
    mask: Node | None


def _picked(node: Node, kinds: Mapping[Node, str]) -> Picked | None:
    """The selection behind a mask bool[B, 1, S, L] or [B, S, L] that is true for picked keys."""
    turned = False
    while node.op in (t.logical_not, t.reshape, t.broadcast):
        if node.op is not t.logical_not and not _keeps_keys(node):
            return None
        turned ^= node.op is t.logical_not
        node = node.inputs[0]
    if node.op is not t.scatter or node["axis"] != len(node.shape) - 1 or node["reduce"] != "set":
        return None
    base, index, source = node.inputs
    if (literal(base), literal(source)) != ((True, False) if turned else (False, True)):
        return None
    index = without_casts(index)
    if index.op.name != "item" or index["index"] != 1 or index.inputs[0].op is not t.topk:
        return None
    return _by_scores(index.inputs[0], kinds)


def _keeps_keys(node: Node) -> bool:
    """Whether a movement keeps the last two axes, puts axes of 1 before them or repeats those."""
    source, result = node.inputs[0].shape, node.shape
    if len(source) < 2 or not equal_shapes(source[-2:], result[-2:]):
        return False
    return node.op is t.broadcast or [d for d in source if d != 1] == [d for d in result if d != 1]


def _by_scores(top: Node, kinds: Mapping[Node, str]) -> Picked | None:
    """The selection that a topk along the keys makes."""
    masked = top.inputs[0]
    count = _count(top["k"], masked.shape[-1])
    if count is None or not top["largest"] or top["axis"] != len(masked.shape) - 1:
        return None
    scores, mask = _unmasked(masked, kinds)
    found = _scores(scores)
    return None if found is None else Picked(count, found, mask)


def _count(k: Dim, keys: Dim) -> int | None:
    """The number c where k is min(c, keys)."""
    if not isinstance(k, sympy.Min):
        return None
    parts = [a for a in k.args if not equal(a, keys)]
    alone = len(parts) == 1 and len(k.args) == 2 and parts[0].is_Integer
    return int(parts[0]) if alone else None


def _unmasked(node: Node, kinds: Mapping[Node, str]) -> tuple[Node, Node | None]:
    """The scores below a mask by positions, and the mask: true, or about 0, for keys seen."""
    if node.op is t.where:
        condition, a, b = node.inputs
        if (literal(b) or 0.0) < LOWEST and kinds[condition] != "token":
            return a, condition
        if (literal(a) or 0.0) < LOWEST and kinds[condition] != "token":
            return b, _negated(condition)
    if node.op is t.add:
        for scores, mask in (node.inputs, node.inputs[::-1]):
            if kinds[mask] != "token" and kinds[scores] == "token":
                return scores, mask
    return node, None


def _negated(condition: Node) -> Node:
    return condition.inputs[0] if condition.op is t.logical_not else t.logical_not(condition)


# -- scores


@dataclass(frozen=True)
class Scores:
    """sum_h weights[..., h] act(scale q[..., h, :] . k): q[B, S, H, D], key[B, 1, D, L], weights
    that reshape to [B, S, H].
    """

    query: Node
    key: Node
    weights: Node
    scale: float
    activation: str

    def operands(self) -> tuple[Node, Node, Node]:
        """q[B, S, H, D], k[B, L, D], weights[B, S, H], in one dtype."""
        batch, rows, heads, width = self.query.shape
        k = transposed(reshaped(self.key, (batch, width, self.key.shape[-1])))
        weights = reshaped(self.weights, (batch, rows, heads))
        bare = [without_widening(n) for n in (self.query, k, weights)]
        if len({n.dtype for n in bare}) == 1:
            return bare[0], bare[1], bare[2]
        return self.query, k, weights

    def options(self) -> dict[str, Any]:
        """The attributes of the selection."""
        return {"scale": self.scale, "activation": self.activation}


def _scores(node: Node) -> Scores | None:
    """The scores [B, S, L] as a sum over heads, by a product with the weights or written out."""
    batch, rows, keys = node.shape if len(node.shape) == 3 else (0, 0, 0)
    inner = node.inputs[0] if node.op is t.reshape else node
    if inner.op is t.matmul and len(inner.shape) == 4 and inner.shape[2] == 1:
        return _weighed(inner.inputs[0], inner.inputs[1], (batch, rows, keys))
    if node.op is t.reduce_sum and node.inputs[0].op is t.mul and len(node["axes"]) == 1:
        product = node.inputs[0]
        if len(product.shape) == 4 and node["axes"] == (2,) and not node["keepdims"]:
            for heads, weights in (product.inputs, product.inputs[::-1]):
                if weights.shape[-1:] == (1,) and equal_shapes(heads.shape, product.shape):
                    return _weighed(weights, heads, (batch, rows, keys))
    return None


def _weighed(weights: Node, heads: Node, shape: tuple[Dim, Dim, Dim]) -> Scores | None:
    """weights[B, S, 1, H] or [B, S, H, 1] and the heads' scores [B, S, H, L]."""
    scale, activation = 1.0, ""
    while heads.op in (t.mul, t.relu, t.cast):
        if heads.op is t.cast:
            if without_widening(heads) is heads:
                return None
            heads = heads.inputs[0]
        elif heads.op is t.relu:
            if activation:
                return None
            activation, heads = "relu", heads.inputs[0]
        else:
            by = next((v for v in map(literal, heads.inputs) if v is not None), None)
            if by is None or by <= 0:
                return None
            heads = next(i for i in heads.inputs if literal(i) is None)
            scale *= float(by)
    if heads.op is not t.matmul or len(heads.shape) != 4:
        return None
    query, key = heads.inputs
    batch, rows, keys = shape
    fits = len(query.shape) == 4 and len(key.shape) == 4 and key.shape[1] == 1
    if not fits or not equal_shapes((*heads.shape[:2], heads.shape[3]), (batch, rows, keys)):
        return None
    if not equal_shapes(query.shape[:2], (batch, rows)) or not equal(key.shape[0], batch):
        return None
    weights = spread(weights, (batch, rows, *weights.shape[2:]))
    return Scores(query, key, weights, scale, activation)
