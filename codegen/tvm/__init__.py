"""CPU kernels through TVM: `build_library` compiles kernel bodies into one shared library.

What the templates take is data: `ferrule.codegen.backend.cpu_backend(target)`, which imports no
compiler.
"""

from __future__ import annotations

from .build import build_library
from .pull import CodegenError

__all__ = ["CodegenError", "build_library"]
