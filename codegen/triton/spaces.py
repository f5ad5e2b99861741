"""What may be chosen in a form of a kernel on a GPU, as spaces that a tuner measures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product

from ...ir.dims import Dim
from ...ir.target import Target
from ..space import Bucket, Burden, Choice, Sample, Space
from .burdens import Burdens
from .candidates import (
    DEEP,
    LIBRARY,
    NAMES,
    Problem,
    burden_of,
    choices,
    library_serves,
    template_of,
    templates,
    with_template,
)
from .tiles import Sizes, Tiles

SAMPLES: Mapping[int | None, tuple[int, ...]] = {
    1: (1,), 16: (4, 16), 64: (32, 64), 128: (96, 128), 256: (192, 256), None: (512, 2048),
}  # fmt: skip
"""Rows that stand for those of a form, by the most that it serves."""

ALL_ROWS = (1, 32, 512)
"""Rows that stand for any number, where one form serves all."""


@dataclass(frozen=True)
class TileSpace(Space):
    """Choices of templates whose values differ: `first` are those that differ in what a program
    makes and who makes it, measured first; `near` those that differ from a choice in how deep and
    by how many warps it goes, measured for the winner; `known` says whether a choice is any of
    these. `named` are the choices as people read them.
    """

    first: Callable[[], tuple[Choice, ...]] = field(kw_only=True)
    near: Callable[[Choice], tuple[Choice, ...]] = field(kw_only=True)
    known: Callable[[Choice], bool] = field(kw_only=True)
    named: Callable[[Choice], str] = field(default=str, kw_only=True)

    def choices(self) -> tuple[Choice, ...]:
        """The choices that are measured first, but for the default."""
        return tuple(c for c in self.first() if c != self.default)

    def allows(self, choice: Choice) -> bool:
        """Whether a choice, recorded by whatever version, is one of this space."""
        return self.known(choice)

    def refined(self, winner: Choice) -> tuple[Choice, ...]:
        """The choices near the winner (the default where it is empty), but for the default; those
        that differ in one value first.
        """
        winner = winner if winner.values else self.default
        found = [c for c in self.near(winner) if c not in (winner, self.default)]
        return tuple(sorted(found, key=lambda c: len(set(c.values) - set(winner.values))))

    def words(self, choice: Choice) -> str:
        """A choice as people read it."""
        return self.named(choice) if choice.values else str(choice)


def bucket_of(name: str, least: int, most: int | None) -> Bucket:
    """The bucket of a form that serves from `least` to `most` rows."""
    rows = ALL_ROWS if least == 1 and most is None else SAMPLES.get(most, (most or least,))
    return Bucket(name, least, most, tuple(Sample(max(r, least)) for r in dict.fromkeys(rows)))


def linear_space(
    problem: Problem, bucket: Bucket, rows: Dim, target: Target, own: Choice
) -> TileSpace:
    """What may be chosen in a form of a linear: a template with its tiles, or the vendor's library
    where it serves.
    """
    most = bucket.high

    def every(*, all_: bool) -> Iterator[Choice]:
        if library_serves(problem, most, target):
            yield with_template(LIBRARY, Choice())
        for name, tiles in templates(problem, most, target).items():
            for choice in choices(name, tiles, problem, target, all_=all_):
                yield with_template(name, choice)

    def near(winner: Choice) -> tuple[Choice, ...]:
        name, shape = _shape_of(winner)
        if name == LIBRARY:
            return ()
        tiles = templates(problem, most, target)[name]
        made = choices(name, tiles, problem, target, all_=True)
        return tuple(c for c in (with_template(name, m) for m in made)
                     if _shape_of(c) == (name, shape))  # fmt: skip

    def burden(choice: Choice, tokens: int) -> Burden:
        name, values = template_of(choice)
        if name == LIBRARY:
            return Burden()
        return burden_of(name, problem, target)(Choice.of(values), tokens)

    return TileSpace(
        bucket, rows, own, {}, burden=burden, dtype="bf16" if problem.item == 2 else "f32",
        first=lambda: tuple(every(all_=False)), near=near,
        known=lambda choice: choice in every(all_=True), named=_words,
    )  # fmt: skip


def _shape_of(choice: Choice) -> tuple[str, Choice]:
    """The template of a choice, and its values but for how deep and by how many warps it goes."""
    name, values = template_of(choice)
    return name, Choice.of({n: v for n, v in values.items() if n not in DEEP})


def _words(choice: Choice) -> str:
    if dict(choice.values).get("TEMPLATE", -1) not in range(len(NAMES)):
        return str(choice)
    name, values = template_of(choice)
    return f"{name} {Choice.of(values)}" if values else name


def tiles_space(
    tiles: Tiles,
    bucket: Bucket,
    rows: Dim,
    target: Target,
    sizes: Sizes,
    burden: Burdens,
    own: Choice,
    most: Mapping[str, int],
) -> TileSpace:
    """What may be chosen of one template's tiles, no value above its `most`."""
    deep = tuple(n for n in tiles.values if n in ("STAGES", "WARPS"))

    def made(at: Choice, names: tuple[str, ...]) -> tuple[Choice, ...]:
        values = ({own[n], *(v for v in tiles.values[n] if v <= most.get(n, v))} for n in names)
        ranges = [sorted(v) for v in values]
        found = (
            Choice.of(dict(at.values) | dict(zip(names, v, strict=True))) for v in product(*ranges)
        )
        return tuple(c for c in found if tiles.fits(c, target, sizes))

    shallow = tuple(n for n in tiles.values if n not in deep)
    return TileSpace(
        bucket, rows, own, {}, burden=burden, dtype="bf16" if sizes.item == 2 else "f32",
        first=lambda: made(own, shallow), near=lambda winner: made(winner, deep),
        known=lambda choice: choice in made(own, tuple(tiles.values)),
    )  # fmt: skip
