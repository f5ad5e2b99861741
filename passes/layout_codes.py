"""Codes and scales of quantized linears in the layouts that kernels read, and activations in int8
where the backend has integer dot products.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..ir.node import Node
from ..ir.ops import quantized
from ..ir.ops import tensor as t
from .backends import Layout


@dataclass(frozen=True)
class PackedCodes:
    """The codes and scales of a weight, packed: codes [N, J G] in `layout`, scales [N, J] in the
    same columns, one j after another.
    """

    codes: Node
    scale: Node
    layout: Layout

    @staticmethod
    def of(codes: Node, scale: Node, layout: Layout) -> PackedCodes:
        """codes[N, J, G] and scale[N, J], packed."""
        n, groups, length = (int(d) for d in codes.shape)
        flat = t.reshape(codes, shape=(n, groups * length))
        return PackedCodes(layout.packed(flat), _columns(scale, layout.columns), layout)

    def linear(self, node: Node, *, integer: bool) -> Node:
        """The quantized linear by packed codes; `integer` quantizes its x too, by row and group."""
        x, codes, _, *bias = node.inputs
        n, groups, length = (int(d) for d in codes.shape)
        offset, word = node["offset"], self.layout.word
        if integer:
            whole, factor = quantized_rows(x, groups, length)
            return quantized.packed_integer_linear(
                whole, factor, self.codes, self.scale, *bias,
                n=n, offset=offset, layout=word, dtype=node.dtype,
            )  # fmt: skip
        return quantized.packed_quantized_linear(
            x, self.codes, self.scale, *bias, n=n, group=length, offset=offset, layout=word
        )

    def unpacked_codes(self, codes: Node) -> Node:
        """The codes [N, J, G] as a view of the packed ones."""
        n, groups, length = (int(d) for d in codes.shape)
        packed = self.codes
        if self.layout.pairs > 1:
            packed = t.transpose(packed, permutation=(0, 2, 1, 4, 3))
        elif self.layout.depth > 1:
            packed = t.transpose(packed, permutation=(0, 2, 1, 3))
        else:
            packed = t.transpose(packed, permutation=(0, 2, 1))
        rows = int(packed.shape[0]) * self.layout.columns
        flat = t.reshape(packed, shape=(rows, groups, length))
        return flat if rows == n else t.slice_(flat, axis=0, start=0, stop=n)

    def unpacked_scale(self, scale: Node) -> Node:
        """The scales [N, J] as a view of the packed ones."""
        n, groups = (int(d) for d in scale.shape)
        turned = t.transpose(self.scale, permutation=(0, 2, 1))
        flat = t.reshape(turned, shape=(int(turned.shape[0]) * self.layout.columns, groups))
        return flat if flat.shape[0] == n else t.slice_(flat, axis=0, start=0, stop=n)


def _columns(scale: Node, columns: int) -> Node:
    """scale[N, J] as [ceil(N / columns), J, columns]."""
    n, groups = (int(d) for d in scale.shape)
    blocks = -(-n // columns)
    if blocks * columns != n:
        scale = t.pad(scale, before=(0, 0), after=(blocks * columns - n, 0), value=0.0)
    split = t.reshape(scale, shape=(blocks, columns, groups))
    return t.transpose(split, permutation=(0, 2, 1))


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
