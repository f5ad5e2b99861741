"""What of the GPU benchmark needs no GPU: how sections are guarded, the peer in plain torch, single
kernels (interpreted), batches.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from ferrule.compiler.interpreted import InterpretedDriver
from ferrule.ir.target import Target
from models import zoo

from benchmarks import gpu, gpu_kernels
from benchmarks.gpu_peers import PlainLlama

TARGET = Target.parse("cuda:sm_90")


def test_a_section_that_fails_is_named_and_the_rest_goes_on(tmp_path: Path) -> None:
    def good(bench: gpu.Bench) -> Iterator[gpu.Line]:
        yield {"layers": bench.layers}

    def bad(bench: gpu.Bench) -> Iterator[gpu.Line]:
        yield {"begun": True}
        raise ValueError("no such kernel")

    lines: list[gpu.Line] = []
    wanted = [("one", bad), ("two", good)]
    gpu.run_sections(gpu.Bench(tmp_path, 2), wanted, lines.append, 1.0)
    assert [line["what"] for line in lines] == ["one", "one", "two"]
    assert lines[1]["failed"] == "ValueError: no such kernel" and lines[2]["layers"] == 2
    gpu.run_sections(gpu.Bench(tmp_path, 2), wanted, lines.append, -1.0)
    assert [line.get("left_out") for line in lines[3:]] == ["out of time"] * 2


def test_what_is_judged_is_measured() -> None:
    names = [name for name, _ in gpu.sections()]
    assert len(set(names)) == len(names)
    for count in (1, 32, 128):
        assert {f"{p}decode {count}" for p in ("", "plain torch ", "transformers ")} <= set(names)
    assert {"prefill 2048", "prefill 8192", "linears", "attention", "first token"} <= set(names)
    assert "4 bits, decode 1" in names


@torch.inference_mode()
def test_plain_torch_gives_the_logits_of_transformers() -> None:
    model = zoo.build("llama")
    ids = torch.randint(0, 100, (2, 7))
    peer = PlainLlama(model, 2, 16, compiled=False)
    wanted = model(ids).logits
    torch.testing.assert_close(peer(ids[:, :6], torch.arange(6), whole=True), wanted[:, 5])
    torch.testing.assert_close(peer(ids[:, 6:], torch.tensor([6])), wanted[:, 6])


@pytest.mark.parametrize("rows", [1, 19])
def test_a_linear_alone(rows: int, tmp_path: Path) -> None:
    inputs = gpu_kernels.linear_inputs(rows, 24, 40)
    made = gpu_kernels.Alone.of(
        gpu_kernels.linear_body(24, 40, 64), TARGET, tmp_path,
        lambda folder: InterpretedDriver(folder, 1 << 20), inputs, {"T": rows}, (rows, 24),
        machine_code=False,
    )  # fmt: skip
    x, w = (gpu_kernels.floats(inputs[n]) for n in "xw")
    np.testing.assert_allclose(gpu_kernels.floats(made.values()), x @ w.T, rtol=0.02, atol=0.02)
    assert made.seconds(1) > 0
    made.driver.close()


def test_attention_over_a_prompt_alone(tmp_path: Path) -> None:
    tokens, heads, groups, width = 19, 4, 2, 16
    inputs = gpu_kernels.attention_inputs(tokens, heads, groups, width)
    made = gpu_kernels.Alone.of(
        gpu_kernels.attention_body(heads, groups, width, tokens), TARGET, tmp_path,
        lambda folder: InterpretedDriver(folder, 1 << 20), inputs,
        {"T": tokens, "N": 1, "M": 2, "C": 2}, (tokens, heads, width), machine_code=False,
    )  # fmt: skip
    q, k, v = (
        torch.from_numpy(gpu_kernels.floats(inputs[n]).reshape(-1, h, width))[:tokens].transpose(
            0, 1
        )
        for n, h in (("q", heads), ("keys", groups), ("values", groups))
    )
    wanted = torch.nn.functional.scaled_dot_product_attention(
        q[None], k[None], v[None], is_causal=True, enable_gqa=True
    )[0].transpose(0, 1)
    found = gpu_kernels.floats(made.values())
    np.testing.assert_allclose(found, wanted.numpy(), rtol=0.03, atol=0.03)
    made.driver.close()


def test_batches_are_what_a_step_takes() -> None:
    batch = gpu.decode_batch(3, 33)
    assert batch.is_decode and not batch.wants_logits
    assert len({*batch.slots}) == 3 and all(
        s // 16 in t for s, t in zip(batch.slots, batch.block_table, strict=True)
    )
    prompt = gpu.prefill_batch(8, 16, 40)
    assert list(prompt.positions) == list(range(16, 24)) and prompt.context_length == (24,)
