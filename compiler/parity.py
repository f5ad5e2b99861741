"""Parity: how far a built model's logits lie from the eager model's, position by position.

Both see the same token ids. Ferrule gets them as a server would: the prompts' beginnings as one
ragged batch through the mixed entry, the rest one token at a time through the decode entry, so
that caches, tables and both sets of kernels are tried.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..ir.graph import Graph
from ..ir.types import TensorType
from ..passes.quantize import NONE, Recipe
from ..passes.weight_formats import Format
from ..runtime.executor import Batch, StepRunner
from ..runtime.limits import Absent
from .errors import CompileError

Array = np.ndarray[Any, np.dtype[Any]]
Rows = dict[tuple[int, int], Array]  # (sequence, position) -> logits[V]
# (token ids, a position) -> logits[S - position, V] from there on, by the eager model
Logits = Callable[[Sequence[int], int], Array]

PROMPTS = (
    "The quick brown fox jumps over the lazy dog, and then it sleeps.",
    "def add(a, b):\n    return a + b\n\n\ndef multiply(a, b):\n    return",
    "A compiler reads a program, checks it, and",
    "import os\nimport sys\n\nfor line in sys.stdin:\n    print(line.strip())\n",
)
RANDOM_LENGTHS = (19, 7, 26, 12)
DECODED = 5  # positions of each sequence that go through the decode entry


@dataclass(frozen=True)
class Tolerance:
    """What a build may differ by, and still be accepted.

    `relative` is the largest difference of a row's logits over the row's largest magnitude;
    `outliers` is the share of rows that may exceed it (a router that is nearly undecided flips at
    the slightest rounding); `kl` bounds the mean divergence; `fair` is the least share of rows
    whose best token is a fair choice to eager.
    """

    relative: float
    outliers: float
    kl: float
    fair: float = 0.0


TOLERANCES: Mapping[str, Tolerance] = {
    "f32": Tolerance(1e-3, 0.0, 1e-5),
    "f16": Tolerance(3e-2, 0.1, 5e-3),
    "bf16": Tolerance(1.5e-1, 0.1, 3e-2),
}

QUANTIZED: Mapping[int, Tolerance] = {
    # Weights of few bits move every logit: what counts is the distribution.
    8: Tolerance(float("inf"), 0.0, 2e-2, fair=0.8),
    4: Tolerance(float("inf"), 0.0, 3e-1, fair=0.5),
}
"""By the fewest bits of a weight."""


def computed_dtype(graph: Graph, dtype: str) -> str:
    """The coarsest dtype that a graph of a model in some dtype computes in: a part of a float32
    model may be in half precision, as autocast makes it.
    """
    found = {n.dtype for n in graph.nodes() if isinstance(n.type, TensorType)} | {dtype}
    return max(found & TOLERANCES.keys(), key=lambda d: TOLERANCES[d].relative, default=dtype)


def tolerance_of(dtype: str, recipe: Recipe | None = None, cache: str = "") -> Tolerance:
    """What a build may differ by: that of its dtype or its caches', whichever is coarser, or,
    quantized, of its coarsest format.
    """
    formats = [] if recipe is None else [recipe.default, *(f for _, f in recipe.rules)]
    bits = [Format.parse(f).bits for f in formats if f != NONE]
    bits += [8] if cache == "i8" else []
    if bits:
        return QUANTIZED[min(bits)]
    return max((TOLERANCES[d] for d in (dtype, cache or dtype)), key=lambda t: t.relative)


@dataclass(frozen=True)
class Parity:
    """The differences over all compared positions; `kl` is KL(eager || built) in nats.

    `top1` is the share of positions with the same best token; `fair` counts those too whose best
    token is half as likely to eager as its own best: where tokens are near ties, as random weights
    make them, no more can be asked. `errors` holds each position's largest absolute difference of
    logits, `relative` the largest of them over the row's largest magnitude. Where eager in half
    precision is too coarse a yardstick, the comparison is with float32, and `own` is what eager in
    half precision departs from it by. `departing` are the lengths of the sequences that have a
    position beyond the tolerance.
    """

    positions: int
    top1: float
    fair: float
    kl: float
    kl_largest: float
    error: float
    relative: float
    outliers: float
    errors: tuple[float, ...]
    own: Parity | None = None
    departing: tuple[int, ...] = ()

    def to_json(self) -> dict[str, object]:
        """The report as the manifest stores it."""
        errors = [float(f"{e:.3g}") for e in self.errors]
        return {**asdict(self), "errors": errors, "own": self.own and self.own.to_json()}

    def __str__(self) -> str:
        return (
            f"{self.positions} positions: top-1 agreement {self.top1:.1%}, KL {self.kl:.2g} "
            f"(largest {self.kl_largest:.2g}), largest logit error {self.error:.3g} "
            f"({self.relative:.2g} relative)"
            + (f"; of float32, from which eager departs too: {self.own}" if self.own else "")
        )


def compare(eager: Rows, built: Rows, tolerance: float) -> Parity:
    """The differences between two sets of logits over the same positions."""
    if eager.keys() != built.keys():
        raise CompileError(f"parity: {len(built)} positions were computed, {len(eager)} wanted")
    rows = [_differences(eager[key], built[key]) for key in eager]
    errors, scales, kls, agree, fair = (np.array(column) for column in zip(*rows, strict=True))
    relative = errors / np.maximum(scales, 1e-6)
    beyond = ~(relative <= tolerance)  # NaN counts
    return Parity(
        positions=len(rows),
        top1=float(agree.mean()),
        fair=float(fair.mean()),
        kl=float(kls.mean()),
        kl_largest=float(kls.max()),
        error=float(errors.max()),
        relative=float(relative.max()),
        outliers=float(beyond.mean()),
        errors=tuple(float(e) for e in errors),
        departing=_lengths([n for (n, _), far in zip(eager, beyond, strict=True) if far], eager),
    )


def _lengths(sequences: Sequence[int], rows: Rows) -> tuple[int, ...]:
    """The lengths of some sequences: their last positions are among the rows."""
    return tuple(sorted({max(p for m, p in rows if m == n) + 1 for n in sequences}))


def _differences(eager: Array, built: Array) -> tuple[float, float, float, bool, bool]:
    """Largest error, the row's scale, KL(eager || built), whether both choose the same token, and
    whether the built one's is a fair choice.
    """
    a, b = eager.astype(np.float64), built.astype(np.float64)
    finite = np.isfinite(a)  # a model may forbid tokens by -inf: both must
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return float("nan"), 1.0, float("nan"), False, False
    log_a, log_b = _log_softmax(a[finite]), _log_softmax(b[finite])
    divergence = float((np.exp(log_a) * (log_a - log_b)).sum())
    error, scale = np.abs(a[finite] - b[finite]).max(), np.abs(a[finite]).max()
    best, other = a.argmax(), b.argmax()
    fair = bool(a[other] >= a[best] - math.log(2))
    return float(error), float(scale), divergence, bool(best == other), fair


def _log_softmax(x: Array) -> Array:
    shifted = x - x.max()
    return shifted - np.log(np.exp(shifted).sum())


def check(parity: Parity, dtype: str, tolerance: Tolerance | None = None) -> None:
    """Raise CompileError where a build differs from eager by more than its tolerance, which is
    that of its dtype where none is given.
    """
    if faults := faults_of(parity, tolerance or TOLERANCES[dtype]):
        raise CompileError(
            f"the built model departs from eager {dtype}: {'; '.join(faults)}\n  {parity}"
        )


def faults_of(parity: Parity, tolerance: Tolerance) -> list[str]:
    """What is beyond a tolerance; what eager itself departs from float32 by comes on top of it."""
    own = parity.own
    fair = tolerance.fair * (own.fair if own else 1.0)
    kl = tolerance.kl + (own.kl if own else 0.0)
    outliers = tolerance.outliers + (own.outliers if own else 0.0)
    faults = []
    if not parity.fair >= fair:
        faults.append(
            f"{parity.fair:.0%} of the best tokens are half as likely to eager as its own, "
            f"at least {fair:.0%} wanted"
        )
    if not parity.kl <= kl:
        faults.append(f"mean KL {parity.kl:.3g}, at most {kl:g} wanted")
    if not parity.outliers <= outliers:
        faults.append(
            f"{parity.outliers:.0%} of positions differ by more than {tolerance.relative:g} of the "
            f"largest logit, at most {outliers:.0%} may "
            f"({parity.relative:.3g} is the largest), in sequences of "
            f"{', '.join(map(str, parity.departing))} tokens"
        )
    return faults


def relative_error(wanted: Array, given: Array) -> float:
    """The largest difference over the largest magnitude; infinite where shapes or what is not
    finite differ.
    """
    if wanted.shape != given.shape:
        return float("inf")
    finite = np.isfinite(wanted)
    if not np.array_equal(wanted[~finite], given[~finite], equal_nan=True):
        return float("inf")
    if not finite.any():
        return 0.0
    error = np.abs(wanted[finite] - given[finite]).max()
    return float(error / max(float(np.abs(wanted[finite]).max()), 1e-30))


def random_prompts(
    vocabulary: int, limit: int, lengths: Sequence[int] = RANDOM_LENGTHS, seed: int = 0
) -> list[list[int]]:
    """Ragged sequences of random token ids, for a model that has no tokenizer."""
    generator = np.random.default_rng(seed)
    return [generator.integers(0, vocabulary, min(n, limit)).tolist() for n in lengths]


def without(absent: Absent, sequences: Sequence[Sequence[int]]) -> list[list[int]]:
    """Sequences with another token where they have one that is to be absent."""
    if absent.token is None:
        return [list(ids) for ids in sequences]
    other = absent.token - 1 if absent.token else 1
    return [[other if token == absent.token else token for token in ids] for ids in sequences]


def text_prompts(
    encode: Callable[[str], Sequence[int]], vocabulary: int, limit: int
) -> list[list[int]]:
    """The embedded prompts as token ids, cut to the limit."""
    encoded = [list(encode(text))[:limit] for text in PROMPTS]
    fits = all(ids and max(ids) < vocabulary for ids in encoded)
    return encoded if fits else random_prompts(vocabulary, limit)


def compared_positions(
    sequences: Sequence[Sequence[int]], decoded: int = DECODED
) -> list[tuple[int, int]]:
    """The (sequence, position) pairs whose logits are compared: the last one of the prefill, and
    each decoded one.
    """
    return [
        (n, p)
        for n, ids in enumerate(sequences)
        for p in range(_prefill(ids, decoded) - 1, len(ids))
    ]


def _prefill(ids: Sequence[int], decoded: int) -> int:
    return max(1, len(ids) - decoded)


def eager_rows(logits: Logits, sequences: Sequence[Sequence[int]]) -> Rows:
    """The eager model's logits at the compared positions, each sequence alone and whole."""
    wanted = compared_positions(sequences)
    rows: Rows = {}
    for n, ids in enumerate(sequences):
        places = [p for m, p in wanted if m == n]
        found = logits(ids, places[0])
        rows |= {(n, p): np.array(found[p - places[0]], np.float32) for p in places}
    return rows


def built_rows(
    runner: StepRunner, sequences: Sequence[Sequence[int]], decoded: int = DECODED
) -> Rows:
    """The built model's logits at the compared positions, over ragged batches with caches.

    The last `decoded` tokens of each sequence go through the decode entry, one at a time.
    """
    rows: Rows = {}
    for begin in range(0, len(sequences), runner.max_batch):
        group = range(begin, min(begin + runner.max_batch, len(sequences)))
        for numbers, spans, batch in _steps(runner, sequences, group, decoded):
            _, logits = runner.step(batch)
            for row, n in enumerate(numbers):
                rows[n, spans[row][1] - 1] = logits[row].copy()  # the next step overwrites it
    wanted = compared_positions(sequences, decoded)
    return {key: rows[key] for key in wanted}


Span = tuple[int, int]


def _steps(
    runner: StepRunner, sequences: Sequence[Sequence[int]], group: range, decoded: int
) -> Iterator[tuple[list[int], list[Span], Batch]]:
    """The steps that take a group of sequences from nothing to their ends."""
    done = dict.fromkeys(group, 0)
    share = max(1, runner.chunk // len(group))
    while left := [n for n in group if done[n] < len(sequences[n])]:
        spans = []
        for n in left:
            begin, prefill = done[n], _prefill(sequences[n], decoded)
            end = min(prefill, begin + share) if begin < prefill else begin + 1
            spans.append((begin, end))
            done[n] = end
        yield left, spans, step_batch(runner.block, sequences, group, left, spans)


def step_batch(
    block: int,
    sequences: Sequence[Sequence[int]],
    group: range,
    numbers: list[int],
    spans: list[Span],
) -> Batch:
    """One ragged step: tokens begin..end of each sequence, each with blocks of its own."""
    width = -(-max(len(sequences[n]) for n in group) // block)
    parts = list(zip(numbers, spans, strict=True))
    tables = {n: range(at * width, (at + 1) * width) for at, n in enumerate(group)}
    pairs = [(n, p) for n, (begin, end) in parts for p in range(begin, end)]
    starts = np.cumsum([0, *(end - begin for begin, end in spans)]).tolist()
    return Batch(
        tokens=[sequences[n][p] for n, p in pairs],
        positions=[p for _, p in pairs],
        query_start=starts,
        context_length=[end for _, end in spans],
        block_table=[tables[n][: -(-end // block)] for n, (_, end) in parts],
        slots=[tables[n][p // block] * block + p % block for n, p in pairs],
        logit_rows=[start - 1 for start in starts[1:]],
        state_from=[group.index(n) if begin else -1 for n, (begin, _) in parts],
        state_to=[group.index(n) for n in numbers],
    )


def blocks_needed(sequences: Sequence[Sequence[int]], block: int) -> int:
    """Cache blocks that hold all the sequences at once, each rounded up to the longest."""
    return len(sequences) * -(-max(map(len, sequences)) // block)
