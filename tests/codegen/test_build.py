"""One library for all kernels: equal bodies once, errors that name the kernel, generated text,
costs, the stated ops.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping

import pytest
import tvm
from ferrule.codegen.backend import KernelBody, cpu_backend
from ferrule.codegen.cost import cost_of
from ferrule.codegen.expand import RULES
from ferrule.codegen.tvm import CodegenError, build, build_library
from ferrule.codegen.tvm.build import ANCHORS, canonical
from ferrule.codegen.tvm.function import build_function
from ferrule.codegen.tvm.isa import isa_of, tvm_target
from ferrule.codegen.tvm.lower import compile_functions
from ferrule.codegen.tvm.objects import Objects
from ferrule.codegen.tvm.pull import BY_INDEX
from ferrule.codegen.tvm.rows import LOOPS
from ferrule.ir.dims import dim
from ferrule.ir.graph import Graph
from ferrule.ir.ops import model, serving
from ferrule.ir.ops import tensor as t
from ferrule.ir.target import Target
from ferrule.ir.text import print_graph
from kernels import Kernels, T, given

GOLDEN = pathlib.Path(__file__).parent / "golden"


def add_norm(layer: int) -> Graph:
    x, r, w = (
        given(f"x{layer}", "f32", T, 64),
        given(f"r{layer}", "f32", T, 64),
        given(f"layers.{layer}.w", "f32", 64),
    )
    h = t.add(x, r)
    return Graph(f"layer{layer}", (x, r, w), (h, model.rms_norm(h, w, eps=1e-5)))


def linear() -> Graph:
    x, w = given("x", "f32", T, 32), given("w", "f32", 2, 32, 16)
    return Graph("linear", (x, w), (t.relu(serving.packed_linear(x, w, n=32, layout="n16")),))


def test_equal_bodies_are_compiled_once() -> None:
    kernels = Kernels("cpu", {"a": add_norm(0), "b": add_norm(1), "c": linear()})
    assert {n: r.function for n, r in kernels.reports.items()} == {"a": "a", "b": "a", "c": "c"}
    for name in ("a", "b", "c"):
        kernels.check(name, T=3)


def test_a_swap_of_input_names_is_another_order_not_another_kernel() -> None:
    x0, x1 = given("x0", "f32", T, 4), given("x1", "f32", T, 4)
    one, two = Graph("g", (x0, x1), (t.sub(x0, x1),)), Graph("g", (x1, x0), (t.sub(x1, x0),))
    assert canonical(one) == canonical(two)


def test_a_body_that_cannot_be_compiled_is_named() -> None:
    x = given("x", "f32", T, 4)
    body = Graph(
        "odd", (x,), (t.mul(x, t.cast(t.dim_value(dim=dim("Q"), dtype="i64"), dtype="f32")),)
    )
    with pytest.raises(
        CodegenError, match=r"kernel lonely: dim Q is in no shape.*(?s:.)*dim_value"
    ):
        build_library({"lonely": KernelBody(body)}, Target.parse("cpu"), "unwritten.so")


def test_a_layout_that_the_target_cannot_read_is_refused() -> None:
    x, w = given("x", "bf16", T, 32), given("w", "bf16", 2, 16, 16, 2)
    body = Graph("g", (x, w), (serving.packed_linear(x, w, n=32, layout="n16k2"),))
    with pytest.raises(CodegenError, match=r"n16k2 needs avx512_bf16"):
        build_library({"k": KernelBody(body)}, Target.parse("cpu:x86-64-v3"), "unwritten.so")


def test_a_machine_without_a_linker_is_told_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(build.shutil, "which", lambda _: None)
    with pytest.raises(CodegenError, match=r"no linker.*binutils"):
        build.link("out.so", ["a.o"])


def test_every_op_that_the_backend_states_has_an_emitter() -> None:
    stated = {o for template in cpu_backend(Target.parse("cpu")).templates.values()
              for o in template.anchors | template.prologue | template.epilogue}  # fmt: skip
    known = BY_INDEX | set(LOOPS) | set(ANCHORS) | set(RULES) | {"item"}
    assert stated <= known, f"no emitter: {sorted(stated - known)}"


def test_costs_are_formulas_of_the_dims() -> None:
    tokens = dim("T")
    assert cost_of(linear()).operations == 2 * tokens * 32 * 32 + tokens * 32
    table, ids = given("table", "bf16", 1000, 64), given("ids", "i32", T)
    taken = cost_of(Graph("g", (table, ids), (t.take(table, ids, axis=0),)))
    assert (taken.bytes_read, taken.bytes_written) == (tokens * (64 * 2 + 4), tokens * 64 * 2)


@pytest.mark.parametrize("name", ["add_norm", "linear"])
def test_generated_text_is_as_it_was(name: str) -> None:
    """A change of the generated code is seen as a change of these files."""
    body = canonical({"add_norm": add_norm(0), "linear": linear()}[name])
    source = build_function("k", body, isa_of(Target.parse("cpu:x86-64-v4")), ANCHORS).script()
    header = "".join(f"# {line}\n" for line in print_graph(body).splitlines())
    path = GOLDEN / f"{name}.py.txt"
    assert path.read_text() == header + source + "\n"


def test_a_function_that_was_compiled_is_not_compiled_again(tmp_path: pathlib.Path) -> None:
    def made(name: str, eps: float) -> int:
        x, w = given("x", "f32", T, 72), given("w", "f32", 72)
        kernel = KernelBody(Graph("norm", (x, w), (model.rms_norm(x, w, eps=eps),)))
        before = build.OBJECTS.made
        build_library({name: kernel}, Target.parse("cpu"), tmp_path / "kernels.so")
        return build.OBJECTS.made - before

    made("once", 3e-12)
    assert made("once", 3e-12) == 0
    assert made("once", 3.1e-12) == 1  # a number is told from its neighbours
    assert made("another", 3e-12) == 1  # a library finds its functions by their names


def test_a_function_that_does_not_compile_ends_the_build(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Functions are compiled on threads of their own, and whoever builds hears of it."""

    def failing(functions: Mapping[str, tvm.tirx.PrimFunc], target: object) -> tvm.runtime.Module:
        if "a" in functions:
            raise ValueError("no code for a")
        return compile_functions(functions, tvm_target(Target.parse("cpu")))

    monkeypatch.setattr(build, "OBJECTS", Objects(failing))
    kernels = {"a": KernelBody(linear()), "b": KernelBody(add_norm(0))}
    with pytest.raises(CodegenError, match=r"kernel a: no code for a\ngraph "):
        build_library(kernels, Target.parse("cpu"), tmp_path / "kernels.so")
    assert not list(tmp_path.iterdir())


def test_the_object_files_that_were_asked_for_last_are_kept() -> None:
    target = Target.parse("cpu")

    def functions(name: str) -> dict[str, object]:
        return {name: build_function(name, canonical(linear()), isa_of(target), ANCHORS)}

    objects = Objects(compile_functions, most=2)
    for name, made in (("a", 1), ("b", 2), ("a", 2), ("c", 3), ("a", 3), ("b", 4)):
        assert objects.of(functions(name), tvm_target(target)).startswith(b"\x7fELF")
        assert objects.made == made, name
