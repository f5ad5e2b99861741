"""Whether a region is a linear scan: the scan that its inputs' roles make is held against it.

What a region does beside a scan's work may show for some numbers alone, or behind many tokens: a
score cut at zero or at a most, a window, a decay that ends. So numbers of both signs are tried,
large ones, and long sequences, of which single tokens are computed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..ir.dims import product
from ..ir.errors import IRError
from ..ir.graph import Graph
from ..ir.node import Node, walk
from ..ir.ops import tensor as t
from ..ir.types import TensorType
from .build_scan import DECAYS, Operands
from .rules.values import reshaped, spread
from .scan_regions import Region, Run, rebuild
from .scan_roles import Array, NoScanError, Roles, drawn, find_roles
from .token_slices import TokenSlices
from .token_values import B, S

LENGTHS = (1, 2, 7, 70)  # a chunk is 64 tokens or fewer in what is written for small machines
PROBED = 4
CLOSE = 1e-5  # of the largest value of a token
LARGE = 1e3
PARTS = (1.0, 0.7, 0.4)  # of a long sequence, where tokens are computed
MOST_ELEMENTS = 1 << 24  # of the numbers of all tokens, and of what one token takes at a time
LEFT = 8.0  # what a decay leaves of a first token behind a long sequence is exp(-LEFT) at least


@dataclass(frozen=True)
class Scan:
    """A scan [B, S, ...] of a region's fresh inputs, and whether it is no more than a sum."""

    node: Node
    is_sum: bool


def scan_of(region: Region, run: Run, most: int = LENGTHS[-1]) -> Scan | None:
    """The scan that has a region's values up to `most` tokens, where there is one. A region that
    has no value for some numbers (it looks rows up by them) is none.
    """
    try:
        return _scan_of(region, run, most)
    except (NoScanError, IRError, ValueError):
        return None


def _scan_of(region: Region, run: Run, most: int) -> Scan | None:
    (length, *_) = region.lengths((PROBED,))
    roles = find_roles(lambda x: region.values(x, run)[0], region.sizes, length)
    for made, below in _candidates(region, Operands(roles, region.inputs)):
        scaled = _scaled(region, made, run)
        if scaled is None:
            continue
        proof = _Proof(region, roles, scaled, run, below)
        if proof.holds() and proof.holds_behind_many(most):
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


@dataclass(frozen=True)
class _Proof:
    """A region, and the scan that it may be; `below`: whether its decay is given by numbers below
    zero.
    """

    region: Region
    roles: Roles
    made: Node
    run: Run
    below: bool

    def holds(self) -> bool:
        """Whether both have the same values at every length tried, on numbers of their own: those
        that the roles were found by, of both signs, and large ones.
        """
        sizes = (0.0, 1.0) if self.roles.is_delta else (0.0, 1.0, LARGE)
        for length in self.region.lengths(LENGTHS):
            for size in sizes:
                given = self._signed(_random(self.region, length), size)
                wanted, found = self.region.values(given, self.run, self.made)
                if not _are_close(wanted, found):
                    return False
        return True

    def _signed(self, given: list[Array], size: float) -> list[Array]:
        """Numbers of both signs and of a size for all but a decay and the beta of a delta rule;
        those given where the size is 0.
        """
        rng = np.random.default_rng()
        kept = {self.roles.decay, *self.roles.beta}
        for at, x in enumerate(given):
            if at == self.roles.decay and self.below:
                given[at] = -x
            elif size and at not in kept:
                given[at] = size * x * rng.choice((-1.0, 1.0), x.shape)
        return given

    def holds_behind_many(self, most: int) -> bool:
        """Whether single tokens of one long sequence have the same values, as many tokens up to
        `most` as can be computed; a region of some lengths alone is not tried.
        """
        if 0 not in self.region.outputs or most <= LENGTHS[-1]:
            return True
        numbers = sum(math.prod(s) for s in (*self.region.sizes, self.roles.sizes))
        length = min(most, MOST_ELEMENTS // numbers) // self.region.step * self.region.step
        while length > LENGTHS[-1] and not _is_small(self._row(length, length - 1)):
            length = length // 2 // self.region.step * self.region.step
        if length <= LENGTHS[-1]:
            return True
        return all(self._holds_at(length, fades) for fades in (1.0, LEFT / length))

    def _holds_at(self, length: int, fades: float) -> bool:
        given = [x[:1] for x in self._signed(_random(self.region, length), 1.0)]
        for at in self.roles.keys if self.roles.is_delta else ():
            given[at] = given[at] / self.roles.rows**0.5  # a state that does not grow
        if self.roles.decay is not None:
            x = given[self.roles.decay]
            given[self.roles.decay] = fades * x if self.below else 1.0 - fades * (1.0 - x)
        named = {i["name"]: x for i, x in zip(self.region.inputs, given, strict=True)}
        (found,) = self.run((self.made,), {"B": 1, "S": length}, named)
        for place in (int(part * length) - 1 for part in PARTS):
            (wanted,) = self.run((self._row(length, place),), {}, named)
            if not _are_close(wanted, found[:, place : place + 1]):
                return False
        return True

    def _row(self, length: int, place: int) -> Node:
        """The region's value [1, 1, ...] for one token of a sequence of `length`."""
        whole = Graph("region", self.region.inputs, (self.region.outputs[0],))
        whole = whole.substitute({str(B): 1, str(S): length})
        slices = TokenSlices()
        return slices.of(slices.at(whole.outputs[0], 1, place))


def _is_small(root: Node) -> bool:
    shapes = (n.shape for n in walk((root,)) if n.inputs and isinstance(n.type, TensorType))
    sizes = (product(shape) for shape in shapes)
    return all(size <= MOST_ELEMENTS for size in sizes if isinstance(size, int))


def _are_close(wanted: Array, found: Array) -> bool:
    largest = np.abs(wanted).max(axis=tuple(range(2, wanted.ndim)), keepdims=True)
    return bool((np.abs(wanted - found) <= CLOSE * largest).all())


def _random(region: Region, length: int) -> list[Array]:
    rng = np.random.default_rng()
    shapes: Sequence[tuple[int, ...]] = region.sizes
    return [drawn(rng, (2, length, *shape)) for shape in shapes]
