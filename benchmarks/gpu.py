"""Checks and times a GPU in one call: `python -m benchmarks.gpu [--layers 32] [--minutes 9]`.

First the device and what its memory gives, then single kernels (linears beside cuBLAS, attention
beside SDPA), then a model of the shape of Llama 3.1 8B with random bfloat16 weights, compiled for
the device at hand: its logits beside eager's, decode steps of several batches against the
bandwidth, prefill of several lengths, 4-bit weights, start to first token in a process of its own;
beside them a compiled loop in plain torch, and transformers with a static cache and torch.compile.

One JSON line a figure, printed and written to benchmarks/results/ as soon as it is there. A section
that fails says so, and the rest goes on; one that would begin after the minutes is named as left
out. `--only PART` runs the sections whose names hold it, and what they need.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from ferrule.compiler.build import Options, compile_to
from ferrule.ir.target import Target
from ferrule.runtime.artifact import load
from ferrule.runtime.cuda.device import CudaDevice
from ferrule.runtime.cuda.opening import open_device, open_executor
from ferrule.runtime.executor import Batch, StepRunner
from ferrule.runtime.pools import Pools

from . import gpu_kernels as alone
from . import gpu_peers as peers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BATCHES = (1, 32, 128)
PROMPTS = (2048, 8192)
CONTEXT = 512
BLOCK = 16
STEPS = 20
RESULTS = Path(__file__).parent / "results"
LINEARS = ((2048, 6144, 4096), (2048, 28672, 4096), (2048, 4096, 14336), (8192, 4096, 4096))
"""Rows, columns and k of the linears that are held against cuBLAS."""


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
        wants_logits=False,
    )  # fmt: skip


def prefill_batch(tokens: int, begin: int, prompt: int) -> Batch:
    """So many tokens of one prompt, from `begin`."""
    width = -(-prompt // BLOCK)
    return Batch(
        tokens=[17 + i % 1000 for i in range(tokens)], positions=range(begin, begin + tokens),
        query_start=(0, tokens), context_length=(begin + tokens,), block_table=[range(width)],
        slots=range(begin, begin + tokens), logit_rows=(tokens - 1,),
    )  # fmt: skip


Line = dict[str, Any]
Section = Callable[["Bench"], Iterator[Line]]


@dataclass
class Bench:
    """What the sections share: the model, the device's name and architecture, a folder, and what
    earlier ones found out.
    """

    folder: Path
    layers: int
    arch: str = ""
    bandwidth: float = 0.0
    decoded: dict[tuple[str, int], float] = field(default_factory=dict[tuple[str, int], float])
    prefilled: dict[int, float] = field(default_factory=dict[int, float])
    _model: Any = None
    _runners: dict[str, StepRunner] = field(default_factory=dict[str, StepRunner])
    _weights: dict[str, int] = field(default_factory=dict[str, int])

    @property
    def model(self) -> PreTrainedModel:
        """The model, on the device."""
        if self._model is None:
            self._model = llama(self.layers)
        return self._model

    def runner(self, text: str = "") -> tuple[StepRunner, int]:
        """The compiled model with its weights in a format ("" for bfloat16), and the bytes of its
        weights.
        """
        if text not in self._runners:
            self._runners[text], self._weights[text] = self._built(text)
        return self._runners[text], self._weights[text]

    def _built(self, text: str) -> tuple[StepRunner, int]:
        options = Options(
            target=f"cuda:{self.arch}", dtype="bfloat16", max_context=max(PROMPTS) + BLOCK,
            max_batch=max(BATCHES), chunk=2048, block=BLOCK, parity=False, progress=False,
            quantize=text or None,
        )  # fmt: skip
        place = self.folder / f"artifact-{text or 'bf16'}"
        model = self.model
        try:
            artifact = compile_to(model.cpu(), place, options)
        finally:
            torch.nn.Module.to(model, "cuda")
        plan, opened = artifact.plan, load(place, verify=False)
        pools = Pools(max(BATCHES) * -(-CONTEXT // BLOCK) + max(PROMPTS) // BLOCK, 0)
        device = open_device(self.arch)
        return open_executor(opened.path, plan, opened.weights, device, pools), plan.weight_bytes


def memory(bench: Bench) -> Iterator[Line]:
    """The device, and what its memory gives."""
    device = CudaDevice()
    bench.arch, name = device.arch, device.name
    device.close()
    bench.bandwidth = read_bandwidth()
    yield {"device": name, "arch": bench.arch, "bytes_per_second": bench.bandwidth}


def linears(bench: Bench) -> Iterator[Line]:
    """Linears of many rows beside cuBLAS."""
    for rows, n, k in LINEARS:
        inputs = alone.linear_inputs(rows, n, k)
        made = alone.Alone.of(
            alone.linear_body(n, k, rows), Target.parse(f"cuda:{bench.arch}"),
            Path(tempfile.mkdtemp(dir=bench.folder)), lambda _: open_device(bench.arch), inputs,
            {"T": rows}, (rows, n),
        )  # fmt: skip
        x, w = (
            torch.from_numpy(inputs[i].view(np.int16)).cuda().view(torch.bfloat16) for i in "xw"
        )
        wanted = (x @ w.T).float().cpu().numpy()
        found = alone.floats(made.values())
        ours = made.seconds()
        theirs = on_device(lambda x=x, w=w: x @ w.T)
        yield {
            "rows": rows, "columns": n, "k": k, "seconds": ours, "cublas_seconds": theirs,
            "share_of_cublas": theirs / ours, "flops": 2 * rows * n * k / ours,
            "relative_error": float(np.abs(found - wanted).max() / np.abs(wanted).max()),
        }  # fmt: skip


def attention(bench: Bench) -> Iterator[Line]:
    """Attention over a prompt beside torch's flash kernel."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    heads, groups, width = 32, 8, 128
    for tokens in PROMPTS:
        inputs = alone.attention_inputs(tokens, heads, groups, width)
        blocks = -(-tokens // BLOCK)
        made = alone.Alone.of(
            alone.attention_body(heads, groups, width, tokens), Target.parse(f"cuda:{bench.arch}"),
            Path(tempfile.mkdtemp(dir=bench.folder)), lambda _: open_device(bench.arch), inputs,
            {"T": tokens, "N": 1, "M": blocks, "C": blocks}, (tokens, heads, width),
        )  # fmt: skip
        q, k, v = (
            torch.from_numpy(inputs[n].view(np.int16)).cuda().view(torch.bfloat16)
            .reshape(-1, h, width)[:tokens].transpose(0, 1)[None]
            for n, h in (("q", heads), ("keys", groups), ("values", groups))
        )  # fmt: skip
        k, v = (x.repeat_interleave(heads // groups, dim=1) for x in (k, v))

        def flash(q: torch.Tensor = q, k: torch.Tensor = k, v: torch.Tensor = v) -> torch.Tensor:
            with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
                return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)

        wanted = flash()[0].transpose(0, 1).float().cpu().numpy()
        found = alone.floats(made.values())
        ours, theirs = made.seconds(), on_device(flash)
        yield {
            "tokens": tokens, "seconds": ours, "sdpa_seconds": theirs,
            "share_of_sdpa": theirs / ours,
            "relative_error": float(np.abs(found - wanted).max() / np.abs(wanted).max()),
        }  # fmt: skip


def on_device(run: Callable[[], object], runs: int = 20) -> float:
    """The time of one call that the device works through, of several in a row."""
    for _ in range(3):
        run()
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(runs):
        run()
    torch.cuda.synchronize()
    return (time.perf_counter() - begin) / runs


def compiled(bench: Bench) -> Iterator[Line]:
    """How long the build takes, and the logits of a prompt beside eager's."""
    begin = time.perf_counter()
    runner, weights = bench.runner()
    yield {"seconds": time.perf_counter() - begin, "weight_bytes": weights}
    batch = prefill_batch(100, 0, 112)
    _, logits = runner.step(batch)
    with torch.inference_mode():
        ids = torch.tensor([list(batch.tokens)], device="cuda")
        wanted = bench.model(ids).logits[0, -1].float().cpu().numpy()
    error = float(np.abs(wanted - logits[0]).max() / np.abs(wanted).max())
    same = bool(wanted.argmax() == logits[0].argmax())
    yield {"check": "logits beside eager", "relative_error": error, "same_token": same}


def decode(bench: Bench, count: int, text: str = "") -> Iterator[Line]:
    """A decode step of a batch, against what reading its weights and its cache takes."""
    runner, weights = bench.runner(text)
    batch = decode_batch(count, CONTEXT)
    took = seconds(lambda: runner.step(batch))
    bench.decoded[text, count] = took
    config: Any = bench.model.config
    heads, width = config.num_key_value_heads, config.hidden_size // config.num_attention_heads
    cache = count * CONTEXT * config.num_hidden_layers * 2 * heads * width * 2
    share = (weights + cache) / took / bench.bandwidth if bench.bandwidth else None
    more = {}
    if text and ("", count) in bench.decoded:
        more = {"times_bfloat16": bench.decoded["", count] / took}
    yield {
        "weights": text or "bf16", "batch": count, "context": CONTEXT, "seconds": took,
        "tokens_per_second": count / took, "share_of_bandwidth": share, **more,
    }  # fmt: skip


def prefill(bench: Bench, prompt: int) -> Iterator[Line]:
    """A prompt in chunks."""
    runner, _ = bench.runner()
    chunk = runner.chunk

    def run() -> None:
        for begin in range(0, prompt, chunk):
            runner.step(prefill_batch(min(chunk, prompt - begin), begin, prompt))

    took = seconds(run, 5)
    bench.prefilled[prompt] = took
    yield {"tokens": prompt, "seconds": took, "tokens_per_second": prompt / took}


def first_token(bench: Bench) -> Iterator[Line]:
    """From the start of a process to the first token of an artifact that was built before."""
    bench.runner()
    begin = time.perf_counter()
    command = [sys.executable, "-m", "benchmarks.gpu", "--first-token"]
    place = str(bench.folder / "artifact-bf16")
    done = subprocess.run(
        [*command, place, bench.arch], capture_output=True, text=True, timeout=120
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-500:])
    yield {"seconds": time.perf_counter() - begin, **json.loads(done.stdout.splitlines()[-1])}


def _first_token(place: Path, arch: str) -> None:
    begin = time.perf_counter()
    opened = load(place, verify=False)
    plan = opened.plan
    runner = open_executor(place, plan, opened.weights, open_device(arch), Pools(64, 0))
    argmax, _ = runner.step(prefill_batch(8, 0, 8))
    took = time.perf_counter() - begin
    print(json.dumps({"load_seconds": took, "token": int(argmax[0])}))


def beside(name: str, make: Callable[[Bench], peers.Run], key: Mapping[str, int]) -> Section:
    """A section that times a peer, and says how many times as long it takes."""

    def run(bench: Bench) -> Iterator[Line]:
        begin = time.perf_counter()
        step = make(bench)
        took, prepared = seconds(step, 5), time.perf_counter() - begin
        ours = bench.prefilled.get(key.get("tokens", 0)) or bench.decoded.get(
            ("", key.get("batch", 0))
        )
        line = {**key, "peer": name, "seconds": took, "prepared_in": prepared}
        yield line if ours is None else {**line, "times_ours": took / ours}
        torch.compiler.reset()
        torch.cuda.empty_cache()

    return run


def sections() -> Iterator[tuple[str, Section]]:
    """Every section by its name, what is judged first before what takes long."""
    yield "memory", memory
    yield "linears", linears
    yield "attention", attention
    yield "build", compiled
    for count in BATCHES:
        yield f"decode {count}", lambda b, c=count: decode(b, c)
    for prompt in PROMPTS:
        yield f"prefill {prompt}", lambda b, p=prompt: prefill(b, p)
    yield "first token", first_token
    for count in BATCHES:
        make = lambda b, c=count: peers.plain_decode(b.model, c, CONTEXT)  # noqa: E731
        yield f"plain torch decode {count}", beside("plain torch, compiled", make, {"batch": count})
    for prompt in PROMPTS:
        make = lambda b, p=prompt: peers.plain_prefill(b.model, p)  # noqa: E731
        yield (
            f"plain torch prefill {prompt}",
            beside("plain torch, compiled", make, {"tokens": prompt}),
        )
        make = lambda b, p=prompt: peers.transformers_prefill(b.model, p)  # noqa: E731
        yield f"transformers prefill {prompt}", beside("transformers", make, {"tokens": prompt})
    yield "4 bits, decode 1", lambda b: decode(b, 1, "int4-g128")
    for count in BATCHES:
        make = lambda b, c=count: peers.transformers_decode(b.model, c, CONTEXT)  # noqa: E731
        name = "transformers, static cache, torch.compile"
        yield f"transformers decode {count}", beside(name, make, {"batch": count})


def run_sections(
    bench: Bench,
    wanted: Sequence[tuple[str, Section]],
    show: Callable[[Line], None],
    minutes: float,
) -> None:
    """Run sections one after another; one that fails is shown as such, those that the minutes do
    not reach as left out.
    """
    end = time.monotonic() + 60 * minutes
    for name, section in wanted:
        if time.monotonic() > end:
            show({"what": name, "left_out": "out of time"})
            continue
        try:
            for line in section(bench):
                show({"what": name, **line})
        except Exception as error:
            where = traceback.format_exc().splitlines()[-8:]
            show({"what": name, "failed": f"{type(error).__name__}: {error}", "where": where})


def main() -> None:
    """Measure until all is done or the minutes are over."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--only", default="", help="part of the names of sections")
    parser.add_argument("--output", type=Path, help="a file in place of one in benchmarks/results/")
    parser.add_argument("--first-token", nargs=2, metavar=("DIR", "ARCH"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.first_token:
        _first_token(Path(given.first_token[0]), given.first_token[1])
        return
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks.gpu: torch sees no CUDA device")
    device = torch.cuda.get_device_name()
    output = (
        given.output or RESULTS / f"gpu-{date.today()}-{device.replace(' ', '-').lower()}.jsonl"
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    driver = {"device": device, "cuda": torch.version.cuda, "layers": given.layers}
    with tempfile.TemporaryDirectory() as folder, output.open("a", encoding="utf-8") as file:

        def show(line: Line) -> None:
            text = json.dumps(line)
            print(text, flush=True)
            file.write(text + "\n")
            file.flush()

        show({"what": "run", "date": date.today().isoformat(), **versions, **driver})
        wanted = [(n, s) for n, s in sections() if given.only in n or n == "memory"]
        run_sections(Bench(Path(folder), given.layers), wanted, show, given.minutes)


if __name__ == "__main__":
    main()
