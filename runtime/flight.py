"""A step on its way: what was begun, and which rows of its results are whose.

While a step runs the next one may be begun behind it, on the guess that every sequence goes on: its
tokens are then rows of the step before, which the runner puts in their places by itself. Of a
sequence that has ended, or was aborted, the guess is for nothing: its row is never looked at, and
what it wrote lies behind the end of what anyone knows.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple, cast

from .executor import Batch, Overlapping, StepRunner
from .scheduler import Scheduler
from .sequence import Sequence
from .step import Step
from .tensors import Array

GUESSED = 0
"""Stands for a token that the step before is about to give."""


class Place(NamedTuple):
    """The rows of one sequence in a step's results; `begin` is the position of its first token."""

    sequence: Sequence
    begin: int
    first: int
    end: int


@dataclass(eq=False)
class Flight:
    """A step that was begun at a time: what the runner gave for it, whether its logits come, and
    whether it is committed, which a step with one behind it is before its results are there.
    """

    step: Step
    ticket: object
    start: float
    places: tuple[Place, ...]
    wants_logits: bool
    committed: bool = False


def places_of(step: Step) -> Iterator[Place]:
    """The rows of each part of a step that is neither committed nor rolled back."""
    at = 0
    for part in step.parts:
        yield Place(part.sequence, part.sequence.computed, at, at + part.rows)
        at += part.rows


def feeding_rows(flight: Flight) -> dict[Sequence, int]:
    """The rows of a committed step whose argmax is the next token of a sequence that may go on."""
    return {
        place.sequence: place.end - 1
        for place in flight.places
        if place.end > place.first
        and not place.sequence.pending
        and place.sequence.generated + 1 < place.sequence.limit
    }


def fed(step: Step, rows: Mapping[Sequence, int]) -> list[int]:
    """For each token of a step the row that it comes from, -1 for those that are known."""
    return [n for part in step.parts for n in _fed(part.count, rows.get(part.sequence))]


def _fed(count: int, row: int | None) -> list[int]:
    assert row is None or count == 1, f"{count} tokens behind one that is not known"
    return [-1] * count if row is None else [row]


class Flights:
    """The steps of an engine that are on their way, two at most, the first one first.

    `batch(step, fed)` makes what the runner is given; `is_live` says of a sequence whether it has
    not ended, `may_guess` whether its next token is an argmax and no more than that comes of it.
    """

    def __init__(
        self,
        runner: StepRunner,
        scheduler: Scheduler,
        batch: Callable[[Step, list[int]], Batch],
        is_live: Callable[[Sequence], bool],
        may_guess: Callable[[Sequence], bool],
    ) -> None:
        self._runner, self._scheduler, self._batch = runner, scheduler, batch
        self._overlapping = runner if isinstance(runner, Overlapping) and runner.feeds else None
        self._is_live, self._may_guess = is_live, may_guess
        self._flights: deque[Flight] = deque()

    @property
    def first(self) -> Flight | None:
        """The step that was begun first of those that are not collected."""
        return self._flights[0] if self._flights else None

    def begin(self, step: Step) -> Flight:
        """Begin a step; where that fails it is rolled back, and the error raised."""
        flight = self._begun(step, [])
        self._flights.append(flight)
        return flight

    def _begun(self, step: Step, fed: list[int]) -> Flight:
        start, places = time.monotonic(), tuple(places_of(step))
        batch = self._batch(step, fed)
        runner = self._overlapping
        try:
            ticket = runner.submit(batch) if runner else self._runner.step(batch)
        except BaseException:
            self._scheduler.roll_back(step)
            raise
        return Flight(step, ticket, start, places, batch.wants_logits)

    def begin_next(self) -> None:
        """Begin the next step behind the one that runs, where it can be known before the tokens of
        that one are; a step that cannot be begun is planned anew when its time has come, and its
        error is then its own.
        """
        flight = self._flights[0]
        ends = (p.sequence for p in flight.places if p.end > p.first)
        if len(self._flights) > 1 or self._overlapping is None or flight.wants_logits:
            return
        if not all(map(self._may_guess, filter(self._is_live, ends))):
            return
        self._commit(flight)
        rows = feeding_rows(flight)
        for sequence in rows:
            sequence.tokens.append(GUESSED)
        try:
            step = self._scheduler.next_step()
            if step is not None:
                with suppress(Exception):
                    self._flights.append(self._begun(step, fed(step, rows)))
        finally:
            for sequence in rows:
                sequence.tokens.pop()

    def _commit(self, flight: Flight) -> None:
        self._scheduler.commit(self._live(flight.step))
        flight.committed = True

    def _live(self, step: Step) -> Step:
        """The parts of sequences that have not ended since the step was begun."""
        return Step(tuple(part for part in step.parts if self._is_live(part.sequence)))

    def collect(self, flight: Flight) -> tuple[Array, Array]:
        """The results of a step, which is committed then; where they do not come it is rolled back
        if it was not committed before, and the error raised.
        """
        runner = self._overlapping
        try:
            found = runner.collect(flight.ticket) if runner else flight.ticket
        except BaseException:
            if not flight.committed:
                self._scheduler.roll_back(flight.step)
                self._flights.remove(flight)
            raise
        self._flights.remove(flight)
        if not flight.committed:
            self._commit(flight)
        return cast("tuple[Array, Array]", found)

    def sequences(self) -> list[Sequence]:
        """The sequences of the steps that are on their way."""
        parts = (part for flight in self._flights for part in flight.step.parts)
        return list(dict.fromkeys(part.sequence for part in parts))

    def drop(self) -> list[Sequence]:
        """Forget every step that is on its way; gives their sequences."""
        sequences = self.sequences()
        for flight in self._flights:
            if not flight.committed:
                self._scheduler.roll_back(self._live(flight.step))
        self._flights.clear()
        return sequences
