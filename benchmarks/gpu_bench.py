"""What the sections of the GPU benchmark share: the device, the model and its artifacts, what is
known so far, batches, times.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from ferrule.compiler.build import Options, compile_to
from ferrule.compiler.explain import Load, explain
from ferrule.runtime.artifact import Artifact
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
CHUNK = 8192
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
    opened: Callable[[str], CudaDevice]
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
    _runners: dict[str, CudaExecutor] = field(default_factory=dict[str, CudaExecutor])

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
        """Compile the model for the device, where that is not done; once, however it ends: sections
        that want what could not be built say so at once.
        """
        if self.place(text).exists():
            return
        tried = self.place(text).with_suffix(".tried")
        if tried.exists():
            raise RuntimeError(f"not built: {tried.read_text() or 'its build did not end'}")
        tried.touch()
        try:
            self._compile(text)
        except Exception as error:
            tried.write_text(f"{type(error).__name__}: {error}"[:400])
            raise

    def _compile(self, text: str) -> None:
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

    def runner(self, text: str = "") -> CudaExecutor:
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


class Stream:
    """Decode steps as the engine gives them: one is begun before the one before it is collected,
    whose tokens it is fed on the device.
    """

    def __init__(self, runner: CudaExecutor, batch: Batch) -> None:
        self._runner, self._batch = runner, replace(batch, fed=range(len(batch.tokens)))
        self._flight = runner.submit(batch)

    def step(self) -> None:
        """Begin another step, and wait for the one before."""
        flight = self._runner.submit(self._batch)
        self._runner.collect(self._flight)
        self._flight = flight

    def end(self) -> None:
        """Wait for the last."""
        self._runner.collect(self._flight)


def read_bandwidth(machine: Machine, size: int = 4 << 30) -> float:
    """Bytes a second that a sum over memory reads: the best of several ways to go through it."""
    data = torch.ones(size // 4, dtype=torch.float32, device=machine.device)

    def taken(columns: int) -> float:
        rows = data.view(-1, columns)

        def run() -> None:
            rows.sum(dim=1)
            machine.synchronize()

        return seconds(run)

    return size / min(taken(columns) for columns in (1 << 12, 1 << 16, 1 << 20))


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
