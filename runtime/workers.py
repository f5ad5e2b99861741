"""Threads that a library's parallel kernels run on: its own (codegen/tvm/workers.ll), not TVM's."""

import ctypes
import os
import weakref
from pathlib import Path

from .call_list import CallList, Calls
from .ffi import tvm_ffi


class Workers:
    """The workers that a library brings along, for each thread that hires some.

    The library stays in memory from then on, because they run its code.
    """

    def __init__(self, module: tvm_ffi.Module, path: Path) -> None:
        self._hire, self._dismiss = module["ferrule_hire"], module["ferrule_dismiss"]
        library = ctypes.CDLL(str(path.resolve()), mode=os.RTLD_NOW | os.RTLD_NODELETE)
        # A library that was built before it had this has workers all the same.
        self._run = getattr(library, "ferrule_run", None)
        if self._run is not None:
            self._run.argtypes = ctypes.c_void_p, ctypes.c_int32, ctypes.c_void_p
            self._run.restype = None

    @staticmethod
    def of(module: tvm_ffi.Module, path: Path) -> "Workers | None":
        """Those of a loaded library; None where it was not built by Ferrule, and runs on TVM's."""
        try:
            return Workers(module, path)
        except AttributeError:
            return None

    def hire(self, count: int) -> int:
        """Have the calling thread's regions run on so many threads, itself among them, from now on;
        gives a handle, the same each time.
        """
        return self._hire(count)

    def call_list(self, calls: Calls) -> CallList | None:
        """Kernels of the library with their tensors, to be called by it, on the calling thread."""
        return None if self._run is None else CallList(self._run, calls)

    def dismiss_with(self, owner: object, handle: int) -> None:
        """End the workers of a handle when the owner, who belongs to the thread, is gone."""
        weakref.finalize(owner, self._dismiss, handle).atexit = False
