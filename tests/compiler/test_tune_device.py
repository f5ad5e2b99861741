"""Tuning for a GPU: what may be chosen, how candidates are timed on a device, what builds and
artifacts take up. The device is a libcuda that is not there, its clock that of the test.
"""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from fake_cuda import FakeCuda, FakeProducts, Launched
from ferrule.codegen.space import DEFAULT, Choice, Sample
from ferrule.codegen.triton.candidates import LIBRARY, NAMES, template_of
from ferrule.codegen.triton.digest import text_digest, tunable
from ferrule.compiler import build, retune
from ferrule.compiler.build import Options, compile_to
from ferrule.compiler.device_trial import DeviceTrial
from ferrule.compiler.devices import DEVICES, binaries_of, device_here
from ferrule.compiler.duel import Prepared
from ferrule.compiler.errors import CompileError
from ferrule.compiler.measurer import Workers
from ferrule.compiler.records import read_records
from ferrule.compiler.trial_requests import Asked
from ferrule.compiler.tune import TuneReport
from ferrule.compiler.tune_tasks import Task
from ferrule.compiler.tuning import TUNING, tuned
from ferrule.ir.dims import dim
from ferrule.ir.graph import Graph
from ferrule.ir.launches import LAUNCHES, LaunchTable
from ferrule.ir.node import Node, input_
from ferrule.ir.ops import model as m
from ferrule.ir.ops import tensor as t
from ferrule.ir.plan import Argument
from ferrule.ir.target import Target
from ferrule.ir.types import TensorType
from ferrule.runtime.artifact import Artifact, read_plan
from ferrule.runtime.cuda import opening
from ferrule.runtime.cuda.device import CudaDevice
from ferrule.runtime.errors import ArtifactError
from ferrule.runtime.executor import Batch
from ferrule.runtime.pools import Pools
from on_double import Double
from transformers import LlamaConfig, LlamaForCausalLM

TINY = Path(__file__).resolve().parents[2] / "examples/models/tiny-llama"
HOPPER = Target.parse("cuda:sm_90")
MACHINE = replace(DEVICES["h200"], fingerprint="Fake GPU/cuda:sm_90")
BY_LIBRARY = Choice.of({"TEMPLATE": NAMES.index(LIBRARY)})
DIMS = {"T": 300}


def linear(dtype: str = "bf16", rows: object = None) -> Graph:
    """silu(x) by a weight, and something added: what the library does not do."""
    rows = dim("T") if rows is None else rows

    def given(name: str, *shape: object) -> Node:
        return input_(name=name, type=TensorType(dtype, tuple(shape)))  # type: ignore[arg-type]

    x, w, r = given("x", rows, 48), given("w", 80, 48), given("r", rows, 80)
    y = t.add(m.linear(t.mul(x, x), w), r)
    return Graph("kernel", (x, w, r), (y,), bounds={"T": (1, 512)})


# -- what may be chosen


def test_each_form_of_a_linear_has_a_space_and_those_of_many_rows_the_library() -> None:
    made = tunable(linear(), HOPPER)
    assert made is not None
    assert [s.bucket.name for s in made.spaces] == ["1", "16", "64", "128", "256", "many"]
    assert [BY_LIBRARY in s.choices() for s in made.spaces] == [False] * 3 + [True] * 3
    for space in made.spaces:
        near = space.refined(DEFAULT)
        found = (*space.choices(), *near)
        assert near and space.default not in found and len(set(found)) == len(found)
        assert all(space.allows(c) for c in found)
        template = template_of(space.default)[0]
        assert {template_of(c)[0] for c in near} == {template}
        assert space.words(space.default).startswith(f"{template} B")
    assert made.spaces[-1].words(BY_LIBRARY) == "cublas"
    assert not made.spaces[0].allows(BY_LIBRARY)
    assert not made.spaces[-1].allows(Choice.of({"rows": 3}))


def test_where_the_order_of_sums_or_the_dtype_counts_the_library_is_no_choice() -> None:
    for body, target in ((linear(), replace(HOPPER, deterministic=True)), (linear("f32"), HOPPER)):
        made = tunable(body, target)
        assert made is not None and all(BY_LIBRARY not in s.choices() for s in made.spaces)


def test_a_digest_is_of_the_text_and_the_target_whatever_the_limits() -> None:
    own = text_digest(linear(), HOPPER)
    assert own == text_digest(replace(linear(), bounds={"T": (1, 2048)}), HOPPER)
    others = (linear("f16"), HOPPER), (linear(), Target.parse("cuda:sm_80"))
    deterministic = (linear(), replace(HOPPER, deterministic=True))
    assert own not in {text_digest(b, t) for b, t in (*others, deterministic)}


# -- times on a device


def request(body: Graph, bucket: str, folder: Path) -> Asked:
    arguments = [
        Argument("input", "x", 0, "bf16", ("T", 48)), Argument("weight", "w", 0, "bf16", (80, 48)),
        Argument("workspace", None, 0, "bf16", ("T", 80)),
        Argument("workspace", None, 0, "bf16", ("T", 80)),
    ]  # fmt: skip
    return Asked(body, HOPPER, bucket, folder, tuple(arguments), 16, 1)


def test_candidates_are_timed_as_graphs_and_nothing_is_left_on_the_device(tmp_path: Path) -> None:
    tile = Choice.of({"TEMPLATE": NAMES.index("gemm"), "BM": 64, "BN": 64, "BK": 64,
                      "STAGES": 3, "WARPS": 4})  # fmt: skip
    wrong = Choice.of({**dict(tile.values), "BK": 48})

    def seconds(launch: Launched) -> float:
        return {"c0": 4e-4, "c1": 1e-4, "c2": 3e-4}[launch.symbol[:2]]

    cuda = FakeCuda(None, size=64 << 20, seconds=seconds)
    products = FakeProducts(cuda, lambda _: None, seconds=5e-5)
    asked = request(linear(), "many", tmp_path)
    trial = DeviceTrial(asked, lambda _: CudaDevice(library=cuda, products=lambda _: products))
    assert trial.compile({0: DEFAULT}) == {}
    assert trial.compile({1: BY_LIBRARY, 2: tile, 3: wrong}).keys() == {3}
    said: list[int] = []
    times = trial.times([0, 1, 2], Sample(300), DIMS, 4, said.append)
    assert said == [0, 1, 2] and [len(t) for t in times] == [4, 4, 4]
    # The library's is a launch before for silu, the product, and one behind for what is added.
    assert [t[0] for t in times] == [pytest.approx(s) for s in (4e-4, 2.5e-4, 3e-4)]
    assert cuda.calls.count("cuGraphLaunch") == 4 * 3 + 2 * 3
    assert {(p.rows, p.columns, p.depth, p.dtype) for p in products.made} == {(300, 80, 48, "bf16")}
    assert len({p.w for p in products.made}) > 1, "every call reads the same weights"
    trial.close()
    assert not (cuda.live or cuda.locked or cuda.allocated)


def test_without_the_library_its_candidate_falls_out_by_name(tmp_path: Path) -> None:
    def missing(stream: int) -> FakeProducts:
        raise ArtifactError("no torch here")

    cuda = FakeCuda(None, size=64 << 20)
    asked = request(linear(), "many", tmp_path)
    trial = DeviceTrial(asked, lambda _: CudaDevice(library=cuda, products=missing))
    assert trial.compile({0: DEFAULT, 1: BY_LIBRARY}) == {1: "no torch here"}
    assert trial.times([0], Sample(300), DIMS, 2, lambda _: None)[0] == [pytest.approx(1e-3)] * 2
    trial.close()


def test_the_process_that_measures_says_that_there_is_no_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # one that is there would be taken
    made = tunable(linear(), HOPPER)
    assert made is not None
    arguments = request(linear(), "1", Path()).arguments
    task = Task("k", "linear", 1, made, made.spaces[0], (Sample(1),), arguments, {}, 16, 1)
    workers = Workers(HOPPER)
    with pytest.raises(CompileError, match=r"k \[1\]: ArtifactError: no CUDA device here"):
        workers.on(task).prepare([DEFAULT])
    workers.end()


def test_without_a_device_tuning_says_what_it_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(arch: str) -> CudaDevice:
        raise ArtifactError("no CUDA device here: libcuda.so.1 cannot be loaded")

    monkeypatch.setattr(opening, "open_device", none)
    with pytest.raises(CompileError, match=r"cuda:sm_90 are measured on a device: no CUDA device"):
        device_here(HOPPER)
    with pytest.raises(CompileError, match="measures kernels for cpu and cuda, not for rocm"):
        retune.tune_model(TINY, Options(target="rocm:gfx942", progress=False), 1.0, Path("none"))


def test_a_device_has_the_rates_of_its_maker(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda(None)
    monkeypatch.setattr(opening, "open_device", lambda _: CudaDevice(library=cuda))
    found = device_here(HOPPER)
    assert found.fingerprint == "Fake GPU/cuda:sm_90"
    assert found.read_bandwidth == DEVICES["h100"].read_bandwidth
    assert not cuda.live


# -- builds and artifacts


class Preferring:
    """Measurers that run nothing: the library is the fastest where it is a candidate, else the last
    candidate.
    """

    def __init__(self) -> None:
        self.tasks: list[Task] = []

    def on(self, task: Task) -> Preferring:
        self.tasks.append(task)
        return self

    def prepare(self, choices: list[Choice]) -> Prepared:
        last = len(choices) - 1
        self.best = choices.index(BY_LIBRARY) if BY_LIBRARY in choices else last
        return Prepared()

    def times(self, which: list[int], sample: Sample, rounds: int) -> list[list[float]]:
        return [[0.5 if at == self.best else 1.0] * rounds for at in which]


@pytest.fixture(scope="module")
def interpreted_build(request: pytest.FixtureRequest) -> Callable[..., object]:
    """Kernels without machine code, wherever they are written."""
    patch = pytest.MonkeyPatch()
    request.addfinalizer(patch.undo)
    plain = functools.partial(build.write_binaries, machine_code=False)
    patch.setattr(build, "write_binaries", plain)
    patch.setattr(retune, "write_binaries", plain)
    patch.setattr(retune, "device_here", lambda _: MACHINE)
    patch.setattr(build, "device_here", lambda _: MACHINE)
    return plain


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, interpreted_build: object) -> Path:
    place = tmp_path_factory.mktemp("device") / "tiny"
    options = Options(target="cuda:sm_90", dtype="bfloat16", max_context=64, max_batch=2, chunk=80,
                      parity=False, progress=False)  # fmt: skip
    compile_to(model(), place, options)
    return place


def model() -> LlamaForCausalLM:
    """One layer, the same each time."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 80, "num_hidden_layers": 1,
             "num_attention_heads": 4, "num_key_value_heads": 2}  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(**sizes, max_position_embeddings=64)).bfloat16().eval()


class Won(NamedTuple):
    """An artifact that was tuned, the records of it, and the report."""

    place: Path
    records: Path
    report: TuneReport


@pytest.fixture(scope="module")
def won(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Won:
    home = tmp_path_factory.mktemp("tuned")
    place, records = Path(shutil.copytree(tiny, home / "copy")), home / "records.jsonl"
    report = retune.tune_artifact(place, 1e9, records, show_progress=False, measurers=Preferring())
    return Won(place, records, report)


def test_an_artifact_is_tuned_and_built_anew(tiny: Path, won: Won) -> None:
    place, records, report = won
    assert report.measurements and not report.faults and not report.left
    by_library = [line for line in report.lines if line.choice == "cublas"]
    assert by_library and {line.bucket for line in by_library} == {"128"}
    # Once more finds everything known, and what is built is the same.
    kept = read_records(records)
    assert len(tuned(kept, MACHINE.fingerprint)) == len({line.kernel for line in report.lines})
    assert read_records(place / TUNING).items() <= kept.items()
    again = retune.tune_artifact(place, 1e9, records, show_progress=False, measurers=Preferring())
    assert again.measurements == 0
    manifest = Artifact(place).manifest
    chosen = {n: k["choices"] for n, k in manifest["report"]["kernels"].items() if k["choices"]}
    assert {line.kernel for line in by_library} <= chosen.keys()
    products = [line for line in binaries_of(place) if line.binary == "cuBLAS"]
    assert {line.kernel for line in products} == {line.kernel for line in by_library}
    assert {line.rows for line in products} == {"65 to 128"}
    table = LaunchTable.from_json((place / LAUNCHES).read_bytes())
    assert read_plan(place / "plan.json").workspace_bytes >= table.scratch_bytes
    assert (tiny / LAUNCHES).read_text() != (place / LAUNCHES).read_text()


def test_a_tuned_artifact_gives_what_it_gave(tiny: Path, won: Won) -> None:
    count = 70  # rows of the form that has the library's products
    prompt = Batch(
        tokens=[5 + i % 90 for i in range(count)], positions=[i % 35 for i in range(count)],
        query_start=(0, 35, 70), context_length=(35, 35), block_table=[[0, 1, 2], [3, 4, 5]],
        slots=[n * 48 + i for n in range(2) for i in range(35)], logit_rows=(34, 69),
    )  # fmt: skip
    found = []
    for folder in (tiny, won.place):
        double = Double(folder, Pools(8, 0))
        found.append(np.array(double.executor.step(prompt)[1]))
        assert bool(double.products.made) == (folder is won.place)
        double.close()
    error = np.abs(found[0] - found[1]).max() / np.abs(found[0]).max()
    assert 0 < error < 0.02, error


def test_a_model_compiled_without_a_device_takes_the_records_of_one(
    won: Won, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(target: Target) -> object:
        raise CompileError("no device")

    monkeypatch.setattr(build, "device_here", none)
    known = read_records(won.records)
    assert build.tuned_device(HOPPER, known) == MACHINE.fingerprint
    assert build.tuned_device(Target.parse("cuda:sm_80"), known) == ""
    options = Options(target="cuda:sm_90", dtype="bfloat16", max_context=64, max_batch=2, chunk=80,
                      parity=False, progress=False, tuning=won.records)  # fmt: skip
    made = compile_to(model(), tmp_path / "made", options)
    found = {n: json.dumps(k["choices"]) for n, k in made.manifest["report"]["kernels"].items()}
    wanted = {n: json.dumps(k["choices"])
              for n, k in Artifact(won.place).manifest["report"]["kernels"].items()}  # fmt: skip
    assert found == wanted
