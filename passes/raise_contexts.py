"""Raise contexts: a region that mixes tokens in any causal way becomes token_context.

What is left by now is no scan, and no attention whose mask is of a known family: another function
of the scores than softmax, heads that are mixed before or after it, relative keys, masks with holes
or made of tokens. Where a region gives a token the same value whatever comes behind it, which is
tried on random numbers, its last row at L tokens is the token's value for a sequence of L tokens:
the region with its rows cut down to the last one is the op's body.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from ..ir.dims import product
from ..ir.errors import IRError
from ..ir.graph import Graph
from ..ir.node import Node, walk
from ..ir.ops import model, selection
from ..ir.ops import tensor as t
from ..ir.types import TensorType
from .analyze_tokens import Evaluate
from .build_context import context_of, row_at
from .describe_masks import DescribeMasks
from .raise_scans import MOST_INPUTS, post_dominators
from .rules.exact_numbers import is_exact
from .scan_regions import Region, Run, frontier, is_whole, token_axes
from .scan_roles import Array
from .spell_attention import spelled_attention
from .token_values import Axis, B, S
from .walk_tokens import TokenWalk

LENGTHS = (7, 80)
PARTS = (1.0, 0.4)  # of the longest length, at which single tokens are computed
MOST_ELEMENTS = 1 << 22
PLACES = (1, 2, 3, 5, 7, 16, 33, 64, 65, 80)
CLOSE = 1e-6


@dataclass(frozen=True)
class RaiseContexts:
    """Regions that mix tokens causally become token_context; attention with a mask that no pass
    described is written out first.

    `run_part` evaluates parts of the graph; without it nothing is raised. Raises IRError, as
    DescribeMasks does, for attention that is in no such region.
    """

    name: ClassVar[str] = "raise-contexts"
    run_part: Run | None = None
    max_context: int = 4096
    evaluate: Evaluate | None = None

    def run(self, graph: Graph) -> Graph:
        """The graph with such regions as one op each; what is none stays as it is."""
        if self.run_part is None or [i.shape for i in graph.inputs] != [(B, S)]:
            return self._strict(graph)
        masked = [n for n in graph.nodes() if _is_masked(n)]
        plain = {n: s for n in masked if (s := spelled_attention(n)) is not None}
        spelled = graph.replace(plain) if plain else graph
        ends = graph.bounds.get("S", (1, LENGTHS[-1]))
        while found := _Finder(spelled, self.run_part, ends).found():
            spelled = spelled.replace(found)
        if any(_is_left(n) for n in spelled.nodes()):
            self._refused(graph)
        return self._strict(spelled)

    def _refused(self, graph: Graph) -> None:
        """Raise what names the attention, and draws its mask where that is of positions alone."""
        try:
            self._strict(graph)
        except IRError as error:
            raise IRError(f"{error}\n{_NO_REGION}") from None

    def _strict(self, graph: Graph) -> Graph:
        if not any(_is_masked(n) for n in graph.nodes()):
            return graph
        return DescribeMasks(self.max_context, self.evaluate).run(graph)


_NO_REGION = "No value that it makes is the same for a token whatever comes behind the token"


def _is_masked(node: Node) -> bool:
    return node.op is model.attention and "mask" in node["extras"]


def _is_left(node: Node) -> bool:
    """Whether a softmax over tokens is left."""
    if node.op.name != "softmax":
        return False
    axis: int = node["axis"]
    return bool(node.shape[axis] == S)


@dataclass
class _Finder:
    """One walk over a graph, inputs first."""

    graph: Graph
    run: Run
    ends: tuple[int, int]  # the least and the most tokens that the graph is for
    tried: set[Node] = field(default_factory=set[Node])

    def found(self) -> dict[Node, Node]:
        """The first region that is one, and what stands for it."""
        walk = TokenWalk(self.graph)
        through = post_dominators(self.graph)
        waiting: set[Node] = set()
        for node in self.graph.nodes():
            if not walk.visit(node):
                continue
            if node.op is selection.selected_keys:
                walk.settle(node)
                continue
            if node not in waiting and walk.reads_mixed(node):
                continue
            made = self._raised(node, walk)
            if made is not None:
                return {node: made}
            if (after := through.get(node)) is not None:
                waiting.add(after)
        return {}

    def _raised(self, node: Node, walk: TokenWalk) -> Node | None:
        axes = token_axes(node)
        if not is_whole(axes) or not node.tensor.is_float:
            return None
        found = frontier(node, walk.is_token)
        inputs = tuple(dict.fromkeys(_before_moves(i, walk) for i in found))
        if not 1 <= len(inputs) <= MOST_INPUTS:
            return None
        each = [walk.tokens[i].axes for i in inputs]
        if not all(map(is_whole, each)) or not all(_is_held(i) for i in inputs):
            return None
        region = Region.cut(node, inputs, each)
        counts = [not i.tensor.is_float for i in inputs]
        if not _is_causal(region, counts, self.run, self.ends):
            return None
        if not _is_same_when_long(node, inputs, each, counts, self.run, self.ends[1]):
            return None
        return context_of(node, inputs, each, self.ends[0])


def _is_held(node: Node) -> bool:
    """Whether caches, which hold floats, have a value as it is."""
    return node.tensor.is_float or is_exact(node)


def _before_moves(node: Node, walk: TokenWalk) -> Node:
    """A value of each token before it was moved about, made a whole number, or its heads
    repeated.
    """
    while node.op in _MOVES or (node.op is t.cast and not node.tensor.is_float):
        (source,) = node.inputs
        if not walk.is_token(source) or not is_whole(walk.tokens[source].axes):
            break
        node = source
    return node


_MOVES = (t.transpose, t.reshape, t.broadcast)


def _is_causal(region: Region, counts: Sequence[bool], run: Run, ends: tuple[int, int]) -> bool:
    """Whether a token's value is made of tokens up to it, of others than itself too, and is the
    same whatever the length.
    """
    mixes, (least, most) = False, ends
    for length in sorted({min(n + least - 1, most) for n in LENGTHS}):
        given = _random(region, counts, length)
        try:
            (whole,) = region.values(given, run)
            for count in (n + least - 1 for n in PLACES if n + least - 1 <= length):
                (part,) = region.values([x[:, :count] for x in given], run)
                if not _close(part[:, -1], whole[:, count - 1]):
                    return False
            if length > 1:
                others = [_other(x, c) for x, c in zip(given, counts, strict=True)]
                (other,) = region.values(others, run)
                mixes = mixes or not _close(other[:, -1], whole[:, -1])
        except ValueError:
            return False
    return mixes


@dataclass
class _Single:
    """Values of single tokens of one long sequence."""

    node: Node
    inputs: Sequence[Node]
    each: Sequence[Sequence[Axis]]
    run: Run
    given: Sequence[Array]

    def row(self, length: int, place: int) -> Node:
        """The token at a place of the first `length`."""
        return row_at(self.node, self.inputs, self.each, length, place)

    def value(self, length: int, place: int) -> Array:
        """What it is; its size is 1, 1, numbers."""
        named = {f"x{at}": x[:, :length] for at, x in enumerate(self.given)}
        return self.run((self.row(length, place),), {}, named)[0]

    def longest(self) -> int:
        """The length up to which a token takes no more than MOST_ELEMENTS at a time."""
        length = self.given[0].shape[1]
        while length > LENGTHS[-1] and not _is_small(self.row(length, length // 2)):
            length //= 2
        return length


def _is_small(root: Node) -> bool:
    shapes = (n.shape for n in walk((root,)) if n.inputs and isinstance(n.type, TensorType))
    sizes = (product(shape) for shape in shapes)
    return all(size <= MOST_ELEMENTS for size in sizes if isinstance(size, int))


def _is_same_when_long(
    node: Node,
    inputs: Sequence[Node],
    each: Sequence[Sequence[Axis]],
    counts: Sequence[bool],
    run: Run,
    most: int,
) -> bool:
    """Whether a token's value is the same whatever the length where there are many tokens, as far
    as single tokens can be computed at such lengths.
    """
    if most <= LENGTHS[-1]:
        return True
    region = Region.cut(node, inputs, each)
    numbers = sum(math.prod(size) for size in region.sizes)
    most = max(LENGTHS[-1], min(most, MOST_ELEMENTS // numbers))
    given = [x[:1] for x in _random(region, counts, most)]
    single = _Single(node, inputs, each, run, given)
    longest = single.longest()
    try:
        for length in (int(longest * part) for part in PARTS):
            for place in {length // 3, length // 2, length - 2} if length > LENGTHS[-1] else ():
                alone = single.value(place + 1, place)
                if not _close(single.value(length, place), alone):
                    return False
    except ValueError:
        return False
    return True


def _other(x: Array, counts: bool) -> Array:
    """Other tokens, but for the last."""
    first = 1 - x[:, :-1] if counts else np.cos(x[:, :-1])
    return np.concatenate([first, x[:, -1:]], axis=1)


def _close(a: Array, b: Array) -> bool:
    if not np.isfinite(a).all() or not np.isfinite(b).all():
        return False
    return bool((np.abs(a - b) <= CLOSE * max(np.abs(b).max(), 1e-30)).all())


def _random(region: Region, counts: Sequence[bool], length: int) -> list[Array]:
    """Numbers for the inputs; small ones where they are whole, some of which are then equal."""
    rng = np.random.default_rng(length)
    shapes = [(2, length, *shape) for shape in region.sizes]
    return [
        rng.integers(0, 2, s).astype(np.float64) if c else rng.standard_normal(s)
        for s, c in zip(shapes, counts, strict=True)
    ]
