"""From kernel functions to machine code: TVM's passes, less those for scheduled blocks, which
our functions have none of.

The default pipeline spends half its time looking for buffers to shrink; ours are declared at
their size.
"""

from __future__ import annotations

from collections.abc import Mapping

import tvm
from tvm import s_tir, tirx

PASSES = (
    s_tir.transform.StmtSimplify(),
    tirx.transform.FlattenBuffer(),
    tirx.transform.NarrowDataType(32),
    tirx.transform.VectorizeLoop(True),
    tirx.transform.StorageRewrite(),
    tirx.transform.UnrollLoop(),
    tirx.transform.StmtSimplify(),
    tirx.transform.RemoveNoOp(),
    s_tir.transform.RewriteUnsafeSelect(),
    tirx.transform.CommonSubexprElim(),
    tirx.transform.VerifyMemory(),
    tirx.transform.AnnotateEntryFunc(),
    tirx.transform.SplitHostDevice(),
    tirx.transform.MakePackedAPI(),
    tirx.transform.LowerTVMBuiltin(),
    tirx.transform.LowerIntrin(),
)
"""In order: plain loops over flat buffers, vectors, packed functions, LLVM's intrinsics."""


def compile_functions(
    functions: Mapping[str, tirx.PrimFunc], target: tvm.target.Target
) -> tvm.runtime.Module:
    """One module of machine code for all functions."""
    bound = tirx.transform.BindTarget(target.with_host(target))(tvm.IRModule(dict(functions)))
    with target:
        lowered = tvm.ir.transform.Sequential(list(PASSES))(bound)
    return tvm.get_global_func("target.build.llvm")(lowered, target)
