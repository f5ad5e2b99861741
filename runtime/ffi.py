"""tvm_ffi, imported without torch.

Where torch is installed tvm_ffi imports it (for a conflict of symbols seen on Windows once), which
takes a second or more and 200 MB that an artifact has no use for: its tensors are numpy's. While
tvm_ffi is imported torch is therefore made to look absent, unless it is loaded already; it can be
imported afterwards.
"""

import sys

_ABSENT = "torch" not in sys.modules
if _ABSENT:
    sys.modules["torch"] = None  # pyright: ignore[reportArgumentType] (what makes `import` fail)
try:
    import tvm_ffi
finally:
    if _ABSENT:
        del sys.modules["torch"]

__all__ = ["tvm_ffi"]
