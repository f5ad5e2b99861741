"""What is added to the sums of one group of codes: its loops over k, and integer dot products."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from .dots import Dot
from .function import Kernel
from .isa import LANES, STAY, STAY_A_LOOP
from .linear import Linear
from .streams import read_weights
from .values import Expr, bind, const, i64

_UNROLL = 8  # steps written out of a group's loop
_CHAINS = 4  # sums at work at once where one row takes one vector
Parts = Mapping[tuple[int, int, int], tirx.Buffer]
"""The accumulators of a group, by (offset, row, column vector)."""


def fresh_vector(dtype: str, value: Expr, lanes: int = LANES) -> tirx.Buffer:
    """Accumulators that begin with a value."""
    buffer = T.alloc_buffer((lanes,), dtype)
    T.buffer_store(buffer, value, [T.ramp(0, 1, lanes)])
    return buffer


def gather(total: tirx.Buffer, part: tirx.Buffer, scale: Expr) -> None:
    """The row's sum with one more group's (or block's), times its scale."""
    lanes = T.ramp(0, 1, LANES)
    value = part[lanes]
    if str(part.dtype) != "float32":
        value = tirx.Cast(f"float32x{LANES}", value)
    T.buffer_store(total, total[lanes] + value * scale, [lanes])


def over_steps(steps: int, step: Callable[[Expr, int], None]) -> None:
    """step(s, u) for all steps of a group, _UNROLL of them written out at a time: the u-th of them
    is step s.
    """
    whole, rest = divmod(steps, _UNROLL)
    if whole > 1:
        with T.serial(i64(0), i64(whole)) as outer:
            for u in range(_UNROLL):
                step(outer * i64(_UNROLL) + i64(u), u)
    for u in range(whole * _UNROLL if whole > 1 else 0, whole * _UNROLL + rest):
        step(i64(u), u % _UNROLL)


def looped(kernel: Kernel, steps: int | Expr, step: Callable[[Expr], None]) -> None:
    """step(s) in a loop that LLVM keeps."""
    kernel.snippets.add(STAY_A_LOOP)
    with T.serial(i64(0), i64(steps) if isinstance(steps, int) else steps) as s:
        T.evaluate(T.call_extern("int32", STAY))
        step(s)


def add_integers(
    linear: Linear,
    parts: Parts,
    block: list[Expr],
    at: list[list[Expr]],
    g: Expr,
    steps: int,
    dot: Dot,
    *,
    first: int = 0,
) -> None:
    """The products of group g, so many steps of packed codes, of the rows `at` and the columns of
    each block; the first of them is step `first` of what x has for g.
    """

    add = _adder(linear, block, at, g, dot, first)
    if dot.narrow:
        _in_stretches(linear, parts, steps, dot, add)
    elif dot.kind == "pairs":
        looped(linear.kernel, steps, lambda s: add(parts, s))
    elif linear.streams and len(parts) == 1 and steps > _UNROLL:
        _in_chains(parts, steps, add)
    else:
        over_steps(steps, lambda s, _: add(parts, s))


def add_pairs(
    linear: Linear,
    pairs: Parts,
    block: list[Expr],
    at: list[list[Expr]],
    g: Expr,
    steps: int,
    dot: Dot,
    *,
    first: int = 0,
) -> None:
    """What add_integers adds, in 16 bits, a pair of products a lane."""
    add = _adder(linear, block, at, g, dot, first)
    looped(linear.kernel, steps, lambda s: add(pairs, s))


def _adder(
    linear: Linear, block: list[Expr], at: list[list[Expr]], g: Expr, dot: Dot, first: int
) -> Callable[[Parts, Expr], None]:
    """add(parts, s): the products of step s of group g, of those from `first` on."""

    def add(to: Parts, s: Expr) -> None:
        _step(linear, to, block, at, g, s + i64(first) if first else s, dot)

    return add


def _in_chains(parts: Parts, steps: int, add: Callable[[Parts, Expr], None]) -> None:
    """Sums that wait for each other in turn: of one row and vector alone each would wait for the
    one before.
    """
    none = T.broadcast(const(0, "int32"), LANES)
    more = [{key: fresh_vector("int32", none) for key in parts} for _ in range(_CHAINS - 1)]
    chains = [parts, *more]
    over_steps(steps, lambda s, u: add(chains[u % _CHAINS], s))
    lanes = T.ramp(0, 1, LANES)
    for key, part in parts.items():
        for other in more:
            T.buffer_store(part, part[lanes] + other[key][lanes], [lanes])


def _in_stretches(
    linear: Linear, parts: Parts, steps: int, dot: Dot, add: Callable[[Parts, Expr], None]
) -> None:
    """As many steps at a time as 16 bits hold the sums of, then those widened into the parts."""
    most = dot.narrow // linear.layout.pairs
    whole, rest = divmod(steps, most)

    def stretch(first: Expr, count: int) -> None:
        none = T.broadcast(const(0, "int16"), 2 * LANES)
        narrow = {key: fresh_vector("int16", none, 2 * LANES) for key in parts}
        looped(linear.kernel, count, lambda s: add(narrow, first + s))
        for key, part in parts.items():
            dot.widen(part, narrow[key])

    if whole > 1:
        with T.serial(i64(0), i64(whole)) as n:
            stretch(bind(n * i64(most)), most)
    elif whole:
        stretch(i64(0), most)
    if rest:
        stretch(i64(whole * most), rest)


def _step(
    linear: Linear,
    parts: Parts,
    block: list[Expr],
    at: list[list[Expr]],
    g: Expr,
    s: Expr,
    dot: Dot,
) -> None:
    node, pairs = linear.node, linear.layout.pairs
    length = int(node.inputs[0].shape[-1])
    step = bind(g * i64(length // (4 * pairs)) + s)
    x = linear.kernel.places[linear.x].buffer
    codes = {
        (o, c): codes_at(linear, dot, linear.stored(b, o), step)
        for o in linear.offsets
        for c, b in enumerate(block)
    }
    for half in range(pairs):
        k = (s * i64(pairs) + i64(half)) * i64(4)

        def four(row: list[Expr], k: Expr = k) -> Expr:
            return bind(tirx.op.reinterpret("int32", x[(*row, g, T.ramp(k, i64(1), 4))]))

        def weight(w: Expr, half: int = half) -> tuple[Expr, ...]:
            return dot.ready(w if pairs == 1 else dot.nibbles(w, half))

        if linear.kernel.isa.registers < 32:
            _hold_weights(parts, codes, weight, [lambda r=r: four(r) for r in at], dot)
        else:
            _hold_rows(parts, codes, weight, [four(row) for row in at], dot)


Codes = Mapping[tuple[int, int], list[Expr]]


def _hold_weights(
    parts: Parts,
    codes: Codes,
    weight: Callable[[Expr], tuple[Expr, ...]],
    rows: list[Callable[[], Expr]],
    dot: Dot,
) -> None:
    """Weights of all columns wait in registers while the rows' x passes: where registers are few,
    there are fewer of them.
    """
    ready = {(*key, n): weight(w) for key, found in codes.items() for n, w in enumerate(found)}
    for r, four in enumerate(rows):
        value = four()
        for (o, c, number), w in ready.items():
            dot.add(parts[o, r, c], number, w, value)


def _hold_rows(
    parts: Parts,
    codes: Codes,
    weight: Callable[[Expr], tuple[Expr, ...]],
    four: list[Expr],
    dot: Dot,
) -> None:
    """x of all rows waits in registers while the weights of the columns pass."""
    for (o, c), found in codes.items():
        for number, w in enumerate(found):
            ready = weight(w)
            for r, value in enumerate(four):
                dot.add(parts[o, r, c], number, ready, value)


def codes_at(linear: Linear, dot: Dot, block: Expr, step: Expr) -> list[Expr]:
    """The codes of a step of sixteen columns, in registers."""
    buffer = linear.kernel.places[linear.codes].buffer
    at = (block, step, *(i64(0),) * (len(buffer.shape) - 3))
    width = 4 * dot.lanes
    return [
        read_weights(linear, buffer, (*at, i64(low)), width) for low in range(0, 4 * LANES, width)
    ]
