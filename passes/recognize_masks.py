"""Which family a mask is of, by its values.

A mask's subgraph depends on positions alone, so it can be run at any length: whole where that is
short, and at the longest lengths that it is to serve by some of its rows, each cut down to itself
before it is run. What begins behind thousands of tokens (a window of 4,096, a bias that ends to
grow) is seen there, whichever way it is written: as a number, in a table, by a formula. Sizes are
read off the rows, and hold where every row that was run is as they say.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from ..ir.dims import product
from ..ir.graph import Graph
from ..ir.node import Node, walk
from ..ir.ops import tensor
from ..ir.types import TensorType
from .analyze_tokens import BATCH, LENGTH, Evaluate
from .token_slices import TokenSlices

Array = np.ndarray[Any, Any]
LENGTHS = (80, 33, 7, 1)  # whole
PARTS = (1.0, 0.64, 0.37)  # of the longest length, where some rows are run
ROWS = 12  # of each of those lengths, at random, beside those where something may begin
MASKED = -9e3  # additive masks use -inf, the dtype's lowest, -1e9 or -1e4
MOST_ELEMENTS = 1 << 24  # of a value on the way to a row
_HALF = ("bf16", "f16")
_EPSILON = float(np.finfo(np.float32).eps)


class NoFamilyError(Exception):
    """Why a mask is of no family, or the mask, drawn."""


@dataclass(frozen=True)
class Mask:
    """Which keys a query sees, and whether a bias by distance is added: "" (none), "slopes",
    "bias" or "distances"."""

    causal: bool = True
    window: int = 0
    chunk: int = 0
    bias: str = ""

    def allowed(self, length: int, places: Array | None = None) -> Array:
        """The visible pairs [query, key] at a length, of the queries at some places or of all."""
        j = np.arange(length)[None, :]
        i = (np.arange(length) if places is None else places)[:, None]
        seen = (j <= i) if self.causal else np.ones((len(i), length), bool)
        if self.window:
            seen &= np.abs(i - j) < self.window
        return seen & (i // self.chunk == j // self.chunk) if self.chunk else seen


@dataclass(frozen=True)
class Rows:
    """Some rows of a mask at a length: which keys [n, L] are seen from the queries at `places`, the
    last of which is the last, and what is added [H, n, L]; `steps` is the largest magnitude added.
    """

    length: int
    places: Array
    seen: Array
    bias: Array
    steps: float

    @property
    def first(self) -> int:
        """The first key that the last query sees."""
        return int(np.argmax(self.seen[-1]))

    def agree(self, mask: Mask) -> bool:
        """Whether the visible keys are those of a mask."""
        return bool((mask.allowed(self.length, self.places) == self.seen).all())

    @cached_property
    def relative(self) -> Array:
        """What is added to a key, over what is added to the query's own place: adding a number to
        a row changes no softmax.
        """
        own = self.bias[:, np.arange(len(self.places)), self.places]
        return np.where(self.seen, self.bias - own[:, :, None], 0.0)

    @property
    def distance(self) -> Array:
        """From key to query [n, L]."""
        return self.places[:, None] - np.arange(self.length)[None, :]

    def close(self, added: Array) -> bool:
        """Whether what is added over the own place is this, where keys are seen; what is added is
        rounded where it is large.
        """
        wanted = np.where(self.seen, added, 0.0)
        rounding = 1e-5 + 8 * _EPSILON * self.steps
        return bool(np.allclose(self.relative, wanted, rtol=1e-4, atol=rounding))


@dataclass
class Recognizer:
    """Runs one mask's subgraph and matches its values; `longest` is the length that it serves."""

    root: Node
    evaluate: Evaluate
    longest: int

    def mask(self) -> Mask:
        """The family; raises NoFamilyError where it is of none. What is as large as the longest
        length makes no difference, and is left out.
        """
        # A mask that the model holds as a table ends with it.
        short = tuple(dict.fromkeys(min(n, self.longest) for n in LENGTHS))
        samples = [self._whole(n) for n in short]
        parts = (int(self.longest * part) for part in PARTS)
        samples += [self._some_rows(n) for n in parts if n > short[0]]
        found = _family(samples, self._numbers())
        found = replace(found, bias=_bias_family(samples, causal=found.causal))
        if found.window >= self.longest:
            found = replace(found, window=0)
        return replace(found, chunk=0) if found.chunk >= self.longest else found

    # values

    def _whole(self, length: int) -> Rows:
        """All rows at a length; a batch of two has the same ones."""
        value = self.evaluate((self.root,), {BATCH: 2, LENGTH: length})[0]
        value = value.reshape((1,) * (4 - value.ndim) + value.shape)
        if any(size not in (1, length) for size in value.shape[2:]):
            raise NoFamilyError(f"of {length} tokens it is {value.shape[2:]}: keys are no tokens")
        value = np.broadcast_to(value, (*value.shape[:2], length, length))
        if (value != value[:1]).any():
            raise NoFamilyError("it differs between the sequences of a batch")
        return _rows(value[0], length, np.arange(length))

    def _some_rows(self, length: int) -> Rows:
        """Rows at a length: the last one, and those where something may begin."""
        (last,) = self._run(length, [length - 1])
        begins = int(np.argmax(_rows(last[None], length, np.array([length - 1])).seen[-1]))
        marks = {0, length // 2, begins, *self._numbers()}
        near = {m + step for m in marks for step in (-1, 0, 1)}
        drawn = np.random.default_rng(length).integers(0, length, ROWS).tolist()
        places = [p for p in sorted({*near, *drawn}) if 0 <= p < length - 1]
        value = np.stack([*self._run(length, places), last], axis=1)
        return _rows(value, length, np.array([*places, length - 1]))

    def _run(self, length: int, places: Sequence[int]) -> list[Array]:
        """Rows [H, L] of the mask of so many tokens."""
        fixed = Graph("mask", (), (self.root,)).substitute({BATCH: 1, LENGTH: length}).outputs[0]
        slices, axis = TokenSlices(), len(fixed.shape) - 2
        if axis < 0 or fixed.shape[axis] == 1:
            rows = [fixed for _ in places]
        else:
            rows = [slices.of(slices.at(fixed, axis, place)) for place in places]
        _check_size(rows, length)
        values = self.evaluate(tuple(rows), {}) if rows else []
        found: list[Array] = []
        for value in values:
            value = value.reshape((1,) * (4 - value.ndim) + value.shape)
            found.append(np.broadcast_to(value, (*value.shape[:3], length))[0, :, 0])
        return found

    def _numbers(self) -> list[int]:
        """Whole numbers in the subgraph, near which something may begin."""
        values = [n["value"] for n in walk((self.root,)) if n.op.name == "constant"]
        found = {abs(int(v)) for v in values if not isinstance(v, bool) and np.isfinite(v)}
        return sorted(v for v in found if 1 < v < self.longest)


def _check_size(rows: Sequence[Node], length: int) -> None:
    for node in walk(tuple(rows)):
        shape = node.shape if isinstance(node.type, TensorType) else ()
        size = product(shape)
        if node.inputs and isinstance(size, int) and size > max(MOST_ELEMENTS, 64 * length):
            raise NoFamilyError(
                f"at {length} tokens it cannot be had row by row: {node.op.name} makes {node.type}"
            )


def _rows(value: Array, length: int, places: Array) -> Rows:
    """Rows [H, n, L] of values as what they mean."""
    if value.dtype != bool and (value == np.inf).any():
        raise NoFamilyError("a score that is seen is multiplied by something but 1")
    seen = value if value.dtype == bool else value > MASKED
    if (seen != seen[:1]).any():
        raise NoFamilyError("heads see different keys")
    bias = np.where(seen, 0.0 if value.dtype == bool else value, 0.0)
    return Rows(length, places, seen[0], bias, float(np.abs(bias).max()))


# -- families


def _family(samples: Sequence[Rows], numbers: Sequence[int]) -> Mask:
    """The smallest family that the visible pairs belong to."""
    causal = not any(np.triu(s.seen, 1).any() for s in samples if len(s.seen) == s.length)
    for mask in _candidates(samples, numbers, causal=causal):
        if all(sample.agree(mask) for sample in samples):
            return mask
    departs = next((s for s in samples if not s.agree(Mask(causal))), samples[0])
    raise NoFamilyError(_drawn(samples[0], departs))


def _candidates(samples: Sequence[Rows], numbers: Sequence[int], *, causal: bool) -> Iterator[Mask]:
    yield Mask(causal)
    windows = dict.fromkeys(s.length - s.first for s in samples if s.first)
    chunks = dict.fromkeys(c for s in samples if s.first for c in _chunks(s))
    yield from (Mask(causal, window=w) for w in windows)
    yield from (Mask(causal, chunk=c) for c in chunks)
    if causal:
        # Windows inside chunks: a last row shows one of both.
        near = [n + more for n in numbers for more in (0, 1)]
        sizes = dict.fromkeys((*windows, *near, *range(1, 49)))
        yield from (Mask(causal, w, c) for c in dict.fromkeys((*chunks, *near)) for w in sizes)


def _chunks(sample: Rows) -> list[int]:
    """Sizes of chunks the last of which begins where the last row does."""
    sizes = np.arange(max(2, sample.length - sample.first), sample.length)
    return sizes[(sample.length - 1) // sizes * sizes == sample.first].tolist()


def _bias_family(samples: Sequence[Rows], *, causal: bool) -> str:
    """What is added, as a function of the distance."""
    if all(np.abs(s.relative).max() == 0 for s in samples):
        return ""
    if not causal:
        return _distances(samples)
    longest = max(samples, key=lambda s: s.length)
    steps = longest.relative[:, -1, ::-1]  # by distance from the last query, which sees furthest
    if longest.length > 1:
        slopes = -_one_back(samples)[:, None, None]
        if all(s.close(-slopes * s.distance) for s in samples):
            return "slopes"
    if all(s.close(steps[:, np.clip(s.distance, 0, None)]) for s in samples):
        return "bias"
    raise NoFamilyError("its bias is not a function of the distance between query and key")


def _one_back(samples: Sequence[Rows]) -> Array:
    """What one step back is given [H], of the shortest length that has one."""
    shortest = min((s for s in samples if s.length > 1), key=lambda s: s.length)
    return shortest.relative[:, -1, -2]


def _distances(samples: Sequence[Rows]) -> str:
    """Where queries see later keys: a table by distance from -most on. The first query sees
    furthest ahead, the last one furthest back.
    """
    longest = max(samples, key=lambda s: s.length)
    if longest.places[0] != 0:
        raise NoFamilyError("its bias to both sides cannot be had at the longest length")
    ahead, back = longest.relative[:, 0, :0:-1], longest.relative[:, -1, ::-1]
    table = np.concatenate([ahead, back], axis=1)
    if not all(s.close(table[:, s.distance + longest.length - 1]) for s in samples):
        raise NoFamilyError("its bias is not a function of the distance between query and key")
    return "distances"


def _drawn(short: Rows, departs: Rows) -> str:
    """The corner of a mask, and where it departs from what a corner shows."""
    if departs.length == short.length:
        return draw(short.seen)
    return f"{draw(short.seen)}\n  and others at {departs.length} tokens"


def draw(seen: Array, most: int = 24) -> str:
    """A corner of a mask as text: x where a key is visible."""
    rows = ["".join("x" if c else "." for c in row[:most]) for row in seen[:most]]
    return "\n".join(f"  {r}" for r in rows)


def widened(root: Node) -> Node:
    """The subgraph with float32 in place of every half-precision float: a bias that grows with the
    distance is rounded to few bits far from the beginning, and is a function of it before.
    """
    done: dict[Node, Node] = {}
    for node in walk((root,)):
        known: Mapping[str, Any] = node.attributes
        if node.op.name == "parameter":
            half = isinstance(node.type, TensorType) and node.dtype in _HALF
            done[node] = tensor.cast(node, dtype="f32") if half else node
            continue
        if known.get("dtype") in _HALF:
            known = {**known, "dtype": "f32"}
        done[node] = node.op.build(tuple(done[i] for i in node.inputs), known)
    return done[root]
