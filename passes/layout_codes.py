"""Codes and scales of quantized linears in the layouts that kernels read, and activations in int8
where the backend has integer dot products.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..ir.node import Node
from ..ir.ops import quantized as q
from ..ir.ops import tensor as t
from .backends import Layout


@dataclass(frozen=True)
class PackedCodes:
    """The codes, scales and zeros of a weight, packed: codes [.., N, J G] in `layout`, scales and
    zeros [.., N, J] in the same columns, one j after another.
    """

    codes: Node
    scale: Node
    layout: Layout
    zeros: Node | None = None

    @staticmethod
    def of(codes: Node, scale: Node, layout: Layout, zeros: Node | None = None) -> PackedCodes:
        """codes[.., N, J, G] and scale[.., N, J], packed."""
        *lead, groups, length = codes.shape
        flat = t.reshape(codes, shape=(*lead, groups * length))
        columns = None if zeros is None else _columns(zeros, layout.columns)
        return PackedCodes(layout.packed(flat), _columns(scale, layout.columns), layout, columns)

    def linear(self, node: Node, *, integer: bool) -> Node:
        """The quantized linear by packed codes; `integer` quantizes its x too, by row and group."""
        x, _, codes, _, experts, _, bias = q.operands(node)
        n, groups, length = (int(d) for d in codes.shape[-3:])
        more = tuple(m for m in (experts, self.zeros, bias) if m is not None)
        options = {"n": n, "offset": node["offset"], "layout": self.layout.word}
        if integer:
            op = q.packed_integer_linear if experts is None else q.packed_integer_expert_linear
            rows = _quantized_once(x, groups, length)
            return op(*rows, self.codes, self.scale, *more, **options, dtype=node.dtype)
        op = q.packed_quantized_linear if experts is None else q.packed_quantized_expert_linear
        return op(x, self.codes, self.scale, *more, **options, group=length)

    def views(self, codes: Node, scale: Node, zeros: Node | None) -> dict[Node, Node]:
        """What was packed as views of the packed, for whatever else reads it."""
        found = {codes: self.unpacked_codes(codes), scale: self.unpacked(self.scale, scale)}
        if zeros is not None and self.zeros is not None:
            found[zeros] = self.unpacked(self.zeros, zeros)
        return found

    def unpacked_codes(self, codes: Node) -> Node:
        """The codes [.., N, J, G] as a view of the packed ones."""
        *lead, n, groups, length = (int(d) for d in codes.shape)
        order = (0, 2, 1, 4, 3) if self.layout.pairs > 1 else (0, 2, 1, 3)
        packed = _turned(self.codes, len(lead), order if self.layout.depth > 1 else (0, 2, 1))
        rows = int(packed.shape[len(lead)]) * self.layout.columns
        flat = t.reshape(packed, shape=(*lead, rows, groups, length))
        return flat if rows == n else t.slice_(flat, axis=len(lead), start=0, stop=n)

    def unpacked(self, packed: Node, scale: Node) -> Node:
        """Scales (or zeros) [.., N, J] as a view of the packed ones."""
        *lead, n, groups = (int(d) for d in scale.shape)
        turned = _turned(packed, len(lead), (0, 2, 1))
        rows = int(turned.shape[len(lead)]) * self.layout.columns
        flat = t.reshape(turned, shape=(*lead, rows, groups))
        return flat if rows == n else t.slice_(flat, axis=len(lead), start=0, stop=n)


def _turned(x: Node, lead: int, order: tuple[int, ...]) -> Node:
    """x with the axes behind the first `lead` in another order."""
    return t.transpose(x, permutation=(*range(lead), *(lead + i for i in order)))


def _columns(scale: Node, columns: int) -> Node:
    """scale[.., N, J] as [.., ceil(N / columns), J, columns]."""
    *lead, n, groups = (int(d) for d in scale.shape)
    blocks = -(-n // columns)
    if blocks * columns != n:
        none = (0,) * (len(lead) + 2)
        after = (*none[2:], blocks * columns - n, 0)
        scale = t.pad(scale, before=none, after=after, value=0.0)
    split = t.reshape(scale, shape=(*lead, blocks, columns, groups))
    return _turned(split, len(lead), (0, 2, 1))


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
