"""A traced program as an MLIR module, in one of the dialects that torch-mlir knows."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from ...ir.dims import names_in, shape_text
from ..errors import CompileError
from .program import Program, shape_of

DIALECTS = {
    "torch": "torch",
    "linalg": "linalg-on-tensors",
    "stablehlo": "stablehlo",
    "tosa": "tosa",
}
"""Torch-mlir's name of each dialect, by the name that users give."""
ENTRY = "main"


def module_of(program: Program, dialect: str) -> Any:
    """The MLIR module of a program, its function named `main`.

    Raises CompileError where torch-mlir is not installed, or has no lowering for an op.
    """
    if dialect not in DIALECTS:
        raise CompileError(f"no dialect {dialect!r}; known: {', '.join(DIALECTS)}")
    fx = _torch_mlir()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own deprecations, met inside torch-mlir
            return fx.export_and_import(
                program.exported, output_type=DIALECTS[dialect], func_name=ENTRY
            )
    except Exception as error:  # torch-mlir raises plain exceptions, its reason in the text
        raise CompileError(
            f"graph {program.graph.name!r} has no form in {dialect}: {_reason(str(error))}"
            f"{_advice(program)}"
        ) from error


def _torch_mlir() -> Any:
    try:
        from torch_mlir import fx
    except ImportError as error:
        raise CompileError(
            "MLIR needs the torch-mlir package: pip install 'ferrule[mlir]'"
        ) from error
    return fx


def _reason(text: str) -> str:
    """The first line of a message that says what is wrong, or its first line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    telling = [line for line in lines if "error:" in line]
    return (telling or lines or ["no reason given"])[0].rpartition("error: ")[2]


def _advice(program: Program) -> str:
    """What to try where dims are dynamic: not every lowering of torch-mlir takes those."""
    names = {name for n in program.arguments for d in shape_of(n) for name in names_in(d)}
    left = sorted(names - program.fixed.keys())
    return (
        f" (with its dims fixed it may: --dims {','.join(f'{n}=8' for n in left)})" if left else ""
    )


def text_of(program: Program, dialect: str) -> str:
    """The module's text, behind a comment that says which argument and result is which."""
    module = module_of(program, dialect)
    graph = program.graph
    arguments = [
        f"//   %arg{i}: {n.op.name} {n['name']} : {n.type.dtype}{shape_text(shape_of(n))}"  # type: ignore[union-attr]
        for i, n in enumerate(program.arguments)
    ]
    head = [
        f"// Graph {graph.name}. Arguments:",
        *arguments,
        f"// Results: {_results(graph.output_names)}",
    ]
    return "\n".join([*head, str(module)])


def _results(names: Sequence[str]) -> str:
    return ", ".join(names)
