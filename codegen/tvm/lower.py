"""From kernel functions to machine code: TVM's passes, less those for scheduled blocks, which
our functions have none of.

The default pipeline spends half its time looking for buffers to shrink; ours are declared at
their size. Common subexpressions are left to LLVM, which finds the same: TVM takes as long for them
as everything else together.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import tvm
from tvm import s_tir, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

PASSES = (
    s_tir.transform.StmtSimplify(),
    tirx.transform.FlattenBuffer(),
    tirx.transform.NarrowDataType(32),
    tirx.transform.VectorizeLoop(True),
    tirx.transform.StorageRewrite(),
    tirx.transform.UnrollLoop(),
    tirx.transform.StmtSimplify(),
    s_tir.transform.RewriteUnsafeSelect(),
    tirx.transform.VerifyMemory(),
    tirx.transform.AnnotateEntryFunc(),
    tirx.transform.SplitHostDevice(),
    tirx.transform.MakePackedAPI(),
    tirx.transform.LowerTVMBuiltin(),
    tirx.transform.LowerIntrin(),
)
"""In order: plain loops over flat buffers, vectors, packed functions, LLVM's intrinsics."""


WORKERS = Path(__file__).with_name("workers.ll")
"""What parallel regions run on: it is part of every library, and runtime/workers.py hires them."""


def compile_functions(
    functions: Mapping[str, tirx.PrimFunc], target: tvm.target.Target
) -> tvm.runtime.Module:
    """One module of machine code for all functions, without the workers that regions run on."""
    module = tvm.IRModule(dict(functions))
    bound = tirx.transform.BindTarget(target.with_host(target))(module)
    with target:
        lowered = tvm.ir.transform.Sequential(list(PASSES))(bound)
    return tvm.get_global_func("target.build.llvm")(lowered, target)


def workers() -> dict[str, tirx.PrimFunc]:
    """What every library has beside its functions: `ferrule_hire(count)` gives the calling thread
    workers and their handle, `ferrule_dismiss(handle)` ends them, `ferrule_run(calls, count,
    place)` makes calls in order.
    """
    hire = _calling("ferrule_hire", "int32")
    text = tvm.ir.StringImm(WORKERS.read_text(encoding="utf-8"))
    number = tirx.IntImm("int32", 0)
    hire = hire.with_body(tirx.AttrStmt(number, "pragma_import_llvm", text, hire.body))
    return {
        "ferrule_hire": hire,
        "ferrule_dismiss": _calling("ferrule_dismiss", "int64"),
        "ferrule_launch": _plain("ferrule_launch", "handle", "handle", "int32"),
        "ferrule_work": _plain("ferrule_work", "handle"),
        "ferrule_run": _plain("ferrule_run", "handle", "int32", "handle"),
    }


def _calling(name: str, given: str) -> tirx.PrimFunc:
    """The function of WORKERS that is called name_of, of one number, as one of the module's."""
    with IRBuilder() as builder, T.prim_func():
        T.func_name(name)
        T.func_attr({"global_symbol": name})
        value = T.arg("x", tirx.Var("x", given))
        T.Return(T.call_extern("int64", f"{name}_of", value))
    return _made(builder)


def _plain(name: str, *given: str) -> tirx.PrimFunc:
    """The same as what C calls; it returns 0."""
    with IRBuilder() as builder, T.prim_func():
        T.func_name(name)
        T.func_attr({"global_symbol": name, "calling_conv": 1})
        values = [T.arg(f"x{i}", tirx.Var(f"x{i}", dtype)) for i, dtype in enumerate(given)]
        T.func_ret(tvm.ir.PrimType("int32"))
        T.evaluate(T.call_extern("int32", f"{name}_of", *values))
        T.Return(tirx.IntImm("int32", 0))
    return _made(builder)


def _made(builder: IRBuilder) -> tirx.PrimFunc:
    made = builder.get()
    assert isinstance(made, tirx.PrimFunc), made
    return made
