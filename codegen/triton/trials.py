"""One kernel once for each choice of a bucket, for whoever measures which is fastest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ...ir.graph import Graph
from ...ir.target import Target
from ..errors import CodegenError
from ..space import Choice
from .build import FOLDER, TRIES, Making, write_launches
from .jobs import compile_all


def build_candidates(
    body: Graph,
    target: Target,
    bucket: str,
    choices: Mapping[int, Choice],
    folder: Path,
    *,
    machine_code: bool = True,
    workers: int | None = None,
) -> dict[int, str]:
    """Write one kernel once for each choice of a bucket, choice n as a function cn that serves any
    number of rows as that bucket is served; an empty choice is the template's own.

    Gives what was wrong with those that are not there, by their number.
    """
    home = folder / FOLDER
    home.mkdir(parents=True, exist_ok=True)
    makings = {
        at: Making(
            f"c{at}", body, target, home / f"c{at}.py", choices={bucket: choice}, only=bucket
        )
        for at, choice in choices.items()
    }
    faults: dict[int, str] = {}
    pending = dict(makings)
    for left in reversed(range(TRIES)):
        pending = _compiled(pending, left, faults, machine_code=machine_code, workers=workers)
    good = {at: m for at, m in makings.items() if at not in faults}
    write_launches(folder, {m.name: m.built(home) for m in good.values()})
    return faults


def _compiled(
    pending: dict[int, Making],
    left: int,
    faults: dict[int, str],
    *,
    machine_code: bool,
    workers: int | None,
) -> dict[int, Making]:
    """Compile kernels; gives those whose tiles have to give way to others, and adds to `faults`
    what is wrong with those that cannot be made.
    """
    jobs = {}
    for at, making in pending.items():
        try:
            own = making.jobs()
        except CodegenError as error:
            faults[at] = _first_line(error)
            continue
        if lacking := [b for b in making.choices if not _is_taken(making, b)]:
            faults[at] = f"the kernel has no choice {making.choices[lacking[0]]} for {lacking[0]}"
            continue
        jobs |= {(at, name): job for name, job in own.items()}
    if not machine_code:
        return {}
    made = dict(zip(jobs, compile_all(list(jobs.values()), workers), strict=True))
    again: dict[int, Making] = {}
    for at, making in pending.items():
        if at in faults:
            continue
        try:
            if making.take({name: c for (of, name), c in made.items() if of == at}, left):
                again[at] = making
        except CodegenError as error:
            faults[at] = _first_line(error)
    return again


def _is_taken(making: Making, bucket: str) -> bool:
    """Whether a bucket's choice, unless it is the kernel's own, is served as it was given."""
    return not making.choices[bucket].values or bucket in making.lowered.taken


def _first_line(error: CodegenError) -> str:
    return str(error).partition("\n")[0]
