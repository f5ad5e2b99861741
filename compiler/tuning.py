"""The database of what tuning chose: records by kernel text, shape bucket and machine.

    {"key": "tuning/9f.../17-/AMD EPYC/cpu:znver4/...", "value": {"choice": {"rows": 6}, ...}}

They lie in the file where the machine's measured rates are. An artifact carries those of its own
kernels in tuning.jsonl.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..codegen.backend import KernelReport
from ..codegen.space import Choice, Choices
from .errors import CompileError
from .records import Records, read_records, write_records

TUNING = "tuning.jsonl"


@dataclass(frozen=True)
class Tuned:
    """What was found for one bucket of a kernel: the choice (empty where the template's own won),
    and for each sample the seconds of the template's own and of the choice, from one measurement.

    `candidates` is how many were measured beside the template's own, `ops` what the kernel is,
    `left` the candidates that no time was left for.
    """

    choice: Choice
    seconds: Mapping[str, tuple[float, float]]
    candidates: int
    ops: str = ""
    left: tuple[Choice, ...] = ()

    @property
    def gain(self) -> float:
        """How many times as fast as the template's own, the geometric mean over the samples."""
        product = 1.0
        for before, after in self.seconds.values():
            product *= before / after
        return product ** (1 / max(1, len(self.seconds)))

    def to_json(self) -> dict[str, Any]:
        """The record's value."""
        return {
            "choice": dict(self.choice.values),
            "seconds": {name: list(pair) for name, pair in self.seconds.items()},
            "candidates": self.candidates,
            "ops": self.ops,
        } | ({"left": [dict(c.values) for c in self.left]} if self.left else {})

    @staticmethod
    def from_json(key: str, value: Any) -> Tuned:
        """The record of a value; raises CompileError, naming the key, where it is none."""
        try:
            seconds = {str(n): (float(a), float(b)) for n, (a, b) in value["seconds"].items()}
            left = tuple(_choice(c) for c in value.get("left", ()))
            choice, count = _choice(value["choice"]), _whole(value["candidates"])
            made = Tuned(choice, seconds, count, str(value.get("ops", "")), left)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CompileError(f"record {key!r}: no tuning result: {value!r}") from error
        if any(not s > 0 for pair in seconds.values() for s in pair):
            raise CompileError(f"record {key!r}: times are above 0, not {seconds}")
        return made


def _choice(value: Any) -> Choice:
    return Choice.of({str(n): _whole(v) for n, v in value.items()})


def _whole(value: Any) -> int:
    if not isinstance(value, int):
        raise TypeError(value)
    return value


def tuning_key(digest: str, bucket: str, machine: str) -> str:
    """The key of a kernel's bucket on a machine, given by its fingerprint."""
    return f"tuning/{digest}/{bucket}/{machine}"


def tuned(records: Records, machine: str) -> dict[str, dict[str, Tuned]]:
    """What is recorded for a machine, by kernel and by bucket."""
    found: dict[str, dict[str, Tuned]] = {}
    for key, value in records.items():
        kind, _, rest = key.partition("/")
        digest, _, rest = rest.partition("/")
        bucket, _, fingerprint = rest.partition("/")
        if kind == "tuning" and fingerprint == machine:
            found.setdefault(digest, {})[bucket] = Tuned.from_json(key, value)
    return found


def tuned_machines(records: Records, target: str) -> list[str]:
    """The machines, by name, on which something was tuned for a target whose fingerprints end in
    its name, as those of devices do.
    """
    keys = (key.split("/", 3) for key in records if key.startswith("tuning/"))
    return sorted({k[3] for k in keys if len(k) == 4 and k[3].endswith(f"/{target}")})


def chosen(found: Mapping[str, Mapping[str, Tuned]]) -> dict[str, Choices]:
    """The choices alone, as a library is built with them."""
    return {d: {b: t.choice for b, t in buckets.items()} for d, buckets in found.items()}


def write_own(path: Path, records: Records, machine: str, reports: Iterable[KernelReport]) -> None:
    """Write the records that an artifact's kernels have on a machine, and the machine's rates; no
    file where there are none.
    """
    write_records_of(path, records, machine, {r.digest for r in reports if r.digest})


def write_records_of(path: Path, records: Records, machine: str, digests: Collection[str]) -> None:
    """The same of the kernels with these digests."""
    own = {
        key: value
        for key, value in records.items()
        if key.startswith("tuning/")
        and key.split("/")[1] in digests
        and key.endswith(f"/{machine}")
    }
    rates = f"hardware/{machine}"
    if own:
        write_records(path, own | ({rates: records[rates]} if rates in records else {}))


def read_known(path: Path) -> Records:
    """The records of a file that somebody named; raises CompileError where it is not there."""
    if not path.exists():
        raise CompileError(f"{path}: no file of tuning records")
    return read_records(path)
