"""Weights that move to large pages: the same bytes at the same address, while others read them."""

import threading
from pathlib import Path

import numpy as np
import pytest
from ferrule.ir.plan import TensorSpec
from ferrule.runtime import large_pages
from ferrule.runtime.large_pages import has_large_pages, move_to_large_pages
from ferrule.runtime.tensors import LARGE_PAGE, Array, allocate_together, release
from ferrule.runtime.weights import Weights, WeightsWriter

SIZE = 11 * LARGE_PAGE + 12_345
PIECE = 1 << 16


@pytest.fixture
def content() -> Array:
    return np.random.default_rng().integers(0, 256, SIZE, np.uint8)


@pytest.fixture
def weights(tmp_path: Path, content: Array) -> Weights:
    with WeightsWriter(tmp_path / "w.safetensors", [TensorSpec("a", "u8", (SIZE,))]) as writer:
        writer.write("a", content)
    return Weights(tmp_path / "w.safetensors")


def _all_small(begin: int, end: int) -> list[tuple[int, int]]:
    """As a machine that can't tell: in two parts, of which one is not of whole stretches."""
    middle = begin + LARGE_PAGE
    return [(begin, middle), (middle, end)] if middle < end else [(begin, end)]


def _mappings(begin: int, end: int) -> list[tuple[str, str]]:
    """What backs a range: protection and path of every mapping that meets it."""
    found = list[tuple[str, str]]()
    for line in Path("/proc/self/maps").read_text().splitlines():
        extent, protection, *rest = line.split()
        first, last = (int(x, 16) for x in extent.split("-"))
        if first < end and begin < last:
            found.append((protection, rest[3] if len(rest) > 3 else ""))
    return found


def test_what_moves_keeps_bytes_address_and_protection(weights, content, monkeypatch):
    monkeypatch.setattr(large_pages, "_small", _all_small)
    array = weights["a"]
    address = array.ctypes.data
    assert {path for _, path in _mappings(address, address + SIZE)} == {str(weights.path)}
    assert move_to_large_pages(array) in range(SIZE - 2 * LARGE_PAGE, SIZE + 1, 1)
    assert array.ctypes.data == address
    np.testing.assert_array_equal(array, content)
    first, last = (
        -(-address // LARGE_PAGE) * LARGE_PAGE,
        (address + SIZE) // LARGE_PAGE * LARGE_PAGE,
    )
    moved = _mappings(first, last)
    assert {path for _, path in moved} == {""}
    assert all(protection.startswith("r--") for protection, _ in moved)
    assert str(weights.path) in {path for _, path in _mappings(last, address + SIZE)}


def test_others_read_the_same_bytes_while_they_move(weights, content, monkeypatch):
    monkeypatch.setattr(large_pages, "_small", _all_small)
    array, done, wrong = weights["a"], threading.Event(), list[int]()

    def read() -> None:
        generator = np.random.default_rng()
        while not done.is_set():
            at = int(generator.integers(0, SIZE - PIECE))
            if not np.array_equal(array[at : at + PIECE], content[at : at + PIECE]):
                wrong.append(at)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for _ in range(5):
        move_to_large_pages(array)
    done.set()
    for reader in readers:
        reader.join()
    assert wrong == []


def test_a_second_time_moves_only_what_got_no_large_page(weights, content):
    first = move_to_large_pages(weights["a"])
    assert first % LARGE_PAGE == 0
    assert move_to_large_pages(weights["a"]) <= first
    np.testing.assert_array_equal(weights["a"], content)


def test_weights_settle_once_and_where_there_is_room(weights, content, monkeypatch):
    monkeypatch.setattr("ferrule.runtime.weights.has_large_pages", lambda: True)
    moves = list[int]()
    monkeypatch.setattr(
        large_pages, "move_to_large_pages", lambda memory: moves.append(memory.nbytes)
    )
    weights.settle(SIZE, wait=True)  # the file is larger than its one weight
    assert moves == []
    weights.settle(2 * SIZE, wait=True)
    weights.settle(2 * SIZE, wait=True)
    assert len(moves) == 1 and moves[0] >= SIZE
    np.testing.assert_array_equal(weights["a"], content)


@pytest.mark.parametrize(
    ("setting", "nodes", "expected"),
    [("always [madvise] never", "0", True), ("[always] madvise never", "0", True),
     ("always madvise [never]", "0", False), ("always [madvise] never", "0-1", False)],
)  # fmt: skip
def test_a_machine_without_large_pages_or_of_several_nodes(tmp_path, setting, nodes, expected):
    (tmp_path / "enabled").write_text(setting + "\n")
    (tmp_path / "online").write_text(nodes + "\n")
    assert has_large_pages(tmp_path / "enabled", tmp_path / "online") is expected
    assert has_large_pages(tmp_path / "none", tmp_path / "online") is False


def test_arrays_that_are_allocated_together_lie_side_by_side_and_are_given_back():
    first, second, none = allocate_together(
        [("bf16", (3, 7)), ("u8", (LARGE_PAGE,)), ("f32", (0,))]
    )
    assert first.ctypes.data % LARGE_PAGE == 0 and first.shape == (3, 7)
    assert second.ctypes.data == first.ctypes.data + 64 and none.size == 0
    assert not first.any() and not second.any()
    first.fill(1)
    second.fill(2)
    release(second)
    assert (first == 1).all() and not second.any()
