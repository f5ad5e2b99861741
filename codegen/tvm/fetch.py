"""Asking for memory before it is read, and reading it in its order."""

from __future__ import annotations

from collections.abc import Sequence

import tvm
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from .function import Kernel
from .values import Expr, bind, i64

LINE = 64
"""Bytes of a line of the cache."""


def fetch(buffer: tirx.Buffer, at: Sequence[Expr], *, near: int = 3) -> None:
    """Ask for the line of an element, into the nearest cache (`near` 3) or the one behind it (2).

    An index may lie past the end of its axis, or of the buffer: nothing is read there.
    """
    read, close, as_data = (tirx.IntImm("int32", n) for n in (0, near, 1))
    place = T.address_of(buffer[tuple(at)])
    T.evaluate(T.call_llvm_intrin("void", "llvm.prefetch", place, read, close, as_data))


_TYPES = {"uint8": "i8", "int8": "i8", "uint16": "i16", "float16": "half", "float32": "float"}
_LOADS = {64: ("vmovdqu64", "v"), 32: ("vmovdqu", "x")}


def in_turn(
    kernel: Kernel,
    buffer: tirx.Buffer,
    at: Sequence[Expr],
    lanes: int,
    ahead: int | Sequence[Expr] = 0,
) -> Expr:
    """So many elements side by side from `at` on, read in the order in which the kernel asks for
    them, where they fill one of the target's registers.

    The hardware asks for memory ahead of a stream whose reads come in its order. LLVM takes reads
    of unrolled code for free to move, and what asks for lines (llvm.prefetch) to the code's
    beginning, where a core, which has room for a few dozen requests, waits for them one and all.
    One core (Zen 5, pages of 2 MiB or 4 KiB) so read 4-bit codes at 59% of the rate that memory
    has for it; with nothing asked for, in LLVM's order, at 89%; in their own at 99%. Where there is
    much to compute between reads the hardware falls behind: with `ahead` the line so many bytes
    behind what is read, or that of another element, is asked for with it.
    """
    *outer, first = at
    dtype, size = str(buffer.dtype), lanes * tvm.DataType(buffer.dtype).bits // 8
    if size != kernel.isa.vector_bytes or size not in _LOADS or dtype not in _TYPES:
        if not isinstance(ahead, int):
            fetch(buffer, ahead)
        return bind(buffer[(*outer, T.ramp(first, i64(1), lanes))])
    name, read, vector = f"ferrule_read_{dtype}", f"<{size} x i8>", f"<{lanes} x {_TYPES[dtype]}>"
    load, register = _LOADS[size]
    code = f"{load} $1, $0"
    element, behind = (at, ahead) if isinstance(ahead, int) else (ahead, 0)
    if ahead:
        name, code = f"{name}_{behind}", f"{code}\\0A\\09prefetcht0 $2"
    kernel.snippets.add(f"""
define {vector} @{name}(ptr %at, ptr %other) alwaysinline {{
  %behind = getelementptr i8, ptr %other, i64 {behind}
  %r = call {read} asm sideeffect "{code}", "={register},*m,*m"(
    ptr elementtype({read}) %at, ptr elementtype(i8) %behind)
  %v = bitcast {read} %r to {vector}
  ret {vector} %v
}}
""")
    return bind(
        T.call_extern(
            f"{dtype}x{lanes}", name, *(T.address_of(buffer[tuple(e)]) for e in (at, element))
        )
    )
