"""Split masks: a bias that every key brings from its own token becomes one more number of the key.

Masks that are made of tokens are no family that kernels know. Where such a mask is a part of
positions alone plus a number of each key's token, that number goes into the product of queries and
keys: softmax(s q k^T + m + 1 a^T) = softmax(s [q, 1] [k, a / s]^T + m).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..ir.dims import equal
from ..ir.graph import Graph
from ..ir.node import Node, walk
from ..ir.ops import model
from ..ir.ops import tensor as t
from ..ir.rewrite import Rules, hole, rewrite
from .rules.movement import MOVEMENT
from .rules.repeats import repeated, unrepeated
from .rules.values import MASKED, literal, reshaped, spread, transposed

KEY_BIAS = Rules("key bias")


def _is_attention(node: Node) -> bool:
    return node.op is model.attention


@KEY_BIAS.on(hole("root", _is_attention))
def bias_by_key(root: Node) -> Node | None:
    """A mask m + 1 a^T is the mask m over keys [k, a / s] and queries [q, 1]."""
    words: tuple[str, ...] = root["extras"]
    if "mask" not in words or root["softcap"] or not root["scale"]:
        return None
    q, k, v, *more = root.inputs
    at = words.index("mask")
    found = _split(more[at])
    if found is None or found[1].dtype != k.dtype:
        return None
    mask, bias = found
    if not any(equal(bias.shape[1], heads) for heads in (1, k.shape[1])):
        k, v = repeated(k, q.shape[1]), repeated(v, q.shape[1])
    over = t.mul(bias, t.scalar(1 / root["scale"], bias.dtype))
    column = spread(transposed(over), (*k.shape[:3], 1))
    one = spread(reshaped(t.scalar(1.0, q.dtype), (1, 1, 1, 1)), (*q.shape[:3], 1))
    wide = (t.concat(q, one, axis=3), t.concat(k, column, axis=3), v)
    rest = [x for i, x in enumerate(more) if i != at]
    kept = tuple(word for word in words if word != "mask")
    if mask is not None:
        rest, kept = [*rest, mask], (*kept, "mask")
    return root.op.build((*wide, *rest), {**root.attributes, "extras": kept})


def _split(mask: Node) -> tuple[Node | None, Node] | None:
    """A mask as (the part of positions alone, the part a[B, H, 1, L] by key); None where it is no
    such sum, or has no part by key.
    """
    if len(mask.shape) != 4 or mask.dtype == "bool" or not _reads_tokens(mask):
        return None
    fewer = unrepeated(mask, 1)
    mask = mask if fewer is None else fewer
    if (alone := _by_key(mask)) is not None:
        return None, alone
    if mask.op is t.add:
        for bias, part in (mask.inputs, mask.inputs[::-1]):
            found = _by_key(bias)
            if found is not None and not _reads_tokens(part):
                return part, found
        return None
    return _split_choice(mask) if mask.op is t.where else None


def _split_choice(mask: Node) -> tuple[Node, Node] | None:
    """where(p, -inf, a) = where(p, -inf, 0) + a, as far as softmax sees."""
    condition, first, second = mask.inputs
    if _reads_tokens(condition):
        return None
    zero = t.scalar(0.0, mask.dtype)
    for fill, bias, order in ((first, second, (0, 1)), (second, first, (1, 0))):
        number, found = literal(fill), _by_key(bias)
        if number is not None and number < MASKED and found is not None:
            parts = (t.scalar(float(number), mask.dtype), zero)
            return t.where(condition, parts[order[0]], parts[order[1]]), found
    return None


def _by_key(node: Node) -> Node | None:
    """The value [B, H, 1, L] that is the same for every query; None where it is not."""
    source = node.inputs[0] if node.op is t.broadcast else node
    same = len(source.shape) == 4 and source.shape[2] == 1 and _reads_tokens(source)
    return source if same else None


def _reads_tokens(node: Node) -> bool:
    return any(n.op.name == "input" for n in walk((node,)))


@dataclass(frozen=True)
class SplitMasks:
    """Attention whose mask has a part by the keys' tokens takes that part with its keys."""

    name: ClassVar[str] = "split-masks"

    def run(self, graph: Graph) -> Graph:
        """The graph, its masks of positions alone wherever they are such sums."""
        return rewrite(graph, KEY_BIAS + MOVEMENT)
