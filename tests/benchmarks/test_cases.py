"""What a case must read and compute is counted by hand here."""

import pytest

from benchmarks.cases import CASES, Case, Layout, Room, Shape, need
from benchmarks.checkpoints import SHAPES

TOY = Shape(layers=2, hidden=8, heads=2, kv_heads=1, head_size=4, mlp=16, vocabulary=32)
LAYER = 8 * 8 + 2 * 8 * 4 + 8 * 8 + 3 * 8 * 16  # q, k and v, o, the gated mlp


def test_weights_of_a_shape():
    assert TOY.layer_weights == 2 * LAYER
    assert TOY.head_weights == 8 * 32
    assert TOY.cache_entries(3) == 3 * 2 * 2 * 4


@pytest.mark.parametrize(
    ("name", "billions"), [("llama-1b", 1.236), ("qwen2-0.5b", 0.494), ("tinyllama-1.1b", 1.034)]
)
def test_shapes_have_the_weights_that_their_names_say(name, billions):
    shape = Shape.of(SHAPES[name])
    assert (shape.layer_weights + shape.head_weights) / 1e9 == pytest.approx(billions, abs=2e-3)


def test_layouts_count_their_scales():
    assert Layout(16).bytes_of(64) == 128
    assert Layout(8, 32, 16).bytes_of(64) == 68
    assert Layout(4, 32, 16).bytes_of(64) == 36


def test_a_step_reads_weights_once_and_the_cache_of_every_sequence():
    case = Case("x", prompt=10, steps=4, sequences=3)
    found = need(case, TOY, Layout(8), kv_bits=16, rounds=5)
    attended = 3 * 4 * (10 + 2)
    assert found.bytes == 4 * (2 * LAYER + 256) + TOY.cache_entries(attended) * 2
    assert found.operations == 12 * 2 * (2 * LAYER + 256) + 4 * 2 * 2 * 4 * attended


def test_a_prefill_reads_weights_once_and_makes_one_row_of_logits():
    found = need(Case("x", prompt=10, steps=0), TOY, Layout(16), kv_bits=16, rounds=5)
    assert found.bytes == 2 * (2 * LAYER + 256)
    assert found.operations == 2 * (10 * 2 * LAYER + 256) + 4 * 2 * 2 * 4 * 10 * 5


def test_kept_sequences_grow_over_the_rounds():
    kept, fresh = Case("k", 100, 10, keeps=True), Case("f", 100, 10)
    assert (kept.room(5), fresh.room(5)) == (162, 112)
    assert (kept.context(5), fresh.context(5)) == (130, 105)


def test_room_holds_every_case_and_the_cold_start():
    assert Room.of([Case("x", 8, 4, sequences=3)], 5, 2) == Room(1024, 3, 2)
    room = Room.of(CASES.values(), 5, 2)
    assert room == Room(4608, 8, 2)
