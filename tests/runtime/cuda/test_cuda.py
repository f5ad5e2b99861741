"""The CUDA runtime without a GPU: what the driver is asked to do, argument by argument."""

from __future__ import annotations

import ctypes
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from fake_cuda import FakeCuda, Launched
from ferrule.ir.launches import (
    FED,
    FEED,
    Binary,
    Form,
    Function,
    Launch,
    LaunchTable,
    Pointer,
    Solve,
)
from ferrule.ir.plan import Argument, CacheSpec, Call, Entry, Plan, PlanError, TensorSpec
from ferrule.runtime.cuda.binding import Binding
from ferrule.runtime.cuda.device import CudaDevice
from ferrule.runtime.cuda.executor import CudaExecutor, filled_up, pools_that_fit
from ferrule.runtime.cuda.memory import Arena
from ferrule.runtime.cuda.opening import runs
from ferrule.runtime.cuda.uploads import upload
from ferrule.runtime.errors import ArtifactError, StepError
from ferrule.runtime.executor import Batch
from ferrule.runtime.pools import Pools

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


def table(*, feeds: bool = True) -> LaunchTable:
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
    feed = Function("f.py", 1, {"T": Solve(0, 0)}, (), (Form(None, (_feed(),)),))
    binaries[FEED] = Binary("feed.cubin", FEED, 128, hidden=2)
    fed = {FEED: feed} if feeds else {}
    return LaunchTable({"embed": embed, "head": head, **fed}, binaries, 1024)


def _feed() -> Launch:
    pointers = tuple(Pointer("argument", i, "i32") for i in range(4))
    return Launch(FEED, pointers, ("T",), (("//", ("+", "T", 1023), 1024),))


SIZES = {
    "embed_few": [8, 8, 8, 4, 8], "embed_many": [8, 8, 4, 8], "split": [8, 8, 8],
    "joined": [8, 8, 4, 4, 8], FEED: [8, 8, 8, 8, 4, 8, 8],
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
    return [(at.symbol, at.grid, at.threads, at.shared, list(at.values)) for at in fake.launched]


def test_a_mixed_step_launches_each_form_with_packed_arguments(fake, executor):
    executor.step(batch(5, 2))
    arena, base = executor.arena, executor._base
    hidden = base + arena.workspace + 256
    tokens, weight = base + arena.steps["tokens"], base + arena.weights["w"]
    scratch, logits = base + arena.scratch, base + arena.steps["logits"]
    assert launches(fake) == [
        ("embed_few", (2, 2, 1), 128, 64, [tokens, weight, hidden, 5, 0]),
        ("split", (2, 1, 2), 128, 64, [hidden, scratch, 0]),
        ("joined", (2, 1, 1), 128, 64, [scratch, logits, 2, 5, 0]),
        ("split", (2, 1, 2), 128, 64, [hidden, scratch, 0]),
    ]


def test_more_rows_take_another_form(fake, executor):
    executor.step(batch(9, 2))
    assert launches(fake)[0][0] == "embed_many"
    assert fake.attributes == {"embed_many": 100 << 10}


def test_decode_steps_of_a_bucket_are_captured_once_and_replayed(fake, executor):
    for _ in range(3):
        argmax, logits = executor.step(batch(3, 3))
        assert argmax.shape == (3,) and logits.shape == (3, V)
    names = [c for c in fake.calls if c != "cuCtxSetCurrent"]
    assert names.count("cuGraphInstantiateWithFlags") == 1 and names.count("cuGraphLaunch") == 3
    # Filled up to four; a launch that single tokens have no use for is left out.
    assert [c[0] for c in launches(fake)] == [FEED, "embed_few", "split", "joined"] * 3
    assert launches(fake)[1][4][-2] == 4
    begin = names.index("cuStreamBeginCapture_v2")
    assert names[begin + 1 : begin + 5] == ["cuLaunchKernel"] * 4
    assert names[begin + 5] == "cuStreamEndCapture"


def test_inputs_reach_the_device_in_two_copies_as_they_were_when_the_step_was_begun(fake, executor):
    seen: list[tuple[list[int], list[list[int]], list[int]]] = []

    def embed(launch: Launched) -> None:
        if launch.symbol == "embed_few":
            arena = executor.arena
            at = {n: executor._base + arena.steps[n] for n in ("tokens", "block_table", FED)}
            count = launch.values[-2]
            seen.append((ints(at["tokens"], count), [ints(at["block_table"], 3)],
                         ints(at[FED], count)))  # fmt: skip

    fake.runs = embed
    copies = fake.calls.count("cuMemcpyHtoDAsync_v2")
    first = executor.submit(batch(5, 2))
    second = executor.submit(replace(batch(4, 2), tokens=[9, 8, 7, 6], fed=[-1, -1, -1, 0]))
    # Nothing has been waited for, so that nothing has happened; the third waits for the first.
    assert not fake.launched and fake.calls.count("cuMemcpyHtoDAsync_v2") == copies + 4
    third = executor.submit(batch(6, 2))
    for flight in (first, second, third):
        executor.collect(flight)
    assert seen == [
        ([0, 1, 2, 3, 4], [[1, 2, 0]], [-1] * 5),
        ([9, 8, 7, 6], [[1, 2, 0]], [-1, -1, -1, 0]),
        ([0, 1, 2, 3, 4, 5], [[1, 2, 0]], [-1] * 6),
    ]
    assert [a.symbol for a in fake.launched].count(FEED) == 1


def test_tokens_are_there_when_they_are_collected_and_not_before(fake, executor):
    def head(launch: Launched) -> None:
        if launch.symbol == "joined":
            put(executor._base + executor.arena.steps["argmax"], len(fake.launched), 2)

    fake.runs = head
    first, second = executor.submit(batch(5, 2)), executor.submit(batch(5, 2))
    assert executor.collect(first)[0].tolist() == [3, 3]
    assert len(fake.launched) == 4  # the second has not begun
    assert executor.collect(second)[0].tolist() == [7, 7]
    assert executor.collect(first)[0].tolist() == [3, 3]


def test_tables_of_blocks_that_grow_shrink_and_change_hands_are_written_anew(fake, executor):
    seen: list[list[int]] = []

    def embed(launch: Launched) -> None:
        if launch.symbol.startswith("embed"):
            seen.append(ints(executor._base + executor.arena.steps["block_table"], 6))

    fake.runs = embed
    for tables in ([[1], [2, 3]], [[1], [2, 3]], [[1, 4], [2]], [[5, 4], [2]], [[1, 4, 5], [2]]):
        executor.step(replace(batch(5, 2), block_table=tables))
    assert seen == [[1, 0, 0, 2, 3, 0]] * 2 + [[1, 4, 0, 2, 0, 0], [5, 4, 0, 2, 0, 0],
                                              [1, 4, 5, 2, 0, 0]]  # fmt: skip


def test_page_locked_memory_of_logits_is_taken_when_somebody_reads_them(fake, executor):
    before = sum(map(len, fake.locked.values()))
    executor.step(replace(batch(5, 2), wants_logits=False))
    assert sum(map(len, fake.locked.values())) == before
    executor.step(batch(5, 2))
    assert sum(map(len, fake.locked.values())) == before + 4 * V * 4


def ints(address: int, count: int) -> list[int]:
    return list((ctypes.c_int32 * count).from_address(address))


def put(address: int, value: int, count: int) -> None:
    (ctypes.c_int32 * count).from_address(address)[:] = [value] * count


def test_a_table_without_what_feeds_tokens_takes_no_step_behind_another(fake, tmp_path):
    made = table(feeds=False)
    for binary in made.binaries.values():
        (tmp_path / binary.file).write_bytes(b"code")
    weights = {"w": np.zeros((V, 8), np.uint16)}
    device = CudaDevice(library=fake)
    plain = CudaExecutor(plan(), made, weights, Pools(6, 0), device, tmp_path)
    assert not plain.feeds
    with pytest.raises(PlanError, match="no 'feed_tokens' among the launches"):
        plain.step(replace(batch(5, 2), fed=[0] * 5))
    plain.step(batch(3, 3))


def test_any_thread_may_run_a_step(executor):
    with ThreadPoolExecutor(1) as other:
        for size in (5, 3):
            other.submit(executor.step, batch(size, min(size, 3))).result()
        other.submit(executor.write_blocks, [1], (np.zeros((1, 4, 4), np.uint16),)).result()
        other.submit(executor.copy_block, 1, 2).result()


def test_weights_go_up_in_pieces_through_buffers_that_are_used_again(fake):
    device = CudaDevice(library=fake)
    random = np.random.default_rng(0)
    arrays = [random.integers(0, 256, n, np.uint8) for n in (1, 70, 640, 64, 1000)]
    places = [device.allocate(a.nbytes) for a in arrays]
    upload(device, zip(places, arrays, strict=True), piece=64, threads=2)
    for place_, array in zip(places, arrays, strict=True):
        found = np.empty_like(array)
        device.read(place_, found)
        assert (found == array).all()
    assert not fake.locked


def test_everything_is_given_back_at_the_end(fake, executor):
    executor.step(batch(3, 3))
    executor.samples = True
    executor.step(batch(5, 2))
    executor.close()
    executor.driver.close()
    executor.driver.close()
    assert not fake.live and not fake.locked and not fake.allocated


def test_a_capture_that_fails_names_the_kernel_and_leaves_the_stream_usable(fake, executor):
    fake.fails["cuLaunchKernel"] = 719
    with pytest.raises(StepError, match=r"kernel 'feed_tokens'.*\(error 719\)"):
        executor.step(batch(3, 3))
    fake.fails.clear()
    executor.step(batch(3, 3))
    assert [a.symbol for a in fake.launched] == [FEED, "embed_few", "split", "joined"]


def test_machine_code_that_the_device_does_not_take_is_named(fake):
    device = CudaDevice(library=fake)
    fake.fails["cuModuleLoadData"] = 209
    with pytest.raises(StepError, match=r"machine code 'split': cuModuleLoadData.*\(error 209\)"):
        device.load([("split", table().binaries["split"], b"code")])


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
    assert pools_that_fit(plan(), table(), room, 80).blocks == 2
    with pytest.raises(ArtifactError, match=r"64 bytes, as asked, beside \d+ of weights"):
        pools_that_fit(plan(), table(), fixed + 256 + 63, 80)


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


def test_a_grid_that_no_gpu_has_is_refused_before_it_is_launched():
    grid = Launch("e", (Pointer("argument", 0, "bf16"),), ("T",), (4, "T"), entry="deep")
    function = Function("e.py", "T", {"T": Solve(0, 0)}, (), (Form(None, (grid,)),))
    made = LaunchTable({"embed": function}, {"e": Binary("e.cubin", "e", 32)})
    binding = Binding(Plan({"main": Entry(())}, {}), made, lambda a: 0, 0)
    call = Call("embed", (HIDDEN,))
    assert binding.of_call(call, {"T": (1 << 16) - 1})[0].grid == (4, (1 << 16) - 1, 1)
    with pytest.raises(PlanError, match=r"embed: deep would take 4 x 65536 x 1 programs"):
        binding.of_call(call, {"T": 1 << 16})


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
    names = fake.calls
    assert names.count("cuEventElapsedTime") == len(sample.seconds)
    # One launch of the first call, two of the second: a millisecond each.
    assert sample.seconds == pytest.approx([1e-3, 2e-3])
