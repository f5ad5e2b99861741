"""What may be chosen in a kernel, as data: tiles by shape bucket, the sizes that a bucket is
measured at, and what a choice costs in traffic and arithmetic.

A template declares a `Space` for each bucket of rows that it has code for; a tuner measures some of
its choices, and the one that wins is handed back to the template when the kernel is built.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields, replace
from itertools import product
from typing import ClassVar, Protocol, TypeVar

from ..ir.dims import Dim
from ..ir.errors import IRError

SLACK = 1.6  # what the model says is slower than the best by more than this is not measured
MOST = 12  # choices of one space that are measured


class Values(Protocol):
    """A frozen dataclass of whole numbers: what a template takes where nothing is chosen."""

    __dataclass_fields__: ClassVar[dict[str, Field[object]]]


V = TypeVar("V", bound=Values)


@dataclass(frozen=True)
class Choice:
    """Named whole numbers, such as rows 6, columns 4; what is not named is the template's own."""

    values: tuple[tuple[str, int], ...] = ()

    @staticmethod
    def of(values: Mapping[str, int]) -> Choice:
        """The choice of these values, whatever their order."""
        return Choice(tuple(sorted(values.items())))

    def over(self, default: V) -> V:
        """A template's own values, a frozen dataclass, with the chosen ones in their place.

        Raises IRError where the template has no value of that name.
        """
        known = [f.name for f in fields(default)]
        for name, _ in self.values:
            if name not in known:
                raise IRError(f"choice of {name!r}: the template knows {', '.join(known)}")
        return replace(default, **dict(self.values)) if self.values else default

    def __getitem__(self, name: str) -> int:
        return dict(self.values)[name]

    def __str__(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in self.values) or "default"


DEFAULT = Choice()
Choices = Mapping[str, Choice]
"""The choice for each bucket, by the bucket's name."""


@dataclass(frozen=True)
class Sample:
    """A size to measure a bucket at: rows in the step, or sequences of one token each with so much
    context.
    """

    tokens: int
    sequences: int = 1
    context: int = 0

    def __str__(self) -> str:
        return f"{self.tokens}" + (f" at {self.context}" if self.context > self.tokens else "")


@dataclass(frozen=True)
class Bucket:
    """The numbers of rows, from `low` to `high`, that share a choice; `samples` stand for them."""

    name: str
    low: int
    high: int | None
    samples: tuple[Sample, ...]

    def within(self, tokens: int, context: int) -> tuple[Sample, ...]:
        """The samples for a step of so many tokens at most, cut to it; none where it is smaller
        than the bucket.
        """
        if tokens < self.low:
            return ()
        cut = [
            Sample(min(s.tokens, tokens), min(s.sequences, tokens), min(s.context, max(context, 1)))
            for s in self.samples
        ]
        return tuple(dict.fromkeys(cut))


@dataclass(frozen=True)
class Burden:
    """What a choice makes of a kernel's cost: factors on its bytes and on its operations."""

    bytes: float = 1.0
    operations: float = 1.0


@dataclass(frozen=True)
class Space:
    """The choices of one bucket: every combination of `values` that `fits`.

    `rows` is the number of rows by which the kernel tells buckets apart; `burden(choice, tokens)`
    the template's model of traffic and idle units; `dtype` the one that its products are made in;
    `default` what the template takes where nothing is chosen.
    """

    bucket: Bucket
    rows: Dim
    default: Choice
    values: Mapping[str, tuple[int, ...]]
    fits: Callable[[Choice], bool] = field(default=lambda _: True)
    burden: Callable[[Choice, int], Burden] = field(default=lambda _choice, _tokens: Burden())
    dtype: str = "f32"

    def choices(self) -> tuple[Choice, ...]:
        """Every choice but the default's."""
        names = list(self.values)
        made = (Choice.of(dict(zip(names, v, strict=True))) for v in product(*self.values.values()))
        return tuple(c for c in made if c != self.default and self.fits(c))

    def allows(self, choice: Choice) -> bool:
        """Whether a choice, recorded by whatever version, is one of this space."""
        named = dict(choice.values)
        inside = named.keys() == self.values.keys() and all(
            value in self.values[name] for name, value in named.items()
        )
        return inside and self.fits(choice)

    def refined(self, winner: Choice) -> tuple[Choice, ...]:
        """What is measured beside the winner once it is known; nothing where all that there is to
        choose is among `choices`.
        """
        return ()

    def words(self, choice: Choice) -> str:
        """A choice as people read it."""
        return str(choice)


def prune(
    choices: Sequence[Choice], seconds: Callable[[Choice], float], most: int = MOST
) -> tuple[Choice, ...]:
    """The choices that a model does not rule out, likeliest first, `most` of them at most."""
    if not choices:
        return ()
    known = {c: seconds(c) for c in choices}
    limit = SLACK * min(known.values())
    return tuple(sorted((c for c in choices if known[c] <= limit), key=known.__getitem__)[:most])
