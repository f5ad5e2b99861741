"""Which choice of a kernel is taken: a candidate only where it is faster beyond doubt, twice.

Candidates and the template's own are timed in turn, round by round, so that what else the machine
does meets them alike; what counts is the ratio of two times of one round.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ..codegen.space import DEFAULT, Choice, Sample
from .budget import OutOfTime

SCREENING, ROUNDS = 3, 15  # rounds for all candidates, and for the finalists
LEAST_ROUNDS, SECONDS = 7, 2.0  # fewer where rounds of a size take longer than this, but so many
FINALISTS = 3
LEAST_GAIN = 0.98  # of the default's time, the most that counts as faster
LOSS = 1.01  # of the default's time, the most on any one sample
_NORMAL = 1.4826  # the standard deviation of a normal sample by its median absolute deviation
_MEDIAN = 1.2533  # the standard error of a median by that of a mean

Times = list[list[float]]


class CandidateFault(Exception):
    """A candidate that cannot be run: it crashed, or did not end in time."""

    def __init__(self, at: int, reason: str) -> None:
        super().__init__(reason)
        self.at = at


@dataclass(frozen=True)
class Prepared:
    """What is wrong with candidates, and those for which there was no time, by place."""

    faults: Mapping[int, str] = field(default_factory=dict[int, str])
    late: tuple[int, ...] = ()


class Measurer(Protocol):
    """Compiles the candidates of one kernel and times them."""

    def prepare(self, choices: Sequence[Choice]) -> Prepared:
        """Make the candidates ready, one after another, as many as there is time for."""
        ...

    def times(self, which: Sequence[int], sample: Sample, rounds: int) -> Times:
        """Seconds of candidates, by place, in so many rounds; raises CandidateFault, and OutOfTime
        where there is no time for all rounds.
        """
        ...


@dataclass(frozen=True)
class Verdict:
    """The choice to take, and for each sample the median seconds of the template's own and of the
    choice; `faults` are candidates that fell out, `candidates` those that were timed, `late` those
    for which there was no time.
    """

    choice: Choice
    seconds: Mapping[str, tuple[float, float]]
    candidates: int
    faults: tuple[str, ...] = ()
    late: tuple[Choice, ...] = ()


def decide(measurer: Measurer, candidates: Sequence[Choice], samples: Sequence[Sample]) -> Verdict:
    """The candidate that is faster than the template's own on all samples together and slower on
    none; the template's own where there is none.

    Raises CandidateFault where the template's own cannot be run, and OutOfTime where there is no
    time for any candidate, or for what tells which is faster.
    """
    field = _Field(measurer, (DEFAULT, *candidates))
    if field.late and len(field.alive()) == 1:
        raise OutOfTime("no candidate is ready")
    screened = field.ratios(field.alive(), samples, SCREENING)
    scores = {at: _score(ratios) for at, ratios in screened.items()}
    finalists = sorted((at for at in scores if at and scores[at] < 1), key=scores.__getitem__)
    final = field.ratios([0, *finalists[:FINALISTS]], samples, ROUNDS)
    order = sorted(
        (at for at in final if at and is_faster(final[at])), key=lambda a: _score(final[a])
    )
    winner, gains = 0, [1.0] * len(samples)
    for at in order:
        # The best of several is partly so by luck: it has to win once more, alone.
        again = field.ratios([0, at], samples, ROUNDS).get(at)
        if again is not None and is_faster(again):
            winner, gains = at, [statistics.median(r) for r in again]
            break
    own = [statistics.median(field.seconds[0, s]) for s in samples]
    seconds = {
        str(s): (before, before * ratio)
        for s, before, ratio in zip(samples, own, gains, strict=True)
    }
    late = tuple(field.choices[at] for at in field.late)
    return Verdict(field.choices[winner], seconds, len(screened) - 1, tuple(field.faults), late)


def contest_seconds(candidates: int, samples: int, once: float) -> float:
    """What it takes to decide on so many candidates, where timing one takes so long."""
    finals = ROUNDS * (FINALISTS + 1) + ROUNDS * 2
    return samples * once * (SCREENING * (candidates + 1) + finals)


def _score(ratios: Sequence[Sequence[float]]) -> float:
    return _mean([statistics.median(r) for r in ratios])


def is_faster(ratios: Sequence[Sequence[float]]) -> bool:
    """Whether times relative to the template's own, a list of rounds for each sample, are less
    beyond their noise: all samples together by a margin, none of them more.
    """
    bounds = [statistics.median(r) + 2 * _error(r) for r in ratios]
    return _mean(bounds) < LEAST_GAIN and all(statistics.median(r) <= LOSS for r in ratios)


def _error(values: Sequence[float]) -> float:
    """The standard error of the median, by deviations that a few outliers do not move."""
    middle = statistics.median(values)
    spread = _NORMAL * statistics.median(abs(v - middle) for v in values)
    return _MEDIAN * spread / math.sqrt(len(values))


def _mean(values: Sequence[float]) -> float:
    """The geometric mean."""
    return math.exp(sum(map(math.log, values)) / len(values))


class _Field:
    """The candidates that still stand."""

    def __init__(self, measurer: Measurer, choices: tuple[Choice, ...]) -> None:
        self.measurer, self.choices = measurer, choices
        self.faults: list[str] = []
        self.fallen: set[int] = set()
        self.seconds: dict[tuple[int, Sample], list[float]] = {}
        prepared = measurer.prepare(choices)
        self.late = prepared.late
        for at, reason in prepared.faults.items():
            self._drop(at, reason)

    def alive(self) -> list[int]:
        """The places of those that stand."""
        missing = self.fallen.union(self.late)
        return [at for at in range(len(self.choices)) if at not in missing]

    def ratios(
        self, which: Sequence[int], samples: Sequence[Sample], rounds: int
    ) -> dict[int, list[list[float]]]:
        """For each that stands, times relative to the template's own: rounds of each sample."""
        found: dict[int, list[list[float]]] = {at: [] for at in which}
        for sample in samples:
            count = min(rounds, self._affordable(len(which), sample))
            for at, times in self._times(which, sample, count).items():
                own = self.seconds[0, sample]
                found[at].append([t / o for t, o in zip(times, own, strict=True)])
        return {at: r for at, r in found.items() if at not in self.fallen}

    def _affordable(self, count: int, sample: Sample) -> int:
        """How many rounds of so many candidates there is time for."""
        known = self.seconds.get((0, sample))
        if known is None:
            return ROUNDS
        return max(LEAST_ROUNDS, int(SECONDS / (statistics.median(known) * count)))

    def _times(self, which: Sequence[int], sample: Sample, rounds: int) -> dict[int, list[float]]:
        while True:
            standing = [at for at in which if at not in self.fallen]
            try:
                times = self.measurer.times(standing, sample, rounds)
            except CandidateFault as fault:
                self._drop(fault.at, str(fault))
                continue
            found = dict(zip(standing, times, strict=True))
            self.seconds.update({(at, sample): t for at, t in found.items()})
            return found

    def _drop(self, at: int, reason: str) -> None:
        if at == 0:
            raise CandidateFault(0, f"the template's own cannot be run: {reason}")
        self.fallen.add(at)
        self.faults.append(f"{self.choices[at]}: {reason}")
