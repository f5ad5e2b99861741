"""Codes of 8 bits as bfloat16 numbers by looking up their bytes: every whole number from -127 to
127 is one exactly.

The magnitude chooses the low byte and, but for the sign, the high one, each from 128 in two
registers (vpermi2b). Widening by way of float32 takes twice the instructions.
"""

from __future__ import annotations

import struct

from tvm.script.ir_builder import tirx as T

from .function import Kernel
from .values import Expr, bind


def _bits(value: int) -> int:
    """A whole number's bfloat16."""
    return struct.unpack("<I", struct.pack("<f", float(value)))[0] >> 16


def _table(name: str, shift: int) -> str:
    halves = []
    for half in range(2):
        values = (_bits(64 * half + i) >> shift & 0xFF for i in range(64))
        halves.append("<64 x i8> <" + ", ".join(f"i8 {v}" for v in values) + ">")
    low, high = halves
    return f"""
  %{name} = call <64 x i8> @llvm.x86.avx512.vpermi2var.qi.512(
    {low}, <64 x i8> %size, {high})"""


_SIZE = """
  %size = call <64 x i8> @llvm.abs.v64i8(<64 x i8> %x, i1 false)"""
_SIGNED = f"""
  %sign = and <64 x i8> %x, <{", ".join(["i8 -128"] * 64)}>
  %signed = or <64 x i8> %high, %sign"""


def _all(value: int) -> str:
    return "<" + ", ".join([f"i32 {value}"] * 16) + ">"


_SHIFTS = (
    """
  %x0 = bitcast <64 x i8> %low to <16 x i32>
  %y0 = bitcast <64 x i8> %signed to <32 x i16>
  %y1 = shl <32 x i16> %y0, {by}
  %y2 = bitcast <32 x i16> %y1 to <16 x i32>""",
    """
  %y0 = bitcast <64 x i8> %low to <32 x i16>
  %y1 = lshr <32 x i16> %y0, {by}
  %x0 = bitcast <32 x i16> %y1 to <16 x i32>
  %y2 = bitcast <64 x i8> %signed to <16 x i32>""",
)
_JOINED = f"""
  %r = call <16 x i32> @llvm.x86.avx512.pternlog.d.512(
    <16 x i32> {_all(0x00FF00FF)}, <16 x i32> %x0, <16 x i32> %y2, i32 202)
  %s = bitcast <16 x i32> %r to <32 x i16>
  ret <32 x i16> %s"""
"""The low bytes of one and the high bytes of the other."""


def _function(n: int) -> str:
    shift = _SHIFTS[n].format(by="<" + ", ".join(["i16 8"] * 32) + ">")
    body = _SIZE + _table("low", 0) + _table("high", 8) + _SIGNED + shift + _JOINED
    return f"""
define <32 x i16> @ferrule_codes_{n}(<64 x i8> %x) alwaysinline {{{body}
}}"""


TABLES = f"""{_function(0)}{_function(1)}
declare <64 x i8> @llvm.x86.avx512.vpermi2var.qi.512(<64 x i8>, <64 x i8>, <64 x i8>)
declare <64 x i8> @llvm.abs.v64i8(<64 x i8>, i1)
declare <16 x i32> @llvm.x86.avx512.pternlog.d.512(<16 x i32>, <16 x i32>, <16 x i32>, i32)
"""


def pairs_of_codes(kernel: Kernel, codes: Expr, n: int) -> Expr:
    """Bytes n and n + 2 of each 32 bits of int8x64 as a pair of bfloat16, int16x32."""
    kernel.snippets.add(TABLES)
    return bind(T.call_extern("int16x32", f"ferrule_codes_{n}", codes))
