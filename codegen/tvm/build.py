"""Kernel bodies to one shared library, and a report of each kernel."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence

import tvm

from ...ir.graph import Graph
from ...ir.node import Node, input_
from ...ir.target import Target
from ...ir.text import print_graph
from ..backend import KernelBody, KernelReport
from ..cost import cost_of
from .dense import DENSE
from .expert import EXPERT
from .floats import LINEAR
from .function import Anchor, build_function
from .isa import Isa, isa_of, tvm_target
from .lower import compile_functions
from .paged import PAGED, RAGGED
from .pull import CodegenError
from .quantized import INTEGER, QUANTIZED
from .quantized_expert import INTEGER_EXPERT, QUANTIZED_EXPERT

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
}
"""Ops with a template of their own; every other op goes through the rows template."""


def canonical(body: Graph) -> Graph:
    """The body with its inputs named by place, so that the same kernel of two layers is the same
    graph.
    """
    renamed = {n: input_(name=f"x{i}", type=n.type) for i, n in enumerate(body.inputs)}
    temporary = {n: input_(name=f"_x{i}", type=n.type) for i, n in enumerate(body.inputs)}
    # In two steps, because an input may already bear another one's new name.
    first = Graph("kernel", tuple(temporary.values()), body.replace(temporary).outputs)
    second = first.replace({temporary[n]: renamed[n] for n in body.inputs})
    return Graph("kernel", tuple(renamed.values()), second.outputs)


def build_library(
    kernels: Mapping[str, KernelBody], target: Target, path: str | os.PathLike[str]
) -> dict[str, KernelReport]:
    """Compile every kernel into one shared library at `path`; gives a report for each name.

    Bodies that are equal but for the names of their inputs become one function: call
    `report.function`, which is the name of the first of them. Raises CodegenError with the
    kernel's name and IR where a body cannot be compiled.
    """
    isa = isa_of(target)
    functions: dict[Graph, str] = {}
    sources: dict[str, tvm.tirx.PrimFunc] = {}
    reports: dict[str, KernelReport] = {}
    for name, kernel in kernels.items():
        body = canonical(kernel.body)
        function = functions.setdefault(body, name)
        if function == name:
            sources[name] = _function(name, body, isa)
        reports[name] = _report(name, function, kernel, sources[function])
    library = compile_functions(sources, tvm_target(target))
    library.export_library(str(path), fcompile=link)
    return reports


def _function(name: str, body: Graph, isa: Isa) -> tvm.tirx.PrimFunc:
    try:
        return build_function(name, body, isa, ANCHORS)
    except (CodegenError, tvm.error.InternalError, TypeError, ValueError) as error:
        raise CodegenError(f"kernel {name}: {error}\n{print_graph(body)}") from error


def _report(
    name: str, function: str, kernel: KernelBody, source: tvm.tirx.PrimFunc
) -> KernelReport:
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
        source=lambda: text + source.script(),
    )


def _template_of(anchors: Sequence[Node]) -> str:
    if not anchors:
        return "rows"
    name = anchors[0].op.name
    if name.endswith("expert_linear"):
        return "expert_linear"
    return "linear" if name.endswith("linear") else "attention"


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
