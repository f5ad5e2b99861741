"""Kernel bodies to one shared library, and a report of each kernel."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import tvm
import tvm_ffi

from ...ir.errors import IRError
from ...ir.graph import Graph
from ...ir.node import Node
from ...ir.target import Host, Target
from ...ir.text import print_graph
from ..backend import KernelBody, KernelReport, Tunable
from ..bodies import canonical
from ..cost import cost_of
from ..errors import CodegenError
from ..space import Choice, Choices, Space
from .context import CONTEXT
from .convolve import CONV
from .dense import DENSE
from .expert import EXPERT
from .floats import LINEAR
from .function import Anchor, build_function
from .isa import Isa, isa_of, tvm_target
from .loop import LOOP
from .lower import compile_functions, workers
from .objects import Objects
from .paged import PAGED, RAGGED
from .quantized import INTEGER, QUANTIZED
from .quantized_expert import INTEGER_EXPERT, QUANTIZED_EXPERT
from .scan import SCAN
from .selection import SELECTION

ANCHORS: Mapping[str, Anchor] = {
    "packed_linear": LINEAR,
    "packed_quantized_linear": QUANTIZED,
    "packed_integer_linear": INTEGER,
    "packed_expert_linear": EXPERT,
    "packed_quantized_expert_linear": QUANTIZED_EXPERT,
    "packed_integer_expert_linear": INTEGER_EXPERT,
    "attention": DENSE,
    "paged_attention": PAGED,
    "ragged_attention": RAGGED,
    "causal_conv": CONV,
    "state_conv": CONV,
    "linear_scan": SCAN,
    "state_scan": SCAN,
    "token_loop": LOOP,
    "state_loop": LOOP,
    "token_context": CONTEXT,
    "paged_context": CONTEXT,
    "paged_selected_keys": SELECTION,
}
"""Ops with a template of their own; every other op goes through the rows template."""


def build_library(
    kernels: Mapping[str, KernelBody],
    target: Target,
    path: str | os.PathLike[str],
    chosen: Mapping[str, Choices] | None = None,
) -> dict[str, KernelReport]:
    """Compile every kernel into one shared library at `path`; gives a report for each name.

    Bodies that are equal but for the names of their inputs become one function: call
    `report.function`, which is the name of the first of them. `chosen` is what tuning chose, by the
    digest of a kernel's text; a choice that is not in the kernel's space is left out, and the
    report's `choices` are those that were taken. Raises CodegenError with the kernel's name and IR
    where a body cannot be compiled.
    """
    functions: dict[Graph, str] = {}
    built: dict[str, _Built] = {}
    reports: dict[str, KernelReport] = {}
    with _compiling(target) as compiling, _objects() as objects:
        base, made = compiling(workers()), dict[str, Future[bytes]]()
        for name, kernel in kernels.items():
            body = canonical(kernel.body)
            function = functions.setdefault(body, name)
            if function == name:
                built[name] = _built(name, body, target, chosen or {})
                made[name] = compiling({name: built[name].source})
            reports[name] = _report(name, function, kernel, built[function])
        objects.add(base)
        for name, function in made.items():
            with _named(name, kernels[name].body):
                objects.add(function)
        objects.link(path)
    return reports


OBJECTS = Objects(compile_functions)
MOST_THREADS = 16  # each takes some hundred megabytes

Functions = Mapping[str, tvm.tirx.PrimFunc]


@contextmanager
def _compiling(target: Target) -> Iterator[Callable[[Functions], Future[bytes]]]:
    """What compiles functions to an object file on another thread, one for each core up to
    MOST_THREADS: TVM and LLVM run without Python's lock. After an error nothing more is begun.
    """
    machine = tvm_target(target)
    pool = ThreadPoolExecutor(min(Host().cores(), MOST_THREADS), "ferrule-compile")
    try:
        yield lambda functions: pool.submit(OBJECTS.of, functions, machine)
    finally:
        pool.shutdown(cancel_futures=True)


class _Linked:
    """Object files in a folder, for one shared library."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.files: list[str] = []

    def add(self, made: Future[bytes]) -> None:
        """One more object file, once it is made."""
        content = made.result()
        self.files.append(f"{self.folder}/{len(self.files)}.o")
        Path(self.files[-1]).write_bytes(content)

    def link(self, path: str | os.PathLike[str]) -> None:
        """The library of them all."""
        link(os.fspath(path), self.files)


@contextmanager
def _objects() -> Iterator[_Linked]:
    with tempfile.TemporaryDirectory(prefix=".ferrule-") as folder:
        yield _Linked(folder)


@dataclass(frozen=True)
class _Built:
    """A function to compile, the digest of its text as the template's own, what was chosen."""

    source: tvm.tirx.PrimFunc
    digest: str
    choices: Choices


def _built(name: str, body: Graph, target: Target, chosen: Mapping[str, Choices]) -> _Built:
    isa, spaces = isa_of(target), spaces_of(body, target)
    source = _function(name, body, isa)
    if not spaces:
        return _Built(source, "", {})
    digest = text_digest(body, target, source)
    known = {s.bucket.name: s for s in spaces}
    given = chosen.get(digest, {}).items()
    choices = {b: c for b, c in given if c.values and b in known and known[b].allows(c)}
    return _Built(_function(name, body, isa, choices) if choices else source, digest, choices)


def _function(
    name: str, body: Graph, isa: Isa, choices: Choices | None = None
) -> tvm.tirx.PrimFunc:
    with _named(name, body):
        return build_function(name, body, isa, ANCHORS, choices)


_FAULTS = (tvm.error.InternalError, TypeError, ValueError)
"""What TVM raises of a function that it does not compile."""


@contextmanager
def _named(name: str, body: Graph) -> Iterator[None]:
    """Errors say of which kernel they are."""
    try:
        yield
    except (CodegenError, IRError, *_FAULTS) as error:
        raise CodegenError(f"kernel {name}: {error}\n{print_graph(body)}", name) from error


def tunable(body: Graph, target: Target) -> Tunable | None:
    """The spaces of a kernel; None where nothing may be chosen."""
    body = canonical(body)
    spaces = spaces_of(body, target)
    if not spaces:
        return None
    digest = text_digest(body, target, _function("kernel", body, isa_of(target)))
    return Tunable(body, digest, cost_of(body), spaces)


def spaces_of(body: Graph, target: Target) -> tuple[Space, ...]:
    """What may be chosen in a kernel. Of several anchors with spaces none is tuned: their buckets
    are the same rows, and measured together they could not be told apart.
    """
    anchors = [n for n in body.nodes() if n.op.name in ANCHORS]
    found = [s for n in anchors if (s := ANCHORS[n.op.name].spaces(n, target))]
    return found[0] if len(found) == 1 else ()


def text_digest(body: Graph, target: Target, source: tvm.tirx.PrimFunc) -> str:
    """What a kernel's choices are kept under: a digest of its IR, of the code that the template
    makes of it by itself, and of the instruction set.

    A template that changes makes other code, and what was measured before says nothing about it.
    """
    code = tvm_ffi.structural_hash(source.with_attr("global_symbol", "kernel"))
    text = f"{target} {sorted(target.features)}\n{print_graph(body)}\n{code}"
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def build_candidates(
    body: Graph, target: Target, bucket: str, choices: Sequence[Choice], path: str
) -> dict[int, str]:
    """Compile one kernel once for each choice of a bucket, as functions c0, c1, ... of one library.

    Gives what was wrong with those that are not in it, by their place in `choices`.
    """
    isa = isa_of(target)
    sources: dict[int, tvm.tirx.PrimFunc] = {}
    faults: dict[int, str] = {}
    for at, choice in enumerate(choices):
        try:
            sources[at] = _function(f"c{at}", body, isa, {bucket: choice})
        except CodegenError as error:
            faults[at] = str(error).partition("\n")[0]
    with _compiling(target) as compiling, _objects() as objects:
        objects.add(compiling(workers()))
        made = {at: compiling({f"c{at}": source}) for at, source in sources.items()}
        for at, function in made.items():
            try:
                objects.add(function)
            except _FAULTS as error:
                faults[at] = f"TVM: {str(error).strip().splitlines()[0]}"
        objects.link(path)
    return faults


def _report(name: str, function: str, kernel: KernelBody, built: _Built) -> KernelReport:
    anchors = [n for n in kernel.body.nodes() if n.op.name in ANCHORS]
    template = kernel.template or _template_of(anchors)
    header = "".join(f"# {line}\n" for line in print_graph(kernel.body).splitlines())
    text = f"# kernel {name}\n{header}"
    return KernelReport(
        name=name,
        function=function,
        template=template,
        ops="+".join(dict.fromkeys(n.op.name for n in kernel.body.nodes() if not n.op.has("leaf"))),
        cost=cost_of(kernel.body),
        source=lambda: text + built.source.script(),
        digest=built.digest,
        choices=built.choices,
    )


def _template_of(anchors: Sequence[Node]) -> str:
    if not anchors:
        return "rows"
    name = anchors[0].op.name
    if name.endswith("expert_linear"):
        return "expert_linear"
    if name.endswith("selected_keys"):
        return "selection"
    words = ("linear", "conv", "scan", "loop", "context", "attention")
    return next(word for word in words if name.endswith(word))


_LINKERS = ("ld", "ld.lld", "ld.gold", "ld.bfd")
_COMPILERS = ("cc", "gcc", "clang")


def link(output: str, objects: Sequence[str], **_: object) -> None:
    """Join object files into a shared library: by a plain linker, or by a C compiler's driver;
    no compiler is needed.
    """
    linker = next((p for n in (*_LINKERS, *_COMPILERS) if (p := shutil.which(n))), None)
    if linker is None:
        wanted = ", ".join((*_LINKERS, *_COMPILERS))
        raise CodegenError(
            f"{output}: no linker here; wanted one of {wanted} (Debian: apt install binutils)"
        )
    command = [linker, "-shared", "-o", output, *objects]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CodegenError(f"{' '.join(command)}: {done.stderr.strip()}")
