"""The tiles of the templates, as data: what may be chosen, what is taken where nothing is, and what
a choice holds of a GPU's shared memory and registers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ...ir.errors import IRError
from ...ir.target import Target
from ..space import Choice

KIB = 1 << 10
SHARED = {
    "sm_80": 163 * KIB, "sm_86": 99 * KIB, "sm_89": 99 * KIB, "sm_90": 227 * KIB,
    "sm_100": 227 * KIB, "sm_120": 99 * KIB,
    "gfx90a": 64 * KIB, "gfx942": 64 * KIB, "gfx950": 160 * KIB,
}  # fmt: skip
"""Bytes of shared memory that one program may have, by the architectures that Triton compiles for
(CUDA C++ Programming Guide, compute capabilities; CDNA instruction set guides)."""

DESCRIPTOR = 128
"""Bytes of a descriptor of the tensor memory accelerator (CUDA Driver API, CUtensorMap)."""

ACCUMULATORS = 160
"""Float32 sums that a thread can hold beside what it reads: of 255 registers the rest."""


@dataclass(frozen=True)
class Sizes:
    """What the room that a choice needs depends on beside the choice: bytes of an element that is
    multiplied, sums of columns made together, widths of a key and of a value (attention).
    """

    item: int = 2
    parts: int = 1
    width: int = 0
    value_width: int = 0


@dataclass(frozen=True)
class Tiles:
    """The choices of one template.

    `defaults` by architecture, "" for any other; `shared(choice, sizes)` is about how many bytes
    its pipeline holds, `sums(choice, sizes)` how many float32 values a program accumulates: both
    rule out what cannot fit before it is compiled, and the compiled kernel has the last word.
    """

    values: Mapping[str, tuple[int, ...]]
    defaults: Mapping[str, Mapping[str, int]]
    shared: Callable[[Choice, Sizes], int]
    sums: Callable[[Choice, Sizes], int]

    def default(self, target: Target) -> Choice:
        """What is taken where nothing was chosen."""
        arch = target.arch if target.arch in self.defaults else ""
        return Choice.of(self.defaults[arch])

    def fits(self, choice: Choice, target: Target, sizes: Sizes) -> bool:
        """Whether a choice has a chance of fitting the target."""
        if target.arch not in SHARED:
            raise IRError(f"no shared memory known of {target}; known: {', '.join(SHARED)}")
        threads = choice["WARPS"] * warp_threads(target)
        return (
            self.shared(choice, sizes) <= SHARED[target.arch]
            and self.sums(choice, sizes) <= ACCUMULATORS * threads
        )


def warp_threads(target: Target) -> int:
    """Threads of a warp."""
    return 64 if target.kind == "rocm" else 32


def _operands(c: Choice, s: Sizes) -> int:
    return c["STAGES"] * c["BK"] * (c["BM"] + s.parts * c["BN"]) * s.item


def _products(c: Choice, s: Sizes) -> int:
    return s.parts * c["BM"] * c["BN"]


_WARPS = {"WARPS": (4, 8)}

GEMM = Tiles(
    {"BM": (64, 128), "BN": (64, 128, 256), "BK": (32, 64, 128), "STAGES": (2, 3, 4, 5)} | _WARPS,
    {
        "": {"BM": 128, "BN": 64, "BK": 64, "WARPS": 8, "STAGES": 3},
        "sm_90": {"BM": 128, "BN": 128, "BK": 64, "WARPS": 8, "STAGES": 4},
        "sm_100": {"BM": 128, "BN": 128, "BK": 64, "WARPS": 8, "STAGES": 4},
        "gfx90a": {"BM": 128, "BN": 128, "BK": 32, "WARPS": 8, "STAGES": 2},
        "gfx942": {"BM": 128, "BN": 128, "BK": 32, "WARPS": 8, "STAGES": 2},
    },
    _operands,
    _products,
)
"""gemm: many rows."""

GEMM_FEW = Tiles(
    {"BM": (16, 32, 64, 128), "BN": (64, 128), "BK": (64, 128, 256), "STAGES": (2, 3, 4, 5)}
    | {"SPLIT": (1, 2, 4, 8)}
    | _WARPS,
    {
        "": {"BM": 16, "BN": 64, "BK": 64, "WARPS": 4, "STAGES": 4, "SPLIT": 1},
        "sm_90": {"BM": 16, "BN": 64, "BK": 128, "WARPS": 4, "STAGES": 4, "SPLIT": 1},
        "sm_100": {"BM": 16, "BN": 64, "BK": 128, "WARPS": 4, "STAGES": 4, "SPLIT": 1},
        "gfx90a": {"BM": 16, "BN": 64, "BK": 64, "WARPS": 4, "STAGES": 2, "SPLIT": 1},
        "gfx942": {"BM": 16, "BN": 64, "BK": 64, "WARPS": 4, "STAGES": 2, "SPLIT": 1},
    },
    _operands,
    _products,
)
"""gemm_few: up to a few dozen rows."""

GEMV = Tiles(
    {"BN": (1, 2, 4, 8, 16), "BK": (256, 512, 1024, 2048), "STAGES": (1,)} | _WARPS,
    {"": {"BN": 4, "BK": 1024, "WARPS": 4, "STAGES": 1}},
    lambda c, s: 0,
    lambda c, s: s.parts * c["BN"] * c["BK"] * s.item // 2 + 2 * c["BK"],
)
"""gemv: one row; BN of the default is for one part. What is held are two steps of weights, one on
its way, and of x in float32.
"""


def split_width(width: int) -> tuple[int, int]:
    """A width as two powers of two, 16 at least, that cover it with little more: 576 as 512 and 64,
    80 as 64 and 16, 128 as 128 and 0.
    """
    first = max(16, 1 << (width.bit_length() - 1))
    rest = max(0, width - first)
    return first, max(16, 1 << (rest - 1).bit_length()) if rest else 0


def _pages(c: Choice, s: Sizes) -> int:
    return c["STAGES"] * c["BK"] * (s.width + s.value_width) * s.item


def _scores(c: Choice, s: Sizes) -> int:
    named = dict(c.values)
    return named.get("ROWS", named.get("HEADS", 16)) * (s.value_width + c["BK"])


ATTEND_SPLITS = {
    False: Tiles(
        {"HEADS": (16,), "BK": (32, 64, 128), "SPLITS": (4, 8, 16, 32, 64), "STAGES": (2, 3, 4)}
        | _WARPS,
        {
            "": {"HEADS": 16, "BK": 64, "SPLITS": 16, "WARPS": 4, "STAGES": 2},
            "sm_90": {"HEADS": 16, "BK": 64, "SPLITS": 16, "WARPS": 4, "STAGES": 3},
        },
        _pages,
        _scores,
    ),
    True: Tiles(
        {"HEADS": (16, 32, 64), "BK": (16, 32, 64), "SPLITS": (4, 8, 16, 32, 64)}
        | {"STAGES": (1, 2, 3)}
        | _WARPS,
        {"": {"HEADS": 16, "BK": 32, "SPLITS": 16, "WARPS": 4, "STAGES": 2}},
        _pages,
        _scores,
    ),
}
"""attend_splits, by whether a key is wider than WIDE: with as many tokens a tile would not fit."""

ATTEND_TOKENS = {
    False: Tiles(
        {"ROWS": (16, 32, 64, 128), "BK": (32, 64, 128), "STAGES": (1, 2, 3, 4)} | _WARPS,
        {
            "": {"ROWS": 64, "BK": 32, "WARPS": 4, "STAGES": 2},
            "sm_90": {"ROWS": 128, "BK": 64, "WARPS": 8, "STAGES": 2},
            "sm_100": {"ROWS": 128, "BK": 64, "WARPS": 8, "STAGES": 2},
        },
        _pages,
        _scores,
    ),
    True: Tiles(
        {"ROWS": (16, 32, 64), "BK": (16, 32, 64), "STAGES": (1, 2)} | _WARPS,
        {"": {"ROWS": 16, "BK": 32, "WARPS": 4, "STAGES": 1}},
        _pages,
        _scores,
    ),
}
"""attend_tokens, as above; ROWS is tokens times heads, see `rows_of`."""

WIDE = 256
"""Elements of a key from which on attention takes other tiles."""


def rows_of(choice: Choice, repeat: int) -> dict[str, int]:
    """HEADS and TOKENS of a choice of ROWS, for so many heads in a group."""
    heads = min(choice["ROWS"], 1 << (repeat - 1).bit_length())
    return {"HEADS": heads, "TOKENS": choice["ROWS"] // heads}


def _words(c: Choice, s: Sizes) -> int:
    return c["STAGES"] * c["BK"] * (c["BM"] * s.item + s.parts * c["BN"])


def _held_codes(c: Choice, s: Sizes) -> int:
    """Sums, those of a group beside them; or sums and a tile of weights."""
    if dict(c.values).get("ROUNDED"):
        return s.parts * c["BM"] * c["BN"] + c["BN"] * c["BK"]
    return 2 * s.parts * c["BM"] * c["BN"]


GEMM_CODES = Tiles(
    {"BM": (16, 32, 64, 128), "BN": (64, 128), "BK": (32, 64, 128, 256), "PACK": (1, 2, 4, 8)}
    | {"SPLIT": (1, 2, 4, 8), "STAGES": (2, 3, 4, 5), "ROUNDED": (0, 1)}
    | _WARPS,
    {
        "": {"BM": 16, "BN": 64, "BK": 128, "PACK": 4, "SPLIT": 1, "WARPS": 4, "STAGES": 3}
        | {"ROUNDED": 1},
        "sm_90": {"BM": 16, "BN": 64, "BK": 128, "PACK": 4, "SPLIT": 1, "WARPS": 4, "STAGES": 4}
        | {"ROUNDED": 1},
    },
    _words,
    _held_codes,
)
"""gemm_codes, for rows of up to BM and for more; `fitting_codes` says which go with a weight where
it is not ROUNDED."""

GEMV_CODES = Tiles(
    {"BN": (1, 2, 4, 8, 16), "BK": (512, 1024, 2048, 4096), "PACK": (1, 2, 4, 8), "STAGES": (1,)}
    | {"WARPS": (2, 4, 8)},
    {"": {"BN": 4, "BK": 2048, "PACK": 8, "WARPS": 2, "STAGES": 1}},
    lambda c, s: 0,
    lambda c, s: 2 * s.parts * c["BN"] * c["BK"] // c["PACK"] + c["BK"],
)
"""gemv_codes: one row; BN of the default is for one part. What is held are two steps of words, one
on its way, and x in float32.
"""


def deep_codes(deep: int, bits: int, group: int, k: int) -> int:
    """BK of ROUNDED weights, for as many k's as are wanted: it divides the group where that leaves
    16 bytes of codes, so that a tile has one scale a row.
    """
    least = 16 * (8 // bits)
    whole = group & -group if group < k else deep
    return max(min(deep, whole) if whole >= least else deep, least)


def fitting_codes(choice: Choice, bits: int, group: int, k: int) -> Choice:
    """A choice of GEMM_CODES brought to a weight's groups of codes: BK divides the group, a word
    holds whole codes of one group, and what is multiplied at a time is 16 k's deep at least.

    Raises IRError where there are several groups, and of too few codes for that.
    """
    least = 8 // bits
    if group < k and group % (16 * least):
        raise IRError(f"groups of {group} codes of {k}: a multiple of {16 * least} was wanted")
    whole = group & -group if group < k else 1 << (k - 1).bit_length()
    deep = max(16 * least, min(choice["BK"], whole))
    pack = min(choice["PACK"], 32 // bits, deep // 16)
    while -(-k // group) * group % pack:
        pack //= 2
    return Choice.of(dict(choice.values) | {"BK": deep, "PACK": max(least, pack)})
