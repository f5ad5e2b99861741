"""One entry to machine code through Triton, for a GPU that need not be there."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

# What Triton does by itself until 3.10, and warns about: a multiply and an add may be one.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ...ir.target import Target
from ..errors import CodegenError
from .elf import Resources, resources_of
from .kernel import Start
from .tiles import DESCRIPTOR, SHARED, warp_threads
from .values import POINTED


class DoesNotFit(CodegenError):
    """A compiled kernel that takes more of a program than the target has."""


@dataclass(frozen=True)
class Compiled:
    """Machine code, and what running it takes."""

    kind: str
    image: bytes
    symbol: str
    threads: int
    shared: int
    registers: int
    spilled: int
    hidden: int


def gpu_target(target: Target) -> GPUTarget:
    """Triton's name for a target; a CodegenError where Triton cannot compile for it."""
    if target.arch not in SHARED:
        known = ", ".join(SHARED)
        raise CodegenError(f"Triton compiles for {known}, not for {target}")
    if target.kind == "rocm":
        return GPUTarget("hip", target.arch, warp_threads(target))
    return GPUTarget("cuda", int(target.arch.removeprefix("sm_")), warp_threads(target))


def load_source(path: Path) -> ModuleType:
    """The module of a generated file."""
    name = f"ferrule_kernels_{path.stem}_{abs(hash(str(path)))}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # Triton looks its functions' globals up by their module
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[name]
    return module


def compile_entry(
    source: Path, start: Start, pointers: Mapping[str, str], target: Target
) -> Compiled:
    """Compile an entry of a generated file with its choices; raises CodegenError where Triton does,
    and where the result does not fit the target.
    """
    entry = getattr(load_source(source), start.entry)
    signature = {p: f"*{POINTED[pointers[p]]}" for p in start.pointers}
    signature |= dict.fromkeys(start.dims, "i32") | dict.fromkeys(
        dict(start.constants), "constexpr"
    )
    aligned = {(i,): [["tt.divisibility", 16]] for i in range(len(start.pointers))}
    made = ASTSource(fn=entry, signature=signature, constexprs=dict(start.constants), attrs=aligned)
    options: dict[str, Any] = {"num_warps": start.warps, "num_stages": start.stages}
    try:
        compiled = triton.compile(made, target=gpu_target(target), options=options)
    except Exception as error:
        reason = _innermost(error)
        raise CodegenError(f"entry {start.entry} {dict(start.constants)}: {reason}") from error
    return _checked(compiled, start, target)


def _innermost(error: BaseException) -> str:
    """What Triton found at the bottom of the calls: the rest says where, call by call."""
    while (below := error.__cause__ or error.__context__) is not None:
        error = below
    return str(error).strip() or repr(error)


def _checked(compiled: Any, start: Start, target: Target) -> Compiled:
    metadata = compiled.metadata
    kind = "hsaco" if target.kind == "rocm" else "cubin"
    image = compiled.asm[kind]
    used = _amd(compiled.asm["amdgcn"]) if kind == "hsaco" else resources_of(image, metadata.name)
    limit = SHARED[target.arch]
    if metadata.shared > limit:
        raise DoesNotFit(
            f"entry {start.entry} {dict(start.constants)} takes {metadata.shared} bytes of shared "
            f"memory; {target} has {limit}"
        )
    asked = metadata.global_scratch_size if kind == "cubin" else 0
    if asked > (DESCRIPTOR if start.workspace else 0):
        raise CodegenError(
            f"entry {start.entry} {dict(start.constants)} wants {asked} bytes of memory for each "
            f"program; its launch has {DESCRIPTOR if start.workspace else 0}"
        )
    wanted = len(start.pointers) + len(start.dims)
    hidden = _parameters(compiled.asm["ptx"], metadata.name) - wanted if kind == "cubin" else 2
    threads = metadata.num_warps * warp_threads(target)
    return Compiled(
        kind, image, metadata.name, threads, metadata.shared, used.registers, used.spilled, hidden
    )


def _parameters(ptx: str, symbol: str) -> int:
    """How many parameters an entry has."""
    head = ptx[ptx.index(f".entry {symbol}(") :]
    return len(re.findall(r"\.param ", head[: head.index(")")]))


def _amd(text: str) -> Resources:
    def number(field: str) -> int:
        found = re.search(rf"\.{field}:\s*(\d+)", text)
        return int(found.group(1)) if found else 0

    return Resources(number("vgpr_count"), 4 * number("vgpr_spill_count"))
