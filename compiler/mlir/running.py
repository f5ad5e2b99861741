"""Runs a program by MLIR's own lowering: linalg to loops to LLVM, no code generator of ours."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from ...ir.types import CacheType, TensorType
from ..errors import CompileError
from ..reference.context import DTYPES
from .dialects import ENTRY, module_of
from .program import Program

# The order of torch-mlir's reference backend (projects/pt1, linalg_on_tensors_backends), which its
# wheel leaves out; without sparse tensors, and called through the C interface.
_PASSES = (
    "func.func(refback-generalize-tensor-pad,refback-generalize-tensor-concat)",
    "func.func(linalg-fuse-elementwise-ops)",
    "convert-shape-to-std",
    "func.func(tm-tensor-bufferize)",
    "one-shot-bufferize{copy-before-write bufferize-function-boundaries "
    "function-boundary-type-conversion=identity-layout-map}",
    "refback-mlprogram-bufferize",
    "buffer-deallocation-pipeline",
    "inline",
    "func.func(tm-tensor-to-loops)",
    "func.func(refback-munge-memref-copy)",
    "func.func(convert-linalg-to-loops)",
    "func.func(llvm-request-c-wrappers)",
    "func.func(lower-affine)",
    "convert-scf-to-cf",
    "func.func(refback-expand-ops-for-llvm)",
    "func.func(arith-expand)",
    "func.func(convert-math-to-llvm)",
    "convert-math-to-libm",
    "expand-strided-metadata",
    "lower-affine",
    "finalize-memref-to-llvm",
    "convert-bufferization-to-memref",
    "finalize-memref-to-llvm",
    "func.func(convert-arith-to-llvm)",
    "convert-vector-to-llvm",
    "convert-func-to-llvm",
    "convert-cf-to-llvm",
    "convert-complex-to-llvm",
    "reconcile-unrealized-casts",
)


class Runner:
    """A program as machine code made by MLIR: called with values by the names of the graph's
    inputs and parameters, it gives the outputs in order.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        module = module_of(program, "linalg")
        from torch_mlir import passmanager
        from torch_mlir.execution_engine import ExecutionEngine

        try:
            with module.context:
                manager: Any = passmanager
                manager.PassManager.parse(f"builtin.module({','.join(_PASSES)})").run(
                    module.operation
                )
                self._engine = ExecutionEngine(module, opt_level=2)
        except Exception as error:  # MLIR raises its own error type, its reason in the text
            raise CompileError(
                f"graph {program.graph.name!r}: MLIR could not make machine code of its linalg "
                f"form: {str(error).splitlines()[0]}"
            ) from error

    def __call__(
        self, inputs: Mapping[str, torch.Tensor], parameters: Mapping[str, torch.Tensor]
    ) -> tuple[torch.Tensor, ...]:
        """The outputs for these values."""
        arrays = [
            np.ascontiguousarray(
                _array((parameters if n.op.name == "parameter" else inputs)[n["name"]])
            )
            for n in self.program.arguments
        ]
        results = [_described(len(_shape(o)), _element(o)) for o in self.program.graph.outputs]
        fields = [(f"r{i}", kind) for i, kind in enumerate(results)]
        made = type("Results", (ctypes.Structure,), {"_fields_": fields})()
        given = [_descriptor(a) for a in arrays]
        pointers = [ctypes.pointer(ctypes.pointer(d)) for d in (made, *given)]
        self._engine.invoke(ENTRY, *pointers)
        outputs = zip(self._dtypes(), fields, strict=True)
        return tuple(_tensor(getattr(made, name), dtype) for dtype, (name, _) in outputs)

    def _dtypes(self) -> list[torch.dtype]:
        return [
            DTYPES[o.type.dtype]
            for o in self.program.graph.outputs
            if isinstance(o.type, TensorType | CacheType)
        ]


def _array(value: torch.Tensor) -> np.ndarray[Any, Any]:
    """The bytes of a tensor as an array of numbers of its width."""
    widths = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.bool: torch.uint8}
    value = value.contiguous()
    return value.view(widths.get(value.dtype, value.dtype)).numpy()


def _shape(node: Any) -> tuple[Any, ...]:
    return (
        node.shape if isinstance(node.type, TensorType) else (0, node.type.block, *node.type.entry)
    )


def _element(node: Any) -> Any:
    sample = _array(torch.zeros(1, dtype=DTYPES[node.type.dtype]))
    return np.ctypeslib.as_ctypes_type(sample.dtype)


def _described(rank: int, element: Any) -> Any:
    """The C structure of a ranked memref (MLIR, "Target LLVM IR": ranked memref types)."""
    axes = [("shape", ctypes.c_longlong * rank), ("strides", ctypes.c_longlong * rank)]
    first = [
        ("allocated", ctypes.c_void_p),
        ("aligned", ctypes.POINTER(element)),
        ("offset", ctypes.c_longlong),
    ]
    return type("Described", (ctypes.Structure,), {"_fields_": first + (axes if rank else [])})


def _descriptor(array: np.ndarray[Any, Any]) -> Any:
    """An array as a memref."""
    element = np.ctypeslib.as_ctypes_type(array.dtype)
    made = _described(array.ndim, element)()
    made.allocated = array.ctypes.data
    made.aligned = array.ctypes.data_as(ctypes.POINTER(element))
    made.offset = 0
    if array.ndim:
        made.shape[:] = array.shape
        made.strides[:] = [s // array.itemsize for s in array.strides]
    return made


def _tensor(made: Any, dtype: torch.dtype) -> torch.Tensor:
    """A copy of a memref's values."""
    shape = tuple(getattr(made, "shape", ()))
    count = int(np.prod(shape)) if shape else 1
    if not count:
        return torch.zeros(shape, dtype=dtype)
    strides = tuple(getattr(made, "strides", ()))
    reach = 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    flat = np.ctypeslib.as_array(made.aligned, shape=(made.offset + reach,))[made.offset :]
    view = np.lib.stride_tricks.as_strided(flat, shape, [s * flat.itemsize for s in strides])
    return torch.from_numpy(view.copy()).view(dtype)
