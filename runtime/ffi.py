"""tvm_ffi, imported without torch.

Where torch is installed tvm_ffi imports it (for a conflict of symbols seen on Windows once), which
takes a second or more and 200 MB that an artifact has no use for: its tensors are numpy's. While
tvm_ffi is imported torch is therefore made to look absent, unless it is loaded already; it can be
imported afterwards. Artifacts for a GPU need no tvm_ffi: where it is not installed, only using it
is an error.
"""

import sys
from typing import Any

from .errors import ArtifactError


class _Missing:
    """Stands for tvm_ffi where it is not installed."""

    Tensor = Module = Function = Any

    def __getattr__(self, name: str) -> Any:
        raise ArtifactError(f"tvm_ffi.{name}: kernels for a CPU need apache-tvm-ffi: install it")


_ABSENT = "torch" not in sys.modules
if _ABSENT:
    sys.modules["torch"] = None  # pyright: ignore[reportArgumentType] (what makes `import` fail)
try:
    import tvm_ffi
except ImportError:
    tvm_ffi: Any = _Missing()
finally:
    if _ABSENT:
        del sys.modules["torch"]

__all__ = ["tvm_ffi"]
