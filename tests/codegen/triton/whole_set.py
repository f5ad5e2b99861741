"""Every template with its default tiles for every GPU, and what it takes: registers of a thread,
bytes spilled, bytes of shared memory. Tests compile a sample of this; run it by hand after a
change.

PYTHONPATH=tests:tests/codegen/triton python tests/codegen/triton/whole_set.py [PART OF A NAME]
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial

import test_attention_templates as attention
import test_codes as codes
import test_experts as experts
import test_gemm as gemm
from cross_compiled import TARGETS, taken
from triton.compiler import CompiledKernel


def kernels(arch: str) -> Iterator[tuple[str, Callable[[], CompiledKernel]]]:
    """Names, and what compiles each for an architecture."""
    for entry in ("many", "few", "one"):
        for parts in (1, 2):
            yield f"gemm {entry}, {parts}", partial(gemm.cross_compiled, entry, arch, parts)
    for tma in (False, True) if arch in ("sm_90", "sm_100") else (False,):
        made = partial(gemm.cross_compiled, "persistent", arch, 1, TMA=tma)
        yield f"gemm persistent{' by TMA' if tma else ''}", made
    for entry in ("many", "one"):
        yield f"codes {entry}", partial(codes.cross_compiled, entry, arch, 2)
    yield "experts", partial(experts.cross_compiled, arch)
    for entry in ("tokens", "splits"):
        for shape, layer in attention.SHAPES.items():
            made = partial(attention.cross_compiled, entry, layer, arch)
            yield f"attention {entry}, {shape}", made


def main(wanted: str = "") -> None:
    """Print a line for each kernel whose name and architecture hold what is wanted."""
    for arch in TARGETS:
        for name, compile_ in kernels(arch):
            if wanted in f"{arch} {name}":
                found = taken(compile_())
                verdict = "" if found.fits(arch) else "  DOES NOT FIT"
                print(f"{arch:7} {name:28} registers {found.registers:3} spilled {found.spilled:4} "
                      f"shared {found.shared:6}{verdict}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:])
