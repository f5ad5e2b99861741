"""The CUDA runtime without a GPU: what the driver is asked to do, argument by argument."""

from __future__ import annotations

import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from ferrule.ir.launches import Binary, Form, Function, Launch, LaunchTable, Pointer, Solve
from ferrule.ir.plan import Argument, CacheSpec, Call, Entry, Plan, PlanError, TensorSpec
from ferrule.runtime.cuda.device import CudaDevice
from ferrule.runtime.cuda.executor import CudaExecutor, filled_up, pools_that_fit
from ferrule.runtime.cuda.memory import Arena
from ferrule.runtime.cuda.opening import runs
from ferrule.runtime.errors import ArtifactError, StepError
from ferrule.runtime.executor import Batch
from ferrule.runtime.pools import Pools

sys.path.insert(0, str(Path(__file__).parent))

from fake_cuda import FakeCuda

V = 32
TOKENS = Argument("input", "tokens", 0, "i32", ("T",))
ROWS = Argument("input", "logit_rows", 0, "i32", ("R",))
TABLE = Argument("input", "block_table", 0, "i32", ("N", "M"))
SLOTS = Argument("input", "slots", 0, "i32", ("T",))
WEIGHT = Argument("weight", "w", 0, "bf16", (V, 8))
HIDDEN = Argument("workspace", None, 256, "bf16", ("T", 8))
CACHE = Argument("cache", "k", 0, "bf16", ("C", 4, 4))
LOGITS = Argument("result", "logits", 0, "f32", ("R", V))
ARGMAX = Argument("result", "argmax", 0, "i32", ("R",))


def plan() -> Plan:
    calls = (
        Call("embed", (TOKENS, WEIGHT, SLOTS, TABLE, CACHE, HIDDEN)),
        Call("head", (HIDDEN, ROWS, LOGITS, ARGMAX)),
    )
    results = tuple(TensorSpec(a.name or "", a.dtype, a.shape) for a in (LOGITS, ARGMAX))
    inputs = tuple(TensorSpec(a.name or "", a.dtype, a.shape) for a in (TOKENS, SLOTS, ROWS, TABLE))
    entry = Entry(calls, inputs, results)
    dims = {"T": (1, 16), "N": (1, 4), "R": (1, 4), "M": (1, 3)}
    return Plan(
        {"decode": entry, "mixed": entry}, dims, (CacheSpec("k", "bf16", (4,)),), 4,
        workspace_bytes=512 + 1024, limits={"max_context": 12, "max_batch": 4},
    )  # fmt: skip


def table() -> LaunchTable:
    x, w, y = (Pointer("argument", i, "bf16") for i in (0, 1, 5))
    few = Launch("embed_few", (x, w, y), ("T",), (("//", ("+", "T", 3), 4), 2))
    many = Launch("embed_many", (x, y), ("T",), ("T",))
    part = Pointer("scratch", 0, "fp32")
    split = Launch("split", (Pointer("argument", 0, "bf16"), part), (), ("R", 1, 2))
    joined = Launch("joined", (part, Pointer("argument", 2, "fp32")), ("R", "T"), ("R",))
    idle = replace(split, unless=("T", "R"))
    embed = Function("e.py", "T", {"T": Solve(0, 0)}, (), (Form(8, (few,)), Form(None, (many,))))
    dims = {"T": Solve(0, 0), "R": Solve(1, 0)}
    head = Function("h.py", 1, dims, (("*", "R", 256),), (Form(None, (split, joined, idle)),))
    names = ("embed_few", "embed_many", "split", "joined")
    binaries = {n: Binary(f"{n}.cubin", n, 128, shared=64, hidden=1) for n in names}
    binaries["embed_many"] = replace(binaries["embed_many"], shared=100 << 10)
    return LaunchTable({"embed": embed, "head": head}, binaries, 1024)


SIZES = {
    "embed_few": [8, 8, 8, 4, 8], "embed_many": [8, 8, 4, 8], "split": [8, 8, 8],
    "joined": [8, 8, 4, 4, 8],
}  # fmt: skip


@pytest.fixture
def fake():
    return FakeCuda(SIZES)


@pytest.fixture
def executor(fake: FakeCuda, tmp_path: Path):
    made = table()
    for binary in made.binaries.values():
        (tmp_path / binary.file).write_bytes(b"code")
    weights = {"w": np.arange(V * 8, dtype=np.uint16).reshape(V, 8)}
    return CudaExecutor(plan(), made, weights, Pools(6, 0), CudaDevice(library=fake), tmp_path)


def batch(tokens: int, sequences: int) -> Batch:
    starts = [0, *range(tokens - sequences + 1, tokens + 1)]
    return Batch(
        tokens=list(range(tokens)), positions=[0] * tokens, query_start=starts,
        context_length=[1] * sequences, block_table=[[1, 2]] * sequences, slots=[4] * tokens,
        logit_rows=[s - 1 for s in starts[1:]],
    )  # fmt: skip


def launches(fake: FakeCuda) -> list[tuple[object, ...]]:
    return [c[1:] for c in fake.calls if c[0] == "launch"]


def test_a_mixed_step_launches_each_form_with_packed_arguments(fake, executor):
    executor.step(batch(5, 2))
    arena, base = executor.arena, executor._base
    hidden = base + arena.workspace + 256
    tokens, weight = base + arena.steps["tokens"], base + arena.weights["w"]
    scratch, logits = base + arena.scratch, base + arena.steps["logits"]
    assert launches(fake) == [
        ("embed_few", (2, 2, 1, 128, 1, 1), 64, [tokens, weight, hidden, 5, 0]),
        ("split", (2, 1, 2, 128, 1, 1), 64, [hidden, scratch, 0]),
        ("joined", (2, 1, 1, 128, 1, 1), 64, [scratch, logits, 2, 5, 0]),
        ("split", (2, 1, 2, 128, 1, 1), 64, [hidden, scratch, 0]),
    ]


def test_more_rows_take_another_form(fake, executor):
    executor.step(batch(9, 2))
    assert launches(fake)[0][0] == "embed_many"
    assert ("embed_many", 8, 100 << 10) in fake.attributes


def test_decode_steps_of_a_bucket_are_captured_once_and_replayed(fake, executor):
    for _ in range(3):
        argmax, logits = executor.step(batch(3, 3))
        assert argmax.shape == (3,) and logits.shape == (3, V)
    names = [c[0] for c in fake.calls if c[0] != "cuCtxSetCurrent"]
    assert names.count("instantiate") == 1 and names.count("replay") == 3
    # Filled up to four; a launch that single tokens have no use for is left out.
    assert [c[0] for c in launches(fake)] == ["embed_few", "split", "joined"]
    assert launches(fake)[0][3][-2] == 4
    begin = names.index("cuStreamBeginCapture_v2")
    assert names[begin + 1 : begin + 4] == ["launch"] * 3
    assert names[begin + 4] == "cuStreamEndCapture"


def test_added_sequences_write_nothing_and_read_the_first_block():
    filled = filled_up(batch(3, 3), 4)
    assert list(filled.query_start) == [0, 1, 2, 3, 4]
    assert filled.slots == [4, 4, 4, -1] and filled.block_table[-1] == [0]
    assert filled.context_length[-1] == 1 and list(filled.logit_rows) == [0, 1, 2, 3]


def test_weights_lie_where_launches_look_for_them(executor):
    found = np.empty((V, 8), np.uint16)
    executor.driver.read(executor._base + executor.arena.weights["w"], found)
    assert (found == np.arange(V * 8).reshape(V, 8)).all()


def test_blocks_are_copied_read_and_written(executor):
    content = np.arange(2 * 4 * 4, dtype=np.uint16).reshape(2, 4, 4)
    executor.write_blocks([1, 3], (content,))
    executor.copy_block(3, 5)
    (found,) = executor.read_blocks([5, 1])
    assert (found == content[::-1]).all()


def test_the_arena_is_exact_and_nothing_in_it_overlaps():
    arena = Arena.of(plan(), table(), Pools(6, 0))
    assert arena.scratch == arena.workspace + 512
    weights = [(a, 512) for a in arena.weights.values()]
    others = [
        (arena.workspace, 1536),
        (arena.caches["k"], 6 * 32),
        (arena.steps["logits"], 4 * V * 4),
    ]
    starts = sorted([*weights, *others])
    for (a, size), (b, _) in pairwise(starts):
        assert a + size <= b
    assert arena.size >= starts[-1][0] + starts[-1][1] and arena.size % 256 == 0


def test_the_cache_takes_what_is_left_beside_the_exact_rest():
    fixed = Arena.of(plan(), table(), Pools(0, 0)).size
    room = fixed + 256 + 5 * 32 + 31
    assert pools_that_fit(plan(), table(), room, None).blocks == 5
    with pytest.raises(ArtifactError, match="holds no block of 32 bytes"):
        pools_that_fit(plan(), table(), fixed, None)
    # A full batch of full contexts wants twelve.
    assert pools_that_fit(plan(), table(), 1 << 30, None).blocks == 12
    assert pools_that_fit(plan(), table(), 0, 80).blocks == 2


def test_a_table_is_read_as_it_was_written():
    assert LaunchTable.from_json(table().to_json()) == table()
    with pytest.raises(PlanError, match="launches of format 9"):
        LaunchTable.from_json(table().to_json().replace('"format": 1', '"format": 9'))
    with pytest.raises(PlanError, match="cannot be read"):
        LaunchTable.from_json("{}")


def test_errors_name_the_call_the_kernel_and_the_reason(fake, executor):
    fake.fails["cuLaunchKernel"] = 700
    with pytest.raises(StepError, match=r"kernel 'embed_few'.*out of order \(error 700\)"):
        executor.step(batch(5, 2))


def test_a_step_beyond_the_plan_is_refused(executor):
    with pytest.raises(PlanError, match="a step with T = 17: the plan has 1 to 16"):
        executor.step(batch(17, 2))


@pytest.mark.parametrize(
    ("have", "wanted", "good"),
    [("sm_90", "sm_90", True), ("sm_86", "sm_80", True), ("sm_80", "sm_86", False),
     ("sm_90", "sm_80", False), ("sm_100", "sm_90", False), ("sm_103", "sm_100", False)],
)  # fmt: skip
def test_machine_code_runs_on_its_own_kind_of_device(have: str, wanted: str, good: bool):
    assert runs(have, wanted) is good


def test_logits_that_nobody_reads_stay_on_the_device(executor):
    batch = Batch([5], [0], [0, 1], [1], [[0]], [0], [0], wants_logits=False)
    argmax, logits = executor.step(batch)
    assert argmax.shape == (1,) and logits.shape == (1, executor.vocabulary)
    assert not logits.any()


def test_a_step_is_timed_call_by_call_where_somebody_asks(fake, executor):
    executor.samples = True
    executor.step(Batch([5], [0], [0, 1], [1], [[0]], [0], [0]))
    sample = executor.sample
    assert sample is not None and sample.entry == "decode" and not executor.samples
    assert len(sample.seconds) == len(executor.plan.entries["decode"].calls)
    assert sample.dims["T"] == 1 and sample.dims["L"] == 1
    names = [c[0] for c in fake.calls]
    assert (
        names.count("cuEventRecord") == names.count("cuEventDestroy_v2") == len(sample.seconds) + 1
    )
