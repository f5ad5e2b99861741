"""Preempted sequences leave the cache and come back, whatever happens to where they were."""

import signal
import subprocess
import sys

import numpy as np
import pytest
from driving import collect, drain, greedy
from ferrule.runtime.engine import Engine
from ferrule.runtime.swap import Disk
from toys import FakeRunner, toy_generate


def swapping(directory, runner=None):
    runner = runner or FakeRunner(blocks=9, max_batch=3, chunk=6)
    engine = Engine(runner, swap_blocks=20, swap_directory=directory, prefix_caching=False)
    engine.memory.costs.token = 1e9
    return engine


def swapped_out(engine):
    """Run until a sequence has been swapped out."""
    names = [engine.submit([n, 2 * n, 3] * 3, greedy(22)) for n in range(1, 5)]
    ended = {}
    while not engine.memory.used:
        collect(engine.step(), ended)
        engine.check()
    return names, ended


def check_ended(engine, names, ended):
    ended = drain(engine, ended)
    wanted = [list(toy_generate([n, 2 * n, 3] * 3, 22)) for n in range(1, 5)]
    assert [ended[n][0] for n in names] == wanted
    assert engine.memory.used == 0


@pytest.mark.parametrize("on_disk", [False, True])
def test_what_is_swapped_out_comes_back_whole(tmp_path, on_disk):
    engine = swapping(tmp_path / "swap" if on_disk else None)
    names, ended = swapped_out(engine)
    assert len(list(tmp_path.rglob("tmp*"))) == on_disk
    check_ended(engine, names, ended)
    stats = engine.stats()
    assert stats.swaps == stats.preemptions >= 2 and engine.memory.failures == 0
    assert not list(tmp_path.rglob("tmp*"))


@pytest.mark.parametrize("fault", ["gone", "cut", "garbage"])
def test_what_cannot_be_read_back_is_computed_again(tmp_path, fault):
    engine = swapping(tmp_path)
    names, ended = swapped_out(engine)
    for path in tmp_path.rglob("tmp*"):
        if fault == "gone":
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[:90] if fault == "cut" else b"garbage" * 30)
    check_ended(engine, names, ended)
    assert engine.memory.failures >= 1


def test_a_full_disk_costs_a_computation_and_leaves_no_file(tmp_path, monkeypatch):
    engine = swapping(tmp_path)
    names = [engine.submit([n, 2 * n, 3] * 3, greedy(22)) for n in range(1, 5)]

    def full(file, array, **_):
        file.write(array.tobytes()[:5])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    check_ended(engine, names, {})
    assert engine.memory.failures == engine.stats().preemptions >= 2
    assert engine.stats().swaps == 0 and not list(tmp_path.rglob("tmp*"))


KEEPS = """
import sys, time
import numpy as np
from ferrule.runtime.swap import Disk
disk = Disk(sys.argv[1])
disk.put((np.ones(9),))
print("kept", flush=True)
time.sleep(600)
"""


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path):
    (tmp_path / "swap-mine.txt").write_text("no directory")
    (tmp_path / "other").mkdir()
    command = [sys.executable, "-c", KEEPS, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "kept\n"
            (left,) = tmp_path.glob("swap-*/tmp*")
            mine = Disk(tmp_path)
            stored = mine.put((np.arange(3),))
            assert left.exists(), "a process that runs lost what it kept"
            process.send_signal(signal.SIGKILL)
            process.wait(60)
            assert left.exists()
            last = Disk(tmp_path)
            assert not left.parent.exists()
            (array,) = mine.get(stored)
            assert array.tolist() == [0, 1, 2]
        finally:
            process.kill()
    del mine, last
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other", "swap-mine.txt"]
