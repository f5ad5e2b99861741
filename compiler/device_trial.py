"""A process that compiles the candidates of a kernel for a GPU and times them there, told what to
do by lines of JSON on its input, as trial.py is on a CPU.

A candidate that reads where nothing is takes the process's device with it: the process ends, after
it has said which candidate it ran.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..codegen.space import Choice, Sample
from ..codegen.triton.trials import build_candidates
from ..ir.launches import LAUNCHES, LaunchTable
from ..ir.plan import Argument, Call, Entry, Plan
from ..runtime.cuda.binding import Binding
from ..runtime.cuda.device import CudaDevice
from ..runtime.cuda.opening import open_device
from ..runtime.errors import ArtifactError, StepError
from .trial_arguments import STREAMED, Arguments, argument_bytes, step_values
from .trial_requests import MINIMUM, Asked, answer_requests

MOST_CALLS = 2000  # of one graph
STREAM = 256 << 20  # bytes of weights and caches that calls go through: no cache holds as much
LOST = 3  # status of a process whose device does not answer any more


class DeviceTrial:
    """The candidates of one kernel: those that are compiled together lie in a folder that is named
    by their numbers. `opened` gives the device, `machine_code` is False where its kernels are not
    compiled but interpreted.
    """

    def __init__(
        self,
        asked: Asked,
        opened: Callable[[str], CudaDevice] = open_device,
        *,
        machine_code: bool = True,
    ) -> None:
        self._asked, self._machine_code = asked, machine_code
        self.device = opened(asked.target.arch)
        self._memory = _Memory(self.device, asked.arguments, asked.block, asked.indices)
        self._calls: dict[int, _Calls] = {}
        self._graphs: dict[tuple[int, Sample], tuple[object, int]] = {}

    def compile(self, choices: Mapping[int, Choice]) -> Mapping[int, str]:
        """Compile candidates; gives what is wrong with those that cannot be used."""
        asked, folder = self._asked, self._asked.folder / "-".join(map(str, choices))
        folder.mkdir(exist_ok=True)
        faults = build_candidates(
            asked.body, asked.target, asked.bucket, choices, folder, machine_code=self._machine_code
        )
        return faults | self._without_products(folder)

    def _without_products(self, folder: Path) -> dict[int, str]:
        """What is wrong with candidates that need the vendor's library."""
        table = _table(folder)
        wanting = [n for n, f in table.functions.items()
                   if any(s.product for form in f.forms for s in form.launches)]  # fmt: skip
        if not wanting:
            return {}
        try:
            _ = self.device.products
        except ArtifactError as error:
            return {int(name[1:]): str(error) for name in wanting}
        return {}

    def _calls_of(self, at: int) -> _Calls:
        """The calls of a candidate; what was compiled with it is loaded too."""
        if at not in self._calls:
            # Beside it may lie what a process that ended there had begun.
            folders = (f for f in self._asked.folder.iterdir() if (f / LAUNCHES).is_file())
            folder = next(f for f in folders if str(at) in f.name.split("-"))
            table = _table(folder)
            binaries = table.binaries.items()
            self.device.load([(n, b, (folder / b.file).read_bytes()) for n, b in binaries])
            scratch = self.device.allocate(max(table.scratch_bytes, 1))
            calls = _Calls(self._asked.arguments, table, scratch)
            self._calls |= {int(name[1:]): calls for name in table.functions}
        return self._calls[at]

    def times(
        self,
        which: Sequence[int],
        sample: Sample,
        dims: Mapping[str, int],
        rounds: int,
        say: Callable[[int], None],
    ) -> list[list[float]]:
        """Seconds of one call of each candidate, in rounds that go forth and back through them.

        Calls lie in a graph, one behind another, and take their weights and caches from one copy
        after another, so that they come from memory, as they do in a step.
        """
        for at in which:
            if (at, sample) not in self._graphs:
                say(at)
                self._graphs[at, sample] = self._recorded(at, sample, dims)
        found: dict[int, list[float]] = {at: [] for at in which}
        for number in range(rounds):
            order = list(which) if number % 2 == 0 else list(reversed(which))
            graphs = [self._graphs[at, sample] for at in order]
            seconds = self.device.time([graph for graph, _ in graphs])
            for at, (_, calls), took in zip(order, graphs, seconds, strict=True):
                found[at].append(took / calls)
        return [found[at] for at in which]

    def _recorded(self, at: int, sample: Sample, dims: Mapping[str, int]) -> tuple[object, int]:
        """Calls of a candidate that take long enough to be timed, as a graph, and how many."""
        copies = self._memory.copies(sample, dims)
        calls = self._calls_of(at)
        launches = [p for copy in copies for p in calls.of(at, copy, dims)]
        packed = self.device.pack(launches)
        once = self.device.record(packed)
        self.device.time([once])
        (took,) = self.device.time([once])
        times = min(math.ceil(MINIMUM / max(took, 1e-6)), max(1, MOST_CALLS // len(launches)))
        if times <= 1:
            return once, len(copies)
        return self.device.record(packed, times), times * len(copies)

    def close(self) -> None:
        """Give everything back."""
        self._memory.close()
        for scratch in {calls.scratch for calls in self._calls.values()}:
            self.device.release(scratch)
        self.device.close()


def _table(folder: Path) -> LaunchTable:
    return LaunchTable.from_json((folder / LAUNCHES).read_bytes())


class _Calls:
    """A call of each candidate, on memory that is named when it is bound."""

    def __init__(self, arguments: tuple[Argument, ...], table: LaunchTable, scratch: int) -> None:
        self._arguments, self._table, self.scratch = arguments, table, scratch

    def of(self, at: int, places: Mapping[Argument, int], dims: Mapping[str, int]) -> list[Any]:
        """The launches of a candidate whose arguments lie in these places."""
        plan = Plan({"main": Entry((Call(f"c{at}", self._arguments),))}, {})
        binding = Binding(plan, self._table, places.__getitem__, self.scratch)
        return binding.bind("main", dims)


class _Memory:
    """The arguments on the device, by size of the step: weights and caches in several copies."""

    def __init__(
        self, device: CudaDevice, arguments: Sequence[Argument], block: int, indices: int
    ) -> None:
        self._device, self._block = device, block
        self._arguments = tuple(dict.fromkeys(arguments))
        self._host = Arguments(arguments, block, indices)
        self._streams: dict[tuple[int, ...], list[dict[Argument, int]]] = {}
        self._known: dict[Sample, list[dict[Argument, int]]] = {}
        self._taken: list[int] = []

    def copies(self, sample: Sample, dims: Mapping[str, int]) -> list[dict[Argument, int]]:
        """Where the arguments lie, for one call after another."""
        if sample not in self._known:
            step = step_values(sample, dims, self._block)
            others = [a for a in self._arguments if a.kind not in STREAMED]
            shared = {a: self._put(a, dims, step) for a in others}
            self._known[sample] = [{**shared, **own} for own in self._streamed(dims)]
            self._device.synchronize()
        return self._known[sample]

    def _streamed(self, dims: Mapping[str, int]) -> list[dict[Argument, int]]:
        streamed = [a for a in self._arguments if a.kind in STREAMED]
        sizes = tuple(argument_bytes(a, dims) for a in streamed)
        if sizes not in self._streams:
            total = max(sum(sizes), 1)
            room = min(STREAM, self._device.free_bytes() // 4)
            count = max(1, room // total) if streamed else 1
            self._streams[sizes] = [
                {a: self._put(a, dims, {}) for a in streamed} for _ in range(count)
            ]
        return self._streams[sizes]

    def _put(self, argument: Argument, dims: Mapping[str, int], step: Mapping[str, Any]) -> int:
        address = self._device.allocate(argument_bytes(argument, dims))
        self._taken.append(address)
        self._device.write(address, self._host.filled(argument, dims, step))
        return address

    def close(self) -> None:
        """Give all of it back."""
        for address in self._taken:
            self._device.release(address)


def main() -> None:
    """Answer requests until the input ends, or the device does not answer any more."""
    try:
        answer_requests(DeviceTrial, ends=(StepError,))
    except StepError:
        sys.exit(LOST)


if __name__ == "__main__":
    main()
