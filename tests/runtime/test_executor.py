"""Binding, limits and errors of the executors, over the toy's kernels and over none."""

import json
import mmap
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from ferrule.ir.plan import Plan, PlanError
from ferrule.runtime.artifact import load
from ferrule.runtime.engine import Engine
from ferrule.runtime.errors import ArtifactError, RequestError, StepError
from ferrule.runtime.executor import (
    Batch,
    Executor,
    ModuleExecutor,
    available_memory,
)
from ferrule.runtime.library import KernelLibrary
from ferrule.runtime.pools import Pools, pools_for
from ferrule.runtime.sampling import SamplingParams
from ferrule.runtime.tensors import allocate, release
from toys import FakeRunner, argument, toy_generate, toy_next, toy_plan


class Recorder:
    """Kernels that only remember the shapes they were called with."""

    crew = nullcontext()

    def __init__(self):
        self.calls = []

    def __getitem__(self, name):
        return lambda *tensors: self.calls.append((name, [tuple(t.shape) for t in tensors]))

    def call_list(self, calls):
        return None

    def enter_thread(self):
        pass


def plan(**changes):
    return Plan.from_json(json.dumps({**toy_plan(), **changes}))


def scale():
    array = allocate("i32", (1,))
    array[:] = 1
    return {"scale": array}


def decode(contexts):
    count = len(contexts)
    return Batch(
        tokens=[1] * count,
        positions=[c - 1 for c in contexts],
        query_start=list(range(count + 1)),
        context_length=contexts,
        block_table=[list(range(-(-c // 4))) for c in contexts],
        slots=list(range(count)),
        logit_rows=list(range(count)),
    )


def test_a_mixed_and_a_decode_step_over_real_kernels(toy_kernels):
    executor = Executor(plan(), KernelLibrary(toy_kernels), scale(), 9)
    first, second = [3, 1, 4, 1, 5, 9], [2, 6]
    argmax, logits = executor.step(
        Batch(
            tokens=first + second,
            positions=[*range(6), 0, 1],
            query_start=[0, 6, 8],
            context_length=[6, 2],
            block_table=[[7, 2], [5]],
            slots=[28, 29, 30, 31, 8, 9, 20, 21],
            logit_rows=[5, 7],
        )
    )
    assert argmax.tolist() == logits.argmax(-1).tolist() == [toy_next(first), toy_next(second)]
    argmax, _ = executor.step(
        Batch([7, 8], [2, 6], [0, 1, 2], [3, 7], [[5], [7, 2]], [22, 10], [0, 1])
    )
    assert argmax.tolist() == [toy_next([*second, 7]), toy_next([*first, 8])]


def test_tables_are_padded_to_powers_of_two_so_that_few_variants_are_bound():
    recorder = Recorder()
    executor = Executor(plan(), recorder, scale(), 20)
    widths = []
    for context in range(1, 41):
        executor.step(decode([context]))
        widths.append(next(s[1] for n, s in recorder.calls if n == "attend")[1])
        recorder.calls.clear()
    assert sorted(set(widths)) == [1, 2, 4, 8, 10]
    assert all(w * 4 >= c for c, w in enumerate(widths, 1))
    assert len(executor._binder._bound) == 5


def test_only_the_variants_used_last_are_kept():
    executor = Executor(plan(), Recorder(), scale(), 20)
    executor._binder._variants = 3
    for count in (1, 2, 3, 1, 4, 5):
        executor.step(decode([1] * count))
    assert [dict(k[1:])["N"] for k in executor._binder._bound] == [1, 4, 5]


def test_a_step_beyond_the_plan_is_refused():
    executor = Executor(plan(), Recorder(), scale(), 20)
    with pytest.raises(PlanError, match="a step with N = 9: the plan has 1 to 8"):
        executor.step(decode([1] * 9))
    with pytest.raises(PlanError, match="no dim 'M'"):
        Executor(
            plan(dims={"T": [1, 4], "N": [1, 4], "R": [1, 4]}, entries={}, limits={}),
            Recorder(),
            {},
            1,
        )
    without = plan()
    entries = {n: type(e)(e.calls[:2]) for n, e in without.entries.items()}
    with pytest.raises(PlanError, match="the plan has no result 'logits'"):
        Executor(Plan(entries, without.dims, without.caches), Recorder(), scale(), 4)


def test_a_model_without_a_cache_takes_its_limits_from_the_plan():
    calls = [c for c in toy_plan()["entries"]["decode"]["calls"] if c["kernel"] == "score"]
    entries = {"decode": {"calls": calls}, "mixed": {"calls": calls}}
    dims = {"T": [1, 16], "R": [1, 8]}
    limits = {"max_context": 30, "max_batch": 4}
    small = plan(entries=entries, dims=dims, limits=limits, caches=[])
    assert pools_for(small, None, 0) == Pools(4 * 8, 0)
    executor = Executor(small, Recorder(), {}, 32)
    assert (executor.max_batch, executor.max_context, executor.chunk) == (4, 30, 16)
    executor.step(decode([3, 30]))


def test_an_error_of_a_real_kernel_is_named(toy_kernels):
    calls = toy_plan()["entries"]["decode"]["calls"]
    calls[0]["arguments"].pop()
    broken = plan(entries={"decode": {"calls": calls}, "mixed": {"calls": calls}})
    executor = Executor(broken, KernelLibrary(toy_kernels), scale(), 9)
    with pytest.raises(StepError, match=r"kernel 'append' \(cache_append\) from toy.* failed"):
        executor.step(decode([1]))


def test_the_budget_gives_the_blocks():
    assert pools_for(plan(), 16 * 7 + 15, 0) == Pools(7, 0)
    assert pools_for(plan(), None, 1 << 30) == Pools(8 * 10, 0)
    assert pools_for(plan(), None, 16 * 11) == Pools(5, 0)
    assert pools_for(plan(), 1 << 40, 0) == Pools(80, 0)
    with pytest.raises(ArtifactError, match="half of free memory holds no block of 16 bytes"):
        pools_for(plan(), None, 31)
    states = [{"name": "kv", "dtype": "i32", "entry": [1]}]
    states.append({"name": "h", "dtype": "f32", "entry": [6, 2], "state": True})
    both = plan(caches=states)
    assert (both.state_bytes, both.block_bytes, both.sequence_bytes(9)) == (48, 16, 48 + 3 * 16)
    assert pools_for(both, 1 << 20, 0) == Pools(80, 16)
    assert pools_for(both, 80 * 8 + 48 * 8 + 15, 0) == Pools(40, 8)
    assert pools_for(both, 48 + 16, 0) == Pools(1, 1)
    with pytest.raises(ArtifactError, match=r"63 bytes holds no .* and a state of 48 bytes"):
        pools_for(both, 63, 0)
    alone = plan(caches=states[1:], entries={})
    assert pools_for(alone, 48 * 3, 0) == Pools(80, 3)
    with pytest.raises(ArtifactError, match="holds no block of 0 bytes and a state of 48 bytes"):
        pools_for(alone, 47, 0)
    executor = Executor(plan(), Recorder(), scale(), 3)
    assert (executor.max_context, executor.vocabulary, executor.max_batch) == (12, 67, 8)


def test_available_memory_is_the_groups_where_that_is_less(tmp_path):
    assert available_memory() > 1 << 20
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9 kB\nMemAvailable:  8 kB\n")
    assert available_memory(tmp_path) == 8192
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("max\n")
    assert available_memory(tmp_path) == 8192
    (group / "memory.max").write_text("5000\n")
    (group / "memory.current").write_text("4000\n")
    (group / "memory.stat").write_text("anon 1000\nfile 3000\n")
    assert available_memory(tmp_path) == 4000


def module_plan():
    call = {
        "kernel": "double",
        "arguments": [
            argument("input", "x", "f32", ["B", 64]),
            argument("result", "y", "f32", ["B", 64]),
        ],
    }
    return Plan.from_json(
        json.dumps({"format": 1, "dims": {"B": [1, 9]}, "entries": {"main": {"calls": [call]}}})
    )


def test_a_module_runs_on_any_size_within_its_bounds(toy_kernels):
    module = ModuleExecutor(module_plan(), KernelLibrary(toy_kernels), {})
    results = []
    for rows in (1, 9, 5):
        x = np.random.default_rng().standard_normal((rows, 64)).astype(np.float32)
        results.append((x, module.run({"x": x})["y"]))
    for x, y in results:
        np.testing.assert_array_equal(y, x * 2)


def test_inputs_of_a_module_are_checked(toy_kernels):
    module = ModuleExecutor(module_plan(), KernelLibrary(toy_kernels), {})
    good = np.zeros((3, 64), np.float32)
    for inputs, message in [
        ({"z": good}, "given inputs z; wanted x"),
        ({"x": good[0]}, r"given shape \(64,\), wanted \['B', 64\]"),
        ({"x": good[:, :3]}, r"given shape \(3, 3\), wanted \(3, 64\)"),
        ({"x": np.zeros((10, 64), np.float32)}, "dim B = 10: the plan has 1 to 9"),
        ({"x": good.astype(np.float64)}, "given float64, wanted f32"),
        ({"x": good.view(np.int32)}, "given int32, wanted f32"),
    ]:
        with pytest.raises(ValueError, match=message):
            module.run(inputs)
    with pytest.raises(PlanError, match="no entry 'other'; the plan has main"):
        ModuleExecutor(module_plan(), KernelLibrary(toy_kernels), {}, "other")


def test_blocks_are_copied_and_moved_to_the_host_and_back_in_every_cache():
    caches = [
        {"name": "kv", "dtype": "i32", "entry": [1]},
        {"name": "more", "dtype": "bf16", "entry": [3, 5]},
    ]
    executor = Executor(plan(caches=caches), Recorder(), scale(), 9)
    generator = np.random.default_rng()
    for cache in executor._caches.values():
        cache[...] = generator.integers(0, 1 << 15, cache.shape)
    before = {name: cache.copy() for name, cache in executor._caches.items()}
    executor.copy_block(2, 7)
    content = executor.read_blocks([7, 3])
    executor._caches["kv"][...] = executor._caches["more"][...] = 0
    executor.write_blocks([0, 8], content)
    for name, cache in executor._caches.items():
        np.testing.assert_array_equal(cache[[0, 8]], before[name][[2, 3]])
        assert not cache[1:8].any()


def test_states_are_kept_apart_from_blocks_and_bound_the_batch():
    caches = [
        {"name": "h", "dtype": "f32", "entry": [3, 5], "state": True},
        {"name": "kv", "dtype": "i32", "entry": [1]},
    ]
    executor = Executor(plan(caches=caches), Recorder(), scale(), 9, 5)
    assert (executor.states, executor.max_batch, executor.state_blocks) == (5, 5, 4)
    executor._caches["h"][...] = np.arange(75).reshape(5, 3, 5)
    executor._caches["kv"][...] = 7
    content = executor.read_state(2)
    executor.copy_block(0, 2)
    executor.write_state(4, content)
    np.testing.assert_array_equal(executor._caches["h"][4], np.arange(30, 45).reshape(3, 5))
    assert [a.shape for a in executor.read_blocks([1])] == [(1, 4, 1)]


def test_memory_that_is_given_back_holds_zeros():
    for size in (10, 5_000, 1 << 24):
        array = allocate("f32", (size // 2, 2))
        array[...] = 3.0
        before = resident()
        release(array)
        assert size < 1 << 24 or before - resident() > 48 << 20
        assert not array.any()
        array[0, 0] = 1.0
        assert array.sum() == 1.0


def resident():
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


def test_an_engine_sleeps_and_goes_on(toy):
    engine = load(toy).new_engine()
    prompt = [3, 1, 4, 1, 5, 9]
    params = SamplingParams(temperature=0.0, max_tokens=6)

    def generated():
        name, tokens = engine.submit(prompt, params), []
        with pytest.raises(RequestError, match="1 requests run: nobody may sleep"):
            engine.sleep()
        while engine.has_work:
            tokens += [t for d in engine.step() for t in d.token_ids if d.request_id == name]
        return tuple(tokens)

    assert generated() == toy_generate(prompt, 6)
    assert engine.pool.cached
    engine.sleep()
    engine.check()
    assert not engine.pool.cached and not any(c.any() for c in engine.runner._caches.values())
    assert generated() == toy_generate(prompt, 6)
    assert engine.stats().prefix_hits == 0
    with pytest.raises(RequestError, match="cannot be given back"):
        Engine(FakeRunner()).sleep()
