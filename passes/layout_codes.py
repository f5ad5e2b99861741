"""Codes and scales of quantized linears in the layouts that kernels read, and activations in int8
where the backend has integer dot products.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..ir.node import Node
from ..ir.ops import quantized as q
from ..ir.ops import tensor as t
from .backends import Layout

MULTIPLIERS = "n16k2"
"""The layout of multipliers: two groups of a column in a byte."""


@dataclass(frozen=True)
class PackedCodes:
    """The codes, scales and zeros of a weight, packed: codes [.., N, J G] in `layout`, scales and
    zeros [.., N, J] in the same columns, one j after another. With `multipliers` (theirs of
    group_scales, in the layout MULTIPLIERS) the scales are of blocks.
    """

    codes: Node
    scale: Node
    layout: Layout
    zeros: Node | None = None
    multipliers: Node | None = None

    @staticmethod
    def of(
        codes: Node, scale: Node, layout: Layout, zeros: Node | None = None, *, levels: bool = True
    ) -> PackedCodes:
        """codes[.., N, J, G] and scale[.., N, J], packed; with `levels` scales that are made in
        two levels stay so.
        """
        *lead, groups, length = codes.shape
        flat = layout.packed(t.reshape(codes, shape=(*lead, groups * length)))
        columns = None if zeros is None else _columns(zeros, layout)
        if scale.op is not q.group_scales or not levels:
            return PackedCodes(flat, _columns(scale, layout), layout, columns)
        multipliers, blocks = scale.inputs
        packed = _paired(multipliers, layout)
        return PackedCodes(flat, _columns(blocks, layout), layout, None, packed)

    def linear(self, node: Node, *, integer: bool) -> Node:
        """The quantized linear by packed codes; `integer` quantizes its x too, by row and group (or
        block of groups).
        """
        found = q.operands(node)
        n, groups, length = (int(d) for d in found.codes.shape[-3:])
        more = (found.experts, self.multipliers, self.zeros, found.bias)
        more = tuple(m for m in more if m is not None)
        options = {"n": n, "offset": node["offset"], "layout": self.layout.word}
        if integer:
            expert = found.experts is not None
            op = q.packed_integer_expert_linear if expert else q.packed_integer_linear
            blocks = int(self.scale.shape[-2])
            rows = _quantized_once(found.x, blocks, groups // blocks * length)
            return op(*rows, self.codes, self.scale, *more, **options, dtype=node.dtype)
        expert = found.experts is not None
        op = q.packed_quantized_expert_linear if expert else q.packed_quantized_linear
        return op(found.x, self.codes, self.scale, *more, **options, group=length)

    def views(self, codes: Node, scale: Node, zeros: Node | None) -> dict[Node, Node]:
        """What was packed as views of the packed, for whatever else reads it."""
        found = {codes: self.unpacked_codes(codes)}
        if self.multipliers is not None:
            multipliers, blocks = scale.inputs
            found[blocks] = self.unpacked(self.scale, blocks)
            found[multipliers] = self.unpacked_multipliers(self.multipliers, multipliers)
        else:
            found[scale] = self.unpacked(self.scale, scale)
        if zeros is not None and self.zeros is not None:
            found[zeros] = self.unpacked(self.zeros, zeros)
        return found

    def unpacked_codes(self, codes: Node) -> Node:
        """The codes [.., N, J, G] as a view of the packed ones."""
        *lead, n, groups, length = (int(d) for d in codes.shape)
        order = (0, 2, 1, 4, 3) if self.layout.pairs > 1 else (0, 2, 1, 3)
        inner = self.layout.in_order(self.codes, len(lead))
        packed = _turned(inner, len(lead), order if self.layout.depth > 1 else (0, 2, 1))
        rows = int(packed.shape[len(lead)]) * self.layout.columns
        flat = t.reshape(packed, shape=(*lead, rows, groups, length))
        return flat if rows == n else t.slice_(flat, axis=len(lead), start=0, stop=n)

    def unpacked(self, packed: Node, scale: Node) -> Node:
        """Scales (or zeros) [.., N, J] as a view of the packed ones."""
        return self._rows(packed, (0, 2, 1), scale)

    def unpacked_multipliers(self, packed: Node, multipliers: Node) -> Node:
        """Multipliers [.., N, J] as a view of the packed ones."""
        return self._rows(packed, (0, 2, 1, 3), multipliers)

    def _rows(self, packed: Node, order: tuple[int, ...], like: Node) -> Node:
        """What the packed blocks hold, their axes in another order, in the shape of `like`."""
        *lead, n, groups = (int(d) for d in like.shape)
        turned = _turned(self.layout.in_order(packed, len(lead)), len(lead), order)
        rows = int(turned.shape[len(lead)]) * self.layout.columns
        flat = t.reshape(turned, shape=(*lead, rows, groups))
        return flat if rows == n else t.slice_(flat, axis=len(lead), start=0, stop=n)


def _turned(x: Node, lead: int, order: tuple[int, ...]) -> Node:
    """x with the axes behind the first `lead` in another order."""
    return t.transpose(x, permutation=(*range(lead), *(lead + i for i in order)))


def _columns(scale: Node, layout: Layout) -> Node:
    """scale[.., N, J] as [.., ceil(N / columns), J, columns]."""
    *lead, groups = (int(d) for d in scale.shape[:-2] + scale.shape[-1:])
    split = _blocks_of_rows(scale, layout.columns, (groups,))
    return layout.in_turn(_turned(split, len(lead), (0, 2, 1)), len(lead))


def _paired(multipliers: Node, layout: Layout) -> Node:
    """multipliers[.., N, J] as [.., ceil(N / columns), J / 2, columns, 2]."""
    *lead, groups = (int(d) for d in multipliers.shape[:-2] + multipliers.shape[-1:])
    split = _blocks_of_rows(multipliers, layout.columns, (groups // 2, 2))
    return layout.in_turn(_turned(split, len(lead), (0, 2, 1, 3)), len(lead))


def _blocks_of_rows(x: Node, columns: int, inner: tuple[int, ...]) -> Node:
    """x[.., N, J] as [.., ceil(N / columns), columns, *inner], zeros at the end of N."""
    *lead, n, _ = (int(d) for d in x.shape)
    blocks = -(-n // columns)
    if blocks * columns != n:
        none = (0,) * (len(lead) + 2)
        x = t.pad(x, before=none, after=(*none[2:], blocks * columns - n, 0), value=0.0)
    return t.reshape(x, shape=(*lead, blocks, columns, *inner))


def _quantized_once(x: Node, groups: int, length: int) -> tuple[Node, Node]:
    """quantized_rows of x, made before it is repeated where it was repeated along axes of rows."""
    source = x.inputs[0] if x.op is t.broadcast else x
    if len(source.shape) != len(x.shape) or source.shape[-1] != x.shape[-1]:
        return quantized_rows(x, groups, length)
    codes, scale = quantized_rows(source, groups, length)
    rows = x.shape[:-1]
    if source is x:
        return codes, scale
    codes = t.broadcast(codes, shape=(*rows, groups, length))
    return codes, t.broadcast(scale, shape=(*rows, groups))


def quantized_rows(x: Node, groups: int, length: int) -> tuple[Node, Node]:
    """x[..., K] as i8[..., J, G] and scales f32[..., J], max |x| / 127 of each row and group."""
    *rows, k = x.shape
    wide = t.cast(x, dtype="f32") if x.dtype != "f32" else x
    if groups * length != k:
        none = (0,) * len(rows)
        wide = t.pad(wide, before=(*none, 0), after=(*none, groups * length - k), value=0.0)
    wide = t.reshape(wide, shape=(*rows, groups, length))
    # The least positive normal number keeps rows of zeros from dividing by zero.
    largest = t.maximum(t.reduce_max(t.abs_(wide), axes=(len(rows) + 1,)), t.scalar(1.2e-36, "f32"))
    scale = t.mul(largest, t.scalar(1 / 127, "f32"))
    inverse = t.reshape(t.div(t.scalar(127.0, "f32"), largest), shape=(*rows, groups, 1))
    return t.cast(t.round_(t.mul(wide, inverse)), dtype="i8"), scale
