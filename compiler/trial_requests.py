"""What a process that tries candidates is told, and says, by lines of JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..codegen.space import Choice, Sample
from ..ir.graph import Graph
from ..ir.plan import Argument
from ..ir.target import Target
from ..ir.text import parse_graph

MINIMUM = 2e-3  # seconds of one timing: a kernel that is faster is called several times in it


@dataclass(frozen=True)
class Asked:
    """What a trial is about: one bucket of a kernel, and its arguments, caches of which have blocks
    of `block` slots and `indices` entries. Candidates are compiled into `folder`, which outlives
    the process.
    """

    body: Graph
    target: Target
    bucket: str
    folder: Path
    arguments: tuple[Argument, ...]
    block: int
    indices: int

    @staticmethod
    def of(request: Mapping[str, Any]) -> Asked:
        """As a request has it."""
        given = request["target"]
        return Asked(
            parse_graph(request["body"]),
            Target(**{**given, "features": frozenset(given["features"])}),
            request["bucket"],
            Path(request["folder"]),
            tuple(Argument.from_json(a, "argument") for a in request["arguments"]),
            request["block"],
            request["indices"],
        )


class Tried(Protocol):
    """The candidates of one kernel."""

    def compile(self, choices: Mapping[int, Choice]) -> Mapping[int, str]:
        """Compile candidates; gives what is wrong with those that cannot be used."""
        ...

    def times(
        self,
        which: Sequence[int],
        sample: Sample,
        dims: Mapping[str, int],
        rounds: int,
        say: Callable[[int], None],
    ) -> list[list[float]]:
        """Seconds of one call of each candidate, in rounds; `say` is told of each before its
        first.
        """
        ...

    def close(self) -> None:
        """Give back what it holds."""
        ...


def answer_requests(made: Callable[[Asked], Tried], ends: tuple[type[Exception], ...] = ()) -> None:
    """Answer requests until the input ends, or an error of a kind that ends it all.

    "prepare" is a new kernel, "compile" candidates of it, anything else asks for their times.
    """
    trial: Tried | None = None
    _write({"ready": True})
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if request["do"] == "prepare":
                if trial is not None:
                    trial.close()
                trial = made(Asked.of(request))
                reply = {}
            else:
                assert trial is not None, request
                reply = _answer(trial, request)
        except ends:
            raise
        except Exception as error:  # told to whoever asked, who knows what was asked
            reply = {"error": f"{type(error).__name__}: {str(error).strip()}"}
        _write(reply)


def _answer(trial: Tried, request: Mapping[str, Any]) -> dict[str, Any]:
    if request["do"] == "compile":
        choices = {int(at): Choice.of(c) for at, c in request["choices"].items()}
        return {"faults": {str(at): fault for at, fault in trial.compile(choices).items()}}
    sample, say = Sample(**request["sample"]), lambda at: _write({"running": at})
    which, dims, rounds = request["which"], request["dims"], request["rounds"]
    return {"seconds": trial.times(which, sample, dims, rounds, say)}


def _write(value: object) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()
