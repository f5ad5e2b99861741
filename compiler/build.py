"""Builds an artifact: capture, import, passes, weights, kernels, plan, parity, manifest.

Everything is written into a folder beside the place where the artifact will be, which takes that
place at the end in one rename: an interrupted build leaves nothing there.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from ..codegen.backend import Backend, KernelBody, KernelReport, backend_of
from ..ir.errors import IRError
from ..ir.graph import Graph
from ..ir.launches import FEED, LAUNCHES, SCRATCH_ALIGNMENT, LaunchTable
from ..ir.plan import Plan
from ..ir.target import Target
from ..ir.text import parse_graph, print_graph
from ..passes.count_padding import count_padding
from ..passes.plan_memory import plan_memory
from ..passes.quantize import Recipe, unquantized
from ..passes.split_preparation import split_preparation
from ..runtime.artifact import KERNELS, PLAN, WEIGHTS, Artifact, read_plan
from ..runtime.library import bundle_runtime
from ..runtime.limits import Absent
from ..runtime.manifest import write_manifest
from .capture import capture, own_limit
from .check_parity import can_run, check_parity
from .checkpoint import Weights
from .console import Progress, progress
from .devices import device_here
from .errors import CompileError, kernel_lines
from .evaluator import evaluator, part_runner
from .hardware import fingerprint, records_path
from .import_aten import Imported, import_captured
from .models import Opened, graph_name, open_model, padding_of
from .parity import Tolerance, computed_dtype, tolerance_of
from .pipeline import Recorder, Sizes, grouping, language_model, laying_out, quantizing
from .probed import explained
from .records import Records, read_records
from .report import Clock, build_report, versions
from .tuning import TUNING, chosen, read_known, tuned, tuned_machines, write_own
from .writing import copy_text_files, save_tokenizer, write_config, write_weights

if TYPE_CHECKING:
    from collections.abc import Callable

DEFAULT_CONTEXT = 4096  # a model may claim far more positions than anybody has memory for
TOKENIZER = "tokenizer"
KV_DTYPES = {
    "auto": "",
    "bf16": "bf16",
    "bfloat16": "bf16",
    "f16": "f16",
    "float16": "f16",
    "int8": "i8",
}
"""What the KV cache may hold, by the names that users give: "auto" is the model's dtype."""


@dataclass(frozen=True)
class Options:
    """What a build is asked for; `max_context` None is the model's own limit, or DEFAULT_CONTEXT
    if that is less. `quantize` is a weight format for all linears and tables, or a Recipe;
    `kv_dtype` one of KV_DTYPES, for the KV cache. `deterministic`: a sequence's logits do not
    depend, to the last bit, on what is beside it.
    `tuning` is a file of tuning records, the user's own where it is None. With `pooling` ("last",
    "mean", "cls", or "auto" for what the checkpoint declares) the model gives one vector a text.
    """

    target: str = "cpu"
    dtype: str = "auto"
    max_context: int | None = None
    max_batch: int = 32
    chunk: int = 512
    block: int = 16
    tokenizer: Any = None
    dump: Path | None = None
    stop_after: str | None = None
    parity: bool = True
    progress: bool = True
    quantize: Recipe | str | None = None
    deterministic: bool = False
    kv_dtype: str = "auto"
    tuning: Path | str | None = None
    pooling: str | None = None

    def records(self) -> Records:
        """The tuning records that kernels are built with."""
        if self.tuning is None:
            return read_records(records_path())
        return read_known(Path(self.tuning))

    @property
    def cache_dtype(self) -> str:
        """The dtype of the KV cache as the IR names it; "" for that of the model."""
        return KV_DTYPES[self.kv_dtype]

    @property
    def recipe(self) -> Recipe | None:
        """The recipe that `quantize` is or names."""
        return Recipe(self.quantize) if isinstance(self.quantize, str) else self.quantize

    def tolerance(self, step: Graph, dtype: str) -> Tolerance:
        """What the step of a model in some dtype may differ from it by."""
        return tolerance_of(computed_dtype(step, dtype), self.recipe, self.cache_dtype)

    def __post_init__(self) -> None:
        for name, least in (("max_batch", 1), ("chunk", 1), ("block", 1), ("max_context", 2)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise CompileError(f"{name} is {least} or more, not {value}")
        if self.chunk < self.max_batch:
            raise CompileError(
                f"a step of {self.chunk} tokens (chunk) has no room for {self.max_batch} "
                "sequences (max_batch)"
            )
        if self.kv_dtype not in KV_DTYPES:
            raise CompileError(f"kv_dtype is one of {', '.join(KV_DTYPES)}, not {self.kv_dtype!r}")
        self.records()  # a file that is not there, or no file of records, is said at once
        try:
            _ = self.recipe
        except IRError as error:
            raise CompileError(f"quantize: {error}") from error


STEP = "graph.ir"
"""The file of an artifact's step: a graph that kernels are made of."""


def step_of(artifact: Artifact) -> Graph:
    """The graph of an artifact's step."""
    return parse_graph((artifact.path / STEP).read_text(encoding="utf-8"))


class StoppedError(CompileError):
    """A build that ended after the pass that it was asked to stop after."""


@dataclass(frozen=True, eq=False)
class Serving:
    """A captured model in serving form, over its raw weights."""

    graph: Graph
    weights: Weights
    sizes: Sizes


def compile_to(
    model: nn.Module | str | Path,
    output: Path | str,
    options: Options,
    *,
    overwrite: bool = False,
    make: Callable[[nn.Module | str | Path, Path, Options], None] | None = None,
) -> Artifact:
    """Build a language model into the directory `output`, whole or not at all; `make` writes the
    files of another kind of artifact.
    """
    make = make or build
    output = Path(output).absolute()
    if output.exists() and not overwrite and (output.is_file() or any(output.iterdir())):
        raise CompileError(f"{output}: something is there already; overwriting was not asked for")
    output.parent.mkdir(parents=True, exist_ok=True)
    artifact = in_folder(output.parent, lambda folder: make(model, folder, options))
    artifact.save(output)
    return artifact


def build_in_temporary(model: nn.Module | str | Path, options: Options) -> Artifact:
    """Build a language model into a temporary directory that lasts as long as the artifact, or
    until it is saved.
    """
    return in_folder(None, lambda folder: build(model, folder, options))


def in_folder(parent: Path | None, make: Callable[[Path], None]) -> Artifact:
    """The artifact that `make` writes into a new folder; a build that fails leaves no folder."""
    folder = Path(tempfile.mkdtemp(prefix=".ferrule-", dir=parent))
    try:
        make(folder)
        return Artifact(folder, temporary=True)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def build(model: nn.Module | str | Path, folder: Path, options: Options) -> None:
    """Write every file of a language model's artifact into a folder."""
    target = target_of(options)
    clock = Clock()
    with progress(options.progress) as shown:
        shown.stage("capture", 2)
        with clock("capture"):
            opened = open_model(model, options.dtype)
        recorder = Recorder(options.dump, options.stop_after, lambda ran: shown.step(ran.done.name))
        made = serve(opened, options, recorder, clock, shown)
        backend, limits = backend_of(target), limits_of(made.sizes, made.graph)
        kernels = Kernels.of(made.graph, backend, recorder, limits, recipe=options.recipe)
        reports = kernels.write(folder, target, clock, shown, options.records())
        with clock("weights"):
            write_weights(folder / WEIGHTS, kernels.step, kernels.preparation, made.weights, shown)
            text_files(opened, options.tokenizer, folder)
        parity, plan = None, read_plan(folder / PLAN)
        if options.parity and can_run(target):
            shown.stage("parity", 2)
            with clock("parity"):
                tolerance = options.tolerance(kernels.step, opened.dtype)
                absent = made.sizes.absent
                parity = check_parity(opened, folder, plan, shown, tolerance, target, absent)
    write_manifest(
        folder,
        manifest_fields(opened.name, target, made.graph)
        | {
            "source": str(opened.folder.resolve()) if opened.folder else None,
            "dtype": opened.dtype,
            "limits": limits,
            "bounded_by": made.sizes.bounded_by,
            "absent": made.sizes.absent.to_json(),
            "options": _given(options),
            "parity": parity.to_json() if parity else None,
            "report": build_report(recorder, reports, plan, clock)
            | {"unquantized": list(kernels.unquantized), "unverified": unverified(parity, target)},
        },
    )


def unverified(compared: object, target: Target) -> str:
    """Why nothing was compared with the eager model; "" where it was."""
    if compared is not None:
        return ""
    return "not asked for" if can_run(target) else f"no device here runs {target}: verify on one"


def imported_of(
    opened: Opened, options: Options, clock: Clock, shown: Progress
) -> tuple[Imported, Sizes]:
    """Capture a language model: its graph and weights, and the limits of its serving form."""
    with clock("capture"):
        captured = capture(
            opened.model,
            max_context=options.max_context or _capped(opened.model),
            weights=opened.weights,
            name=graph_name(opened.name),
        )
        shown.step()
        imported = import_captured(captured)
    sizes = Sizes(
        captured.bounds["S"][1],
        options.max_batch,
        options.chunk,
        options.block,
        options.cache_dtype,
        captured.bounded_by,
    )
    return imported, sizes


def serve(
    opened: Opened, options: Options, recorder: Recorder, clock: Clock, shown: Progress
) -> Serving:
    """Capture a language model and bring it into serving form."""
    imported, sizes = imported_of(opened, options, clock, shown)
    counted = count_padding(imported.graph, padding_of(opened.model))
    sizes = replace(sizes, absent=Absent(counted.token, counted.place))
    phases = language_model(sizes, evaluator(imported.weights), part_runner(imported.weights))
    shown.stage("passes", sum(len(p.passes) for p in phases) + 2)
    with clock("passes"), explained(opened.model):
        graph = recorder.run(counted.graph, phases)
    _check_not_stopped(recorder)
    return Serving(graph, imported.weights, sizes)


def _capped(model: nn.Module) -> int | None:
    """The default limit, for a model that claims more; None lets the model's own be found."""
    own = own_limit(model)
    return DEFAULT_CONTEXT if own is not None and own > DEFAULT_CONTEXT else None


def _check_not_stopped(recorder: Recorder) -> None:
    if recorder.stopped:
        raise StoppedError(f"stopped after pass {recorder.stop_after!r}, as asked")


@dataclass(frozen=True, eq=False)
class Kernels:
    """A graph as kernels: the step graph and the graph that prepares its weights, the plan, the
    bodies to compile.
    """

    step: Graph
    preparation: Graph
    plan: Plan
    bodies: Mapping[str, KernelBody]
    unquantized: tuple[str, ...] = ()

    @staticmethod
    def of(
        graph: Graph,
        backend: Backend,
        recorder: Recorder,
        limits: Mapping[str, int],
        entries: tuple[str, ...] = ("decode", "mixed"),
        recipe: Recipe | None = None,
    ) -> Kernels:
        """Quantize and lay out the weights, split off their preparation, group kernels, plan
        memory.
        """
        whole = recorder.run(graph, quantizing(recipe))
        packed = recorder.run(whole, laying_out(backend))
        step, preparation = split_preparation(packed)
        grouped = recorder.run(step, grouping(backend))
        _check_not_stopped(recorder)
        planned = plan_memory(grouped, entries=entries, limits=limits)
        bodies = {n: KernelBody(k.body, k.template) for n, k in planned.kernels.items()}
        left = unquantized(whole, recipe) if recipe else ()
        return Kernels(step, preparation, planned.plan, bodies, left)

    def write(
        self,
        folder: Path,
        target: Target,
        clock: Clock,
        shown: Progress,
        records: Records,
        *,
        machine_code: bool = True,
    ) -> dict[str, KernelReport]:
        """Write kernels, plan and graph; gives the kernels' reports. A GPU's kernels without
        machine code can be interpreted alone.
        """
        shown.stage("kernels", 1)
        with clock("kernels"), kernel_lines(self.plan):
            reports = (
                write_library(self.bodies, target, folder, records)
                if target.kind == "cpu"
                else write_binaries(
                    self.bodies, self.plan, target, folder, records, machine_code=machine_code
                )
            )
        if target.kind == "cpu":
            bundle_runtime(folder)
        write_plan(self.plan, reports, target, folder)
        (folder / STEP).write_text(print_graph(self.step), encoding="utf-8")
        return reports


def write_library(
    bodies: Mapping[str, KernelBody], target: Target, folder: Path, records: Records
) -> dict[str, KernelReport]:
    """Write the library of kernels, built with what the records chose for this machine, and beside
    it those records.
    """
    from ..codegen.tvm import build_library

    machine = fingerprint(target)
    known = chosen(tuned(records, machine))
    reports = build_library(bodies, target, folder / KERNELS, known)
    write_own(folder / TUNING, records, machine, reports.values())
    return reports


def write_binaries(
    bodies: Mapping[str, KernelBody],
    plan: Plan,
    target: Target,
    folder: Path,
    records: Records,
    *,
    machine_code: bool = True,
) -> dict[str, KernelReport]:
    """Write a GPU's binaries and launches, built with what the records chose, beside them those
    records, with the launches that feed a step tokens of the one before where the plan is a
    language model's; raises CompileError where Triton is not installed.
    """
    try:
        from ..codegen.triton.build import build_kernels
        from ..codegen.triton.feed import feed_body
    except ImportError as error:
        raise CompileError(f"target {target}: kernels need triton ({error}): install it") from error
    machine = tuned_device(target, records)
    known = chosen(tuned(records, machine))
    feed = {FEED: KernelBody(feed_body(plan.dims))} if "decode" in plan.entries else {}
    reports = build_kernels({**bodies, **feed}, target, folder, known, machine_code=machine_code)
    write_own(folder / TUNING, records, machine, reports.values())
    return {name: reports[name] for name in bodies}


def tuned_device(target: Target, records: Records) -> str:
    """The device whose records count for a GPU's kernels: the one at hand where there is one, else
    of those that records for the target name the last; "" where they name none.
    """
    known = tuned_machines(records, str(target))
    if not known:
        return ""
    try:
        return device_here(target).fingerprint
    except CompileError:
        return known[-1]


def write_plan(
    plan: Plan, reports: Mapping[str, KernelReport], target: Target, folder: Path
) -> Plan:
    """Write the plan with the names of kernels that were written, on a GPU with their scratch."""
    made = named_plan(plan, reports)
    if target.kind != "cpu":
        made = with_scratch(made, folder)
    (folder / PLAN).write_text(made.to_json(), encoding="utf-8")
    return made


def with_scratch(plan: Plan, folder: Path) -> Plan:
    """The plan with the scratch that launches share at the end of its workspace."""
    table = LaunchTable.from_json((folder / LAUNCHES).read_bytes())
    start = -(-plan.workspace_bytes // SCRATCH_ALIGNMENT) * SCRATCH_ALIGNMENT
    return replace(plan, workspace_bytes=start + table.scratch_bytes)


def named_plan(plan: Plan, reports: Mapping[str, KernelReport]) -> Plan:
    """The plan with calls by the names that functions have in the library: equal kernels share
    one.
    """
    entries = {
        name: replace(
            entry,
            calls=tuple(replace(c, kernel=reports[c.kernel].function) for c in entry.calls),
        )
        for name, entry in plan.entries.items()
    }
    return replace(plan, entries=entries)


def text_files(opened: Opened, tokenizer: Any, folder: Path) -> None:
    """Put tokenizer, chat template and configuration into the artifact."""
    if opened.folder is not None:
        copy_text_files(opened.folder, folder)
    else:
        write_config(opened.model, folder / TOKENIZER)
    if isinstance(tokenizer, str | Path):
        copy_text_files(Path(tokenizer), folder)
    elif tokenizer is not None:
        save_tokenizer(tokenizer, folder / TOKENIZER)


def manifest_fields(name: str, target: Target, graph: Graph) -> dict[str, Any]:
    """What every manifest says: model, target with its features, bounds of the dims, versions."""
    return {
        "model": name,
        "target": {
            "kind": target.kind,
            "arch": target.arch,
            "features": sorted(target.features),
        },
        "dims": {n: list(b) for n, b in graph.bounds.items()},
        "versions": versions(),
    }


def limits_of(sizes: Sizes, graph: Graph) -> dict[str, int]:
    """The limits that a plan is made for."""
    limits = {"max_context": sizes.max_context, "max_batch": sizes.max_batch, "chunk": sizes.chunk}
    return limits | {"window": widest_window(graph)}


def widest_window(graph: Graph) -> int:
    """How many tokens back any attention sees, counted with the token itself; 0 where one sees
    all.
    """
    paged = ("paged_attention", "paged_selected_keys", "paged_context")
    found = [n for n in graph.nodes() if n.op.name in paged]
    windows = [n.attributes.get("window", 0) for n in found]
    return max(windows) if windows and all(windows) else 0


def _given(options: Options) -> dict[str, Any]:
    names = (
        "target",
        "dtype",
        "max_context",
        "max_batch",
        "chunk",
        "block",
        "kv_dtype",
        "deterministic",
    )
    given = {name: getattr(options, name) for name in names}
    return given | {"quantize": asdict(options.recipe) if options.recipe else None}


def target_of(options: Options) -> Target:
    """The target that options name, deterministic where they ask for it."""
    target = Target.parse(options.target)
    return replace(target, deterministic=options.deterministic)
