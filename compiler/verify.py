"""`ferrule verify`: an artifact against the eager model that it was compiled from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..passes.quantize import Recipe
from ..runtime.artifact import Artifact, load
from ..runtime.limits import Absent
from .bisect import Bisection, bisect
from .build import Options, step_of, target_of
from .check_parity import measure_parity
from .console import Silent
from .errors import CompileError
from .models import Opened, open_model
from .parity import Parity, Tolerance


def verify_artifact(folder: Path, model: str | None = None) -> tuple[Parity, str, Tolerance]:
    """The parity of an artifact, measured anew, its dtype, and the tolerance it is held to."""
    artifact = load(folder)
    opened = source_of(artifact, model)
    options = options_of(artifact.manifest)
    tolerance = options.tolerance(step_of(artifact), opened.dtype)
    parity = measure_parity(
        opened,
        artifact.path,
        artifact.plan,
        Silent(),
        tolerance,
        target_of(options),
        Absent.of_manifest(artifact.manifest),
    )
    return parity, opened.dtype, tolerance


def bisect_artifact(folder: Path, model: str | None = None) -> Bisection:
    """The first pass, node or kernel of an artifact's build whose values depart."""
    artifact = load(folder)
    opened = source_of(artifact, model)
    return bisect(opened, options_of(artifact.manifest), artifact)


def source_of(artifact: Artifact, model: str | None) -> Opened:
    """The model that an artifact was compiled from."""
    given = model or artifact.manifest.get("source")
    if artifact.manifest.get("options") is None:
        raise CompileError(f"{artifact.path}: verify compares models that generate; this is none")
    if given is None:
        raise CompileError(
            f"{artifact.path} was compiled from a model in memory: give its checkpoint with --model"
        )
    return open_model(given, artifact.manifest["options"]["dtype"])


def options_of(manifest: dict[str, Any]) -> Options:
    """The options that an artifact was built with."""
    given = dict(manifest["options"])
    if given.get("quantize"):
        rules = tuple((glob, text) for glob, text in given["quantize"]["rules"])
        given["quantize"] = Recipe(given["quantize"]["default"], rules)
    return Options(**given, parity=False, progress=False)
