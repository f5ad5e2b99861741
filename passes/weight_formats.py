"""Formats of weights in few bits: codes, scales and zeros of groups, made by ordinary nodes,
rounded to nearest.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

from ..ir.errors import IRError
from ..ir.node import Node
from ..ir.ops import tensor as t

_FORMAT = re.compile(r"int(?P<bits>4|8)(?:-g(?P<group>\d+))?(?P<zeros>-asym)?")
_FLOAT = "fp8"
_LARGEST = 448.0  # of float8 with 4 bits of exponent (Micikevicius et al., 2022)
_STEP = 8  # codes of a group come in whole bytes and whole dot products


class Coded(NamedTuple):
    """A weight [.., N, K] as codes [.., N, J, G], scales [.., N, J] and, where the format has them,
    zeros u8[.., N, J].
    """

    codes: Node
    scale: Node
    zeros: Node | None


@dataclass(frozen=True)
class Format:
    """Codes of `bits` bits, a scale for each `group` of them along k; group 0 is the whole row.

    Scales of groups are bfloat16, those of rows float32. Codes have no sign: their zero is
    `offset`, or, with `zeros`, a code of each group's own. With `is_float` codes are float8 (e4m3)
    with a scale for each row.
    """

    bits: int
    group: int
    zeros: bool = False
    is_float: bool = False

    @staticmethod
    def parse(text: str) -> Format:
        """int8 (a scale for each row), int8-g64, int4 (groups of 32), int4-g32, -g64, -g128; each
        with -asym behind it for zero points; fp8 (a scale for each row).
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
        return Format(bits, group, bool(found["zeros"]))

    @property
    def offset(self) -> int:
        """The code that stands for 0 everywhere; 0 where each group has one of its own."""
        return 0 if self.zeros or self.is_float else 1 << (self.bits - 1)

    def quantized(self, w: Node) -> Coded:
        """w[.., N, K] as codes, scales and zeros.

        8 bits: scale = max |w| / 127. 4 bits: scale = -m / 8, where m is the value of the largest
        magnitude, so that the code with no counterpart (-8) is used by it. With zeros: the codes
        span [min(w, 0), max(w, 0)], and the zero is the code of 0. float8: scale = max |w| / 448.
        """
        if self.is_float:
            return self._floats(w)
        wide = self._grouped(w)
        low, scale = self._range(wide)
        stored = t.cast(scale, dtype="bf16") if self.group else scale
        used = t.cast(stored, dtype="f32") if self.group else scale
        safe = t.where(t.eq(used, _number(0.0)), _number(1.0), used)
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
        safe = t.where(t.eq(scale, _number(0.0)), _number(1.0), scale)
        return Coded(t.cast(t.div(wide, _column(safe)), dtype="f8e4m3"), scale, None)

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
        return t.minimum(t.maximum(levels, _number(0.0)), _number(self._most))

    def _codes(self, levels: Node) -> Node:
        return t.cast(self._clipped(levels), dtype="u8" if self.bits == 8 else "u4")

    def __str__(self) -> str:
        if self.is_float:
            return _FLOAT
        group = f"-g{self.group}" if self.group else ""
        return f"int{self.bits}{group}" + ("-asym" if self.zeros else "")


def _number(value: float) -> Node:
    return t.scalar(float(value), "f32")


def _column(x: Node) -> Node:
    """x[.., J] as [.., J, 1]."""
    return t.reshape(x, shape=(*x.shape, 1))
