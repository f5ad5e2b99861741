"""What the two forms of a scan share: its operands, their vectors, how wide its items are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ...ir.node import Node
from . import mathematics as m
from .isa import LANES, Isa
from .loops import Place, Work
from .reductions import across, fold_of
from .sequences import Sequences, accumulated, pieces_of
from .values import Expr, bind, bind_opaque, cast, const, i64, vectorized

Pieces = list[tuple[int, int]]
STATE_BYTES = 32 << 10
"""What a run's part of a state may take of the nearest cache."""
ITEMS = 16
"""Items of a sequence that are enough for its threads."""


@dataclass(frozen=True)
class Scan:
    """One scan: its sequences, where its states and rows are, the sizes."""

    batch: Sequences
    node: Node
    state: Place
    place: Place
    heads: int
    groups: int
    rows: int
    columns: int
    decays: int
    beta: Node | None

    @property
    def dtype(self) -> str:
        """The TVM dtype of the sums."""
        return accumulated(self.node.inputs[2].dtype)

    @property
    def isa(self) -> Isa:
        """The instruction set."""
        return self.batch.kernel.isa

    @property
    def block(self) -> int:
        """Tokens that go through the state together; 1 where sums are made in one order."""
        if self.isa.one_order:
            return 1
        return 4 if self.isa.registers >= 32 or self.beta is None else 2

    @property
    def run(self) -> int:
        """Columns that go through a state together: so many sums of a block's tokens as registers
        hold.
        """
        if self.block == 1:
            return 2 * LANES
        sums = self.block * (1 if self.beta is None else 2)
        vectors = max(1, (16 if self.isa.registers >= 32 else 4) // sums)
        size = 8 if self.dtype == "float64" else 4
        return LANES * max(1, min(vectors, STATE_BYTES // (self.rows * LANES * size)))

    @property
    def runs(self) -> int:
        """Runs of an item, one after another: what a block's tokens need is made once for all of
        them. As many items are left as threads may want.
        """
        return max(1, min(4, self.heads * -(-self.columns // self.run) // ITEMS))

    def value(self, work: Work, which: int | Node, at: list[Expr]) -> Expr:
        """An element of an input, by its place or itself."""
        x = self.node.inputs[which] if isinstance(which, int) else which
        return cast(work.pull().value(x, at), self.dtype)

    def group(self, h: Expr) -> Expr:
        """The group of q and k that a head reads."""
        return bind(tirx.floordiv(h, i64(self.heads // self.groups)))

    def read(self, *at: Expr) -> Expr:
        """An element of a state."""
        return cast(self.state.read(list(at)), self.dtype)

    def vector(self) -> tirx.Buffer:
        """Room for a number for each row of a state."""
        return T.alloc_buffer((self.rows,), self.dtype)

    def sums(self, pieces: Pieces) -> list[tirx.Buffer]:
        """Room for a number for each column of an item."""
        return [T.alloc_buffer((lanes,), self.dtype) for _, lanes in pieces]


def over_rows_of(scan: Scan, body: Callable[[Expr], None]) -> None:
    """body(row) for the rows of a state, as vectors."""
    for low, lanes in pieces_of(scan.rows):
        with vectorized(lanes) as v:
            body(i64(low) + v)


def load_vector(scan: Scan, work: Work, which: int, at: list[Expr], into: tirx.Buffer) -> None:
    """A row of q or k as the scan's floats."""
    over_rows_of(scan, lambda j: T.buffer_store(into, scan.value(work, which, [*at, j]), [j]))


def load_decays(scan: Scan, work: Work, at: list[Expr], into: tirx.Buffer) -> Expr | None:
    """What the state's rows are multiplied by: a number for all, or one for each in a vector."""
    if scan.decays == 1:
        return bind_opaque(m.exp_within(scan.value(work, 3, [*at, i64(0)])))
    over_rows_of(
        scan, lambda j: T.buffer_store(into, m.exp_within(scan.value(work, 3, [*at, j])), [j])
    )
    return None


def fill(buffers: list[tirx.Buffer], dtype: str) -> None:
    """Zeros."""
    for buffer in buffers:
        with vectorized(int(buffer.shape[0])) as v:
            T.buffer_store(buffer, const(0, dtype), [v])


def sum_of_rows(scan: Scan, element: Callable[[Expr], Expr]) -> Expr:
    """The sum of an element for each row of a state, in one order."""
    parts: list[tirx.Buffer] = []
    for low, lanes in pieces_of(scan.rows):  # whole vectors come first
        first = lanes < LANES or not low
        if first:
            parts.append(T.alloc_buffer((lanes,), scan.dtype))
        with vectorized(lanes) as v:
            value = element(i64(low) + v)
            T.buffer_store(parts[-1], value if first else parts[-1][v] + value, [v])
    total = across(parts[0], fold_of("reduce_sum"), scan.dtype)
    for part in parts[1:]:
        total = total + across(part, fold_of("reduce_sum"), scan.dtype)
    return bind_opaque(total)


def sums_of_vectors(scan: Scan, vectors: tirx.Buffer) -> tirx.Buffer:
    """The sums of sixteen vectors [16, 16], side by side: vectors are added in pairs whose halves
    are interleaved, which takes 45 instructions where a sum for each takes eight.
    """
    scan.batch.kernel.snippets.add(SUMS)
    lanes = T.ramp(i64(0), i64(1), LANES)
    rows = [vectors[i64(r), lanes] for r in range(LANES)]
    y = T.alloc_buffer((LANES,), "float32")
    T.buffer_store(y, T.call_extern(f"float32x{LANES}", "ferrule_sums", *rows), [lanes])
    return y


def _sums() -> str:
    """LLVM's text of `ferrule_sums`. Four additions of halves: of quarters 0, 2 and 1, 3 of two
    vectors, twice, and of neighbours within quarters, twice.
    """
    lines: list[str] = []

    def joined(a: str, b: str, low: list[int], high: list[int]) -> str:
        name = f"%v{len(lines)}"
        for part, mask in (("l", low), ("h", high)):
            picked = ", ".join(f"i32 {i}" for i in mask)
            lines.append(
                f"  {name}{part} = shufflevector {_V} {a}, {_V} {b}, <16 x i32> <{picked}>"
            )
        lines.append(f"  {name} = fadd {_V} {name}l, {name}h")
        return name

    def quarters(*numbers: int) -> list[int]:
        return [4 * q + i for q in numbers for i in range(4)]

    def within(*places: int) -> list[int]:
        return [4 * q + i for q in range(4) for i in places]

    apart = quarters(0, 2, 4, 6), quarters(1, 3, 5, 7)
    rows = [f"%a{r}" for r in range(LANES)]
    # Column q of quarters holds rows 4 q to 4 q + 3 in the end.
    fours = [
        joined(
            joined(rows[r], rows[4 + r], *apart), joined(rows[8 + r], rows[12 + r], *apart), *apart
        )
        for r in range(4)
    ]
    neighbours = within(0, 16, 1, 17), within(2, 18, 3, 19)
    twos = [joined(a, b, *neighbours) for a, b in (fours[:2], fours[2:])]
    total = joined(twos[0], twos[1], within(0, 1, 16, 17), within(2, 3, 18, 19))
    given = ", ".join(f"{_V} {r}" for r in rows)
    body = "\n".join(lines)
    return f"define {_V} @ferrule_sums({given}) alwaysinline {{\n{body}\n  ret {_V} {total}\n}}\n"


_V = "<16 x float>"
SUMS = _sums()
