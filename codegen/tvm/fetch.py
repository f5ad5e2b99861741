"""Asking for memory before it is read."""

from __future__ import annotations

from collections.abc import Sequence

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from .values import Expr

LINE = 64
"""Bytes of a line of the cache."""


def fetch(buffer: tirx.Buffer, at: Sequence[Expr], *, near: int = 3) -> None:
    """Ask for the line of an element, into the nearest cache (`near` 3) or the one behind it (2).

    An index may lie past the end of its axis, or of the buffer: nothing is read there.
    """
    read, close, as_data = (tirx.IntImm("int32", n) for n in (0, near, 1))
    place = T.address_of(buffer[tuple(at)])
    T.evaluate(T.call_llvm_intrin("void", "llvm.prefetch", place, read, close, as_data))
