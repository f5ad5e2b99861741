"""Batch frames: the leading axes of attention's operands, brought to (batch, heads).

Models write attention over [B, H, S, D], over [B H, S, D] (heads folded into the batch), over
[B, G, H / G, S, D] (grouped heads) or over [B, S, D] (one head). The leading axes of such a tensor
are its *frame*; an operand's own leading axes broadcast to the frame, as masks and grouped keys do.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..ir.dims import Dim, Shape, equal, equal_shapes, exact_quotient, product
from ..ir.node import Node
from .rules.values import reshaped, spread

# (frame axes [begin, end), target axes [begin, end)) whose products are equal
Group = tuple[int, int, int, int]


def lead(node: Node, frame: Shape) -> Shape:
    """The leading axes of a node, ones in front up to the frame's rank."""
    own = node.shape[:-2]
    return (1,) * (len(frame) - len(own)) + tuple(own)


def groups(frame: Shape, target: Shape) -> list[Group] | None:
    """The finest grouping of both into runs of equal product, or None where there is none."""
    found: list[Group] = []
    i = j = 0
    while i < len(frame) or j < len(target):
        group = _next_group(frame, target, i, j)
        if group is None:
            return None
        found.append(group)
        i, j = group[1], group[3]
    return found


def _next_group(frame: Shape, target: Shape, i: int, j: int) -> Group | None:
    ends = sorted(_ends(len(frame) - i, len(target) - j), key=sum)
    for a, b in ends:
        if equal(product(frame[i : i + a]), product(target[j : j + b])):
            return (i, i + a, j, j + b)
    return None


def _ends(left: int, right: int) -> Iterator[tuple[int, int]]:
    for a in range(left + 1):
        for b in range(right + 1):
            if a + b:
                yield a, b


def moved(node: Node, frame: Shape, target: Shape) -> Node | None:
    """A node whose leading axes broadcast to a frame, as one whose axes broadcast to a target."""
    runs = groups(frame, target)
    if runs is None:
        return None
    own = lead(node, frame)
    full: list[Dim] = list(own)
    new: list[Dim] = []
    for i, end, j, stop in runs:
        if all(d == 1 for d in own[i:end]):
            new += [1] * (stop - j)
        elif equal_shapes(own[i:end], frame[i:end]):
            new += target[j:stop]
        else:
            full[i:end] = frame[i:end]
            new += target[j:stop]
    tail = node.shape[-2:]
    thick = spread(node, (*full, *tail)) if not equal_shapes(own, tuple(full)) else node
    return reshaped(thick, (*new, *tail))


def key_heads(node: Node, frame: Shape, target: Shape) -> Node | None:
    """Keys or values as [B, G, ...]: G heads, each read by H / G heads of the target.

    Their leading axes broadcast to the frame. A frame (B, G, R) with own axes (B, G, 1) gives G
    heads, because head g R + r reads group g.
    """
    own, (batch, heads) = lead(node, frame), target
    cut = _batch_axes(frame, batch)
    if cut is None:  # heads folded into the batch: there is nothing grouped to find
        whole = moved(node, frame, target)
        return None if whole is None else spread(whole, (batch, heads, *node.shape[-2:]))
    grouped = _grouped(own[cut:], frame[cut:])
    if grouped is None:
        grouped, node = heads, spread(node, (*own[:cut], *frame[cut:], *node.shape[-2:]))
        own = lead(node, frame)
    if not equal_shapes(own[:cut], frame[:cut]):
        node = spread(node, (*frame[:cut], *own[cut:], *node.shape[-2:]))
    return reshaped(node, (batch, grouped, *node.shape[-2:]))


def _batch_axes(frame: Shape, batch: Dim) -> int | None:
    """How many of the frame's axes make up the batch."""
    return next((cut for cut in range(len(frame) + 1) if equal(product(frame[:cut]), batch)), None)


def _grouped(own: Shape, frame: Shape) -> Dim | None:
    """How many groups axes make that are the frame's up to some axis and ones behind it."""
    pairs = enumerate(zip(own, frame, strict=True))
    at = next((i for i, (o, f) in pairs if not equal(o, f)), None)
    if at is None:
        return product(frame)
    return product(own[:at]) if all(d == 1 for d in own[at:]) else None


def best_target(frames: list[Shape], sources: list[Node]) -> tuple[Dim, Dim] | None:
    """(batch, heads), from the frames of a match or from what its operands were reshaped from."""
    for frame in frames:
        if len(frame) == 2:
            return frame[0], frame[1]
    for frame in frames:
        if len(frame) > 2:
            return frame[0], product(frame[1:])
    for node in sources:
        split = _split_source(node, frames)
        if split is not None:
            return split
    for frame in frames:
        if len(frame) == 1:
            return _factored(frame[0])
    return (1, 1) if frames and not frames[0] else None


def _factored(d: Dim) -> tuple[Dim, Dim]:
    """4 B as (B, 4): heads that nothing else tells from the batch."""
    if isinstance(d, int):
        return d, 1
    heads, _ = d.as_coeff_Mul()
    return (exact_quotient(d, int(heads)) or d, int(heads)) if heads.is_Integer else (d, 1)


def _split_source(node: Node, frames: list[Shape]) -> tuple[Dim, Dim] | None:
    """The leading axes of what was folded: [B, H, S, D] that was reshaped to [B H, S, D]."""
    while node.op.name in ("transpose", "cast"):
        node = node.inputs[0]
    if node.op.name != "reshape" or len(node.inputs[0].shape) != 4:
        return None
    batch, heads = node.inputs[0].shape[:2]
    whole = exact_quotient(product(frames[0]), product((batch, heads)))
    return (batch, heads) if whole == 1 else None
