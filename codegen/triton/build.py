"""Kernel bodies to binaries for a GPU that need not be there: sources, machine code, the launches
of each kernel, and a report.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
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
from .compile import Compiled, DoesNotFit, compile_entry, gpu_target
from .kernel import Start
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
) -> dict[str, KernelReport]:
    """Write sources, binaries and launches.json of every kernel into a folder; gives a report for
    each name.

    Bodies that are equal but for the names of their inputs become one function, named after the
    first. Without `machine_code` nothing is compiled: the launches can then be interpreted, not
    run. Raises CodegenError with the kernel's name and IR where a body cannot be lowered or
    compiled, or where a binary does not fit the target.
    """
    gpu_target(target)  # a target that Triton does not know is said before anything is made
    home = Path(folder) / FOLDER
    home.mkdir(parents=True, exist_ok=True)
    bounds = _bounds(kernels)
    functions: dict[Graph, str] = {}
    built: dict[str, _Built] = {}
    reports: dict[str, KernelReport] = {}
    for name, kernel in kernels.items():
        body = canonical(kernel.body)
        function = functions.setdefault(body, name)
        if function == name:
            bounded = replace(body, bounds=bounds[body])
            built[name] = _built(name, bounded, target, home, chosen or {}, machine_code)
        reports[name] = _report(name, function, kernel, built[function])
    table = LaunchTable(
        {n: b.function for n, b in built.items()},
        {n: binary for b in built.values() for n, binary in b.binaries.items()},
        max((b.scratch_bytes for b in built.values()), default=0),
    )
    (Path(folder) / LAUNCHES).write_text(table.to_json(), encoding="utf-8")
    return reports


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
class _Built:
    """A kernel's launches, its binaries by name, the bytes of its scratch at most."""

    lowered: Lowered
    function: Function
    binaries: Mapping[str, Binary]
    scratch_bytes: int


def _built(
    name: str,
    body: Graph,
    target: Target,
    home: Path,
    chosen: Mapping[str, Choices],
    machine_code: bool,
) -> _Built:
    source = home / f"{name}.py"
    try:
        lowered, made = _compiled(name, body, target, source, machine_code)
        forms = tuple(Form(f.most, tuple(_launch(lowered, s) for s in f.starts))
                      for f in lowered.forms)  # fmt: skip
    except (CodegenError, IRError) as error:
        raise CodegenError(f"kernel {name}: {error}\n{print_graph(body)}") from error
    function = Function(
        f"{FOLDER}/{source.name}",
        expression(lowered.rows),
        {n: Solve(s.argument, s.axis, s.factor, s.rest) for n, s in lowered.dims.items()},
        tuple(expression(d) for d in lowered.scratch),
        forms,
    )
    most = {n: high for n, (_, high) in body.bounds.items()}
    binaries = {n: _written(home, n, m) for n, m in made.items()}
    return _Built(lowered, function, binaries, function.scratch_offsets(most)[1])


def _compiled(
    name: str, body: Graph, target: Target, source: Path, machine_code: bool
) -> tuple[Lowered, dict[str, Compiled]]:
    """A kernel's launches and its machine code: tiles that do not fit the target, or whose
    registers go to memory, give way to the next that the model has, TRIES times at most.
    """
    refused: dict[int | None, set[Choice]] = {}
    for left in reversed(range(TRIES)):
        lowered = lower(name, body, target, None, refused)
        source.write_text(lowered.text, encoding="utf-8")
        made: dict[str, Compiled] = {}
        again = False
        for bucket, start in ((f.most, s) for f in lowered.forms for s in f.starts):
            if not machine_code or (at := binary_name(start)) in made:
                continue
            try:
                made[at] = compile_entry(source, start, lowered.pointers, target)
            except DoesNotFit:
                if start.tile is None or not left:
                    raise
            if start.tile is not None and left and (at not in made or made[at].spilled):
                refused.setdefault(bucket, set()).add(start.tile)
                again = True
        if not again:
            return lowered, made
    raise AssertionError("the last try gives what it has, or raises")


def _launch(lowered: Lowered, start: Start) -> Launch:
    grid = tuple(expression(d) for d in start.grid)
    pointers = tuple(_pointer(lowered, p) for p in start.pointers)
    unless = start.unless and (expression(start.unless[0]), expression(start.unless[1]))
    workspace = _pointer(lowered, start.workspace) if start.workspace else None
    return Launch(
        binary_name(start), pointers, start.dims, grid, unless, start.entry, start.constants,
        workspace,
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


def _report(name: str, function: str, kernel: KernelBody, built: _Built) -> KernelReport:
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
    )
