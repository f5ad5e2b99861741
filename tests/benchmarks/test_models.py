"""Models are made once, and again only where what made them has changed."""

import json
import os

import numpy as np
import pytest
from ferrule.ir.plan import TensorSpec
from ferrule.runtime.weights import WeightsWriter

from benchmarks import models
from benchmarks.cases import Room
from benchmarks.checkpoints import checkpoint_of
from benchmarks.conversion.to_gguf import gguf_name, interleaved, tensors, widened
from benchmarks.stacks import STACKS, Installed

ROOM = Room(tokens=64, sequences=4, threads=2)


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "toy"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"hidden_size": 2}))
    spec = TensorSpec("model.norm.weight", "bf16", (2,))
    with WeightsWriter(folder / "model.safetensors", [spec]) as writer:
        writer.write(spec.name, np.array([0x3F80, 0xC000], "uint16"))
    return folder


def maker(tmp_path, status: int = 0) -> Installed:
    """An interpreter that notes each call and writes the file that it is asked for."""
    path = tmp_path / f"python-{status}"
    path.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\ntouch "$4"\nexit {status}\n')
    path.chmod(0o755)
    return Installed(STACKS["llama.cpp"], str(path))


def test_a_model_is_made_once(tmp_path, checkpoint):
    made = models.model_of(maker(tmp_path), "int4", checkpoint, ROOM, tmp_path)
    again = models.model_of(maker(tmp_path), "int4", checkpoint, ROOM, tmp_path)
    assert made == again and made.path.is_file() and made.seconds is not None
    other = models.model_of(maker(tmp_path), "int8", checkpoint, ROOM, tmp_path)
    assert other.path != made.path
    os.utime(checkpoint / "model.safetensors", (1, 1))  # as if written again
    assert models.model_of(maker(tmp_path), "int4", checkpoint, ROOM, tmp_path).path != made.path
    assert len((tmp_path / "calls").read_text().splitlines()) == 3


def test_a_conversion_that_fails_leaves_no_model(tmp_path, checkpoint):
    for _ in range(2):
        with pytest.raises(SystemExit, match=r"to_gguf .* failed"):
            models.model_of(maker(tmp_path, 1), "int4", checkpoint, ROOM, tmp_path)
    assert len((tmp_path / "calls").read_text().splitlines()) == 2


def test_a_stack_that_reads_checkpoints_needs_no_conversion(tmp_path, checkpoint):
    eager = Installed(STACKS["hf-eager"], "python")
    assert models.model_of(eager, "bf16", checkpoint, ROOM, tmp_path).path == checkpoint


def test_a_checkpoint_of_another_shape_is_refused(checkpoint):
    assert checkpoint_of(checkpoint, {"hidden_size": 2}) == checkpoint
    with pytest.raises(SystemExit, match=r"another shape .hidden_size differ"):
        checkpoint_of(checkpoint, {"hidden_size": 3})


def test_names_in_a_gguf_file():
    assert gguf_name("model.embed_tokens.weight") == "token_embd.weight"
    assert gguf_name("model.layers.11.self_attn.q_proj.bias") == "blk.11.attn_q.bias"
    assert gguf_name("model.layers.0.mlp.down_proj.weight") == "blk.0.ffn_down.weight"
    assert gguf_name("model.norm.weight") == "output_norm.weight"
    assert gguf_name("lm_head.weight") == "output.weight"


def test_parameters_are_read_as_they_are_written(checkpoint):
    ((name, bits),) = tensors(checkpoint)
    assert name == "model.norm.weight"
    assert widened(bits).tolist() == [1.0, -2.0]


def test_halves_become_neighbours():
    rows = np.arange(8)[:, None].repeat(3, 1)
    assert interleaved(rows, heads=2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert interleaved(np.arange(8), heads=1).tolist() == [0, 4, 1, 5, 2, 6, 3, 7]
