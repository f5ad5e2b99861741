"""What the GPU benchmark measures, section by section: `python -m benchmarks.gpu_sections FOLDER
LAYERS NAMES` runs those of a JSON list, for benchmarks/gpu.py. What later sections compare with is
kept in the folder, so that they may run in another process.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from ferrule.compiler.devices import device_named
from ferrule.ir.target import Target
from ferrule.runtime.artifact import Artifact
from ferrule.runtime.executor import Batch
from ferrule.runtime.kernel_times import kernel_report

from . import gpu_kernels as alone
from . import gpu_peers as peers
from . import gpu_tried as tried
from .gpu_bench import (
    BLOCK,
    STEPS,
    Bench,
    Machine,
    Stream,
    decode_batch,
    prefill_batch,
    read_bandwidth,
    seconds,
)
from .gpu_worker import ROOT, Line, run_sections, shown_on_output

QUEUED = 4
MOST_LINES = 10
"""Kernels of a step that are shown."""
LINEARS = ((2048, 6144, 4096), (2048, 28672, 4096), (2048, 4096, 14336), (8192, 4096, 4096))
"""Rows, columns and k of the linears that are held against cuBLAS."""
HEADS = (32, 8, 128)
"""Heads, groups of keys and width of the attention that is held against SDPA."""
INT4 = "int4-g128"
TUNED = "tuned"
Section = Callable[[Bench], Iterator[Line]]


def memory(bench: Bench) -> Iterator[Line]:
    """The device, and what its memory gives."""
    bandwidth = read_bandwidth(bench.machine)  # torch holds the device's context from now on
    device = bench.machine.opened("")
    name, free = device.name, device.free_bytes()
    device.close()
    bench.note(lambda k: setattr(k, "bandwidth", bandwidth))
    yield {
        "device": name, "arch": bench.arch, "free_bytes": free, "bytes_per_second": bandwidth,
        "torch": torch.__version__, "cuda": torch.version.cuda,
    }  # fmt: skip


def on_device(machine: Machine, run: Callable[[], object], runs: int = 20) -> float:
    """The time of one call that the device works through, of several in a row."""
    for _ in range(3):
        run()
    machine.synchronize()
    begin = time.perf_counter()
    for _ in range(runs):
        run()
    machine.synchronize()
    return (time.perf_counter() - begin) / runs


def _tensor(bench: Bench, bits: np.ndarray[Any, Any]) -> torch.Tensor:
    raw = torch.from_numpy(bits.view(np.int16)).to(bench.machine.device)
    return raw.view(torch.bfloat16)


def _alone(
    bench: Bench, body: Any, inputs: Any, dims: Mapping[str, int], result: tuple[int, ...]
) -> alone.Alone:
    return alone.Alone.of(
        body, Target.parse(f"cuda:{bench.arch}"), Path(tempfile.mkdtemp(dir=bench.folder)),
        lambda _: bench.machine.opened(bench.arch), inputs, dims, result,
    )  # fmt: skip


def linear(bench: Bench, rows: int, n: int, k: int) -> Iterator[Line]:
    """A linear of many rows beside cuBLAS."""
    inputs = alone.linear_inputs(rows, n, k)
    body = alone.linear_body(n, k, rows)
    made = _alone(bench, body, inputs, {"T": rows}, (rows, n))
    x, w = (_tensor(bench, inputs[i]) for i in "xw")
    wanted = (x @ w.T).float().cpu().numpy()
    found = alone.floats(made.values())
    ours, theirs = made.seconds(), on_device(bench.machine, lambda: x @ w.T)
    made.close()
    yield {
        "rows": rows, "columns": n, "k": k, "seconds": ours, "cublas_seconds": theirs,
        "share_of_cublas": theirs / ours, "flops": 2 * rows * n * k / ours,
        "relative_error": float(np.abs(found - wanted).max() / np.abs(wanted).max()),
    }  # fmt: skip


def attention(bench: Bench, tokens: int) -> Iterator[Line]:
    """Attention over a prompt beside torch's flash kernel."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    heads, groups, width = HEADS
    inputs = alone.attention_inputs(tokens, heads, groups, width)
    blocks = -(-tokens // BLOCK)
    body = alone.attention_body(heads, groups, width, tokens)
    dims = {"T": tokens, "N": 1, "M": blocks, "C": blocks}
    made = _alone(bench, body, inputs, dims, (tokens, heads, width))
    q, k, v = (
        _tensor(bench, inputs[n]).reshape(-1, h, width)[:tokens].transpose(0, 1)[None]
        for n, h in (("q", heads), ("keys", groups), ("values", groups))
    )
    k, v = (x.repeat_interleave(heads // groups, dim=1) for x in (k, v))

    def flash() -> torch.Tensor:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)

    wanted = flash()[0].transpose(0, 1).float().cpu().numpy()
    found = alone.floats(made.values())
    ours, theirs = made.seconds(), on_device(bench.machine, flash)
    made.close()
    yield {
        "tokens": tokens, "seconds": ours, "sdpa_seconds": theirs, "share_of_sdpa": theirs / ours,
        "relative_error": float(np.abs(found - wanted).max() / np.abs(wanted).max()),
    }  # fmt: skip


def build(bench: Bench, text: str = "") -> Iterator[Line]:
    """How long the build takes, and part by part."""
    begin = time.perf_counter()
    bench.build(text)
    took, manifest = time.perf_counter() - begin, Artifact(bench.place(text)).manifest
    yield {"weights": text or "bf16", "seconds": took, "parts": manifest["report"]["seconds"]}


def logits(bench: Bench) -> Iterator[Line]:
    """The logits of a prompt beside eager's."""
    count = min(100, bench.chunk)
    batch = prefill_batch(count, 0, count)
    _, found = bench.runner().step(batch)
    with torch.inference_mode():
        ids = torch.tensor([list(batch.tokens)], device=bench.machine.device)
        wanted = bench.model(ids).logits[0, -1].float().cpu().numpy()
    error = float(np.abs(wanted - found[0]).max() / np.abs(wanted).max())
    same = bool(wanted.argmax() == found[0].argmax())
    yield {"check": "logits beside eager", "relative_error": error, "same_token": same}


def decode(bench: Bench, count: int, text: str = "") -> Iterator[Line]:
    """A decode step of a batch among others, as a server gives them, and alone, against what
    reading its weights and its cache takes.
    """
    runner, batch = bench.runner(text), decode_batch(count, bench.context)
    single = seconds(lambda: runner.step(batch))
    steps = Stream(runner, batch)
    took = seconds(steps.step, 2 * STEPS)
    steps.end()
    bench.note(lambda k: k.decoded.update({f"{text} {count}": took}))
    graph = runner.recorded(batch)
    alone = min(runner.driver.time([graph])[0] for _ in range(5))
    known, read = bench.known, bench.traffic(text, count)
    plain = known.decoded.get(f" {count}") if text else None
    yield {
        "weights": text or "bf16", "batch": count, "context": bench.context, "seconds": took,
        "single_seconds": single, "device_seconds": alone, "tokens_per_second": count / took,
        "bytes": read,
        "share_of_bandwidth": read / took / known.bandwidth if known.bandwidth else None,
        **({"times_bfloat16": plain / took} if plain else {}),
    }  # fmt: skip


def prefill(bench: Bench, prompt: int, text: str = "") -> Iterator[Line]:
    """A prompt in chunks."""
    runner = bench.runner(text)
    chunk = runner.chunk

    def run() -> None:
        for begin in range(0, prompt, chunk):
            runner.step(prefill_batch(min(chunk, prompt - begin), begin, prompt))

    took = seconds(run, 5)
    bench.note(lambda k: k.prefilled.update({f"{text} {prompt}".strip(): took}))
    plain = bench.known.prefilled.get(f"{prompt}") if text else None
    yield {
        "weights": text or "bf16", "tokens": prompt, "seconds": took,
        "tokens_per_second": prompt / took, **({"times_bfloat16": plain / took} if plain else {}),
    }  # fmt: skip


def calls(bench: Bench, batch: Batch, text: str = "") -> Iterator[Line]:
    """A step call by call: the kernels that take longest, beside what the device allows."""
    runner = bench.runner(text)
    # The host takes longer to launch a kernel than a small one takes: work that is queued before
    # lets it get ahead.
    if batch.is_decode:
        graph = runner.recorded(batch)
        for _ in range(QUEUED):
            runner.driver.replay(graph)
    runner.samples = True
    runner.step(batch)
    assert runner.sample is not None, "a step that was asked for one"
    opened = Artifact(bench.place(text))
    machine = device_named(None, bench.arch)
    found = kernel_report(opened.plan, opened.manifest, runner.sample, machine)
    yield {"weights": text or "bf16", **found, "kernels": found["kernels"][:MOST_LINES]}


def first_token(bench: Bench) -> Iterator[Line]:
    """From the start of a process to the first token of an artifact that was built before."""
    bench.build()
    begin = time.perf_counter()
    command = [sys.executable, "-m", "benchmarks.gpu_first_token"]
    done = subprocess.run(
        [*command, str(bench.place()), bench.arch], capture_output=True, text=True, timeout=120,
        cwd=ROOT,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(done.stderr[-500:])
    yield {"seconds": time.perf_counter() - begin, **json.loads(done.stdout.splitlines()[-1])}


def beside(name: str, make: Callable[[Bench], peers.Run], key: Mapping[str, int]) -> Section:
    """A section that times a peer, and says how many times as long it takes."""

    def run(bench: Bench) -> Iterator[Line]:
        begin = time.perf_counter()
        step = make(bench)
        took, prepared = seconds(step, 5), time.perf_counter() - begin
        known = bench.known
        ours = known.prefilled.get(f"{key.get('tokens')}") or known.decoded.get(
            f" {key.get('batch')}"
        )
        line = {**key, "peer": name, "seconds": took, "prepared_in": prepared}
        yield line if ours is None else {**line, "times_ours": took / ours}
        torch.compiler.reset()
        if bench.machine.device == "cuda":
            torch.cuda.empty_cache()

    return run


def tests(bench: Bench) -> Iterator[Line]:
    """The tests that need a GPU: tiny models, tokens equal to eager's."""
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-m", "gpu"]
    done = subprocess.run(
        [*command, "tests/models/test_gpu.py"], capture_output=True, text=True, timeout=240,
        cwd=ROOT,
    )  # fmt: skip
    words = [w for w in done.stdout.splitlines() if w.startswith(("FAILED", "ERROR"))][:8]
    summary = done.stdout.strip().splitlines()[-1:] or done.stderr.strip().splitlines()[-1:]
    yield {"status": done.returncode, "summary": summary, "failed_tests": words}


class Named(NamedTuple):
    """A section, and the group that it is of."""

    group: str
    name: str
    run: Section


def sections(bench: Bench) -> Iterator[Named]:
    """Every section, what is judged first before what takes long."""
    yield Named("kernels", "memory", memory)
    for name, run in _kernels(bench):
        yield Named("kernels", name, run)
    for name, run in _ours(bench):
        yield Named("model", name, run)
    for name, run in _coded(bench):
        yield Named("int4", name, run)
    known = list(_peers(bench))
    # One sequence is held against the bandwidth: its peers come last.
    for late in (False, True):
        for name, run in known:
            if name.endswith("decode 1") == late:
                yield Named("peers", name, run)
        if not late:
            yield Named("tests", "tests", tests)
            yield from (Named("tuned", name, run) for name, run in _tuned(bench))
    for at in tried.AT:
        yield Named("choices", f"choices {tried.text_of(at)}", lambda b, s=at: tried.choices(b, s))


Sections = Iterator[tuple[str, Section]]


def _kernels(bench: Bench) -> Sections:
    for rows, n, k in LINEARS:
        yield f"linear {rows}x{n}x{k}", lambda b, s=(rows, n, k): linear(b, *s)
    for prompt in bench.prompts:
        yield f"attention {prompt}", lambda b, p=prompt: attention(b, p)


def _ours(bench: Bench) -> Sections:
    yield "build", build
    yield "logits", logits
    for count in bench.batches:
        yield f"decode {count}", lambda b, c=count: decode(b, c)
    for prompt in bench.prompts:
        yield f"prefill {prompt}", lambda b, p=prompt: prefill(b, p)
    yield "first token", first_token
    for count in (min(bench.batches), max(bench.batches)):
        yield f"calls of decode {count}", lambda b, c=count: calls(b, decode_batch(c, b.context))
    yield "calls of prefill", lambda b: calls(b, prefill_batch(b.chunk, 0, b.chunk))


def _coded(bench: Bench) -> Sections:
    yield "build int4", lambda b: build(b, INT4)
    for count in bench.batches:
        yield f"int4 decode {count}", lambda b, c=count: decode(b, c, INT4)
    yield f"int4 prefill {min(bench.prompts)}", lambda b: prefill(b, min(b.prompts), INT4)
    yield "int4 calls of decode 1", lambda b: calls(b, decode_batch(1, b.context), INT4)


def _tuned(bench: Bench) -> Sections:
    yield "tune", lambda b: tried.tune(b, TUNED)
    for count in bench.batches:
        yield f"tuned decode {count}", lambda b, c=count: decode(b, c, TUNED)
    for prompt in bench.prompts:
        yield f"tuned prefill {prompt}", lambda b, p=prompt: prefill(b, p, TUNED)


def _peers(bench: Bench) -> Sections:
    plain, hugging = "plain torch, compiled", "transformers, static cache, torch.compile"
    for count in bench.batches:
        make = lambda b, c=count: peers.plain_decode(b.model, c, b.context)  # noqa: E731
        yield f"plain torch decode {count}", beside(plain, make, {"batch": count})
    for prompt in bench.prompts:
        make = lambda b, p=prompt: peers.plain_prefill(b.model, p)  # noqa: E731
        yield f"plain torch prefill {prompt}", beside(plain, make, {"tokens": prompt})
    for count in bench.batches:
        make = lambda b, c=count: peers.transformers_decode(b.model, c, b.context)  # noqa: E731
        yield f"transformers decode {count}", beside(hugging, make, {"batch": count})
    for prompt in bench.prompts:
        make = lambda b, p=prompt: peers.transformers_prefill(b.model, p)  # noqa: E731
        yield f"transformers prefill {prompt}", beside(hugging, make, {"tokens": prompt})


def is_well() -> bool:
    """Whether the device still does what it is asked."""
    try:
        torch.cuda.synchronize()
        return float(torch.ones(8, device="cuda").sum()) == 8.0
    except Exception:
        return False


def main() -> None:
    """Run the sections that are asked for."""
    folder, layers, names = Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
    bench = Bench(folder, layers)
    known = {s.name: s.run for s in sections(bench)}
    wanted = [(name, lambda s=known[name]: s(bench)) for name in names]
    raise SystemExit(run_sections(wanted, shown_on_output, is_well))


if __name__ == "__main__":
    main()
