"""`make bench`: Ferrule beside its peers, on random weights of given shapes.

    python -m benchmarks [--shapes llama-1b ...] [--formats bf16 int8 int4] [--stacks NAME ...]
        [--cases pp512 tg128 ...] [--rounds 5] [--peer NAME=PYTHON ...] [--work DIR]

One checkpoint a shape, converted for each stack into the same number of bits. Stacks run in
processes of their own, in turn, after a warm-up each; a stack that is not installed is skipped by
name. Prints a table of medians: tokens a second, and in brackets the share of the limit that the
same run measured before and after (cases.py tells what a case must at least read and compute),
seconds from the start of a process to its first token with its files in memory, and the most
memory of a process that loads the model, reads 512 tokens and generates 16.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

from . import limits, report
from .cases import CASES, Case, Room, Shape
from .checkpoints import SHAPES, checkpoint_of
from .models import model_of
from .rounds import Figures, measure_cold, measure_warm
from .stacks import FORMATS, STACKS, Installed, find, interpreters

COLD = "cold"


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    usual = [name for name, stack in STACKS.items() if not stack.needs_asking]
    parser.add_argument("--work", type=Path, default=Path("build/bench"))
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=["llama-1b"])
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--stacks", nargs="+", choices=list(STACKS), default=usual)
    names = [*CASES, COLD]
    parser.add_argument("--cases", nargs="+", choices=names, default=names)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON")
    return parser.parse_args(given)


def measure_group(
    options: argparse.Namespace, shape: str, form: str, installed: Sequence[Installed]
) -> report.Group:
    """Make the models of one shape in one format and measure them."""
    work: Path = options.work
    checkpoint = checkpoint_of(work / shape, SHAPES[shape])
    cases = chosen_cases(options)
    room = Room.of(cases, options.rounds, options.threads)
    all_ = [Figures(i, model_of(i, form, checkpoint, room, work)) for i in installed]
    targets = dict.fromkeys(i.stack.target for i in installed)
    before = {t: limits.measured(t, options.threads) for t in targets}
    logs = work / "logs" / f"{shape}-{form}"
    logs.mkdir(parents=True, exist_ok=True)
    if COLD in options.cases:
        measure_cold(all_, room, options.rounds, logs)
        starts = ", ".join(f"{f.name} {f.cold:.2f} s" for f in all_ if f.cold is not None)
        print(f"{shape} {form} {COLD}: {starts}", flush=True)
    measure_warm(
        all_,
        cases,
        room,
        options.rounds,
        logs,
        lambda case: print(f"{shape} {form} {report.progress(all_, case)}", flush=True),
    )
    found = {t: limits.best(h, limits.measured(t, options.threads)) for t, h in before.items()}
    for hardware in found.values():
        print(f"limits of {limits.line(hardware)}", flush=True)
    return report.Group(shape, Shape.of(SHAPES[shape]), form, options.rounds, found, all_)


def chosen_cases(options: argparse.Namespace) -> list[Case]:
    """The warm cases in the order of their table."""
    return [case for name, case in CASES.items() if name in options.cases]


def main() -> None:
    """Measure every shape in every format, then print one table a shape."""
    options = arguments()
    options.work.mkdir(parents=True, exist_ok=True)
    installed, skipped = find(options.stacks, interpreters(options.peer))
    print(report.heading(options.threads, options.rounds))
    print("\n".join(skipped), flush=True)
    groups: list[report.Group] = []
    for shape in options.shapes:
        for form in options.formats:
            offering = [i for i in installed if form in i.stack.layouts]
            for name in sorted(
                {i.stack.name for i in installed} - {i.stack.name for i in offering}
            ):
                print(f"skipped {name} in {form}: it is not measured in this format")
            groups.append(measure_group(options, shape, form, offering))
        _show([g for g in groups if g.shape == shape], chosen_cases(options))
    results = options.work / f"results-{time.strftime('%Y%m%d-%H%M%S')}.json"
    results.write_text(json.dumps([report.as_json(g) for g in groups], indent=1), encoding="utf-8")
    print(f"every run is in {results}")


def _show(groups: Sequence[report.Group], cases: Sequence[Case]) -> None:
    print(f"\n{groups[0].shape}:\n")
    print("\n".join(report.table_head(cases)))
    for group in groups:
        print("\n".join(report.table_rows(group, cases)))
    print()
    for group in groups:
        print("\n".join(report.notes(group)), flush=True)


if __name__ == "__main__":
    main()
