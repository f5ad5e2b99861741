"""What a process that tries candidates is told, and says, by lines of JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..codegen.space import Choice, Sample
from ..ir.graph import Graph
from ..ir.plan import Argument
from ..ir.target import Target
from ..ir.text import parse_graph

MINIMUM = 2e-3  # seconds of one timing: a kernel that is faster is called several times in it


@dataclass(frozen=True)
class Asked:
    """What a trial is to make ready: choices of one bucket of a kernel, and its arguments, caches
    of which have blocks of `block` slots and `indices` entries.
    """

    body: Graph
    target: Target
    bucket: str
    choices: tuple[Choice, ...]
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
            tuple(Choice.of(c) for c in request["choices"]),
            tuple(Argument.from_json(a, "argument") for a in request["arguments"]),
            request["block"],
            request["indices"],
        )


class Tried(Protocol):
    """The candidates of one kernel, compiled and loaded."""

    @property
    def faults(self) -> Mapping[int, str]:
        """What is wrong with those that cannot be used."""
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


def answer_requests(
    made: Callable[[Mapping[str, Any]], Tried], ends: tuple[type[Exception], ...] = ()
) -> None:
    """Answer requests until the input ends, or an error of a kind that ends it all.

    "prepare" is a new kernel's candidates, anything else asks for times of the present ones.
    """
    trial: Tried | None = None
    _write({"ready": True})
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if request["do"] == "prepare":
                if trial is not None:
                    trial.close()
                trial = made(request)
                reply = {"faults": {str(at): fault for at, fault in trial.faults.items()}}
            else:
                assert trial is not None, request
                reply = {"seconds": _times(trial, request)}
        except ends:
            raise
        except Exception as error:  # told to whoever asked, who knows what was asked
            reply = {"error": f"{type(error).__name__}: {str(error).strip()}"}
        _write(reply)


def _times(trial: Tried, request: Mapping[str, Any]) -> list[list[float]]:
    sample, say = Sample(**request["sample"]), lambda at: _write({"running": at})
    return trial.times(request["which"], sample, request["dims"], request["rounds"], say)


def _write(value: object) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()
