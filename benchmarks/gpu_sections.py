"""What the GPU benchmark measures, section by section: `python -m benchmarks.gpu_sections FOLDER
LAYERS NAMES` runs those of a JSON list, for benchmarks/gpu.py. What later sections compare with is
kept in the folder, so that they may run in another process.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from ferrule.compiler.build import Options, compile_to
from ferrule.compiler.explain import Load, explain
from ferrule.ir.target import Target
from ferrule.runtime.artifact import Artifact
from ferrule.runtime.cuda.device import CudaDevice
from ferrule.runtime.cuda.driver import Driver
from ferrule.runtime.cuda.opening import open_device, open_executor
from ferrule.runtime.executor import Batch, StepRunner
from ferrule.runtime.pools import Pools

from . import gpu_kernels as alone
from . import gpu_peers as peers
from .gpu_worker import ROOT, Line, run_sections, shown_on_output

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BATCHES = (1, 32, 128)
PROMPTS = (2048, 8192)
CONTEXT = 512
BLOCK = 16
STEPS = 20
CHUNK = 2048
INT4 = "int4-g128"
LINEARS = ((2048, 6144, 4096), (2048, 28672, 4096), (2048, 4096, 14336), (8192, 4096, 4096))
"""Rows, columns and k of the linears that are held against cuBLAS."""
HEADS = (32, 8, 128)
"""Heads, groups of keys and width of the attention that is held against SDPA."""
LLAMA = {
    "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
    "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 16384,
}  # fmt: skip
"""The shape of Llama 3.1 8B, but for the number of its layers."""


@dataclass(frozen=True)
class Machine:
    """Where it is measured: torch's name of the device, what opens it for kernels of an
    architecture ("" for any), what waits for it.
    """

    device: str
    opened: Callable[[str], Driver]
    synchronize: Callable[[], object]


GPU = Machine("cuda", lambda arch: open_device(arch) if arch else CudaDevice(),
              torch.cuda.synchronize)  # fmt: skip


@dataclass
class Known:
    """What sections found out: the architecture, bytes a second, seconds of decode steps by weights
    and batch, and of prompts by their tokens.
    """

    arch: str = ""
    bandwidth: float = 0.0
    decoded: dict[str, float] = field(default_factory=dict[str, float])
    prefilled: dict[str, float] = field(default_factory=dict[str, float])

    @staticmethod
    def read(path: Path) -> Known:
        """What is in a file; nothing where there is none."""
        return Known(**json.loads(path.read_text())) if path.exists() else Known()

    def write(self, path: Path) -> None:
        """Put it into a file, whole or not at all."""
        part = path.with_suffix(".part")
        part.write_text(json.dumps(asdict(self)))
        part.replace(path)


@dataclass
class Bench:
    """What the sections share: a folder, the model and its runners, and what is known."""

    folder: Path
    layers: int
    shape: Mapping[str, Any] = field(default_factory=lambda: LLAMA)
    chunk: int = CHUNK
    context: int = CONTEXT
    machine: Machine = GPU
    batches: tuple[int, ...] = BATCHES
    prompts: tuple[int, ...] = PROMPTS
    _model: Any = None
    _runners: dict[str, StepRunner] = field(default_factory=dict[str, StepRunner])

    @property
    def known(self) -> Known:
        """What sections found out so far."""
        return Known.read(self.folder / "known.json")

    def note(self, change: Callable[[Known], object]) -> None:
        """Keep what a section found out."""
        known = self.known
        change(known)
        known.write(self.folder / "known.json")

    @property
    def arch(self) -> str:
        """The device's architecture, which the first section finds out."""
        known = self.known
        if not known.arch:
            device = self.machine.opened("")
            self.note(lambda k: setattr(k, "arch", str(getattr(device, "arch", ""))))
            device.close()
        return self.known.arch

    @property
    def model(self) -> PreTrainedModel:
        """The model with random bfloat16 weights, on the device."""
        if self._model is None:
            from transformers import LlamaConfig, LlamaForCausalLM

            config = LlamaConfig(num_hidden_layers=self.layers, **self.shape)
            torch.manual_seed(0)
            with torch.device(self.machine.device):
                torch.set_default_dtype(torch.bfloat16)
                try:
                    self._model = LlamaForCausalLM(config).eval()
                finally:
                    torch.set_default_dtype(torch.float32)
        return self._model

    def place(self, text: str = "") -> Path:
        """Where the compiled model with its weights in a format ("" for bfloat16) is."""
        return self.folder / f"artifact-{text or 'bf16'}"

    def build(self, text: str = "") -> None:
        """Compile the model for the device, where that is not done."""
        if self.place(text).exists():
            return
        options = Options(
            target=f"cuda:{self.arch}", dtype="bfloat16", max_context=max(self.prompts) + BLOCK,
            max_batch=max(self.batches), chunk=self.chunk, block=BLOCK, quantize=text or None,
            parity=False, progress=False,
        )  # fmt: skip
        model = self.model
        try:
            compile_to(model.cpu(), self.place(text), options)
        finally:
            torch.nn.Module.to(model, self.machine.device)

    def runner(self, text: str = "") -> StepRunner:
        """The compiled model on the device."""
        if text not in self._runners:
            self.build(text)
            opened = Artifact(self.place(text))
            count = max(self.batches) * -(-self.context // BLOCK) + max(self.prompts) // BLOCK
            device = self.machine.opened(self.arch)
            self._runners[text] = open_executor(
                opened.path, opened.plan, opened.weights, device, Pools(count, 0)
            )
        return self._runners[text]

    def traffic(self, text: str, count: int) -> int:
        """Bytes of weights and cache that a decode step of so many sequences reads."""
        asked = Load(sequences=count, context=self.context)
        found = explain(Artifact(self.place(text)), entry="decode", measure=False, load=asked)
        read = found.steps[0].traffic
        return read.weights + read.caches


def seconds(run: Callable[[], object], steps: int = STEPS) -> float:
    """The median time of a call that waits for the device, after two that do not count."""
    times: list[float] = []
    for at in range(steps + 2):
        begin = time.perf_counter()
        run()
        if at > 1:
            times.append(time.perf_counter() - begin)
    return statistics.median(times)


def read_bandwidth(machine: Machine, size: int = 4 << 30) -> float:
    """Bytes a second that a sum over memory reads."""
    data = torch.ones(size // 4, dtype=torch.float32, device=machine.device)

    def run() -> None:
        data.sum()
        machine.synchronize()

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


Section = Callable[[Bench], Iterator[Line]]


def memory(bench: Bench) -> Iterator[Line]:
    """The device, and what its memory gives."""
    device = bench.machine.opened("")
    name, free = device.name, device.free_bytes()
    device.close()
    bandwidth = read_bandwidth(bench.machine)
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
    """A decode step of a batch, against what reading its weights and its cache takes."""
    runner, batch = bench.runner(text), decode_batch(count, bench.context)
    took = seconds(lambda: runner.step(batch))
    bench.note(lambda k: k.decoded.update({f"{text} {count}": took}))
    known, read = bench.known, bench.traffic(text, count)
    plain = known.decoded.get(f" {count}") if text else None
    yield {
        "weights": text or "bf16", "batch": count, "context": bench.context, "seconds": took,
        "tokens_per_second": count / took, "bytes": read,
        "share_of_bandwidth": read / took / known.bandwidth if known.bandwidth else None,
        **({"times_bfloat16": plain / took} if plain else {}),
    }  # fmt: skip


def prefill(bench: Bench, prompt: int) -> Iterator[Line]:
    """A prompt in chunks."""
    runner = bench.runner()
    chunk = runner.chunk

    def run() -> None:
        for begin in range(0, prompt, chunk):
            runner.step(prefill_batch(min(chunk, prompt - begin), begin, prompt))

    took = seconds(run, 5)
    bench.note(lambda k: k.prefilled.update({f"{prompt}": took}))
    yield {"tokens": prompt, "seconds": took, "tokens_per_second": prompt / took}


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


def sections(bench: Bench) -> Iterator[tuple[str, Section]]:
    """Every section by its name, what is judged first before what takes long."""
    yield "memory", memory
    for rows, n, k in LINEARS:
        yield f"linear {rows}x{n}x{k}", lambda b, s=(rows, n, k): linear(b, *s)
    for prompt in bench.prompts:
        yield f"attention {prompt}", lambda b, p=prompt: attention(b, p)
    yield "build", build
    yield "logits", logits
    for count in bench.batches:
        yield f"decode {count}", lambda b, c=count: decode(b, c)
    for prompt in bench.prompts:
        yield f"prefill {prompt}", lambda b, p=prompt: prefill(b, p)
    yield "first token", first_token
    yield "build int4", lambda b: build(b, INT4)
    for count in bench.batches:
        yield f"int4 decode {count}", lambda b, c=count: decode(b, c, INT4)
    known = list(_peers(bench))
    # One sequence is held against the bandwidth: its peers come last.
    yield from (each for each in known if not each[0].endswith("decode 1"))
    yield "tests", tests
    yield from (each for each in known if each[0].endswith("decode 1"))


def _peers(bench: Bench) -> Iterator[tuple[str, Section]]:
    plain, hugging = "plain torch, compiled", "transformers, static cache, torch.compile"
    for count in bench.batches:
        make = lambda b, c=count: peers.plain_decode(b.model, c, b.context)  # noqa: E731
        yield f"plain torch decode {count}", beside(plain, make, {"batch": count})
    for prompt in bench.prompts:
        make = lambda b, p=prompt: peers.plain_prefill(b.model, p)  # noqa: E731
        yield f"plain torch prefill {prompt}", beside(plain, make, {"tokens": prompt})
        make = lambda b, p=prompt: peers.transformers_prefill(b.model, p)  # noqa: E731
        yield f"transformers prefill {prompt}", beside("transformers", make, {"tokens": prompt})
    for count in bench.batches:
        make = lambda b, c=count: peers.transformers_decode(b.model, c, b.context)  # noqa: E731
        yield f"transformers decode {count}", beside(hugging, make, {"batch": count})


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
    known = dict(sections(bench))
    wanted = [(name, lambda s=known[name]: s(bench)) for name in names]
    raise SystemExit(run_sections(wanted, shown_on_output, is_well))


if __name__ == "__main__":
    main()
