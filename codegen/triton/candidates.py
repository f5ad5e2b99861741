"""Which templates can serve a linear, with which tiles, and which of them the model of traffic and
idle units takes for so many rows.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import product

from ...ir.errors import IRError
from ...ir.target import Target
from ..space import Burden, Choice
from .burdens import BALANCE, Burdens, codes_burden, linear_burden, processors
from .loops import power_of_two
from .tiles import (
    GEMM,
    GEMM_CODES,
    GEMM_FEW,
    GEMV,
    GEMV_CODES,
    KIB,
    SHARED,
    Sizes,
    Tiles,
    deep_codes,
    fitting_codes,
)

LADDER = (1, 16, 64, 128, 256)
"""The most rows of each form of a linear but the last, which takes any number."""

OVERLAP = 0.1
"""Of what takes less time than something else beside it, the share that this does not hide."""

CACHE = 2.7
"""Bytes that programs read from the cache they share in the time of one from memory: of an H100 5.5
to 7 TB/s beside 3.35 (as microbenchmarks have published), of an A100 about as many times its own.
"""

CACHED = 0.4
"""What reading weights once more takes, from the cache, for the next tile of rows."""

FLIGHT = 24 * KIB
"""Bytes on their way to a processor that keep memory busy: its share of the bandwidth in the 0.7 us
that a read takes (H100, as microbenchmarks have published)."""

DENSE: Mapping[str, Tiles] = {
    "gemv": GEMV,
    "gemm_few": GEMM_FEW,
    "gemm": GEMM,
    "gemm_persistent": GEMM,
    "gemm_tma": GEMM,
}
CODES: Mapping[str, Tiles] = {"gemv_codes": GEMV_CODES, "gemm_codes": GEMM_CODES}
ONE = ("gemv", "gemv_codes")
"""The templates that serve one row alone."""

LIBRARY = "cublas"
"""The vendor's library in the place of a template: it is never taken but where it was measured."""

NAMES = (*DENSE, *CODES, LIBRARY)
"""Templates by number: what TEMPLATE of a choice says. Records hold it: what is new comes last."""

DEEP = ("BK", "PACK", "STAGES", "WARPS")
"""Values that decide how deep and by how many warps a tile is made, of which the model knows
little."""


@dataclass(frozen=True)
class Problem:
    """A linear by w[N, K] as templates see it: sums of `parts` columns together, `item` bytes of an
    element of x, `bits` of a weight; codes come in groups of `group`, 0 for weights that are no
    codes, with or without zeros.
    """

    n: int
    k: int
    parts: int = 1
    item: int = 2
    bits: int = 16
    group: int = 0
    zeros: bool = False

    @property
    def wide(self) -> int:
        """Columns of a part."""
        return self.n // self.parts

    @property
    def stored(self) -> float:
        """Bytes of a weight, its share of scales and zeros with it."""
        scales = (2 + self.zeros) / self.group if self.group else 0.0
        return self.bits / 8 + scales

    def nbytes(self, rows: int) -> float:
        """Bytes that the linear of so many rows moves at least."""
        return self.n * self.k * self.stored + rows * (self.k * self.item + self.wide * self.item)


def templates(problem: Problem, rows: int | None, target: Target) -> Mapping[str, Tiles]:
    """The templates that serve steps of up to `rows` rows (None for any number), by name."""
    known = CODES if problem.group else DENSE
    return {n: t for n, t in known.items() if _serves(n, problem, rows, target)}


def _serves(name: str, problem: Problem, rows: int | None, target: Target) -> bool:
    if name in ONE:
        return rows == 1
    many = rows is None or rows > LADDER[1]
    if name == "gemm_few":
        return rows is not None
    if name in ("gemm_persistent", "gemm_tma"):
        new = target.kind == "cuda" and int(target.arch.removeprefix("sm_")) >= 90
        return many and new and (name != "gemm_tma" or _by_blocks(problem))
    return many or name == "gemm_codes"


def library_serves(problem: Problem, rows: int | None, target: Target) -> bool:
    """Whether the vendor's library may take a linear: products of 16 bits of many rows, whose sums
    it may make in another order for another number of rows.
    """
    plain = problem.group == 0 and problem.bits == 16 and problem.item == 2
    many = rows is None or rows > LADDER[2]
    return plain and many and target.kind == "cuda" and not target.deterministic


def _by_blocks(problem: Problem) -> bool:
    """Whether the tensor memory accelerator reads the weights: rows of whole 16 bytes."""
    return problem.k * problem.bits // 8 % 16 == 0


def choices(
    name: str, tiles: Tiles, problem: Problem, target: Target, *, all_: bool = False
) -> Iterator[Choice]:
    """The choices of a template that fit a linear: its own values with other BM, BN, SPLIT and
    ROUNDED, its own first; with `all_` every combination.
    """
    own = dict(tiles.default(target).values)
    if name in ONE:  # of all parts together
        own["BN"] = max(1, own["BN"] // problem.parts)
    if name == "gemv_codes":  # as many bytes of codes of 8 bits
        own["BK"] = own["BK"] * 4 // problem.bits
    open_ = [n for n in tiles.values if all_ or n in ("BM", "BN", "SPLIT", "ROUNDED")]
    ranges = [sorted(tiles.values[n], key=lambda v, at=own[n]: (v != at, v)) for n in open_]
    seen: set[Choice] = set()
    for values in product(*ranges):
        made = _fitted(name, own | dict(zip(open_, values, strict=True)), problem)
        sizes = Sizes(problem.item, problem.parts)
        if made is not None and made not in seen and tiles.fits(made, target, sizes):
            seen.add(made)
            yield made


def _fitted(name: str, values: dict[str, int], problem: Problem) -> Choice | None:
    """Values no larger than the linear needs; None where they do not go with it."""
    one = name in ONE
    values = values | {"BN": min(values["BN"], _at_least(problem.wide, 1 if one else 16))}
    values["BK"] = min(values["BK"], _at_least(problem.k, 16))
    # A split is no shorter than a step.
    if values.get("SPLIT", 1) > max(1, -(-problem.k // values["BK"])):
        return None
    if not problem.group:
        return Choice.of(values)
    codes = 8 // problem.bits
    if one:
        pack = min(values["PACK"], 32 // problem.bits)
        while problem.group % pack:  # a word lies in one group
            pack //= 2
        return Choice.of(values | {"BK": max(values["BK"], pack), "PACK": max(codes, pack)})
    if values["ROUNDED"]:
        deep = deep_codes(values["BK"], problem.bits, problem.group, problem.k)
        return Choice.of(values | {"BK": deep, "PACK": codes})
    try:
        return fitting_codes(Choice.of(values), problem.bits, problem.group, problem.k)
    except IRError:
        return None


def _at_least(size: int, least: int) -> int:
    return max(least, power_of_two(size))


def burden_of(name: str, problem: Problem, target: Target) -> Burdens:
    """What choices of a template make of the bytes and operations of a linear."""
    n, k, parts = problem.n, problem.k, problem.parts
    made = codes_burden if problem.group else linear_burden
    whole = made(target, n, k, parts=parts, item=problem.stored)
    products = linear_burden(target, n, k, parts=parts, item=problem.stored)

    def burden(choice: Choice, tokens: int) -> Burden:
        found, named = whole(choice, tokens), dict(choice.values)
        if "BM" not in named:
            return found
        alone = products(choice, tokens).operations
        operands = alone * _operands(named["BM"], parts * named["BN"], problem, target)
        edge = alone * _edge(choice, problem, target) if name == "gemm" else 0.0
        again = CACHED * (-(-tokens // named["BM"]) - 1)
        waiting = max(1.0, FLIGHT / _in_flight(name, choice, problem, tokens, target))
        return Burden(found.bytes * waiting + again, _overlapped(found.operations, operands) + edge)

    return burden


def _in_flight(name: str, choice: Choice, problem: Problem, tokens: int, target: Target) -> float:
    """Bytes of weights that are on their way to a processor at a time."""
    named = {"SPLIT": 1} | dict(choice.values)
    tiles = -(-problem.wide // named["BN"]) * -(-tokens // named["BM"])
    programs = -(-tiles * named["SPLIT"] // processors(target))
    held = (CODES if problem.group else DENSE)[name].shared(
        choice, Sizes(problem.item, problem.parts)
    )
    beside = 1 if name in ("gemm_persistent", "gemm_tma") else SHARED[target.arch] // max(held, 1)
    steps = max(1, min(named["STAGES"] - 1, problem.k // (named["BK"] * named["SPLIT"])))
    each = steps * named["BK"] * problem.parts * named["BN"] * problem.stored
    return each * max(1, min(programs, beside))


def _operands(down: int, across: int, problem: Problem, target: Target) -> float:
    """What reading the operands of a tile from the cache takes, by what multiplying them takes:
    less, the larger the tile.
    """
    read = (down * problem.item + across * problem.stored) / CACHE
    return read * BALANCE.get(target.arch, 250.0) / (2.0 * down * across)


def _overlapped(*times: float) -> float:
    """What takes the longest hides the rest, but for a share."""
    most = max(times)
    return most + OVERLAP * (sum(times) - most)


def _edge(choice: Choice, problem: Problem, target: Target) -> float:
    """The share of a tile's time in which it begins and ends, where one program fills a processor
    and nothing hides it.
    """
    alone = 2 * GEMM.shared(choice, Sizes(problem.item, problem.parts)) > SHARED[target.arch]
    return choice["STAGES"] * choice["BK"] / problem.k if alone else 0.0


def work(name: str, choice: Choice, problem: Problem, rows: int, target: Target) -> float:
    """What a linear takes by the model, in bytes of memory read at the same time."""
    burden = burden_of(name, problem, target)(choice, rows)
    reading = problem.nbytes(rows) * burden.bytes
    operations = 2.0 * rows * problem.n * problem.k * burden.operations
    computing = operations / BALANCE.get(target.arch, 250.0)
    return _overlapped(reading, computing)


def default(
    problem: Problem,
    rows: int | None,
    most: int,
    target: Target,
    refused: Collection[Choice] = (),
) -> Choice:
    """The choice that the model takes for up to `rows` rows, `most` where any number is served,
    TEMPLATE with it, but for those whose tiles are `refused`. Of equals the first counts: a
    template's own values.
    """
    found: tuple[float, Choice] | None = None
    for name, tiles in templates(problem, rows, target).items():
        for choice in choices(name, tiles, problem, target):
            made = with_template(name, choice)
            if tile_of(made) in refused:
                continue
            cost = work(name, choice, problem, rows or most, target)
            if found is None or cost < 0.999 * found[0]:
                found = cost, made
    if found is None:
        raise IRError(f"no template of a linear fits {problem} on {target}")
    return found[1]


def tile_of(choice: Choice) -> Choice:
    """What the registers of a choice depend on: everything but how k is split."""
    return Choice.of({n: v for n, v in choice.values if n != "SPLIT"})


def with_template(name: str, choice: Choice) -> Choice:
    """The choice, and the template that it is of."""
    return Choice.of({**dict(choice.values), "TEMPLATE": NAMES.index(name)})


def template_of(choice: Choice) -> tuple[str, dict[str, int]]:
    """The template that a choice is of, and its values."""
    values = dict(choice.values)
    return NAMES[values.pop("TEMPLATE")], values
