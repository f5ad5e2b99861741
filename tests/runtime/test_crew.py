"""How many threads kernels use beside busy neighbours, on clocks that the tests turn."""

import multiprocessing
import os
import threading
import time

import pytest
from ferrule.runtime.crew import PATIENCE, PAUSES, TOLERATED, WINDOW, Crew, Waits


class Machine:
    """Clocks, and cores of which neighbours hold some."""

    def __init__(self, threads):
        self.now = self.waited = self.taken = 0.0
        self.set = []
        self.crew = Crew(threads, self.set.append, lambda: self.waited, lambda: self.now)

    def run(self, seconds, step=0.03):
        """Steps of so long; threads lose what neighbours take of the cores that they use."""
        end = self.now + seconds
        while self.now < end:
            with self.crew:
                free = self.crew.threads - self.taken
                self.now += step
                had = min(self.crew.used, max(free, 0.5 * self.crew.used))
                self.waited += step * (self.crew.used - had)
            self.now += 0.01  # between steps nothing is asked of the cores


def test_all_threads_are_used_while_nobody_else_runs():
    machine = Machine(4)
    machine.taken = TOLERATED / 2
    machine.run(20)
    assert machine.crew.used == 4 and machine.set == []


@pytest.mark.parametrize(("taken", "left"), [(1, 3), (2, 2)])
def test_cores_that_neighbours_hold_are_given_up(taken, left):
    machine = Machine(4)
    machine.taken = taken
    machine.run((PATIENCE + 1) * (WINDOW + 0.1))
    assert machine.crew.used == left


def test_one_thread_is_always_left():
    machine = Machine(2)
    machine.taken = 2
    machine.run(0.95)
    assert machine.crew.used == 1
    alone = Machine(1)
    alone.taken = 1
    alone.run(5)
    assert alone.set == []


def test_all_threads_are_tried_again_and_kept_when_the_neighbour_is_gone():
    machine = Machine(2)
    machine.taken = 1
    machine.run(0.95)
    assert machine.crew.used == 1
    machine.taken = 0
    machine.run(PAUSES[0] + 3 * WINDOW)
    assert machine.crew.used == 2
    machine.run(20)
    assert machine.set == [1, 2]


def test_they_are_tried_less_and_less_often_while_it_stays():
    machine = Machine(2)
    machine.taken = 1
    machine.run(60)
    tries = machine.set.count(2)
    assert 60 / PAUSES[1] <= tries <= 60 / PAUSES[1] + 4


def test_a_moment_of_waiting_costs_no_thread():
    """As when the first steps map the weights."""
    machine = Machine(2)
    machine.taken = 1
    machine.run((PATIENCE - 1) * WINDOW)
    machine.taken = 0
    machine.run(5)
    assert machine.set == []


def test_a_step_that_raises_counts_too():
    machine = Machine(2)
    for _ in range(PATIENCE):
        with pytest.raises(KeyError), machine.crew:
            machine.now += 2 * WINDOW
            machine.waited += 2 * WINDOW
            raise KeyError
    assert machine.crew.used == 1


def spin(core, begun):
    os.sched_setaffinity(0, {core})
    begun.set()
    while True:
        pass


def test_a_thread_waits_while_another_process_has_its_core():
    started, stop, found = threading.Event(), threading.Event(), []

    def worker():
        core = min(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {core})  # of this thread
        started.wait()
        end = time.perf_counter() + 0.4
        while time.perf_counter() < end:
            pass
        stop.wait()

    thread = threading.Thread(target=worker)
    waits = Waits.of_workers(thread.start)
    context = multiprocessing.get_context("spawn")
    begun = context.Event()
    core = min(os.sched_getaffinity(0))
    neighbour = context.Process(target=spin, args=(core, begun), daemon=True)
    neighbour.start()
    try:
        begun.wait()
        before = waits()
        started.set()
        time.sleep(0.5)
        found.append(waits() - before)
    finally:
        neighbour.kill()
        stop.set()
        thread.join()
    assert found[0] > 0.05


def test_who_sleeps_does_not_wait():
    waits = Waits({threading.get_native_id()})
    before = waits()
    time.sleep(0.3)
    assert waits() - before < 0.15


def test_nothing_is_known_of_threads_that_are_gone():
    assert Waits({2**30})() == 0.0
