"""What the templates need to know of a CPU: TVM's target, vector registers, dot instructions,
tile sizes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import tvm

from ...ir.target import Target
from ..backend import integer_dot

LANES = 16
"""Elements of a vector in every template: one AVX-512 register of float32; LLVM splits it on
narrower machines.
"""

DOT_BF16 = """
define <16 x float> @ferrule_dot_bf16(<16 x float> %a, <32 x i16> %b, <32 x i16> %c) alwaysinline {
  %b1 = bitcast <32 x i16> %b to <32 x bfloat>
  %c1 = bitcast <32 x i16> %c to <32 x bfloat>
  %r = call <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(
    <16 x float> %a, <32 x bfloat> %b1, <32 x bfloat> %c1)
  ret <16 x float> %r
}
declare <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float>, <32 x bfloat>, <32 x bfloat>)
"""
"""vdpbf16ps. TVM turns bfloat16 into float32 even in intrinsic arguments, so the dot is reached
through LLVM IR.
"""


STAY = "ferrule_stay"
STAY_A_LOOP = f"""
define i32 @{STAY}() alwaysinline {{
  call void asm sideeffect "", ""() noduplicate
  ret i32 0
}}
"""
"""Called in a loop it says that LLVM shall not write its turns out one after another, as it does
with few turns: of a whole group's products it makes one tree that fills more registers than there
are.
"""


READ_AHEAD = 2048
"""Bytes ahead of its place that a stream of weights is asked for where hardware's own fetching
falls behind: on Intel's processors (Granite Rapids: two cores so read 4-bit codes at 95% of the
rate that memory has for them, without at 87%; AVX2 code at 97%, without at 85%); AMD's are at their
limit without (Zen 5).
"""


@dataclass(frozen=True)
class Tile:
    """A register tile: rows x columns vectors of 16 float32 accumulators, `unroll` partial sums
    of each.
    """

    rows: int
    columns: int
    unroll: int = 1


@dataclass(frozen=True)
class Isa:
    """A CPU as the templates see it; `few` and `many` are the row tiles of the linear template.

    A vector register has `vector_bytes`.
    `has_bf16_tiles` and `has_integer_tiles` speak of AMX, `has_byte_table` of a shuffle that looks
    up bytes in two registers; `integer_dot` is a kind of dots.py. `one_order`: sums of all
    ops are made in the same order however many rows there are. `read_ahead`: how many bytes ahead
    of its place one row asks for its weights.
    """

    registers: int
    cores: int
    one: Tile
    few: Tile
    many: Tile
    vector_bytes: int = 16
    has_bf16_dot: bool = False
    has_byte_table: bool = False
    integer_dot: str = ""
    has_bf16_tiles: bool = False
    has_integer_tiles: bool = False
    one_order: bool = False
    read_ahead: int = 0

    @property
    def sums_in_order(self) -> bool:
        """Whether linears sum in the same order however many rows there are."""
        return self.one_order or not self.has_bf16_tiles

    @property
    def sums_by_tiles(self) -> bool:
        """Whether linears sum floats in AMX tiles, which add up in an order of their own."""
        return self.has_bf16_tiles and not self.one_order


def isa_of(target: Target) -> Isa:
    """The templates' view of a target; tiles fill the vector registers without spilling.

    Without AMX a linear's sums are one partial sum each, over k in its order, asked for or not:
    several independent ones are no faster where there are as many columns.
    """
    ahead = 0 if target.arch.startswith("znver") else READ_AHEAD
    isa = replace(_fastest(target), read_ahead=ahead)
    if isa.has_bf16_tiles and not target.deterministic:
        return isa
    one, few, many = (replace(tile, unroll=1) for tile in (isa.one, isa.few, isa.many))
    # What hid the latency of sums hides it yet.
    one = replace(one, columns=isa.one.columns * isa.one.unroll)
    return replace(isa, one=one, few=few, many=many, one_order=target.deterministic)


def _fastest(target: Target) -> Isa:
    if target.has("avx512f"):
        return Isa(
            32,
            target.cores,
            *(Tile(1, 1, 4), Tile(4, 2, 2), Tile(8, 2)),
            vector_bytes=64,
            has_bf16_dot=target.has("avx512_bf16"),
            has_byte_table=target.has("avx512vbmi"),
            integer_dot=integer_dot(target),
            has_bf16_tiles=target.has("avx512_bf16", "amx_tile", "amx_bf16"),
            has_integer_tiles=target.has("avx512_vnni", "amx_tile", "amx_int8"),
        )
    if target.has("avx2"):
        # 16 registers of 8 floats: a column vector takes two of them.
        tiles = Tile(1, 4), Tile(4, 1), Tile(6, 1)
        dot = integer_dot(target)
        return Isa(16, target.cores, *tiles, vector_bytes=32, integer_dot=dot)
    return Isa(16, target.cores, Tile(1, 1), Tile(2, 1), Tile(2, 1))


def tvm_target(target: Target) -> tvm.target.Target:
    """TVM's form of a CPU target.

    What AMD's processors alone have is left out: a target's features, by which a machine is let or
    refused, do not speak of it.
    """
    description = {
        "kind": "llvm",
        "mcpu": target.arch,
        "mattr": ["-sse4a"] if target.arch.startswith("znver") else [],
        "num-cores": max(1, target.cores),
    }
    return tvm.target.Target(description)
