"""How many threads kernels use beside busy neighbours, on clocks that the tests turn."""

import pytest
from ferrule.runtime.crew import PATIENCE, PAUSES, TOLERATED, WINDOW, Crew


class Machine:
    """Clocks, and cores of which neighbours hold some."""

    def __init__(self, threads):
        self.now = self.busy = self.taken = 0.0
        self.set = []
        self.crew = Crew(threads, self.set.append, lambda: self.now, lambda: self.busy)

    def run(self, seconds, step=0.03):
        """Steps of so long; threads lose what neighbours take of the cores that they use."""
        end = self.now + seconds
        while self.now < end:
            with self.crew:
                free = self.crew.threads - self.taken
                self.now += step
                self.busy += step * min(self.crew.used, max(free, 0.5 * self.crew.used))
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
            machine.busy += 2 * WINDOW
            raise KeyError
    assert machine.crew.used == 1
