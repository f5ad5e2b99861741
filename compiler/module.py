"""Any exportable module, compiled: called as the module is, all its mathematics in kernels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

from ..codegen.backend import backend_of
from ..ir.graph import Graph
from ..ir.plan import TensorSpec
from ..runtime.artifact import WEIGHTS, Artifact, load
from ..runtime.manifest import write_manifest
from .build import Kernels, Options, in_folder, manifest_fields, target_of, unverified
from .capture import Captured, capture, prepared
from .check_parity import can_run
from .console import progress
from .errors import CompileError
from .import_aten import import_captured
from .models import graph_name
from .parity import relative_error
from .pipeline import Recorder, raising
from .reference.context import DTYPES as TORCH
from .report import Clock, build_report
from .writing import as_stored, write_weights

ENTRY = "main"
MODULE_TOLERANCE = {"f64": 1e-6, "f32": 1e-3, "bf16": 1.5e-1, "f16": 3e-2}


class CompiledModule:
    """A module's kernels behind the module's own signature: pytrees of CPU tensors in and out.

    `artifact` is what it runs from: `artifact.save(directory)` keeps it, `CompiledModule.load`
    brings it back.
    """

    def __init__(self, artifact: Artifact) -> None:
        signature = artifact.manifest.get("signature")
        if not isinstance(signature, dict):
            raise CompileError(f"{artifact.path}: no module's artifact: it has no signature")
        self.artifact = artifact
        self._inputs: list[str | None] = signature["inputs"]
        self._outputs: list[str] = signature["outputs"]
        self._in = pytree.treespec_loads(signature["in"])
        self._out = pytree.treespec_loads(signature["out"])

    @staticmethod
    def load(directory: Path | str) -> CompiledModule:
        """The module saved in a directory."""
        return CompiledModule(load(directory))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The module's result for these arguments; raises TypeError where their structure is
        another.
        """
        leaves, spec = pytree.tree_flatten((args, kwargs))
        if spec != self._in:
            raise TypeError(f"given arguments {spec}; the module was compiled for {self._in}")
        specs = {s.name: s for s in self.artifact.module.inputs}
        pairs = zip(self._inputs, leaves, strict=True)
        given = {n: _array(v, specs[n]) for n, v in pairs if n is not None and n in specs}
        results = self.artifact.module.run(given)
        made = {s.name: _tensor(results[s.name], s.dtype) for s in self.artifact.module.results}
        return pytree.tree_unflatten([made[n] for n in self._outputs], self._out)


def _array(value: Any, spec: TensorSpec) -> np.ndarray[Any, Any]:
    if not isinstance(value, torch.Tensor) or value.dtype != TORCH[spec.dtype]:
        given = value.dtype if isinstance(value, torch.Tensor) else type(value).__name__
        raise TypeError(f"input {spec.name!r}: given {given}, wanted {TORCH[spec.dtype]}")
    return as_stored(value, spec.dtype)


def _tensor(array: np.ndarray[Any, Any], dtype: str) -> torch.Tensor:
    return torch.from_numpy(array).view(TORCH[dtype])


def build_module(
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    dynamic_shapes: Any,
    options: Options,
) -> CompiledModule:
    """Compile a module at the shapes of its arguments, and check it against eager on them."""
    if options.quantize is not None:
        raise CompileError(
            f"quantize={options.quantize!r}: weights are quantized for language models, "
            f"{type(module).__name__} is compiled as a plain module"
        )
    if options.kv_dtype != "auto":
        raise CompileError(
            f"kv_dtype={options.kv_dtype!r}: {type(module).__name__} is compiled as a plain "
            "module, which has no KV cache"
        )

    def make(folder: Path) -> None:
        build_files(module, args, kwargs, dynamic_shapes, options, folder)

    compiled = CompiledModule(in_folder(None, make))
    if options.parity and can_run(target_of(options)):
        check_module(module, compiled, args, kwargs)
    return compiled


def build_files(
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    dynamic_shapes: Any,
    options: Options,
    folder: Path,
    name: str | None = None,
    reported: Mapping[str, Any] | None = None,
) -> None:
    """Write every file of a module's artifact into a folder; its name is the class's by default.
    The report has what is `reported` beside its own.
    """
    name = name or type(module).__name__
    target, clock = target_of(options), Clock()
    recorder = Recorder(options.dump, options.stop_after)
    with progress(options.progress) as shown:
        shown.stage("capture", 1)
        with clock("capture"):
            captured = capture(
                module, args=args, kwargs=kwargs, dynamic_shapes=dynamic_shapes,
                name=graph_name(name),
            )  # fmt: skip
            _check_bounds(captured)
            imported = import_captured(captured)
        shown.stage("passes", sum(len(p.passes) for p in raising()) + 2)
        with clock("passes"):
            raised = recorder.run(imported.graph, raising())
            kernels = Kernels.of(
                raised, backend_of(target), recorder, {}, entries=(ENTRY,), recipe=options.recipe
            )
        reports = kernels.write(folder, target, clock, shown, options.records())
        with clock("weights"):
            write_weights(
                folder / WEIGHTS, kernels.step, kernels.preparation, imported.weights, shown
            )
    fields = manifest_fields(name, target, kernels.step)
    report = build_report(recorder, reports, kernels.plan, clock) | dict(reported or {})
    if not can_run(target):
        report["unverified"] = unverified(None, target)
    write_manifest(
        folder, fields | {"signature": signature(captured, imported.graph), "report": report}
    )


def _check_bounds(captured: Captured) -> None:
    open_ = [name for name, (_, high) in captured.bounds.items() if high >= 1 << 31]
    if open_:
        raise CompileError(
            f"{len(open_)} dims of {captured.name} have no upper bound, and memory is planned "
            "for the largest: give one, torch.export.Dim(..., max=...)"
        )


def signature(captured: Captured, graph: Graph) -> dict[str, Any]:
    """Structure and names of a module's arguments and results; None for an argument that is no
    tensor.
    """
    spec = captured.program.call_spec
    assert spec.in_spec is not None and spec.out_spec is not None, spec
    given = captured.program.graph_signature.user_inputs
    return {
        "in": pytree.treespec_dumps(spec.in_spec),
        "out": pytree.treespec_dumps(spec.out_spec),
        "inputs": [n if isinstance(n, str) else None for n in given],
        "outputs": list(graph.output_names),
    }


def check_module(
    module: nn.Module,
    compiled: CompiledModule,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    tolerance: Mapping[str, float] = MODULE_TOLERANCE,
) -> None:
    """Raise CompileError where the kernels depart from eager on the example's arguments."""
    with torch.no_grad(), prepared(module):
        wanted = pytree.tree_leaves(module(*args, **kwargs))
    given = pytree.tree_leaves(compiled(*args, **kwargs))
    for at, (a, b) in enumerate(zip(wanted, given, strict=True)):
        if not isinstance(a, torch.Tensor):
            continue
        limit = next((t for w, t in tolerance.items() if TORCH[w] is a.dtype), 0.0)
        error = relative_error(a.double().numpy(), b.double().numpy())
        if a.dtype != b.dtype or not error <= limit:
            raise CompileError(
                f"result {at} departs from eager: {b.dtype} for {a.dtype}, by {error:.3g} of its "
                f"largest magnitude; at most {limit:g} is wanted"
            )
