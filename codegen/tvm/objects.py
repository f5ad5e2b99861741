"""Object files of functions, each made once: those that were made last are kept in memory, for
the next library with the same function.
"""

from __future__ import annotations

import os
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Lock

import tvm
import tvm_ffi
from tvm import tirx

Compile = Callable[[Mapping[str, tirx.PrimFunc], tvm.target.Target], tvm.runtime.Module]
Key = tuple[object, ...]


class Objects:
    """The contents of object files by the functions in them and the target, at most `most` of
    them; which is which is decided by the functions' code, all of it, and by their names. Several
    threads may ask at once.
    """

    def __init__(self, compile_functions: Compile, most: int = 512) -> None:
        self.compile_functions, self.most = compile_functions, most
        self.made = 0
        self._known: OrderedDict[Key, bytes] = OrderedDict()
        self._lock = Lock()

    def of(self, functions: Mapping[str, tirx.PrimFunc], target: tvm.target.Target) -> bytes:
        """One object file with these functions."""
        keys = (tvm_ffi.StructuralKey(f) for f in functions.values())
        key = (str(target), *functions, *keys)
        with self._lock:
            found = self._known.pop(key, None)
        if found is None:
            found = self._compiled(functions, target)
        with self._lock:
            self._known[key] = found  # the last one again
            while len(self._known) > self.most:
                self._known.popitem(last=False)
        return found

    def forget(self) -> None:
        """Keep nothing of what was made: for whoever measures how long it takes."""
        with self._lock:
            self._known.clear()

    def _compiled(self, functions: Mapping[str, tirx.PrimFunc], target: tvm.target.Target) -> bytes:
        with self._lock:
            self.made += 1
        module = self.compile_functions(functions, target)
        with tempfile.TemporaryDirectory(prefix=".ferrule-") as folder:
            path = Path(folder) / "functions.o"
            module.write_to_file(os.fspath(path), "o")
            return path.read_bytes()
