"""Whether a region is a linear scan: the scan that its inputs' roles make is held against it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..ir.dims import product
from ..ir.errors import IRError
from ..ir.graph import Graph
from ..ir.node import Node
from ..ir.ops import tensor as t
from .build_scan import DECAYS, Operands
from .rules.values import reshaped, spread
from .scan_regions import Region, Run, rebuild
from .scan_roles import Array, NoScanError, Roles, drawn, find_roles
from .token_values import B, S

LENGTHS = (1, 2, 7, 70)  # a chunk is 64 tokens or fewer in what is written for small machines
PROBED = 4
CLOSE = 1e-5  # of the largest value of a token


@dataclass(frozen=True)
class Scan:
    """A scan [B, S, ...] of a region's fresh inputs, and whether it is no more than a sum."""

    node: Node
    is_sum: bool


def scan_of(region: Region, run: Run) -> Scan | None:
    """The scan that has a region's values, where there is one. A region that has no value for some
    numbers (it looks rows up by them) is none.
    """
    try:
        return _scan_of(region, run)
    except (NoScanError, IRError, ValueError):
        return None


def _scan_of(region: Region, run: Run) -> Scan | None:
    (length, *_) = region.lengths((PROBED,))
    roles = find_roles(lambda x: region.values(x, run)[0], region.sizes, length)
    for made, below in _candidates(region, Operands(roles, region.inputs)):
        scaled = _scaled(region, made, run)
        if scaled is not None and _is_proved(region, roles, scaled, run, below):
            return Scan(scaled, is_sum=roles.decay is None and not roles.keys)
    return None


def _candidates(region: Region, operands: Operands) -> Iterator[tuple[Node, bool]]:
    """Scans to try, and whether a decay is given by numbers below zero."""
    if operands.roles.decay is not None:
        for logarithm, below in DECAYS:
            yield operands.result(operands.decay(logarithm)), below
        return
    yield operands.result(None), False
    if not operands.roles.is_delta:
        roles = operands.roles
        if not roles.heads:  # nothing tells values from heads, each of which may fade by its own
            operands = replace(operands, roles=replace(roles, heads=roles.values, values=()))
        decay, gain = _constants(region, operands)
        yield operands.result(decay), False
        yield t.mul(operands.result(decay), gain), False


def _constants(region: Region, operands: Operands) -> tuple[Node, Node]:
    """The decay that parameters alone decide, by what is left of the first token at the second,
    and what each value is multiplied by, [1, 1, *sizes].

    The region itself with all inputs 1 but those that write later tokens: what the second token
    reads, by what the first read, is the decay of each head; the first reads the state's rows.
    """
    roles = operands.roles
    writes = {*roles.numbers, *roles.keys}
    (length, *_) = region.lengths((2,))
    output = region.outputs.get(0) or region.outputs[length]
    fixed = Graph("few", (), (output,)).substitute({"B": 1, "S": length}).outputs[0]
    done: dict[Node, Node] = {}
    for at, (name, sizes) in enumerate(
        zip((i["name"] for i in region.inputs), region.sizes, strict=True)
    ):
        first = spread(t.scalar(1.0, "f32"), (1, 1, *sizes))
        later = t.scalar(0.0 if at in writes else 1.0, "f32")
        whole: Node = t.concat(first, spread(later, (1, length - 1, *sizes)), axis=1)
        done |= dict.fromkeys(_inputs_named(fixed, name), whole)
    rebuild(fixed, done)
    ends = [t.slice_(done[fixed], axis=1, start=i, stop=i + 1) for i in (1, 0)]
    gain = t.slice_(ends[1], axis=0, start=0, stop=1)
    gain = t.div(gain, t.scalar(float(roles.rows), "f32"))
    ratio = t.log(t.div(*ends))
    for axis in roles.values:
        ratio = t.slice_(ratio, axis=2 + axis, start=0, stop=1)
    order = (0, 1, *(2 + a for a in (*roles.heads, *roles.values)))
    heads = product(operands.heads)
    ratio = reshaped(t.transpose(ratio, permutation=order), (1, 1, heads, 1))
    return spread(ratio, (B, S, heads, 1)), gain


def _inputs_named(root: Node, name: str) -> list[Node]:
    nodes = Graph("part", (), (root,)).nodes()
    return [n for n in nodes if n.op.name == "input" and n["name"] == name]


def _scaled(region: Region, made: Node, run: Run) -> Node | None:
    """The scan times the number that makes it the region's value, as far as a few tokens show."""
    (length, *_) = region.lengths((PROBED,))
    wanted, found = region.values(_random(region, length), run, made)
    if not np.isfinite(found).all() or not (found * found).sum():
        return None
    factor = float((wanted * found).sum() / (found * found).sum())
    if abs(factor - 1) < 1e-6:
        return made
    return t.mul(made, t.scalar(factor, "f32"))


def _is_proved(region: Region, roles: Roles, made: Node, run: Run, below: bool) -> bool:
    """Whether both have the same values at every length tried, on numbers of their own."""
    for length in region.lengths(LENGTHS):
        given = _random(region, length)
        if below and roles.decay is not None:
            given[roles.decay] = -given[roles.decay]
        wanted, found = region.values(given, run, made)
        largest = np.abs(wanted).max(axis=tuple(range(2, wanted.ndim)), keepdims=True)
        if not (np.abs(wanted - found) <= CLOSE * largest).all():
            return False
    return True


def _random(region: Region, length: int) -> list[Array]:
    rng = np.random.default_rng()
    shapes: Sequence[tuple[int, ...]] = region.sizes
    return [drawn(rng, (2, length, *shape)) for shape in shapes]
