"""Kernel bodies to binaries for a GPU that need not be there: sources, machine code, the launches
of each kernel, and a report.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from ...ir.errors import IRError
from ...ir.graph import Graph
from ...ir.launches import LAUNCHES, Binary, Form, Function, Launch, LaunchTable, Pointer, Solve
from ...ir.plan_dims import expression
from ...ir.target import Target
from ...ir.text import print_graph
from ..backend import KernelBody, KernelReport
from ..bodies import canonical
from ..cost import cost_of
from ..errors import CodegenError
from ..space import Choice, Choices
from . import kernel as kernels
from .compile import Compiled, DoesNotFit, gpu_target
from .digest import text_digest
from .jobs import Job, compile_all
from .kernel import Start, bucket_name
from .lower import Lowered, is_anchor, lower
from .values import POINTED

FOLDER = "kernels"
TRIES = 4
"""How often a kernel is made with other tiles before one whose registers go to memory is taken."""


def build_kernels(
    kernels: Mapping[str, KernelBody],
    target: Target,
    folder: str | os.PathLike[str],
    chosen: Mapping[str, Choices] | None = None,
    *,
    machine_code: bool = True,
    workers: int | None = None,
) -> dict[str, KernelReport]:
    """Write sources, binaries and launches.json of every kernel into a folder; gives a report for
    each name.

    Bodies that are equal but for the names of their inputs become one function, named after the
    first. `chosen` is what tuning chose, by the digest of a kernel's text; a choice that is not in
    the kernel's space is left out, and the report's `choices` are those that were taken. `workers`
    processes compile them, as many as are worth it where it is None. Without `machine_code` nothing
    is compiled: the launches can then be interpreted, not run. Raises CodegenError with the
    kernel's name and IR where a body cannot be lowered or compiled, or where a binary does not fit
    the target.
    """
    gpu_target(target)  # a target that Triton does not know is said before anything is made
    home = Path(folder) / FOLDER
    home.mkdir(parents=True, exist_ok=True)
    bounds = _bounds(kernels)
    functions: dict[Graph, str] = {}
    for name, kernel in kernels.items():
        functions.setdefault(canonical(kernel.body), name)
    made = [
        Making.of(name, replace(body, bounds=bounds[body]), target, home, chosen or {})
        for body, name in functions.items()
    ]
    _compile(made, machine_code=machine_code, workers=workers)
    built = {m.name: m.built(home) for m in made}
    digests = {m.name: m.digest for m in made}
    reports: dict[str, KernelReport] = {}
    for name, kernel in kernels.items():
        function = functions[canonical(kernel.body)]
        reports[name] = _report(name, function, kernel, built[function], digests[function])
    write_launches(Path(folder), built)
    return reports


def write_launches(folder: Path, built: Mapping[str, Built]) -> None:
    """Write the launches of kernels, by the names that they are called by."""
    table = LaunchTable(
        {n: b.function for n, b in built.items()},
        {n: binary for b in built.values() for n, binary in b.binaries.items()},
        max((b.scratch_bytes for b in built.values()), default=0),
    )
    (folder / LAUNCHES).write_text(table.to_json(), encoding="utf-8")


def _bounds(kernels: Mapping[str, KernelBody]) -> dict[Graph, dict[str, tuple[int, int]]]:
    """The bounds of the dims of each canonical body, over all kernels that it serves."""
    found: dict[Graph, dict[str, tuple[int, int]]] = {}
    for kernel in kernels.values():
        known = found.setdefault(canonical(kernel.body), {})
        for name, (low, high) in kernel.body.bounds.items():
            least, most = known.get(name, (low, high))
            known[name] = (min(least, low), max(most, high))
    return found


@dataclass(frozen=True)
class Built:
    """A kernel's launches, its binaries by name, the bytes of its scratch at most."""

    lowered: Lowered
    function: Function
    binaries: Mapping[str, Binary]
    scratch_bytes: int


@dataclass
class Making:
    """A kernel on its way to machine code: what tuning chose for it under its `digest`, the tiles
    that are `refused` so far, what is compiled of the binaries that it has now. Of the forms it has
    the one for `only` a bucket of rows, where that is given.
    """

    name: str
    body: Graph
    target: Target
    source: Path
    digest: str = ""
    choices: Choices = field(default_factory=dict[str, Choice])
    only: str = ""
    refused: dict[int | None, set[Choice]] = field(default_factory=dict[int | None, set[Choice]])
    compiled: dict[str, Compiled] = field(default_factory=dict[str, Compiled])
    _lowered: Lowered | None = None

    @staticmethod
    def of(
        name: str, body: Graph, target: Target, home: Path, chosen: Mapping[str, Choices]
    ) -> Making:
        """A kernel whose source will be in a folder, with what tuning chose for it."""
        made = Making(name, body, target, home / f"{name}.py")
        if chosen:
            with made.named():
                made.digest = text_digest(body, target)
            made.choices = chosen.get(made.digest, {})
        return made

    @property
    def lowered(self) -> Lowered:
        """The kernel as it is now."""
        assert self._lowered is not None, f"{self.name} is not lowered"
        return self._lowered

    def jobs(self) -> dict[str, Job]:
        """Lower the kernel without the tiles that are refused; gives what there is to compile."""
        with self.named():
            self._lowered = lower(self.name, self.body, self.target, self.choices, self.refused)
        self.source.write_text(self.lowered.text, encoding="utf-8")
        self.compiled = {}
        return {binary_name(s): self._job(s) for _, s in self._starts()}

    def _job(self, start: Start) -> Job:
        plain = replace(start, grid=(), unless=None, tile=None)
        return Job(self.source, plain, self.lowered.pointers, self.target)

    def _starts(self) -> Iterator[tuple[int | None, Start]]:
        """What has machine code, and the rows of its form."""
        return (
            (form.most, start)
            for form in self._forms()
            for start in form.starts
            if start.product is None
        )

    def _forms(self) -> Sequence[kernels.Form]:
        forms = self.lowered.forms
        if not self.only.isdigit():
            return forms if self.only != bucket_name(None) else forms[-1:]
        serving = next(f for f in forms if f.most is None or f.most >= int(self.only))
        return [replace(serving, most=None)]

    def take(self, found: Mapping[str, Compiled | CodegenError], left: int) -> bool:
        """Take what was compiled; whether tiles that do not fit the target, or whose registers go
        to memory, have to give way to the next that the model has, which they do while tries are
        `left`.
        """
        again = False
        for bucket, start in self._starts():
            made = found[binary_name(start)]
            good = isinstance(made, Compiled)
            # What was measured is taken as it is.
            measured = bucket_name(bucket) in self.lowered.taken
            may = start.tile is not None and left > 0 and not measured
            if not good and not (may and isinstance(made, DoesNotFit)):
                with self.named():
                    raise made
            if good:
                self.compiled[binary_name(start)] = made
            if may and start.tile is not None and (not good or made.spilled):
                self.refused.setdefault(bucket, set()).add(start.tile)
                again = True
        return again

    @contextmanager
    def named(self) -> Iterator[None]:
        """Errors name the kernel and show its IR."""
        try:
            yield
        except (CodegenError, IRError) as error:
            text = f"kernel {self.name}: {error}\n{print_graph(self.body)}"
            raise CodegenError(text, self.name) from error

    def built(self, home: Path) -> Built:
        """The launches, and the binaries written."""
        lowered = self.lowered
        with self.named():
            forms = tuple(
                Form(f.most, tuple(_launch(lowered, s) for s in f.starts)) for f in self._forms()
            )
        function = Function(
            f"{FOLDER}/{self.source.name}",
            expression(lowered.rows),
            {n: Solve(s.argument, s.axis, s.factor, s.rest) for n, s in lowered.dims.items()},
            tuple(expression(d) for d in lowered.scratch),
            forms,
        )
        most = {n: high for n, (_, high) in self.body.bounds.items()}
        binaries = {n: _written(home, n, m) for n, m in self.compiled.items()}
        return Built(lowered, function, binaries, function.scratch_offsets(most)[1])


def _compile(makings: Sequence[Making], *, machine_code: bool, workers: int | None) -> None:
    """Lower kernels and compile them, all that is to be compiled at a time; again those of which
    tiles are refused, TRIES times at most.
    """
    pending = list(makings)
    for left in reversed(range(TRIES)):
        jobs = {(m.name, at): job for m in pending for at, job in m.jobs().items()}
        if not machine_code:
            return
        made = dict(zip(jobs, compile_all(list(jobs.values()), workers), strict=True))
        by_kernel = {
            m.name: {at: c for (name, at), c in made.items() if name == m.name} for m in pending
        }
        pending = [m for m in pending if m.take(by_kernel[m.name], left)]
        if not pending:
            return


def _launch(lowered: Lowered, start: Start) -> Launch:
    grid = tuple(expression(d) for d in start.grid)
    pointers = tuple(_pointer(lowered, p) for p in start.pointers)
    unless = start.unless and (expression(start.unless[0]), expression(start.unless[1]))
    workspace = _pointer(lowered, start.workspace) if start.workspace else None
    made = start.product and (expression(start.product[0]), *start.product[1:])
    return Launch(
        "" if made else binary_name(start), pointers, start.dims, grid, unless, start.entry,
        start.constants, workspace, made,
    )  # fmt: skip


def _pointer(lowered: Lowered, name: str) -> Pointer:
    number = int(name[1:])
    if name[0] == "y":
        number += len(lowered.body.inputs)
    return Pointer(
        "scratch" if name[0] == "s" else "argument", number, POINTED[lowered.pointers[name]]
    )


def binary_name(start: Start) -> str:
    """The name of an entry's binary: the entry, and a digest of its choices where it has some."""
    if not start.constants:
        return start.entry
    text = f"{start.constants} {start.warps} {start.stages}"
    return f"{start.entry}_{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _written(home: Path, name: str, made: Compiled) -> Binary:
    path = home / f"{name}.{made.kind}"
    path.write_bytes(made.image)
    return Binary(
        f"{home.name}/{path.name}",
        made.symbol,
        made.threads,
        made.shared,
        made.registers,
        made.spilled,
        made.hidden,
    )


def _report(
    name: str, function: str, kernel: KernelBody, built: Built, digest: str
) -> KernelReport:
    anchors = [n for n in kernel.body.nodes() if is_anchor(n)]
    header = "".join(f"# {line}\n" for line in print_graph(kernel.body).splitlines())
    text = f"# kernel {name}\n{header}{built.lowered.text}"
    return KernelReport(
        name=name,
        function=function,
        template=kernel.template or (anchors[0].op.name if anchors else "rows"),
        ops="+".join(dict.fromkeys(n.op.name for n in kernel.body.nodes() if not n.op.has("leaf"))),
        cost=cost_of(kernel.body),
        source=lambda: text,
        digest=digest if built.lowered.spaces else "",
        choices=built.lowered.taken,
    )
