import gc
import json

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from ferrule.ir.plan import TensorSpec
from ferrule.runtime import weights as weights_module
from ferrule.runtime.errors import ArtifactError
from ferrule.runtime.tensors import to_tensor
from ferrule.runtime.weights import Weights, WeightsWriter

SPECS = [
    TensorSpec("a", "f32", (3, 5)),
    TensorSpec("b", "bf16", (7,)),
    TensorSpec("c", "i4", (2, 9)),
    TensorSpec("d", "f8e4m3", (1, 1)),
    TensorSpec("e", "bool", (13,)),
]
SHAPES = {"a": (3, 5), "b": (7,), "c": (2, 5), "d": (1, 1), "e": (13,)}


def write(path):
    generator = np.random.default_rng()
    arrays = {
        "a": generator.standard_normal((3, 5)).astype(np.float32),
        "b": generator.integers(0, 65536, 7).astype(np.uint16),
        "c": generator.integers(0, 256, (2, 5)).astype(np.uint8),
        "d": generator.integers(0, 256, (1, 1)).astype(np.uint8),
        "e": generator.integers(0, 2, 13).astype(np.uint8),
    }
    with WeightsWriter(path, SPECS) as writer:
        for spec in SPECS:
            writer.write(spec.name, arrays[spec.name])
    return arrays


def test_what_is_written_is_mapped_aligned_and_without_a_copy(tmp_path):
    arrays = write(tmp_path / "w.safetensors")
    weights = Weights(tmp_path / "w.safetensors")
    assert list(weights) == list(arrays)
    assert weights.moved == []
    for spec in SPECS:
        array = weights.select(spec.name, spec.dtype, spec.shape)
        np.testing.assert_array_equal(array, arrays[spec.name])
        assert array.ctypes.data % 64 == 0
        assert array.shape == SHAPES[spec.name]


@pytest.mark.parametrize("stretch", [1, 7, 64, 100, 1 << 20])
def test_a_file_is_the_same_whatever_is_written_at_a_time(tmp_path, monkeypatch, stretch):
    spec, array = TensorSpec("a", "f32", (37, 5)), np.arange(185, dtype=np.float32)
    specs = [spec, TensorSpec("b", "u8", (300,))]
    monkeypatch.setattr(weights_module, "STRETCH", stretch)
    with WeightsWriter(tmp_path / "w.safetensors", specs) as writer:
        writer.write("a", array.reshape(37, 5))
        writer.write("b", np.arange(300).astype(np.uint8))
    content = (tmp_path / "w.safetensors").read_bytes()
    assert array.tobytes() in content
    assert np.arange(300).astype(np.uint8).tobytes() in content
    assert len(content) % 64 == 0
    np.testing.assert_array_equal(Weights(tmp_path / "w.safetensors")["a"].reshape(-1), array)


def test_the_file_is_plain_safetensors(tmp_path):
    arrays = write(tmp_path / "w.safetensors")
    with safetensors.safe_open(tmp_path / "w.safetensors", "np") as file:
        np.testing.assert_array_equal(file.get_tensor("a"), arrays["a"])
        np.testing.assert_array_equal(file.get_tensor("c"), arrays["c"])


def test_a_foreign_file_is_read_and_what_was_not_aligned_is_named(tmp_path):
    arrays = {"x": np.arange(3, dtype=np.int8), "y": np.arange(5, dtype=np.float32)}
    safetensors.numpy.save_file(arrays, tmp_path / "w.safetensors")
    weights = Weights(tmp_path / "w.safetensors")
    for name, array in arrays.items():
        np.testing.assert_array_equal(weights[name], array)
        assert weights[name].ctypes.data % 64 == 0
    assert set(weights.moved) <= {"x", "y"} and weights.moved


def test_weights_are_read_only_and_kernels_see_their_memory(tmp_path):
    arrays = write(tmp_path / "w.safetensors")
    array = Weights(tmp_path / "w.safetensors")["a"]
    with pytest.raises(ValueError, match="read-only"):
        array[:] = 0
    tensor = to_tensor(array)
    address = array.ctypes.data
    del array
    gc.collect()
    seen = np.from_dlpack(tensor)
    assert seen.ctypes.data == address
    np.testing.assert_array_equal(seen, arrays["a"])


def test_a_weight_that_is_missing_or_misshapen_is_named(tmp_path):
    write(tmp_path / "w.safetensors")
    weights = Weights(tmp_path / "w.safetensors")
    with pytest.raises(ArtifactError, match="no weight 'z', which the plan reads"):
        weights.select("z", "f32", (1,))
    with pytest.raises(ArtifactError, match=r"'a' is f32\[3, 5\], the plan wants f32\[5, 3\]"):
        weights.select("a", "f32", (5, 3))
    with pytest.raises(ArtifactError, match=r"'b' is bf16\[7\], the plan wants f32\[7\]"):
        weights.select("b", "f32", (7,))


@pytest.mark.parametrize("keep", [0, 4, 20, 300, -1])
def test_a_truncated_file_is_an_error(tmp_path, keep):
    path = tmp_path / "w.safetensors"
    write(path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ArtifactError, match="truncated"):
        Weights(path)


def test_a_header_that_lies_is_an_error(tmp_path):
    path = tmp_path / "w.safetensors"
    for header, reason in [
        (b"{nonsense", "header is damaged"),
        (json.dumps({"a": {"dtype": "F32"}}).encode(), "header is damaged"),
        (
            json.dumps({"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 4]}}).encode(),
            "'a' has 4 bytes, its shape wants 36",
        ),
    ]:
        path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(64))
        with pytest.raises(ArtifactError, match=reason):
            Weights(path)


def test_the_writer_wants_every_weight_in_order(tmp_path):
    path = tmp_path / "w.safetensors"
    with (
        pytest.raises(ValueError, match="given weight 'b', wanted 'a'"),
        WeightsWriter(path, SPECS) as w,
    ):
        w.write("b", np.zeros(7, np.uint16))
    with (
        pytest.raises(ValueError, match="'a' has 16 bytes, wanted 60"),
        WeightsWriter(path, SPECS) as w,
    ):
        w.write("a", np.zeros(4, np.float32))
    with (
        pytest.raises(ValueError, match="never written: a, b, c, d, e"),
        WeightsWriter(path, SPECS),
    ):
        pass
