"""Triton entries compiled for GPUs that are not there, and what a compiled kernel takes of one."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import triton
from ferrule.codegen.triton.tiles import SHARED
from ferrule.ir.target import Target
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel
from triton.runtime.jit import JITFunction

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


class Taken(NamedTuple):
    """Registers of a thread, bytes of a thread's that went to memory, shared bytes of a program."""

    registers: int
    spilled: int
    shared: int

    def fits(self, arch: str) -> bool:
        """Whether nothing is spilled, and the target has that much."""
        return self.spilled == 0 and self.registers <= 255 and self.shared <= SHARED[arch]


def target_of(arch: str) -> Target:
    """The target of an architecture."""
    return Target.parse(f"{'rocm' if arch.startswith('gfx') else 'cuda'}:{arch}")


def compiled(
    entry: JITFunction,
    arch: str,
    types: Mapping[str, str],
    choices: Mapping[str, object],
    *,
    warps: int,
    stages: int,
) -> CompiledKernel:
    """An entry compiled for a target: the types of its values (pointers are of multiples of 64
    bytes), and its constexprs.
    """
    names = entry.arg_names
    signature = {n: types.get(n, "constexpr") for n in names}
    given = {n: choices[n] for n in names if signature[n] == "constexpr" and n in choices}
    attrs = {
        (names.index(n),): [["tt.divisibility", 16]] for n, t in types.items() if t.startswith("*")
    }
    source = ASTSource(entry, signature, given, attrs)
    options = {"num_warps": warps, "num_stages": stages}
    return triton.compile(source, target=TARGETS[arch], options=options)


def taken(kernel: CompiledKernel) -> Taken:
    """What a compiled kernel takes, read back from its code."""
    if "amdgcn" in kernel.asm:
        text = kernel.asm["amdgcn"]
        spilled = _number(r"\.private_segment_fixed_size:\s*(\d+)", text)
        return Taken(_number(r"\.vgpr_count:\s*(\d+)", text), spilled, kernel.metadata.shared)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [str(CUOBJDUMP), "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    spilled = _number(r"STACK:(\d+)", text) + _number(r"LOCAL:(\d+)", text)
    return Taken(_number(r"REG:(\d+)", text), spilled, kernel.metadata.shared)


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    assert found, f"no {pattern} in {text[:500]}"
    return int(found[1])
