"""Raise attention: softmax(scores(q k^T)) v, however it is spelled, becomes one op.

The product with the values is the root. From it the matcher goes back to the softmax, then to the
product of queries and keys (trace_scores), brings all operands to [B, H, S, D] (batch_frames) and
folds the steps between into attributes and one mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from ..ir.dims import Dim, Shape, equal, equal_shapes, product
from ..ir.graph import Graph
from ..ir.node import Node, walk
from ..ir.ops import model
from ..ir.ops import tensor as t
from ..ir.rewrite import Rules, hole, rewrite
from .batch_frames import best_target, key_heads, moved
from .rules.constant_keys import CONSTANT_KEYS, is_inside_tokens
from .rules.movement import MOVEMENT
from .rules.repeats import repeated, unrepeated
from .rules.score_frames import SCORE_FRAMES
from .rules.values import (
    MASKED,
    holds,
    literal,
    reshaped,
    spread,
    transposed,
    without_widening,
)
from .trace_scores import (
    Scores,
    Step,
    Weights,
    split_sinks,
    trace_gate,
    trace_scores,
    trace_weights,
)

ATTENTION = Rules("attention")
x, y = hole("x"), hole("y")
Target = tuple[Dim, Dim]


@ATTENTION.on(t.matmul(x, y))
def attention_by_softmax(root: Node, x: Node, y: Node) -> Node | None:
    """softmax(q k^T) @ v = attention(q, k, v), with scale, mask, softcap and sinks."""
    result = _attention(x, y, root.shape[:-2])
    if result is None or result.dtype not in (root.dtype, "f32", "f64"):
        return None
    return _cast(reshaped(result, root.shape), root.dtype)


@ATTENTION.on(t.matmul(x, y))
def attention_transposed(root: Node, x: Node, y: Node) -> Node | None:
    """v^T @ softmax(q k^T)^T = attention(q, k, v)^T."""
    if y.op is not t.transpose:
        return None
    result = _attention(transposed(y), transposed(x), root.shape[:-2])
    if result is None or result.dtype not in (root.dtype, "f32", "f64"):
        return None
    shape = (*root.shape[:-2], root.shape[-1], root.shape[-2])
    return transposed(_cast(reshaped(result, shape), root.dtype))


@ATTENTION.on(t.mul(x, y))
def attention_gated_by_sinks(root: Node) -> Node | None:
    """softmax(z) v sigmoid(logsumexp(z) - sinks) = softmax over z and the sinks, which are dropped.

    For e^z / sum(e^z) times sum(e^z) / (sum(e^z) + e^sink), which the sigmoid is.
    """
    for weighed, gate in (root.inputs, root.inputs[::-1]):
        gated = trace_gate(gate) if weighed.op is t.matmul else None
        found = trace_weights(weighed.inputs[0]) if gated else None
        if gated is None or found is None:
            continue
        scores, sinks = gated
        if without_widening(found.softmax.inputs[0]) is not without_widening(scores):
            continue
        weights, value = weighed.inputs
        result = _attention(weights, value, weighed.shape[:-2], sinks)
        if result is not None and result.dtype == root.dtype:
            return reshaped(result, root.shape)
    return None


def _attention(weights: Node, value: Node, frame: Shape, beside: Node | None = None) -> Node | None:
    """The op on [B, H, S, D]; None where weights are no softmax of a product of q and k.

    `beside` are sinks [..., H, 1, 1] that are not in the softmax.
    """
    found = trace_weights(weights)
    split = split_sinks(found.softmax.inputs[0], found.part) if found else None
    scores = trace_scores(split[0]) if split else None
    if found is None or split is None or scores is None:
        return None
    target = _target(scores, found, value, frame)
    if target is None or is_inside_tokens(target):
        return None
    if _is_constant(scores.key) or _is_constant(value):
        return None
    if split[1] is not None and beside is not None:
        return None
    given = split[1] or beside
    sinks = None if given is None else _per_head(given, target[1])
    if given is not None and sinks is None:
        return None
    return _built(scores, value, frame, target, sinks)


def _target(scores: Scores, found: Weights, value: Node, frame: Shape) -> Target | None:
    frames = [*scores.frames(), *found.frames, frame]
    return best_target(frames, [scores.query, scores.key, value])


def _is_constant(node: Node) -> bool:
    """Whether no input is behind a node: learned keys or values are no context to attend to."""
    return not any(n.op.name == "input" for n in walk((node,)))


def _built(
    scores: Scores, value: Node, frame: Shape, target: Target, sinks: Node | None
) -> Node | None:
    query = moved(scores.query, scores.frame, target)
    key = key_heads(scores.key, scores.frame, target)
    value4 = key_heads(value, frame, target)
    folded = fold_steps(scores.steps, target)
    if query is None or key is None or value4 is None or folded is None:
        return None
    query = spread(query, (*target, *query.shape[-2:]))
    for by in folded.stretch:
        if by.dtype != query.dtype:
            return None
        query = t.mul(query, by)
    q, k, v = one_dtype(query, *_same_heads(key, value4, target))
    extras = {"mask": folded.mask, "sinks": sinks}
    given = {word: node for word, node in extras.items() if node is not None}
    attributes = {"scale": folded.scale, "softcap": folded.softcap, "extras": tuple(given)}
    return model.attention(q, k, v, *given.values(), **attributes)


def _same_heads(key: Node, value: Node, target: Target) -> tuple[Node, Node]:
    """Both with as many heads: where they differ, all of the target's."""
    if equal(key.shape[1], value.shape[1]):
        return key, value
    return repeated(key, target[1]), repeated(value, target[1])


def one_dtype(*nodes: Node) -> tuple[Node, ...]:
    """The operands in one dtype: below casts that lose nothing, or else as wide as the widest."""
    bare = tuple(without_widening(n) for n in nodes)
    if len({n.dtype for n in bare}) == 1:
        return bare
    widest = next((n.dtype for n in nodes if all(holds(n.dtype, m.dtype) for m in nodes)), "f32")
    return tuple(_cast(n, widest) for n in nodes)


def _cast(node: Node, dtype: str) -> Node:
    return node if node.dtype == dtype else t.cast(node, dtype=dtype)


def _per_head(sinks: Node, heads: Dim) -> Node | None:
    """The vector [H] that was spread to [B, H, S, 1]."""
    while sinks.op in (t.broadcast, t.cast):
        sinks = sinks.inputs[0]
    alone = sinks.shape[-2:] == (1, 1) and equal(product(sinks.shape), heads)
    return reshaped(sinks, (heads,)) if alone else None


# -- the steps between product and softmax


@dataclass(frozen=True)
class Folded:
    """The steps as attention takes them; `stretch` are tensors to multiply the queries by,
    `selects` those that scores were multiplied by, which have to be 1 where a key is seen.
    """

    scale: float = 1.0
    softcap: float = 0.0
    mask: Node | None = None
    stretch: tuple[Node, ...] = ()
    selects: tuple[Node, ...] = ()


def fold_steps(steps: Sequence[Step], target: Target) -> Folded | None:
    """The steps folded, inside out; None where attention has no place for one."""
    folded: Folded | None = Folded()
    for step in steps:
        operand = None if step.operand is None else moved(step.operand, step.frame, target)
        if operand is None and step.operand is not None:
            return None
        folded = _fold(folded, step, operand)
        if folded is None:
            return None
    if folded.softcap < 0:
        return None
    return _selected(folded) if folded.selects else folded


def _selected(folded: Folded) -> Folded | None:
    """The mask, infinite where a key is seen whose score is multiplied by something but 1: a
    mask that has such a place is of no family, and is refused when it is evaluated.
    """
    if folded.mask is None:
        return None
    mask = _as_float(folded.mask)
    for by in folded.selects:
        hidden = t.lt(mask, t.scalar(MASKED, mask.dtype))
        fine = t.logical_or(t.eq(by, t.scalar(1.0, by.dtype)), hidden)
        mask = t.where(fine, mask, t.scalar(float("inf"), mask.dtype))
    return replace(folded, mask=mask, selects=())


def _fold(folded: Folded, step: Step, operand: Node | None) -> Folded | None:
    mask, capped = folded.mask, folded.softcap != 0
    if step.kind == "scale":
        return _scaled(folded, step.factor)
    if step.kind == "tanh":
        return None if capped or mask is not None else replace(folded, softcap=1.0)
    assert operand is not None, f"{step.kind} without an operand"
    if step.kind == "stretch":
        if capped or mask is not None:
            return None
        return replace(folded, stretch=(*folded.stretch, operand))
    if step.kind == "select":
        return None if mask is not None else replace(folded, selects=(*folded.selects, operand))
    if step.kind == "add":
        return replace(folded, mask=operand if mask is None else _sum(_as_float(mask), operand))
    if mask is None and step.factor == -float("inf"):
        return replace(folded, mask=operand)
    before = t.scalar(0.0, "f32") if mask is None else _as_float(mask)
    return replace(folded, mask=t.where(operand, before, t.scalar(step.factor, before.dtype)))


def _scaled(folded: Folded, factor: float) -> Folded:
    """Everything so far times a factor: the softcap takes it too, c f tanh(f s / (c f))."""
    mask = folded.mask
    if mask is not None and mask.dtype != "bool":
        mask = t.mul(mask, t.scalar(factor, mask.dtype))
    softcap = folded.softcap * factor
    return replace(folded, scale=folded.scale * factor, softcap=softcap, mask=mask)


def _as_float(mask: Node) -> Node:
    """A mask that is added: 0 where allowed, -inf elsewhere."""
    if mask.dtype != "bool":
        return mask
    return t.where(mask, t.scalar(0.0, "f32"), t.scalar(-float("inf"), "f32"))


def _sum(a: Node, b: Node) -> Node:
    if a.dtype != b.dtype:
        a, b = _cast(a, "f32"), _cast(b, "f32")
    return t.add(a, b)


# -- attention as it was imported or raised: simpler operands


def is_attention(node: Node) -> bool:
    """Whether a node is attention over [B, H, S, D]."""
    return node.op is model.attention


@ATTENTION.on(hole("root", is_attention))
def repeated_keys(root: Node) -> Node | None:
    """attention(q, repeat(k), repeat(v)) = attention(q, k, v): the op itself groups heads."""
    q, k, v, *more = root.inputs
    fewer = unrepeated(k, 1), unrepeated(v, 1)
    if fewer[0] is None or fewer[1] is None or not equal(fewer[0].shape[1], fewer[1].shape[1]):
        return None
    return root.with_inputs((q, fewer[0], fewer[1], *more))


@ATTENTION.on(hole("root", is_attention))
def heads_in_batch(root: Node) -> Node | None:
    """attention over [1, B H, S, D] = attention over [B, H, S, D]."""
    q, k, v, *more = root.inputs
    frame = q.shape[:2]
    if frame[0] != 1 or isinstance(frame[1], int) or "sinks" in root["extras"]:
        return None
    if not all(equal_shapes(x.shape[:2], frame) for x in (k, v)):
        return None
    target = best_target([frame[1:]], [q, k, v])
    if target is None or target[0] == 1:
        return None
    inputs = [moved(x, frame, target) for x in (q, k, v, *more)]
    whole = [x for x in inputs if x is not None]
    if len(whole) < len(inputs):
        return None
    return reshaped(root.with_inputs(tuple(whole)), root.shape)


@ATTENTION.on(hole("root", is_attention))
def scaled_queries(root: Node) -> Node | None:
    """attention(q * c, k * d, ...) = attention(q, k, ...) with c d times the scale."""
    q, k, *more = root.inputs
    (bare_q, by_q), (bare_k, by_k) = _unscaled(q), _unscaled(k)
    if by_q == by_k == 1:
        return None
    attributes = dict(root.attributes, scale=root["scale"] * by_q * by_k)
    return model.attention(bare_q, bare_k, *more, **attributes)


def _unscaled(node: Node) -> tuple[Node, float]:
    """A node without a factor that is the same throughout, and the factor."""
    if node.op in (t.reshape, t.transpose):
        inner, by = _unscaled(node.inputs[0])
        return (node.with_inputs((inner,)), by) if by != 1 else (node, 1.0)
    if node.op is t.div and literal(node.inputs[1]):
        return node.inputs[0], 1 / float(literal(node.inputs[1]) or 1.0)
    if node.op is t.mul:
        for value, factor in (node.inputs, node.inputs[::-1]):
            number = literal(factor)
            if number and equal_shapes(value.shape, node.shape):
                return value, float(number)
    return node, 1.0


@ATTENTION.on(hole("root", is_attention))
def mask_of_infinity(root: Node) -> Node | None:
    """A mask of 0 and -inf is a mask of bools."""
    if "mask" not in root["extras"]:
        return None
    words: tuple[str, ...] = root["extras"]
    at = 3 + words.index("mask")
    mask = root.inputs[at]
    if mask.op is not t.where:
        return None
    condition, a, b = mask.inputs
    values = literal(a), literal(b)
    if values == (0, -float("inf")):
        allowed = condition
    elif values == (-float("inf"), 0):
        allowed = t.logical_not(condition)
    else:
        return None
    if not equal_shapes(allowed.shape, mask.shape):
        return None
    return root.with_inputs((*root.inputs[:at], allowed, *root.inputs[at + 1 :]))


@dataclass(frozen=True)
class RaiseAttention:
    """Products of softmaxed scores with values become attention over un-repeated keys."""

    name: ClassVar[str] = "raise-attention"

    def run(self, graph: Graph) -> Graph:
        """The graph with every attention as one op; the graph is canonical before."""
        return rewrite(graph, ATTENTION + SCORE_FRAMES + CONSTANT_KEYS + MOVEMENT)
