"""Invariants of the scheduler, whatever comes: nothing lost, nothing leaked, no limit passed."""

import numpy as np
import pytest
from ferrule.runtime.blocks import BlockPool
from ferrule.runtime.memory import BlockMemory, Costs
from ferrule.runtime.policies import POLICIES, ByPriority, FairShare, Policy, ShortestRemaining
from ferrule.runtime.scheduler import Scheduler, Sequence
from hypothesis import given, settings
from hypothesis import strategies as st

BLOCK = 4


class NoCache:
    """A cache whose blocks are moved in name only."""

    def copy_block(self, source, target):
        assert source != target

    def read_blocks(self, blocks):
        return (np.asarray(blocks),)

    def write_blocks(self, blocks, content):
        assert len(blocks) == len(content[0])


def make(blocks=12, max_batch=3, chunk=5, policy=None, swap=0, **options):
    memory = BlockMemory(NoCache(), swap, Costs(token=1e9))
    return Scheduler(
        BlockPool(blocks),
        block=BLOCK,
        max_batch=max_batch,
        chunk=chunk,
        policy=policy,
        memory=memory,
        **options,
    )


def sequence(name, prompt, client="", **rest):
    return Sequence(str(name), list(range(prompt)), prompt, client=client, **rest)


@st.composite
def loads(draw):
    blocks, max_batch = draw(st.integers(1, 12)), draw(st.integers(1, 5))
    chunk = draw(st.integers(max_batch, 16))
    total = st.integers(2, blocks * BLOCK)
    sizes = draw(st.lists(total.flatmap(lambda n: st.tuples(st.integers(1, n - 1), st.just(n)))))
    arrivals = draw(st.lists(st.integers(0, 20), min_size=len(sizes), max_size=len(sizes)))
    events = draw(st.lists(st.sampled_from(["run"] * 6 + ["roll back", "alone", "abort", "fork"])))
    options = {
        "blocks": blocks,
        "max_batch": max_batch,
        "chunk": chunk,
        "policy": draw(st.sampled_from(list(POLICIES.values())))(),
        "swap": draw(st.sampled_from([0, 0, 3, 30])),
        "rows": draw(st.integers(max_batch, chunk)),
        "beside_decodes": draw(st.none() | st.integers(1, chunk)),
        "prefix_caching": draw(st.booleans()),
    }
    clients = draw(st.lists(st.sampled_from("abc"), min_size=len(sizes), max_size=len(sizes)))
    return options, list(zip(sizes, sorted(arrivals), clients, strict=True)), events


def run_step(scheduler, goals, event):
    """Plan a step and let it succeed, fail, or run its parts alone; returns what ended."""
    step = scheduler.next_step()
    if step is None:
        return set()
    assert 1 <= sum(p.count for p in step.parts) <= scheduler.chunk
    assert 1 <= len(step.parts) <= scheduler.max_batch
    assert sum(p.rows for p in step.parts) <= scheduler.rows
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
    written = {s // BLOCK for s in batch.slots}
    assert not any(scheduler.pool.is_shared(b) for b in written)
    for n, blocks in enumerate(batch.block_table):
        span = range(batch.query_start[n], batch.query_start[n + 1])
        assert [batch.positions[i] for i in span][-1] == batch.context_length[n] - 1
        for i in span:
            assert batch.slots[i] // BLOCK == blocks[batch.positions[i] // BLOCK]
    ends = [n for n, p in enumerate(step.parts) if p.count == p.sequence.pending]
    if ends and not any(p.sequence.all_rows for p in step.parts):
        assert batch.logit_rows == [batch.query_start[n + 1] - 1 for n in ends]


@settings(max_examples=150, deadline=None)
@given(loads())
def test_every_sequence_ends_and_every_block_comes_back(load):
    options, arrivals, events = load
    scheduler = make(**options)
    goals, ended, aborted = {}, set(), set()
    pending = [
        (sequence(i, prompt, client, limit=total - prompt, all_rows=i % 5 == 4), total, at)
        for i, ((prompt, total), at, client) in enumerate(arrivals)
    ]
    work = (1 + events.count("fork")) * sum(total for _, total, _ in pending)
    for now in range(40 + len(events) + work * (2 + len(pending) + events.count("fork"))):
        while pending and pending[0][2] <= now:
            arrived, goals[arrived.id], _ = pending.pop(0)
            scheduler.admit(arrived)
        event = events[now] if now < len(events) else "run"
        if event == "abort" and (known := list(scheduler.sequences())):
            scheduler.remove(known[now % len(known)])
            aborted.add(known[now % len(known)].id)
        if event == "fork" and (whole := [s for s in scheduler.running if s.computed]):
            fork(scheduler, whole[now % len(whole)], goals)
        ended |= {s.id for s in run_step(scheduler, goals, event)}
        scheduler.check()
        if not pending and not list(scheduler.sequences()):
            break
    assert ended | aborted == set(goals) and not ended & aborted
    assert scheduler.pool.available == options["blocks"] and scheduler.memory.used == 0


def fork(scheduler, parent, goals):
    child = Sequence(
        f"fork {len(goals)}", list(parent.tokens), parent.prompt_length, client=parent.client
    )
    goals[child.id] = goals[parent.id]
    scheduler.fork(parent, child)


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


class LastNamed(Policy):
    def key(self, sequence):
        return (-int(sequence.id),)


def test_a_long_prompt_that_goes_first_does_not_hold_up_decodes():
    pool = BlockPool(40)
    scheduler = Scheduler(pool, block=BLOCK, max_batch=3, chunk=8, policy=LastNamed())
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


def test_a_step_of_256_sequences_holds_them_all_in_order():
    scheduler = Scheduler(BlockPool(4096), block=16, max_batch=256, chunk=512)
    for i in range(256):
        scheduler.admit(sequence(i, 1))
    for _ in range(3):
        step = scheduler.next_step()
        scheduler.commit(step)
        for part in step.parts:
            part.sequence.tokens.append(0)
    assert len(step.parts) == 256
    assert sum(part.count for part in step.parts) == 256
    assert [part.sequence.id for part in step.parts] == [str(i) for i in range(256)]


def serve(scheduler, goals, until=None, limit=10_000):
    """Run to the end, or until something holds; the ids in the order of their ends."""
    ended = []
    for _ in range(limit):
        ended += [s.id for s in run_step(scheduler, goals, "run")]
        if not list(scheduler.sequences()) or (until and until(ended)):
            return ended
    raise AssertionError(f"still there: {[s.id for s in scheduler.sequences()]}")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 20)), min_size=2, max_size=12),
    st.sampled_from(["fcfs", "priority", "fair"]),
)
def test_each_client_is_begun_in_its_own_order(arrivals, policy):
    scheduler = make(blocks=14, max_batch=2, chunk=6, policy=POLICIES[policy]())
    goals = {str(i): prompt + 5 for i, (_, prompt) in enumerate(arrivals)}
    for i, (client, prompt) in enumerate(arrivals):
        scheduler.admit(sequence(i, prompt, client))
    begun = []
    while list(scheduler.sequences()):
        run_step(scheduler, goals, "run")
        begun += [s for s in scheduler.running if s not in begun]
    for client in "abc":
        own = [s.arrival for s in begun if s.client == client]
        assert own == sorted(own)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(20, 60), st.integers(1, 3))
def test_fair_share_bounds_what_one_client_gets_before_another(prompt, output, flood, max_batch):
    policy = FairShare()
    scheduler = make(blocks=30, max_batch=max_batch, chunk=8, policy=policy)
    goals = {}
    for i in range(flood):
        goals[str(i)] = prompt + output
        scheduler.admit(sequence(i, prompt, "flood"))
    for i in range(flood, flood + 10):
        goals[str(i)] = prompt + output
        scheduler.admit(sequence(i, prompt, "few"))
    # Both are backlogged: Sheng et al., theorem 4.4, with all requests of one size.
    bound = 2 * max(prompt + 2 * output, 2 * max_batch * (prompt + output))
    while any(s.client == "few" for s in scheduler.waiting):
        run_step(scheduler, goals, "run")
        if any(s.client == "few" for s in scheduler.waiting):
            assert abs(policy.served["flood"] - policy.served["few"]) <= bound
    serve(scheduler, goals)


def test_idling_earns_no_share_and_a_weight_earns_more():
    policy = FairShare(weights={"heavy": 2.0})
    scheduler = make(policy=policy)
    first, late = sequence(0, 4, "busy"), sequence(1, 4, "idle")
    scheduler.admit(first)
    policy.charge(first, 1000, 0)
    scheduler.admit(late)
    assert policy.served["idle"] == policy.served["busy"] == 1000
    heavy = sequence(2, 4, "heavy")
    scheduler.admit(heavy)
    policy.charge(heavy, 10, 5)
    policy.charge(late, 10, 5)
    assert (policy.served["heavy"], policy.served["idle"]) == (1010, 1020)
    for each in (first, late, heavy):
        scheduler.remove(each)
    back = sequence(3, 4, "back")
    scheduler.admit(back)
    assert policy.served["back"] >= 1010 and len(policy.served) <= 2


def test_priority_goes_first_and_gives_way_last():
    scheduler = make(blocks=5, max_batch=2, chunk=8, policy=ByPriority())
    low, high = sequence(0, 7, priority=5), sequence(1, 7, priority=-1)
    for each in (low, high):
        scheduler.admit(each)
    assert serve(scheduler, {"0": 16, "1": 16}) == ["1", "0"]
    assert scheduler.preemptions >= 1


@settings(max_examples=20, deadline=None)
@given(st.integers(20, 80))
def test_the_shortest_is_served_first_and_the_longest_in_the_end(length):
    scheduler = make(blocks=40, max_batch=1, chunk=8, policy=ShortestRemaining())
    goals = {"0": 3 + length, "1": 5, "2": 9}
    for i, goal in goals.items():
        scheduler.admit(sequence(i, 3, limit=goal - 3))
    assert serve(scheduler, goals) == ["1", "2", "0"]
    # Short ones that come for ever hold up a long one for no longer than it is.
    scheduler = make(blocks=40, max_batch=1, chunk=8, policy=ShortestRemaining())
    goals = {"0": 3 + length}
    scheduler.admit(sequence(0, 3, limit=length))
    ended, count = [], 0
    while "0" not in ended:
        count += 1
        goals[str(count)] = 4
        scheduler.admit(sequence(count, 3, limit=1))
        ended += [s.id for s in run_step(scheduler, goals, "run")]
        assert count < 3 * length + 10


def test_lengths_are_predicted_from_what_a_client_asked_for_before():
    policy = ShortestRemaining()
    scheduler = make(policy=policy)
    short = sequence(0, 4, "a", limit=1000)
    scheduler.admit(short)
    assert short.predicted == 1000
    short.tokens += [0] * 10
    scheduler.remove(short)
    again, other = sequence(1, 4, "a", limit=1000), sequence(2, 4, "b", limit=1000)
    for each in (again, other):
        scheduler.admit(each)
    assert (again.predicted, other.predicted) == (10, 1000)


@pytest.mark.parametrize(("swap", "saves"), [(0, 0), (30, 1)])
def test_a_preempted_sequence_comes_back_by_the_cheaper_way(swap, saves):
    scheduler = make(blocks=5, max_batch=2, chunk=8, swap=swap, prefix_caching=False)
    for i in range(2):
        scheduler.admit(sequence(i, 7))
    goals = {"0": 16, "1": 16}
    serve(scheduler, goals, until=lambda ended: scheduler.preemptions)
    (waiting,) = scheduler.waiting
    assert bool(waiting.saved) == bool(swap)
    scheduler.check()
    assert serve(scheduler, goals) == ["0", "1"]
    assert scheduler.memory.saves == saves and scheduler.memory.used == 0


def test_costs_choose_between_saving_and_computing_again():
    costs = Costs()
    assert not costs.prefer_saving(100, 7)
    costs.see_step(10, 0, 1.0)
    costs.see_blocks(1, 0.5)
    assert costs.prefer_saving(100, 7) and not costs.prefer_saving(1, 7)
    costs.see_blocks(1, 1e9)
    assert not costs.prefer_saving(100, 7)


def test_a_host_without_memory_costs_a_computation_and_no_request():
    scheduler = make(blocks=5, max_batch=2, chunk=8, swap=30, prefix_caching=False)

    def full(_blocks):
        raise MemoryError

    scheduler.memory._runner.read_blocks = full
    for i in range(2):
        scheduler.admit(sequence(i, 7))
    assert serve(scheduler, {"0": 16, "1": 16}) == ["0", "1"]
    assert scheduler.memory.failures == 1 and scheduler.memory.used == 0


def test_a_prefix_is_computed_once_and_its_last_token_always():
    scheduler = make(blocks=12, max_batch=2, chunk=32)
    goals = {str(i): 20 for i in range(4)}
    scheduler.admit(sequence(0, 16))
    serve(scheduler, goals)
    for i, salt in ((1, b""), (2, b"other"), (3, b"")):
        again = sequence(i, 16, salt=salt, reads_cache=i != 3)
        scheduler.admit(again)
        (part,) = scheduler.next_step().parts
        wanted = 12 if i == 1 else 0
        assert (again.cached, part.count) == (wanted, 16 - wanted)
        scheduler.remove(again)
        scheduler.check()
    assert (scheduler.prefix_queries, scheduler.prefix_hits) == (48, 12)


def test_a_long_prompt_leaves_decodes_their_pace():
    scheduler = make(blocks=40, max_batch=3, chunk=32, beside_decodes=4)
    scheduler.admit(sequence(0, 3))
    run_step(scheduler, goals := {"0": 90, "1": 60}, "run")
    scheduler.admit(sequence(1, 29))
    step = scheduler.next_step()
    assert [(p.sequence.id, p.count) for p in step.parts] == [("0", 1), ("1", 4)]
    scheduler.roll_back(step)
    serve(scheduler, goals)


def test_tokens_that_all_get_logits_are_bounded_by_rows():
    scheduler = make(blocks=40, max_batch=2, chunk=16, rows=5)
    scheduler.admit(sequence(0, 3))
    run_step(scheduler, {"0": 90}, "run")
    scheduler.admit(sequence(1, 9, all_rows=True))
    step = scheduler.next_step()
    assert [(p.sequence.id, p.count, p.rows) for p in step.parts] == [("0", 1, 1), ("1", 4, 4)]
    assert step.batch(BLOCK).logit_rows == [0, 1, 2, 3, 4]


def test_the_pool_is_used_under_load_and_little_is_computed_twice():
    generator = np.random.default_rng()
    scheduler = Scheduler(
        BlockPool(256), block=16, max_batch=64, chunk=512, memory=BlockMemory(NoCache())
    )
    goals = {}
    for i in range(250):
        prompt = int(generator.integers(64, 257))
        goals[str(i)] = prompt + int(generator.integers(32, 129))
        tokens = generator.integers(0, 1000, prompt).tolist()
        scheduler.admit(Sequence(str(i), tokens, prompt))
    used, computed, steps = 0.0, 0, 0
    while len(scheduler.waiting) > 32:
        step = scheduler.next_step()
        scheduler.commit(step)
        for part in step.parts:
            advance(scheduler, part.sequence, goals)
        steps, computed = steps + 1, computed + sum(p.count for p in step.parts)
        used += scheduler.pool.used / 256 if steps > 50 else 0.0
    assert used / (steps - 50) >= 0.95
    assert computed < 1.15 * sum(goals.values())


def test_costs_tell_prompts_from_the_decodes_beside_them():
    costs = Costs()
    assert costs.tokens_beside(5, 2.0) is None and costs.of_decodes(5) == 0.0
    costs.see_step(0, 5, 0.2)
    costs.see_step(50, 5, 0.7)
    assert costs.token == pytest.approx(0.01) and costs.of_decodes(4) == pytest.approx(0.2)
    assert costs.tokens_beside(5, 1.5) == 10
    costs.see_step(50, 5, 0.1)  # faster than decodes alone: a measurement, not a gift
    assert 0 < costs.token < 0.01


def test_costs_of_decodes_go_by_their_number():
    costs = Costs()
    costs.see_step(0, 1, 0.1)
    costs.see_step(0, 20, 0.4)
    found = [costs.of_decodes(n) for n in (0, 1, 3, 15, 16, 99)]
    assert found == pytest.approx([0.0, 0.1, 0.1, 0.1, 0.4, 0.4])
    few = Costs()
    few.see_step(0, 20, 0.4)
    assert few.of_decodes(2) == pytest.approx(0.4)
    costs.token = 0.01
    assert (costs.tokens_beside(2, 2.0), costs.tokens_beside(17, 2.0)) == (10, 40)
