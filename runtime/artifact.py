"""An artifact: a directory that holds a built model, opened, checked, run and saved."""

import shutil
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np

from ..ir.plan import Plan, PlanError
from .beam import BeamSearchParams, beam_search
from .engine import Completion, Delta, Engine
from .errors import ArtifactError, RequestError
from .executor import Executor, ModuleExecutor, ModuleRunner, StepRunner, available_memory
from .front import Front
from .library import KernelLibrary
from .limits import Absent
from .manifest import MANIFEST, Manifest, check_files, check_machine, read_manifest
from .options import DEFAULTS, EngineOptions
from .pooling import Pooling, probabilities, unit
from .pools import pools_for
from .report import PlanReport, plan_report
from .sampling import SamplingParams
from .saving import save_directory
from .tensors import Array
from .text import Text, advised_sampling, end_ids
from .weights import Weights

KERNELS, PLAN, WEIGHTS = "kernels.so", "plan.json", "weights.safetensors"
Prompt = str | Sequence[int]


class Artifact:
    """A built model. Its engine and its cache are made when it first generates.

    `cache_bytes` is the budget of the KV cache, `threads` the number of cores that kernels use;
    where they are None the runtime chooses. A `temporary` directory is removed once the artifact
    is saved or gone. Several threads may generate at once: their requests are batched together.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        threads: int | None = None,
        cache_bytes: int | None = None,
        temporary: bool = False,
    ) -> None:
        self.path = Path(path).resolve()
        self.threads, self.cache_bytes = threads, cache_bytes
        self.manifest: Manifest = read_manifest(self.path)
        if self.kind == "cpu":
            check_machine(self.path, self.manifest)
        self.plan = read_plan(self.path / PLAN)
        self._lock = threading.RLock()
        self._shared: Front | None = None
        self._remove = (
            weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)
            if temporary
            else None
        )

    def __repr__(self) -> str:
        target = self.manifest["target"]
        return f"Artifact({str(self.path)!r}, {target.get('kind')}:{target.get('arch')})"

    @property
    def kind(self) -> str:
        """What it was built for: cpu or cuda."""
        return str(self.manifest["target"].get("kind"))

    @cached_property
    def library(self) -> KernelLibrary:
        """The kernels, loaded."""
        return KernelLibrary(self.path / KERNELS, self.threads)

    @cached_property
    def weights(self) -> Weights:
        """The weights, mapped."""
        return Weights(self.path / WEIGHTS)

    @cached_property
    def text(self) -> Text | None:
        """The tokenizer; None where the artifact has none."""
        directory = _text_directory(self.path)
        return Text(directory) if (directory / "tokenizer.json").is_file() else None

    @cached_property
    def sampling(self) -> dict[str, float | int]:
        """The sampling values that the model's makers advise, by their names in SamplingParams."""
        return advised_sampling(_text_directory(self.path))

    @property
    def _front(self) -> Front:
        with self._lock:
            if self._shared is None:
                self._shared = Front(self.new_engine())
            return self._shared

    @property
    def _generating(self) -> Front:
        """The front of an artifact that generates."""
        if self.pooling is not None:
            raise RequestError(
                f"{self.path}: compiled with a pooling: it embeds, and generates not"
            )
        return self._front

    def new_engine(self, options: EngineOptions = DEFAULTS) -> Engine:
        """A new engine with its own cache, for a server that steps it on a thread of its own.

        Raises `ArtifactError` for options that this artifact does not allow.
        """
        if "decode" not in self.plan.entries or "mixed" not in self.plan.entries:
            names = ", ".join(self.plan.entries)
            raise RequestError(f"{self.path}: no language model: its entries are {names}")
        executor = self._executor()
        ends = end_ids(_text_directory(self.path), self.text)
        try:
            arguments = options.arguments(self.plan, executor.blocks)
            bounded_by = str(self.manifest.get("bounded_by") or "")
            arguments |= {"pooling": self.pooling, "bounded_by": bounded_by}
            arguments["absent"] = Absent.of_manifest(self.manifest)
            return Engine(executor, self.text, ends, **arguments)
        except ValueError as error:
            raise ArtifactError(f"{self.path}: {error}") from error

    @cached_property
    def pooling(self) -> Pooling | None:
        """How a prompt's rows become one vector; None where the artifact generates."""
        return Pooling.of_manifest(self.manifest)

    def _executor(self) -> StepRunner:
        """A new executor with its own cache, on the machine that the artifact was built for."""
        if self.kind == "cpu":
            available = available_memory()
            pools = pools_for(self.plan, self.cache_bytes, available)
            self.weights.settle((available - pools.nbytes(self.plan)) // 2)
            return Executor(self.plan, self.library, self.weights, *pools)
        check_machine(self.path, self.manifest)
        from .cuda.opening import open_device, open_executor

        device = open_device(str(self.manifest["target"].get("arch")))
        return open_executor(
            self.path, self.plan, self.weights, device, cache_bytes=self.cache_bytes
        )

    @cached_property
    def module(self) -> ModuleRunner:
        """What runs a module that is no language model, on the machine that it was built for."""
        entry = next(iter(self.plan.entries))
        if self.kind == "cpu":
            self.weights.settle(available_memory() // 2)
            return ModuleExecutor(self.plan, self.library, self.weights, entry)
        check_machine(self.path, self.manifest)
        from .cuda.module import CudaModule
        from .cuda.opening import open_device, read_launches

        device = open_device(str(self.manifest["target"].get("arch")))
        table = read_launches(self.path)
        return CudaModule(self.plan, table, self.weights, device, self.path, entry)

    def __call__(self, *inputs: Array) -> tuple[Array, ...]:
        """Run a module that is no language model: arrays in the order of its signature."""
        names = [spec.name for spec in self.module.inputs]
        if len(inputs) != len(names):
            raise ValueError(f"given {len(inputs)} inputs; wanted {len(names)}: {', '.join(names)}")
        return tuple(self.module.run(dict(zip(names, inputs, strict=True))).values())

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[Completion]:
        """Complete every prompt, all in one batch; a prompt is text or token ids.

        One set of parameters serves all, or there is one for each. With `n` over 1 a prompt has so
        many completions, one after another. The error of a request is
        raised, and ends the others of this call.
        """
        asked = _prompts(prompts)
        chosen = _params(params, len(asked))
        front = self._generating
        with _submitted(front, asked, chosen) as ids:
            return [done for request_id in ids for done in front.completions(request_id)]

    def embed(self, prompts: Prompt | Sequence[Prompt], *, normalize: bool = True) -> list[Array]:
        """A vector f32[H] for every prompt, of length 1 unless it is wanted as the model gives it;
        of a classifier its scores. All prompts are batched together.

        Raises `RequestError` where the artifact was not compiled with a pooling.
        """
        if self.pooling is None:
            raise RequestError(f"{self.path}: compiled without a pooling: it gives no vectors")
        front, asked = self._front, _prompts(prompts)
        with _submitted(front, asked, [None] * len(asked)) as ids:
            vectors = [front.vector(request_id) for request_id in ids]
        return [unit(v) for v in vectors] if normalize and not self.pooling.labels else vectors

    def classify(self, prompts: Prompt | Sequence[Prompt]) -> list[dict[str, float]]:
        """Of every prompt the probabilities of a classifier's labels."""
        if self.pooling is None or not self.pooling.labels:
            raise RequestError(f"{self.path}: no classifier: it has no labels")
        names, activation = self.pooling.labels, self.pooling.activation
        found = (probabilities(v, activation).tolist() for v in self.embed(prompts))
        return [dict(zip(names, each, strict=True)) for each in found]

    def beam_search(self, prompt: Prompt, params: BeamSearchParams) -> tuple[Completion, ...]:
        """The likeliest continuations of a prompt, the best first."""
        return beam_search(self._generating, prompt, params)

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Iterator[Delta]:
        """Complete one prompt, piece by piece; closing the iterator ends the request."""
        front = self._generating
        with _submitted(front, [prompt], [params]) as (request_id,):
            yield from front.deltas(request_id)

    def chat_ids(self, messages: Sequence[object], **options: object) -> list[int]:
        """The prompt of a conversation, by the model's chat template."""
        if self.text is None:
            raise RequestError(f"{self.path}: the artifact has no tokenizer, so no chat template")
        return self.text.chat(messages, **options)

    def plan_report(self, cache_bytes: int | None = None) -> PlanReport:
        """Memory to the byte, for a cache budget in bytes or as this artifact would choose."""
        budget = self.cache_bytes if cache_bytes is None else cache_bytes
        return plan_report(self.plan, self.manifest, budget, available_memory())

    def save(self, directory: Path | str) -> Path:
        """Put the artifact at `directory`, whole or not at all, and return its path.

        Raises `ArtifactError` where it cannot: a full disk, other files in the way.
        """
        target = Path(directory).absolute()
        with self._lock:
            if target.resolve() != self.path:
                save_directory(self.path, target, link=self._remove is not None)
                self.path = target.resolve()
                if self._remove is not None:
                    self._remove()
                    self._remove = None
        return self.path


def load(
    directory: Path | str,
    *,
    threads: int | None = None,
    cache_bytes: int | None = None,
    verify: bool = True,
) -> Artifact:
    """Open an artifact. Raises `ArtifactError` where it is damaged or for another machine.

    `verify=False` leaves out the hashes, for a disk that is trusted and slow.
    """
    path = Path(directory)
    manifest = read_manifest(path)
    check_machine(path, manifest)
    if verify:
        check_files(path, manifest)
    return Artifact(path, threads=threads, cache_bytes=cache_bytes)


def read_plan(path: Path) -> Plan:
    """The plan in a file, checked."""
    try:
        return Plan.from_json(path.read_bytes())
    except FileNotFoundError:
        raise ArtifactError(f"{path}: missing; beside it is {MANIFEST}") from None
    except PlanError as error:
        raise ArtifactError(f"{path}: {error}") from error


def _text_directory(path: Path) -> Path:
    return path / "tokenizer" if (path / "tokenizer").is_dir() else path


@contextmanager
def _submitted(
    front: Front, prompts: Sequence[Prompt], params: Sequence[SamplingParams | None]
) -> Iterator[list[str]]:
    """The requests of prompts, all submitted; what still runs behind the block is ended."""
    ids: list[str] = []
    try:
        for prompt, each in zip(prompts, params, strict=True):
            ids.append(front.submit(prompt, each))
        yield ids
    finally:
        for request_id in ids:
            front.close(request_id)


def _prompts(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    if isinstance(prompts, str):
        return [prompts]
    given = list(prompts)
    if given and all(isinstance(p, int | np.integer) for p in given):
        return [given]  # pyright: ignore[reportReturnType] (one prompt of token ids)
    return given  # pyright: ignore[reportReturnType]


def _params(
    params: SamplingParams | Sequence[SamplingParams] | None, count: int
) -> list[SamplingParams]:
    if params is None or isinstance(params, SamplingParams):
        return [params or SamplingParams()] * count
    if len(params) != count:
        raise RequestError(f"given {len(params)} sampling parameters for {count} prompts")
    return list(params)
