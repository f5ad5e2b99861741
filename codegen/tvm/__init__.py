"""CPU kernels through TVM: `build_library` compiles kernel bodies into one shared library;
`tunable` says what may be chosen in one, and `build_candidates` compiles it once for each choice.

What the templates take is data: `ferrule.codegen.backend.cpu_backend(target)`, which imports no
compiler.
"""

from __future__ import annotations

from ..errors import CodegenError
from .build import build_candidates, build_library, tunable

__all__ = ["CodegenError", "build_candidates", "build_library", "tunable"]
