"""Invariants of the scheduler, whatever comes: nothing lost, nothing leaked, no limit passed."""

import time

from ferrule.runtime.blocks import BlockPool
from ferrule.runtime.scheduler import Scheduler, Sequence
from hypothesis import given, settings
from hypothesis import strategies as st

BLOCK = 4


def make(blocks=12, max_batch=3, chunk=5):
    return Scheduler(BlockPool(blocks), block=BLOCK, max_batch=max_batch, chunk=chunk)


def sequence(name, prompt):
    return Sequence(str(name), list(range(prompt)), prompt)


@st.composite
def loads(draw):
    blocks, max_batch = draw(st.integers(1, 12)), draw(st.integers(1, 5))
    chunk = draw(st.integers(max_batch, 16))
    total = st.integers(2, blocks * BLOCK)
    sizes = draw(st.lists(total.flatmap(lambda n: st.tuples(st.integers(1, n - 1), st.just(n)))))
    arrivals = draw(st.lists(st.integers(0, 20), min_size=len(sizes), max_size=len(sizes)))
    events = draw(st.lists(st.sampled_from(["run"] * 6 + ["roll back", "alone", "abort"])))
    return blocks, max_batch, chunk, list(zip(sizes, sorted(arrivals), strict=True)), events


def run_step(scheduler, goals, event):
    """Plan a step and let it succeed, fail, or run its parts alone; returns what ended."""
    step = scheduler.next_step()
    if step is None:
        return set()
    assert 1 <= sum(p.count for p in step.parts) <= scheduler.chunk
    assert 1 <= len(step.parts) <= scheduler.max_batch
    assert len(scheduler.running) <= scheduler.max_batch
    check_batch(step, scheduler)
    if event == "roll back":
        scheduler.roll_back(step)
        return set()
    steps = [step]
    if event == "alone":
        scheduler.roll_back(step)
        steps = [scheduler.alone(p) for p in step.parts]
    for each in steps:
        check_batch(each, scheduler)
        scheduler.commit(each)
    return {p.sequence for p in step.parts if advance(scheduler, p.sequence, goals)}


def advance(scheduler, sequence, goals):
    if sequence.pending:
        return False
    sequence.tokens.append(0)
    if len(sequence.tokens) < goals[sequence.id]:
        return False
    scheduler.remove(sequence)
    return True


def check_batch(step, scheduler):
    batch = step.batch(BLOCK)
    assert len(set(batch.slots)) == len(batch.slots) == len(batch.tokens) == len(batch.positions)
    assert batch.query_start[-1] == len(batch.tokens)
    for n, blocks in enumerate(batch.block_table):
        span = range(batch.query_start[n], batch.query_start[n + 1])
        assert [batch.positions[i] for i in span][-1] == batch.context_length[n] - 1
        for i in span:
            assert batch.slots[i] // BLOCK == blocks[batch.positions[i] // BLOCK]
    ends = [n for n, p in enumerate(step.parts) if p.ends]
    if ends:
        assert batch.logit_rows == [batch.query_start[n + 1] - 1 for n in ends]


@settings(max_examples=150, deadline=None)
@given(loads())
def test_every_sequence_ends_and_every_block_comes_back(load):
    blocks, max_batch, chunk, arrivals, events = load
    scheduler = make(blocks, max_batch, chunk)
    goals, ended, aborted = {}, set(), set()
    pending = [(sequence(i, prompt), total, at) for i, ((prompt, total), at) in enumerate(arrivals)]
    work = sum(total for _, total, _ in pending)
    for now in range(40 + len(events) + work * (2 + len(pending))):
        while pending and pending[0][2] <= now:
            arrived, goals[arrived.id], _ = pending.pop(0)
            scheduler.admit(arrived)
        event = events[now] if now < len(events) else "run"
        if event == "abort" and (known := list(scheduler.sequences())):
            scheduler.remove(known[now % len(known)])
            aborted.add(known[now % len(known)].id)
        ended |= {s.id for s in run_step(scheduler, goals, event)}
        scheduler.check()
        if not pending and not list(scheduler.sequences()):
            break
    assert ended | aborted == set(goals) and not ended & aborted
    assert scheduler.pool.free == blocks


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=2, max_size=8))
def test_first_come_is_first_begun(prompts):
    scheduler = make(blocks=40, max_batch=2, chunk=4)
    goals = {str(i): p + 3 for i, p in enumerate(prompts)}
    begun = []
    for i, prompt in enumerate(prompts):
        scheduler.admit(sequence(i, prompt))
    while list(scheduler.sequences()):
        run_step(scheduler, goals, "run")
        begun += [s.id for s in scheduler.running if s.id not in begun]
    assert begun == sorted(begun, key=int)[: len(begun)]


def test_decodes_go_before_a_long_prompt_and_wait_for_no_chunk():
    scheduler = make(blocks=40, max_batch=3, chunk=8)
    goals = {"0": 90, "1": 30}
    scheduler.admit(sequence(0, 3))
    run_step(scheduler, goals, "run")
    scheduler.admit(sequence(1, 29))
    steps = [scheduler.next_step()]
    counts = []
    while steps[-1]:
        counts.append([(p.sequence.id, p.count) for p in steps[-1].parts])
        scheduler.commit(steps[-1])
        for part in steps[-1].parts:
            advance(scheduler, part.sequence, goals)
        steps.append(scheduler.next_step() if len(counts) < 5 else None)
    assert counts[:4] == [[("0", 1), ("1", 7)]] * 4
    assert counts[4] == [("0", 1), ("1", 1)]


def test_a_long_prompt_that_goes_first_does_not_hold_up_decodes():
    pool = BlockPool(40)
    scheduler = Scheduler(pool, block=BLOCK, max_batch=3, chunk=8, policy=lambda s: (-int(s.id),))
    goals = {"0": 90, "9": 40}
    scheduler.admit(sequence(0, 3))
    run_step(scheduler, goals, "run")
    scheduler.admit(sequence(9, 30))
    for _ in range(3):
        step = scheduler.next_step()
        assert [(p.sequence.id, p.count) for p in step.parts] == [("0", 1), ("9", 7)]
        scheduler.commit(step)
        advance(scheduler, step.parts[0].sequence, goals)


def test_the_last_come_gives_way_and_the_first_never_does():
    scheduler = make(blocks=4, max_batch=3, chunk=8)
    goals = {"0": 16, "1": 12}
    scheduler.admit(sequence(0, 6))
    scheduler.admit(sequence(1, 2))
    order = []
    while list(scheduler.sequences()):
        order += [s.id for s in run_step(scheduler, goals, "run")]
        assert all(s.id != "0" for s in scheduler.waiting)
    assert order == ["0", "1"]
    assert scheduler.preemptions >= 1


def test_a_step_of_256_sequences_is_planned_within_milliseconds():
    scheduler = Scheduler(BlockPool(4096), block=16, max_batch=256, chunk=512)
    for i in range(256):
        scheduler.admit(sequence(i, 1))
    for _ in range(3):
        step = scheduler.next_step()
        scheduler.commit(step)
        for part in step.parts:
            part.sequence.tokens.append(0)
    best = min(plan_and_time(scheduler) for _ in range(5))
    assert best < 0.01, f"{best * 1e3:.2f} ms"


def plan_and_time(scheduler):
    start = time.perf_counter()
    step = scheduler.next_step()
    step.batch(16)
    seconds = time.perf_counter() - start
    scheduler.commit(step)
    for part in step.parts:
        part.sequence.tokens.append(0)
    return seconds
