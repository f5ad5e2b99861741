"""Formats of weights in few bits: codes, scales and zeros of groups, made by ordinary nodes,
rounded to nearest.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

from ..ir.errors import IRError
from ..ir.node import Node
from ..ir.ops import quantized as q
from ..ir.ops import tensor as t

_FORMAT = re.compile(r"int(?P<bits>4|8)(?:-g(?P<group>\d+))?(?:-b(?P<block>\d+))?(?P<zeros>-asym)?")
_FLOAT = "fp8"
_LARGEST = 448.0  # of float8 with 4 bits of exponent (Micikevicius et al., 2022)
_STEP = 8  # codes of a group come in whole bytes and whole dot products
_MULTIPLIER = 15.0  # the largest: four bits
_TRIED = (-1.0, 0.0, 1.0)  # beside the multiplier of a group's own range
_SPLIT = float((1 << 20) + 1)


class Coded(NamedTuple):
    """A weight [.., N, K] as codes [.., N, J, G], scales [.., N, J] and, where the format has them,
    zeros u8[.., N, J]. Scales of blocks of groups are a node group_scales.
    """

    codes: Node
    scale: Node
    zeros: Node | None


@dataclass(frozen=True)
class Format:
    """Codes of `bits` bits, a scale for each `group` of them along k; group 0 is the whole row.

    Scales of groups are bfloat16, those of rows float32. Codes have no sign: their zero is
    `offset`, or, with `zeros`, a code of each group's own. With `is_float` codes are float8 (e4m3)
    with a scale for each row. With `block` a bfloat16 scale stands for so many codes, and each
    group in them has a multiplier of four bits: scales in two levels, after the progressive groups
    of QServe (Lin et al., 2024), so that products of a whole block stay whole numbers.
    """

    bits: int
    group: int
    zeros: bool = False
    is_float: bool = False
    block: int = 0

    @staticmethod
    def parse(text: str) -> Format:
        """int8 (a scale for each row), int8-g64, int4-g32, -g64, -g128, each with -asym behind it
        for zero points; int4-g32-b128 (groups of 32 in blocks of 128), which is int4 alone; fp8 (a
        scale for each row).
        """
        if text == _FLOAT:
            return Format(8, 0, is_float=True)
        found = _FORMAT.fullmatch(text)
        if found is None:
            raise IRError(
                f"no weight format {text!r}; wanted int8, int4, int8-g64, int4-g128, "
                "int4-g64-asym, fp8, ..."
            )
        bits = int(found["bits"])
        group = int(found["group"] or (32 if bits == 4 else 0))
        if found["group"] and (group < _STEP or group % _STEP):
            raise IRError(f"weight format {text!r}: a group is a multiple of {_STEP}, not {group}")
        block = int(found["block"] or 0)
        if found["block"] and (bits == 8 or found["zeros"] or not block or block % (2 * group)):
            raise IRError(
                f"weight format {text!r}: blocks are of 4-bit codes without zero points, and "
                f"of an even number of groups, {2 * group} codes or a multiple"
            )
        alone = bits == 4 and not found["group"] and not found["zeros"]
        return Format(
            bits, group, bool(found["zeros"]), block=128 if alone and not block else block
        )

    @property
    def offset(self) -> int:
        """The code that stands for 0 everywhere; 0 where each group has one of its own."""
        return 0 if self.zeros or self.is_float else 1 << (self.bits - 1)

    def quantized(self, w: Node) -> Coded:
        """w[.., N, K] as codes, scales and zeros.

        8 bits: scale = max |w| / 127. 4 bits: scale = -m / 8, where m is the value of the largest
        magnitude, so that the code with no counterpart (-8) is used by it. With zeros: the codes
        span [min(w, 0), max(w, 0)], and the zero is the code of 0. float8: scale = max |w| / 448.
        Blocks: see _in_blocks.
        """
        if self.is_float:
            return self._floats(w)
        per = self._per_block(int(w.shape[-1]))
        wide = self._grouped(w)
        if per > 1:
            return self._in_blocks(wide, per)
        low, scale = self._range(wide)
        stored = t.cast(scale, dtype="bf16") if self.group else scale
        used = t.cast(stored, dtype="f32") if self.group else scale
        safe = _safe(used)
        levels = t.round_(t.div(wide, _column(safe)))
        if low is None:
            levels = t.add(levels, _number(self.offset))
            return Coded(self._codes(levels), stored, None)
        zero = self._clipped(t.round_(t.div(t.neg(low), safe)))
        codes = self._codes(t.add(levels, _column(zero)))
        return Coded(codes, stored, t.cast(zero, dtype="u8"))

    def _floats(self, w: Node) -> Coded:
        """w[.., N, K] as f8e4m3[.., N, 1, K] with scales f32[.., N, 1]."""
        *rows, k = (int(d) for d in w.shape)
        wide = t.cast(w, dtype="f32") if w.dtype != "f32" else w
        wide = t.reshape(wide, shape=(*rows, 1, k))
        largest = t.reduce_max(t.abs_(wide), axes=(len(rows) + 1,))
        scale = t.mul(largest, _number(1 / _LARGEST))
        codes = t.cast(t.div(wide, _column(_safe(scale))), dtype="f8e4m3")
        return Coded(codes, scale, None)

    def _per_block(self, k: int) -> int:
        """Groups of a block of rows of k values: those of a whole block, or 2, where they divide
        the row's groups; else 1, scales of their own.
        """
        if not self.block:
            return 1
        groups = -(-k // self.group)
        return next(p for p in (self.block // self.group, 2, 1) if groups % p == 0)

    def _in_blocks(self, wide: Node, per: int) -> Coded:
        """w[.., N, J, G] in blocks of `per` groups.

        A group's step would be max |w| / 7.5, where the largest value is half a step off at most. A
        block's scale is a fifteenth of its groups' largest step, in four significant bits, so that
        its products by multipliers are bfloat16. Of the multipliers next to a group's own step
        that of the least squared error is taken.
        """
        axis = len(wide.shape) - 1
        step = t.mul(t.reduce_max(t.abs_(wide), axes=(axis,)), _number(1 / 7.5))
        *rows, groups = (int(d) for d in step.shape)
        blocks = t.reshape(step, shape=(*rows, groups // per, per))
        largest = t.mul(t.reduce_max(blocks, axes=(axis,)), _number(1 / _MULTIPLIER))
        scale = t.cast(_four_bits(largest), dtype="bf16")
        every = t.broadcast(_column(t.cast(scale, dtype="f32")), shape=(*rows, groups // per, per))
        unit = t.reshape(every, shape=(*rows, groups))
        own = t.round_(t.div(step, _safe(unit)))
        tried = [_between(t.add(own, _number(d)), 1.0, _MULTIPLIER) for d in _TRIED]
        chosen, *others = ((m, self._error(wide, t.mul(m, unit))) for m in tried)
        for m, error in others:
            less = t.lt(error, chosen[1])
            chosen = (t.where(less, m, chosen[0]), t.where(less, error, chosen[1]))
        codes = self._levels(wide, t.mul(chosen[0], unit))
        multipliers = t.cast(chosen[0], dtype="u4")
        return Coded(t.cast(codes, dtype="u4"), q.group_scales(multipliers, scale), None)

    def _levels(self, wide: Node, step: Node) -> Node:
        """The codes of w for a step of each group, as float32."""
        levels = t.round_(t.div(wide, _column(_safe(step))))
        return self._clipped(t.add(levels, _number(self.offset)))

    def _error(self, wide: Node, step: Node) -> Node:
        """The sum of each group's squared errors."""
        back = t.mul(t.sub(self._levels(wide, step), _number(self.offset)), _column(step))
        off = t.sub(back, wide)
        return t.reduce_sum(t.mul(off, off), axes=(len(wide.shape) - 1,))

    def _grouped(self, w: Node) -> Node:
        """w in float32 as [.., N, J, G], zeros at the end."""
        *rows, k = (int(d) for d in w.shape)
        whole = -(-k // _STEP) * _STEP
        length = min(self.group, whole) or whole
        groups = -(-k // length)
        wide = t.cast(w, dtype="f32") if w.dtype != "f32" else w
        if groups * length != k:
            none = (0,) * len(rows)
            wide = t.pad(wide, before=(*none, 0), after=(*none, groups * length - k), value=0.0)
        return t.reshape(wide, shape=(*rows, groups, length))

    def _range(self, w: Node) -> tuple[Node | None, Node]:
        """The value of the least code, where there are zeros, and the scale of each group."""
        axes = (len(w.shape) - 1,)
        if self.bits == 8 and not self.zeros:
            return None, t.mul(t.reduce_max(t.abs_(w), axes=axes), _number(1 / 127))
        high, low = t.reduce_max(w, axes=axes), t.reduce_min(w, axes=axes)
        if not self.zeros:
            m = t.where(t.gt(high, t.neg(low)), high, low)
            return None, t.mul(m, _number(-1 / 8))
        low = t.minimum(low, _number(0.0))
        span = t.sub(t.maximum(high, _number(0.0)), low)
        return low, t.mul(span, _number(1 / self._most))

    @property
    def _most(self) -> int:
        return (1 << self.bits) - 1

    def _clipped(self, levels: Node) -> Node:
        return _between(levels, 0.0, self._most)

    def _codes(self, levels: Node) -> Node:
        return t.cast(self._clipped(levels), dtype="u8" if self.bits == 8 else "u4")

    def __str__(self) -> str:
        if self.is_float:
            return _FLOAT
        group = f"-g{self.group}" if self.group else ""
        block = f"-b{self.block}" if self.block else ""
        return f"int{self.bits}{group}{block}" + ("-asym" if self.zeros else "")


def _number(value: float) -> Node:
    return t.scalar(float(value), "f32")


def _safe(scale: Node) -> Node:
    """A divisor: 1 where a scale is 0."""
    return t.where(t.eq(scale, _number(0.0)), _number(1.0), scale)


def _between(x: Node, low: float, high: float) -> Node:
    return t.minimum(t.maximum(x, _number(low)), _number(high))


def _four_bits(x: Node) -> Node:
    """float32 rounded to four significant bits (the splitting of Dekker, 1971)."""
    above = t.mul(x, _number(_SPLIT))
    return t.sub(above, t.sub(above, x))


def _column(x: Node) -> Node:
    """x[.., J] as [.., J, 1]."""
    return t.reshape(x, shape=(*x.shape, 1))
