"""Runs launches on a CPU through Triton's interpreter, in a process of its own.

Whether a Triton function is interpreted is decided when it is declared, for a whole process: this
file is the program of a process that interprets. It is told what to do in lines of JSON, and
answers each with one. Device memory is a file that both sides map; an address is a place in it.

    {"memory": path}                                maps the memory
    {"launch": [source, entry], "grid": [..], "arguments": [[value, dtype], ..],
     "constants": {name: value}}                    runs every program of a grid

An answer is {} or {"error": text}.
"""

from __future__ import annotations

import json
import mmap
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np


class Pointer:
    """An address as the interpreter takes tensors: it is on the host already, and stays there."""

    def __init__(self, address: int, dtype: str) -> None:
        self.address, self.dtype = address, dtype

    def data_ptr(self) -> int:
        """Where it points to."""
        return self.address

    def untyped_storage(self) -> Pointer:
        """What the interpreter copies to the host and back: this is the host."""
        return self

    def cpu(self) -> Pointer:
        """The copy on the host."""
        return self

    def new_empty(self, *_: object, **__: object) -> Pointer:
        """The tensor over the copy on the host."""
        return self

    def set_(self, *_: object, **__: object) -> None:
        """Put the copy behind the tensor."""

    def storage_offset(self) -> int:
        """Nothing: the address is the tensor's own."""
        return 0

    def size(self) -> tuple[int, ...]:
        """Nothing that anyone reads."""
        return ()

    def stride(self) -> tuple[int, ...]:
        """Nothing that anyone reads."""
        return ()

    def copy_(self, _: object) -> None:
        """Copy back from the host."""


class Interpreter:
    """The memory, and the sources that were read."""

    def __init__(self) -> None:
        self.base = 0
        self._memory: mmap.mmap | None = None
        self._modules: dict[str, Any] = {}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Do what a request says."""
        if "memory" in request:
            with Path(request["memory"]).open("r+b") as file:
                self._memory = mmap.mmap(file.fileno(), 0)
            self.base = np.frombuffer(self._memory, np.uint8).ctypes.data
            return {}
        source, entry = request["launch"]
        self._launch(source, entry, request)
        return {}

    def _launch(self, source: str, entry: str, request: dict[str, Any]) -> None:
        from .compile import load_source

        if source not in self._modules:
            self._modules[source] = load_source(Path(source))
        given = [
            Pointer(self.base + value, dtype) if dtype else value
            for value, dtype in request["arguments"]
        ]
        function = getattr(self._modules[source], entry)
        with np.errstate(all="ignore"):
            function[tuple(request["grid"])](*given, **request["constants"])


def multiply_bfloat16() -> None:
    """Make interpreted dots take bfloat16: Triton 3.6 to 3.9 multiply its bits as whole numbers."""
    from triton import language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    dot = InterpreterBuilder.create_dot

    def widened(x: TensorHandle) -> TensorHandle:
        if x.dtype.scalar != tl.bfloat16:
            return x
        return TensorHandle((x.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def create_dot(builder: Any, a: TensorHandle, b: TensorHandle, *rest: Any) -> TensorHandle:
        return dot(builder, widened(a), widened(b), *rest)

    setattr(InterpreterBuilder, "create_dot", create_dot)  # noqa: B010 (its type differs)


def mask_by_scalars() -> None:
    """Make interpreted loads and stores take masks that a scalar condition is part of: Triton 3.6
    to 3.9 spread it as whole numbers.
    """
    from triton.runtime.interpreter import InterpreterBuilder

    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store

    def create_masked_load(builder: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        mask.data = mask.data.astype(bool)
        return load(builder, pointers, mask, *rest)

    def create_masked_store(builder: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        mask.data = mask.data.astype(bool)
        return store(builder, pointers, value, mask, *rest)

    setattr(InterpreterBuilder, "create_masked_load", create_masked_load)  # noqa: B010
    setattr(InterpreterBuilder, "create_masked_store", create_masked_store)  # noqa: B010


def patch_once() -> None:
    """Make the interpreter put its own functions in the place of Triton's once and for all: it does
    so anew for every function that a kernel calls, which takes longer than what these compute.
    """
    from triton.runtime import interpreter

    patch, scope = interpreter._patch_lang, getattr(interpreter, "_LangPatchScope", type(None))
    done: set[int] = set()

    def patched(function: Any) -> Any:
        import triton.language as tl

        found = {id(v) for v in function.__globals__.values() if v is tl or v is tl.core}
        if not found <= done:
            patch(function)
            done.update(found)
        return scope()

    dtypes: dict[str, Any] = {}
    dtype_of = interpreter._get_np_dtype

    def np_dtype(kind: Any) -> Any:
        name = kind.scalar.name if not kind.is_ptr() else "pointer"
        if name not in dtypes:
            dtypes[name] = dtype_of(kind)
        return dtypes[name]

    setattr(interpreter, "_patch_lang", patched)  # noqa: B010
    setattr(interpreter, "_get_np_dtype", np_dtype)  # noqa: B010


def main() -> None:
    """Answer requests from standard input until it ends."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        raise SystemExit("interpret: run with TRITON_INTERPRET=1")
    multiply_bfloat16()
    mask_by_scalars()
    patch_once()
    interpreter = Interpreter()
    # What a kernel prints must not be taken for an answer.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        try:
            answer = interpreter.answer(json.loads(line))
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
