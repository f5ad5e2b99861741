"""Codes whose scales come in two levels: a multiplier of four bits for each group, a scale for each
block of groups. The products of a block are whole numbers.

Few rows: a group's sums are times its multiplier, in registers. Many rows: the codes of a panel of
columns are unpacked once for all of them, as bytes times their multipliers; what a byte is too much
by is taken off with the sum of x.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ...ir.node import Node
from ...ir.ops import tensor as t
from ...ir.ops.quantized import operands
from . import amx
from .dots import Dot
from .fetch import LINE, fetch
from .group_steps import Parts, add_integers, add_pairs, codes_at, fresh_vector, gather
from .isa import LANES, Isa, Tile
from .linear import Linear, Share, Sums, Tiling
from .loops import Place, Work, flat_index
from .panels import Put, emit_all
from .register_tiles import load_vector, store_rows
from .row_tiles import MANY
from .tiles import column_vectors
from .values import Expr, bind, const, i64

BYTES = 4 * LANES
"""Codes of sixteen columns by four k, unpacked."""
MIDDLE = 128
"""What an unpacked byte has for 0 where it was multiplied: (q - 8) m lies in [-120, 105]."""
_UNROLL = 2  # fours of k written out of a panel's loop


def groups_per_block(node: Node) -> int:
    """Groups that share a scale: 1 without multipliers."""
    found = operands(node)
    if found.multipliers is None:
        return 1
    return 2 * int(found.multipliers.shape[-3]) // int(found.scale.shape[-2])


# -- few rows


def over_blocks(
    linear: Linear, tile: Tile, sums: Sums, block: list[Expr], at: list[list[Expr]], below: Node
) -> None:
    """Fill a tile's sums; `below` is what the sums of each group begin with, [.., B, P].

    The sums of a group of one row are multiplied; for more rows its codes are.
    """
    node, kernel = linear.node, linear.kernel
    found = operands(node)
    whole = _by_multiplied if tile.rows > 1 and multiplies_codes(kernel.isa) else _summed
    assert found.x_scale is not None
    factors, scales = kernel.places[found.x_scale], kernel.places[found.scale]
    with T.serial(i64(0), i64(int(found.x.shape[-2]))) as g:
        wholes = whole(linear, sums, block, at, g, below)
        x_scale = [bind(factors.read([*row, g])) for row in at]
        for o in linear.offsets:
            for c, b in enumerate(block):
                place = (linear.stored(b, o), g)
                scale = load_vector(scales, place, "float32")
                for r in range(tile.rows):
                    both = scale * T.broadcast(x_scale[r], LANES)
                    gather(sums.parts[o, r, c][0], wholes[o, r, c], both)


def multiplies_codes(isa: Isa) -> bool:
    """Whether dot products take codes of eight bits without a sign as they are."""
    return isa.integer_dot == "vnni512"


def begin_of_blocks(below: Node) -> Node:
    """What the sums of blocks begin with whose bytes have MIDDLE for 0, [.., B], from what those of
    groups do whose codes have 8.
    """
    total = t.reduce_sum(below, axes=(len(below.shape) - 1,))
    return t.mul(total, t.scalar(MIDDLE // 8, "i32"))


def steps_of_group(node: Node) -> int:
    """Steps of packed codes in a group."""
    return int(operands(node).x.shape[-1]) // groups_per_block(node) // 8


def _summed(
    linear: Linear, sums: Sums, block: list[Expr], at: list[list[Expr]], g: Expr, below: Node
) -> Parts:
    """A block's whole numbers, the sums of each group times its multiplier."""
    first, lanes = linear.kernel.places[below], T.ramp(0, 1, LANES)
    steps = steps_of_group(linear.node)
    dot = Dot(linear.kernel.isa.integer_dot, linear.codes.dtype)
    if len(at) > 1 and dot.narrow >= 2 * steps:  # one row is no faster so
        return _in_pairs(linear, sums, block, at, g, below)
    wholes: dict[tuple[int, int, int], tirx.Buffer] = {}
    for p in range(groups_per_block(linear.node)):
        begin = [T.broadcast(bind(first.read([*row, g, i64(p)])), LANES) for row in at]
        parts = {key: fresh_vector("int32", begin[key[1]]) for key in sums.parts}
        add_integers(linear, parts, block, at, g, steps, dot, first=p * steps)
        times = {
            (o, c): group_multipliers(linear, linear.stored(b, o), g, p)
            for o in linear.offsets
            for c, b in enumerate(block)
        }
        for (o, r, c), part in parts.items():
            whole = part[lanes] * times[o, c]
            if p == 0:
                wholes[o, r, c] = fresh_vector("int32", whole)
            else:
                total = wholes[o, r, c]
                T.buffer_store(total, total[lanes] + whole, [lanes])
    return wholes


def _in_pairs(
    linear: Linear, sums: Sums, block: list[Expr], at: list[list[Expr]], g: Expr, below: Node
) -> Parts:
    """A block's whole numbers; the sums of a group, in 16 bits, are multiplied as they widen."""
    first, steps = linear.kernel.places[below], steps_of_group(linear.node)
    dot = Dot(linear.kernel.isa.integer_dot, linear.codes.dtype)
    none = T.broadcast(const(0, "int32"), LANES)
    wholes = {key: fresh_vector("int32", none) for key in sums.parts}
    for p in range(groups_per_block(linear.node)):
        begin = [begin_of_pairs(first.read([*row, g, i64(p)])) for row in at]
        pairs = {key: fresh_vector("int16", begin[key[1]], 2 * LANES) for key in sums.parts}
        add_pairs(linear, pairs, block, at, g, steps, dot, first=p * steps)
        for o in linear.offsets:
            for c, b in enumerate(block):
                both = pair_multipliers(linear, linear.stored(b, o), g, p)
                held = fresh_vector("int16", both, 2 * LANES)
                times = [held[T.ramp(low, 1, LANES)] for low in (0, LANES)]
                for r in range(len(at)):
                    dot.widen(wholes[o, r, c], pairs[o, r, c], times)
    return wholes


def begin_of_pairs(value: Expr) -> Expr:
    """What a group's 16-bit sums begin with: all of it in the even ones of two lanes that are added
    in the end. |sum (q - 8) x| of half a group and 8 |sum x| of the other are less than 2^15
    together for |x| <= 127, and what is carried out of 16 bits before the end does not matter.
    """
    word = tirx.op.bitwise_and(value, const(0xFFFF, "int32"))
    return bind(tirx.op.reinterpret(f"int16x{2 * LANES}", T.broadcast(bind(word), LANES)))


def pair_multipliers(linear: Linear, block: Expr, g: Expr, p: int) -> Expr:
    """The multipliers of the p-th group of a block of groups, each of sixteen columns' twice, as
    int16.
    """
    twice = T.broadcast(const(0x00010001, "int32"), LANES)
    return bind(
        tirx.op.reinterpret(
            f"int16x{2 * LANES}", bind(group_multipliers(linear, block, g, p) * twice)
        )
    )


def _by_multiplied(
    linear: Linear, sums: Sums, block: list[Expr], at: list[list[Expr]], g: Expr, below: Node
) -> Parts:
    """A block's whole numbers, by codes that are multiplied in registers for all rows."""
    first = linear.kernel.places[begin_of_blocks(below)]
    begin = [T.broadcast(bind(first.read([*row, g])), LANES) for row in at]
    parts = {key: fresh_vector("int32", begin[key[1]]) for key in sums.parts}
    columns = [(o, c, linear.stored(b, o)) for o in linear.offsets for c, b in enumerate(block)]
    dot, packed = Dot("vnni512", "u8"), Dot("vnni512", "u4")
    x = linear.kernel.places[linear.x].buffer
    per, steps = groups_per_block(linear.node), steps_of_group(linear.node)
    for p in range(per):
        times = [byte_multipliers(linear, b, g, p) for *_, b in columns]
        for s in range(steps):
            step = bind(g * i64(per * steps) + i64(p * steps + s))
            codes = [codes_at(linear, packed, b, step)[0] for *_, b in columns]
            for half in range(2):
                k = i64(4 * (2 * (p * steps + s) + half))
                words = [
                    bind(tirx.op.reinterpret("int32", x[(*row, g, T.ramp(k, i64(1), 4))]))
                    for row in at
                ]
                for (o, c, _), word, m in zip(columns, codes, times, strict=True):
                    value = bind(multiplied(packed.nibbles(word, half), m))
                    for r, four in enumerate(words):
                        dot.add(parts[o, r, c], 0, (value,), four)
    return parts


def group_multipliers(linear: Linear, block: Expr, g: Expr, p: int) -> Expr:
    """The multipliers of the p-th group of a block of groups, sixteen columns, as int32."""
    node = linear.node
    found, per = operands(node), groups_per_block(node)
    assert found.multipliers is not None
    buffer = linear.kernel.places[found.multipliers].buffer
    pair = bind(g * i64(per // 2) + i64(p // 2))
    both = tirx.Cast(f"int32x{LANES}", buffer[(block, pair, i64(0), T.ramp(i64(0), i64(1), LANES))])
    four = tirx.IntImm("int32", 4 if p % 2 else 15)
    take = tirx.op.shift_right if p % 2 else tirx.op.bitwise_and
    return bind(take(both, T.broadcast(four, LANES)))


# -- many rows


@dataclass(frozen=True)
class _Panel:
    """A panel at work: its column vectors as (offset, block), their codes unpacked as bytes
    [k / 4, vector, 64], and where what the sums of a block of groups begin with is.
    """

    linear: Linear
    tile: Tile
    vectors: tuple[tuple[int, Expr], ...]
    held: tirx.Buffer
    begin: Place
    rows: Expr

    @property
    def fours(self) -> int:
        """Fours of k in a block of groups."""
        return int(operands(self.linear.node).x.shape[-1]) // 4


def emit_unpacked(linear: Linear, tiling: Tiling, tile: Tile, begin: Node) -> None:
    """All rows of a linear over 4-bit codes with one zero, panel of columns by panel; `begin` is
    what the sums of blocks (or of groups, without multipliers) begin with, [.., B].
    """
    tile = linear.kernel.chosen(MANY.name, tile)
    blocks = -(-linear.columns // LANES)
    wide = min(blocks, max(1, tile.columns // len(linear.offsets)))
    panels = -(-blocks // wide)
    node = linear.node
    count, length = (int(d) for d in operands(node).x.shape[-2:])
    first = linear.kernel.places[begin]

    def emit(share: Share, group: Expr) -> None:
        linear = share.linear
        vectors = column_vectors(linear, group, wide)
        held = amx.buffer((count * length // 4, len(vectors), BYTES), "uint8")
        low = share.base  # a tile of rows in order has one row
        end = bind(low + share.rows)
        panel = _Panel(linear, replace(tile, columns=wide), vectors, held, first, end)
        _unpack(panel)
        tiles = bind(tirx.truncdiv(share.rows + i64(tile.rows - 1), i64(tile.rows)))
        with T.serial(i64(0), tiles) as number:
            work = linear.kernel.work().within(group, 0, panels)
            lines = bind(tirx.truncdiv(_lines(linear) + tiles - i64(1), tiles))
            part = (bind(number * lines), lines)
            start = bind(low + number * i64(tile.rows))
            _row_tile(panel, replace(work, parallel=False), group, start, part)

    tiling.over_panels(panels, emit)


def _unpack(panel: _Panel) -> None:
    """The codes of all of k, as bytes without a sign: of each column vector as they lie."""
    linear = panel.linear
    for v, (offset, b) in enumerate(panel.vectors):
        block = bind(linear.stored(b, offset))
        with T.serial(i64(0), i64(int(operands(linear.node).x.shape[-2]))) as g:

            def put(run: Expr, value: Expr, v: int = v, g: Expr = g) -> None:
                at = [g * i64(panel.fours) + run, i64(v), T.ramp(i64(0), i64(1), BYTES)]
                T.buffer_store(panel.held, value, at)

            emit_all(unpack_block(linear, block, g, MIDDLE, put))


def unpack_block(linear: Linear, block: Expr, g: Expr, zero: int, put: Put) -> Iterator[None]:
    """A block of groups' codes times their multipliers, as bytes that have `zero` for 0 (the codes
    as they are, without multipliers): put(run, bytes), run of four k after run of four, two of them
    for each turn of the iterator.
    """
    linear = replace(linear, streams=1)
    per, steps = groups_per_block(linear.node), steps_of_group(linear.node)
    dot = Dot("vnni512", "u4")
    for p in range(per):
        times = byte_multipliers(linear, block, g, p, zero)
        for s in range(steps):
            run = p * steps + s
            (codes,) = codes_at(linear, dot, block, bind(g * i64(per * steps) + i64(run)))
            for half in range(2):
                put(i64(run * 2 + half), bind(multiplied(dot.nibbles(codes, half), times)))
            yield


def byte_multipliers(
    linear: Linear, block: Expr, g: Expr, p: int, zero: int = MIDDLE
) -> tuple[Expr, Expr] | None:
    """A group's multipliers in 16 bits, twice a column, and what makes `zero` of the zero of
    multiplied bytes, four times a column; None without multipliers.
    """
    node = linear.node
    if operands(node).multipliers is None:
        return None
    m = group_multipliers(linear, block, g, p)
    twice = m * T.broadcast(tirx.IntImm("int32", 0x00010001), LANES)
    middle = T.broadcast(tirx.IntImm("int32", zero), LANES)
    add = middle - m * T.broadcast(tirx.IntImm("int32", int(node["offset"])), LANES)
    low = tirx.op.bitwise_and(add, T.broadcast(tirx.IntImm("int32", 255), LANES))
    four = low * T.broadcast(tirx.IntImm("int32", 0x01010101), LANES)
    words = bind(tirx.op.reinterpret(f"uint16x{2 * LANES}", bind(twice)))
    return words, bind(tirx.op.reinterpret(f"uint8x{BYTES}", bind(four)))


def multiplied(codes: Expr, times: tuple[Expr, Expr] | None) -> Expr:
    """Bytes q as q m + (zero - offset m). Both bytes of 16 bits are multiplied at once: a product
    is 225 at most, so that nothing is carried from the lower into the upper one.
    """
    if times is None:
        return codes
    words = bind(tirx.op.reinterpret(f"uint16x{2 * LANES}", codes))
    product = bind(words * times[0])
    return bind(tirx.op.reinterpret(f"uint8x{BYTES}", product) + times[1])


def _lines(linear: Linear) -> Expr:
    """Lines of the cache of packed codes in a block of groups of sixteen columns, a step each."""
    return i64(groups_per_block(linear.node) * steps_of_group(linear.node))


def ask_next(
    linear: Linear,
    vectors: Iterable[tuple[int, Expr]],
    columns: int,
    g: Expr,
    part: tuple[Expr, Expr],
) -> None:
    """Ask for a part of what the next panel of so many columns has for a block of groups, while
    this one of the vectors (offset, block) computes: lines from a first one on, so many.
    """
    codes = linear.kernel.places[linear.codes].buffer
    first, count = part
    with T.If(tirx.LT(first, _lines(linear))), T.Then():
        for offset, b in vectors:
            block = bind(linear.stored(b + i64(columns), offset))
            with T.serial(i64(0), count) as line:
                step = g * _lines(linear) + first + line
                fetch(codes, [block, step, *(i64(0),) * (len(codes.shape) - 2)], near=2)


def _row_tile(panel: _Panel, work: Work, group: Expr, start: Expr, part: tuple[Expr, Expr]) -> None:
    """The results of a tile of rows in a panel's columns; `part` of the next panel is asked for."""
    linear, rows = panel.linear, panel.rows
    numbers = [bind(tirx.min(start + i64(r), rows - i64(1))) for r in range(panel.tile.rows)]
    at = [_row_of_x(linear, work, n) for n in numbers]
    zero = T.broadcast(tirx.FloatImm("float32", 0.0), LANES)
    keys = [(r, v) for r in range(panel.tile.rows) for v in range(len(panel.vectors))]
    sums = {key: fresh_vector("float32", zero) for key in keys}
    found = operands(linear.node)
    assert found.x_scale is not None
    scales, factors = (linear.kernel.places[n] for n in (found.scale, found.x_scale))
    ahead = [bind(tirx.min(n + i64(panel.tile.rows), rows - i64(1))) for n in numbers]
    later = [_row_of_x(linear, work, n) for n in ahead]
    source = linear.kernel.places[linear.x].buffer
    with T.serial(i64(0), i64(int(found.x.shape[-2]))) as g:
        ask_next(linear, panel.vectors, panel.tile.columns, g, part)
        for row in later:
            for k in range(0, 4 * panel.fours, LINE):
                fetch(source, [*row, g, i64(k)], near=2)
        parts = _block_sums(panel, at, g)
        x_scale = [bind(factors.read([*row, g])) for row in at]
        for v, (offset, b) in enumerate(panel.vectors):
            scale = load_vector(scales, (linear.stored(b, offset), g), "float32")
            for r in range(panel.tile.rows):
                gather(sums[r, v], parts[r, v], scale * T.broadcast(x_scale[r], LANES))
    wide = panel.tile.columns
    for c in range(wide):
        sides: dict[int, tirx.Buffer] = {}
        for i, o in enumerate(linear.offsets):
            sides[o] = T.alloc_buffer((panel.tile.rows, LANES), "float32")
            for r in range(panel.tile.rows):
                value = sums[r, i * wide + c][T.ramp(0, 1, LANES)]
                T.buffer_store(sides[o], value, [i64(r), T.ramp(i64(0), i64(1), LANES)])
        within = group * i64(wide) + i64(c) if c else None
        span = (start, panel.tile.rows, rows)
        store_rows(linear, work, sides, span, panel.vectors[c][1], within=within)


def _row_of_x(linear: Linear, work: Work, number: Expr) -> list[Expr]:
    return linear.x_row(flat_index(work, linear.row(number), linear.rows))


def _block_sums(panel: _Panel, at: list[list[Expr]], g: Expr) -> dict[tuple[int, int], tirx.Buffer]:
    """The whole numbers of a block of groups."""
    x = panel.linear.kernel.places[panel.linear.x].buffer
    dot, vectors = Dot("vnni512", "u8"), range(len(panel.vectors))
    parts: dict[tuple[int, int], tirx.Buffer] = {}
    for r, row in enumerate(at):
        first = T.broadcast(bind(panel.begin.read([*row, g])), LANES)
        parts |= {(r, v): fresh_vector("int32", first) for v in vectors}

    def four(k: Expr) -> None:
        step = bind(g * i64(panel.fours) + k)
        codes = [bind(panel.held[step, i64(v), T.ramp(i64(0), i64(1), BYTES)]) for v in vectors]
        for r, row in enumerate(at):
            value = x[(*row, g, T.ramp(k * i64(4), i64(1), 4))]
            word = bind(tirx.op.reinterpret("int32", value))
            for v in vectors:
                dot.add(parts[r, v], 0, (codes[v],), word)

    unroll = next(u for u in (_UNROLL, 1) if panel.fours % u == 0)
    with T.serial(i64(0), i64(panel.fours // unroll)) as outer:
        for u in range(unroll):
            four(bind(outer * i64(unroll) + i64(u)))
    return parts
