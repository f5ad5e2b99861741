"""What may be chosen in a kernel: spaces, pruning, keys, and every choice gives the same values."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
import tvm
from ferrule.codegen.backend import KernelBody, cpu_backend
from ferrule.codegen.space import DEFAULT, Bucket, Choice, Sample, Space, prune
from ferrule.codegen.tvm.build import build_candidates, build_library, canonical, tunable
from ferrule.codegen.tvm.row_tiles import BUCKETS, FEW, MANY, ONE, SOME
from ferrule.compiler.reference import evaluate
from ferrule.ir.errors import IRError
from ferrule.ir.graph import Graph
from ferrule.ir.ops import quantized, serving
from ferrule.ir.ops import tensor as t
from ferrule.ir.target import Target
from ferrule.passes.layout_codes import PackedCodes
from ferrule.passes.weight_formats import Format
from ferrule.runtime.tiles import allow_tiles
from kernels import Kernels, T, as_array, compare, drawn, given, value_of

CPU = Target.parse("cpu")
allow_tiles()  # a machine without tiles has no kernels with them


@dataclass(frozen=True)
class Tile:
    rows: int = 4
    columns: int = 2


def linear(dtype: str = "f32", rows: object = T) -> Graph:
    x, w = given("x", dtype, rows, 96), given("w", dtype, 3, 96, 16)
    return Graph("linear", (x, w), (serving.packed_linear(x, w, n=40, layout="n16"),))


def integer() -> Graph:
    form, layout = Format.parse("int4-g32"), cpu_backend(CPU).layouts["u4"]
    codes, scale, _ = form.quantized(given("weight", "f32", 48, 128))
    packed = PackedCodes.of(codes, scale, layout)
    q, s = (given(n, v.dtype, *v.shape) for n, v in (("q", packed.codes), ("s", packed.scale)))
    x, xs = given("x", "i8", T, 4, 32), given("xs", "f32", T, 4)
    y = quantized.packed_integer_linear(
        x, xs, q, s, n=48, offset=form.offset, layout=packed.layout.word, dtype="f32"
    )
    return Graph("integer", (x, xs, q, s), (y,))


def pairs() -> Graph:
    x, w = given("x", "bf16", T, 1200), given("w", "bf16", 3, 600, 16, 2)
    y = serving.packed_linear(x, w, n=40, layout="n16k2")
    return Graph("pairs", (x, w), (t.cast(y, dtype="f32"),))


def experts() -> Graph:
    x, w, index = given("x", "f32", T, 30), given("w", "f32", 4, 2, 30, 16), given("i", "i32", T)
    y = serving.packed_expert_linear(x, w, index, n=20, layout="n16")
    return Graph("experts", (x, w, index), (y,))


# -- choices and spaces


def test_a_choice_takes_the_place_of_a_templates_own_values():
    assert Choice.of({"rows": 6}).over(Tile()) == Tile(6, 2)
    assert DEFAULT.over(Tile()) == Tile() and str(DEFAULT) == "default"
    assert str(Choice.of({"rows": 6, "columns": 1})) == "columns 1, rows 6"
    with pytest.raises(IRError, match="'keys': the template knows rows, columns"):
        Choice.of({"keys": 32}).over(Tile())


def test_a_space_is_every_combination_that_fits_but_the_default():
    values = {"rows": (2, 4), "columns": (1, 2, 3)}
    default = Choice.of({"rows": 4, "columns": 2})
    space = Space(ONE, T, default, values, fits=lambda c: c["rows"] * c["columns"] <= 8)
    made = [(c["rows"], c["columns"]) for c in space.choices()]
    assert made == [(2, 1), (2, 2), (2, 3), (4, 1)]
    assert space.allows(default)
    assert not space.allows(Choice.of({"rows": 4, "columns": 3}))
    assert not space.allows(Choice.of({"rows": 4}))
    assert not space.allows(Choice.of({"rows": 4, "keys": 1}))


def test_pruning_keeps_what_may_be_best_likeliest_first():
    choices = [Choice.of({"rows": r}) for r in (1, 2, 3, 4)]
    predicted = {1: 1.5, 2: 1.0, 3: 1.61, 4: 1.2}
    kept = prune(choices, lambda c: predicted[c["rows"]])
    assert [c["rows"] for c in kept] == [2, 4, 1]
    assert [c["rows"] for c in prune(choices, lambda c: predicted[c["rows"]], most=1)] == [2]
    assert prune((), lambda c: 0.0) == ()


def test_samples_are_cut_to_the_step():
    bucket = Bucket("17-", 17, None, (Sample(64), Sample(512)))
    assert bucket.within(512, 4096) == (Sample(64), Sample(512))
    assert bucket.within(40, 4096) == (Sample(40),)
    assert bucket.within(16, 4096) == ()
    assert Bucket("1", 1, 1, (Sample(1, 1, 1024),)).within(8, 128) == (Sample(1, 1, 128),)


# -- the templates' spaces


def spaces(body: Graph, target: Target = CPU) -> dict[str, Space]:
    found = tunable(body, target)
    return {s.bucket.name: s for s in found.spaces} if found else {}


def test_a_linear_has_a_space_for_each_variant_and_a_fixed_number_of_rows_for_one():
    assert list(spaces(linear())) == [b.name for b in BUCKETS]
    assert list(spaces(linear(rows=5))) == [SOME.name]
    wide = spaces(linear(), Target.parse("cpu:x86-64-v4"))
    assert all(len(s.choices()) > 3 for s in wide.values())
    assert tunable(doubled(), CPU) is None


def doubled() -> Graph:
    x = given("x", "f32", T, 8)
    return Graph("g", (x,), (t.add(x, x),))


def test_narrow_machines_have_smaller_tiles():
    wide = spaces(linear(), Target.parse("cpu:x86-64-v4"))[SOME.name].choices()
    narrow = spaces(linear(), Target.parse("cpu:x86-64-v3"))[SOME.name].choices()
    assert max(c["rows"] * c["columns"] for c in narrow) <= 8
    assert max(c["rows"] * c["columns"] for c in wide) > 16


def test_the_model_prefers_tiles_that_use_what_they_load():
    space = spaces(linear(), Target.parse("cpu:x86-64-v4"))[SOME.name]

    def operations(rows: int, columns: int, tokens: int = 480) -> float:
        choice = Choice.of({"rows": rows, "columns": columns, "unroll": 1})
        return space.burden(choice, tokens).operations

    assert operations(4, 1) > operations(8, 2)  # too few sums in flight
    assert operations(8, 2, 9) > operations(5, 2, 9)  # rows of the second tile missing
    big = given("w", "f32", 3, 1 << 16, 16)
    x = given("x", "f32", T, 1 << 16)
    body = Graph("g", (x, big), (serving.packed_linear(x, big, n=40, layout="n16"),))
    found = spaces(body, replace(CPU, l2_bytes=1 << 20))[SOME.name]
    choice = Choice.of({"rows": 8, "columns": 2, "unroll": 1})
    assert found.burden(choice, 64).bytes == 8 and space.burden(choice, 64).bytes == 1


def test_a_key_changes_with_text_target_and_template(monkeypatch: pytest.MonkeyPatch):
    def digest(body: Graph, target: Target = CPU) -> str:
        found = tunable(body, target)
        assert found is not None
        return found.digest

    first = digest(linear())
    renamed = Graph("other", linear().inputs, linear().outputs)
    assert digest(renamed) == first
    others = {
        digest(experts()),
        digest(linear("f64")),
        digest(linear(), Target.parse("cpu:x86-64-v3")),
    }
    assert first not in others and len(others) == 3
    monkeypatch.setattr("ferrule.codegen.tvm.register_tiles.PARALLEL_FROM", 1)
    assert digest(linear()) != first


# -- what is built


def some(space: Space, count: int) -> list[Choice]:
    """A few choices from all over a space, both ends among them."""
    every = space.choices()
    step = max(1, (len(every) - 1) // (count - 1))
    return [every[i] for i in range(0, len(every), step)] + [every[-1]]


@pytest.mark.parametrize("make", [linear, integer, pairs, experts, lambda: linear("f64")])
def test_every_choice_gives_the_same_values(make, tmp_path):
    body = canonical(make())
    needed = {"integer": "avx512_vnni", "pairs": "avx512_bf16"}.get(make.__name__)
    if needed and not CPU.has(needed):
        pytest.skip(f"no {needed} here")
    for name, space in spaces(body).items():
        choices = some(space, 4)
        path = str(tmp_path / f"{name}.so")
        faults = build_candidates(body, CPU, name, choices, path)
        assert len(faults) < len(choices) / 2, faults
        library = tvm.runtime.load_module(path)
        for at in set(range(len(choices))) - set(faults):
            for tokens in (1, 3, 5, 16, 17, 29):
                check(body, library[f"c{at}"], tokens)


def check(body: Graph, function, tokens: int) -> None:
    """A function against the reference value of its body, on fresh inputs and poisoned outputs."""
    limits = {"i32": lambda shape: drawn("i32", shape).abs() % 4}
    values = [
        value_of(i, {i["name"]: limits[i.dtype]} if i.dtype in limits else {}, {"T": tokens})
        for i in body.inputs
    ]
    (want,) = evaluate(body, [v.clone() for v in values], {}, {"T": tokens}, wide=True)
    arguments = [
        tvm.runtime.tensor(as_array(v, i)) for v, i in zip(values, body.inputs, strict=True)
    ]
    dtype = {"f64": np.float64}.get(body.outputs[0].dtype, np.float32)
    result = tvm.runtime.tensor(np.full(tuple(want.shape), np.nan, dtype))
    function(*arguments, result)
    compare("f32", torch.from_numpy(result.numpy().copy()), want, f"{body.name} at {tokens}")


def tile(rows: int) -> Choice:
    """A tile of so many rows of this machine's linear of many rows."""
    return Choice.of({**dict(spaces(linear(), CPU)[MANY.name].default.values), "rows": rows})


def test_a_library_takes_what_was_chosen_and_says_so(tmp_path):
    found = tunable(linear(), CPU)
    assert found is not None
    right, wrong = tile(4), Choice.of({"rows": 99})
    chosen = {found.digest: {MANY.name: right, FEW.name: wrong, ONE.name: DEFAULT}}
    body = {"k": KernelBody(linear())}
    report = build_library(body, CPU, tmp_path / "tuned.so", chosen)["k"]
    plain = build_library(body, CPU, tmp_path / "plain.so")["k"]
    assert report.digest == plain.digest == found.digest
    assert report.choices == {MANY.name: right} and plain.choices == {}
    assert report.source() != plain.source()


def test_a_candidate_that_cannot_be_built_is_named_and_the_others_are(tmp_path):
    choices = [tile(4), Choice.of({"depth": 1})]
    faults = build_candidates(canonical(linear()), CPU, MANY.name, choices, str(tmp_path / "c.so"))
    assert faults.keys() == {1} and "the template knows rows, columns" in faults[1]
    library = tvm.runtime.load_module(str(tmp_path / "c.so"))
    check(canonical(linear()), library["c0"], 21)


def test_kernels_without_a_choice_are_as_they_were():
    kernels = Kernels("cpu", {"a": linear(), "b": doubled()})
    assert kernels.reports["a"].digest and kernels.reports["b"].digest == ""
    for name in ("a", "b"):
        kernels.check(name, T=5)
