"""Checks and times a GPU in one call: `python -m benchmarks.gpu [--layers 32] [--minutes 9]`.

First the device and what its memory gives, then a model of the shape of Llama 3.1 8B with random
bfloat16 weights, compiled for the device at hand: start to first token, decode steps of several
batches against the bandwidth, prefill of several lengths, each beside eager transformers on the
same device. One JSON line a figure, printed as soon as it is there; whatever does not fit into the
minutes is named at the end.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from ferrule.compiler.build import Options, compile_to
from ferrule.runtime.artifact import load
from ferrule.runtime.cuda.device import CudaDevice
from ferrule.runtime.cuda.executor import CudaExecutor
from ferrule.runtime.cuda.opening import open_device, open_executor
from ferrule.runtime.executor import Batch
from ferrule.runtime.pools import Pools

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BATCHES = (1, 32, 128)
PROMPTS = (2048, 8192)
CONTEXT = 512
BLOCK = 16
STEPS = 20


def llama(layers: int) -> PreTrainedModel:
    """Llama 3.1 8B's shape with random bfloat16 weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=layers,
        num_attention_heads=32, num_key_value_heads=8, max_position_embeddings=16384,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device("cuda"):
        torch.set_default_dtype(torch.bfloat16)
        try:
            model = LlamaForCausalLM(config).eval()
        finally:
            torch.set_default_dtype(torch.float32)
    return model


def seconds(run: Callable[[], object], steps: int = STEPS) -> float:
    """The median time of a call that waits for the device, after two that do not count."""
    times: list[float] = []
    for at in range(steps + 2):
        begin = time.perf_counter()
        run()
        if at > 1:
            times.append(time.perf_counter() - begin)
    return statistics.median(times)


def read_bandwidth(size: int = 4 << 30) -> float:
    """Bytes a second that a sum over memory reads."""
    data = torch.ones(size // 4, dtype=torch.float32, device="cuda")

    def run() -> None:
        data.sum()
        torch.cuda.synchronize()

    return size / seconds(run)


def decode_batch(count: int, context: int) -> Batch:
    """Every sequence's next token, each behind so much context in blocks of its own."""
    width = -(-context // BLOCK)
    tables = [range(n * width, (n + 1) * width) for n in range(count)]
    last = context - 1
    return Batch(
        tokens=[17 + n for n in range(count)], positions=[last] * count,
        query_start=range(count + 1), context_length=[context] * count, block_table=tables,
        slots=[t[last // BLOCK] * BLOCK + last % BLOCK for t in tables], logit_rows=range(count),
    )  # fmt: skip


def prefill_batch(tokens: int, begin: int, prompt: int) -> Batch:
    """So many tokens of one prompt, from `begin`."""
    width = -(-prompt // BLOCK)
    return Batch(
        tokens=[17 + i % 1000 for i in range(tokens)], positions=range(begin, begin + tokens),
        query_start=(0, tokens), context_length=(begin + tokens,), block_table=[range(width)],
        slots=range(begin, begin + tokens), logit_rows=(tokens - 1,),
    )  # fmt: skip


def figures(model: PreTrainedModel, folder: Path, layers: int) -> Iterator[dict[str, Any]]:
    """Every figure, in the order in which they are measured."""
    bandwidth = read_bandwidth()
    yield {"what": "read bandwidth", "bytes_per_second": bandwidth}
    device = CudaDevice()
    arch, name = device.arch, device.name
    device.close()
    options = Options(
        target=f"cuda:{arch}", dtype="bfloat16", max_context=max(PROMPTS) + BLOCK,
        max_batch=max(BATCHES), chunk=2048, block=BLOCK, parity=False, progress=False,
    )  # fmt: skip
    begin = time.perf_counter()
    artifact = compile_to(model.cpu(), folder / "artifact", options)
    torch.nn.Module.to(model, "cuda")
    yield {"what": "compile", "seconds": time.perf_counter() - begin, "device": name}
    plan = artifact.plan
    begin = time.perf_counter()
    opened = load(folder / "artifact", verify=False)
    blocks = max(BATCHES) * -(-CONTEXT // BLOCK) + max(PROMPTS) // BLOCK
    runner = open_executor(opened.path, plan, opened.weights, open_device(arch), Pools(blocks, 0))
    runner.step(prefill_batch(8, 0, 8))
    yield {"what": "load to first token", "seconds": time.perf_counter() - begin}
    yield agreement(model, runner)
    for count in BATCHES:
        yield decode(model, runner, count, plan.weight_bytes, bandwidth)
    for prompt in PROMPTS:
        yield prefill(model, runner, prompt)
    runner.close()
    yield {"what": "layers", "count": layers}


def agreement(model: PreTrainedModel, runner: CudaExecutor) -> dict[str, Any]:
    """The logits of a prompt's last token beside eager's."""
    batch = prefill_batch(100, 0, 112)
    _, logits = runner.step(batch)
    with torch.inference_mode():
        ids = torch.tensor([list(batch.tokens)], device="cuda")
        wanted = model(ids).logits[0, -1].float().cpu().numpy()
    error = float(np.abs(wanted - logits[0]).max() / np.abs(wanted).max())
    return {"what": "agreement", "relative_error": error, "same": bool(
        wanted.argmax() == logits[0].argmax())}  # fmt: skip


def decode(
    model: PreTrainedModel, runner: CudaExecutor, count: int, weights: int, bandwidth: float
) -> dict[str, Any]:
    """A decode step of a batch, beside a step of transformers with a static cache."""
    batch = decode_batch(count, CONTEXT)
    ours = seconds(lambda: runner.step(batch))
    peer = seconds(eager_decode(model, count), 5)
    return {
        "what": "decode", "batch": count, "context": CONTEXT, "seconds": ours,
        "tokens_per_second": count / ours, "share_of_bandwidth": weights / ours / bandwidth,
        "transformers_seconds": peer, "times_transformers": peer / ours,
    }  # fmt: skip


def eager_decode(model: PreTrainedModel, count: int) -> Callable[[], object]:
    """A decode step of transformers behind CONTEXT tokens in a static cache, compiled by torch."""
    from transformers import StaticCache

    cache = StaticCache(config=model.config, max_cache_len=CONTEXT + 8)
    ids = torch.randint(0, 1000, (count, 1), device="cuda")
    place = torch.full((1,), CONTEXT - 1, device="cuda")
    step = torch.compile(model.forward, mode="reduce-overhead")

    def run() -> None:
        with torch.inference_mode():
            step(input_ids=ids, past_key_values=cache, cache_position=place, use_cache=True)
        torch.cuda.synchronize()

    return run


def prefill(model: PreTrainedModel, runner: CudaExecutor, prompt: int) -> dict[str, Any]:
    """A prompt in chunks, beside eager transformers, which runs it whole."""
    chunk = runner.chunk
    starts = range(0, prompt, chunk)

    def run() -> None:
        for begin in starts:
            runner.step(prefill_batch(min(chunk, prompt - begin), begin, prompt))

    ids = torch.randint(0, 1000, (1, prompt), device="cuda")

    def peer() -> None:
        with torch.inference_mode():
            model(ids, logits_to_keep=1)
        torch.cuda.synchronize()

    ours, theirs = seconds(run, 5), seconds(peer, 5)
    return {
        "what": "prefill", "tokens": prompt, "seconds": ours, "tokens_per_second": prompt / ours,
        "transformers_seconds": theirs, "times_transformers": theirs / ours,
    }  # fmt: skip


def main() -> None:
    """Measure until all is done or the minutes are over."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--output", type=Path, help="also append the lines to this file")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks.gpu: torch sees no CUDA device")
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    lines = [{"what": "run", "date": date.today().isoformat(), **versions}]
    end = time.monotonic() + 60 * given.minutes
    with tempfile.TemporaryDirectory() as folder:
        for line in figures(llama(given.layers), Path(folder), given.layers):
            lines.append(line)
            print(json.dumps(line), flush=True)
            if time.monotonic() > end:
                print(json.dumps({"what": "out of time", "after": line["what"]}), flush=True)
                break
    if given.output is not None:
        with given.output.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(each) + "\n" for each in lines)


if __name__ == "__main__":
    main()
