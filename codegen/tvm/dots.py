"""Integer dot products: sums of four products each, of codes without a sign by x with one, by what
the target has for it.

- vnni512: vpdpbusd, sixteen sums at a time; vnni256: eight at a time (AVX-VNNI).
- pairs: vpmaddubsw and vpmaddwd, eight at a time (AVX2). Pairs of products are added in 16 bits.
  Those of four-bit codes by x are at most 2 * 15 * 128 each: eight of them are added up in 16 bits
  before they are widened. Eight-bit codes lose 128 before: |q - 128| by x with the sign of q - 128
  is at most 2 * 128 * 127, and the sums are those of codes less 128.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from .isa import LANES
from .values import Expr, bind


@dataclass(frozen=True)
class Dot:
    """One kind of dot product over codes of a dtype, u8 or u4."""

    kind: str
    dtype: str

    @property
    def lanes(self) -> int:
        """Sums made at a time."""
        return LANES if self.kind == "vnni512" else LANES // 2

    @property
    def taken_off(self) -> int:
        """What the sums' codes have lost."""
        return 128 if self.kind == "pairs" and self.dtype == "u8" else 0

    @property
    def narrow(self) -> int:
        """Fours of k whose sums are added up in 16 bits, a pair of products a lane, before `widen`
        takes them; 0 where every four goes to the 32-bit sums.
        """
        return (1 << 15) // (2 * 15 * 128) if self.kind == "pairs" and self.dtype == "u4" else 0

    def nibbles(self, part: Expr, half: int) -> Expr:
        """The low or high four bits of each byte."""
        return bind(nibbles(part, half, 4 * self.lanes))

    def ready(self, part: Expr) -> tuple[Expr, ...]:
        """Codes as `add` wants them: made once for all rows."""
        if not self.taken_off:
            return (part,)
        signed = tirx.op.bitwise_xor(part, T.broadcast(_u8(128), 4 * self.lanes))
        signed = bind(tirx.op.reinterpret(self._bytes, signed))
        return bind(self._sign(signed, signed)), signed

    def add(self, total: tirx.Buffer, number: int, codes: tuple[Expr, ...], four: Expr) -> None:
        """total += codes . x in the lanes of the number-th part; `four` is 4 x as one int32.

        A total of int16 holds sums of pairs, twice as many lanes.
        """
        x = tirx.op.reinterpret(self._bytes, T.broadcast(four, self.lanes))
        if str(total.dtype) == "int16":
            at = T.ramp(2 * number * self.lanes, 1, 2 * self.lanes)
            return T.buffer_store(total, total[at] + self._pairs(codes, x), [at])
        at = T.ramp(number * self.lanes, 1, self.lanes)
        T.buffer_store(total, self.sum(total[at], codes, x), [at])

    def widen(self, total: tirx.Buffer, pairs: tirx.Buffer, times: Sequence[Expr] = ()) -> None:
        """total += the sums of pairs; each times its own of `times`, int16, a part after another,
        if given.
        """
        for low in range(0, LANES, self.lanes):
            at = T.ramp(low, 1, self.lanes)
            two = pairs[T.ramp(2 * low, 1, 2 * self.lanes)]
            by = times[low // self.lanes] if times else None
            T.buffer_store(total, total[at] + self._joined(two, by), [at])

    def sum(self, total: Expr, codes: tuple[Expr, ...], x: Expr) -> Expr:
        """total + codes . x, as one expression."""
        if self.kind != "pairs":
            name = f"llvm.x86.avx512.vpdpbusd.{32 * self.lanes}"
            return T.call_llvm_pure_intrin(f"int32x{self.lanes}", name, total, codes[0], x)
        return total + self._joined(self._pairs(codes, x))

    def _pairs(self, codes: tuple[Expr, ...], x: Expr) -> Expr:
        """Sums of two products each."""
        signed = x if len(codes) == 1 else self._sign(x, codes[1])
        name = "llvm.x86.avx2.pmadd.ub.sw"
        return T.call_llvm_pure_intrin(f"int16x{2 * self.lanes}", name, codes[0], signed)

    def _joined(self, two: Expr, times: Expr | None = None) -> Expr:
        """Sums of two lanes each, times what each has, widened."""
        by = T.broadcast(tirx.IntImm("int16", 1), 2 * self.lanes) if times is None else times
        name = "llvm.x86.avx2.pmadd.wd"
        return T.call_llvm_pure_intrin(f"int32x{self.lanes}", name, two, by)

    @property
    def _bytes(self) -> str:
        return f"int8x{4 * self.lanes}"

    def _sign(self, x: Expr, by: Expr) -> Expr:
        return T.call_llvm_pure_intrin(self._bytes, "llvm.x86.avx2.psign.b", x, by)


def nibbles(part: Expr, half: int, width: int) -> Expr:
    """The low (half 0) or high four bits of `width` bytes."""
    if half:
        return tirx.op.shift_right(part, T.broadcast(_u8(4), width))
    return tirx.op.bitwise_and(part, T.broadcast(_u8(15), width))


def _u8(value: int) -> Expr:
    return tirx.IntImm("uint8", value)
