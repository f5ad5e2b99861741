"""`ferrule verify`: an artifact against the eager model that it was compiled from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..runtime.artifact import Artifact, load
from .bisect import Bisection, bisect
from .build import Options
from .check_parity import measure_parity
from .console import Silent
from .errors import CompileError
from .models import Opened, open_model
from .parity import Parity


def verify_artifact(folder: Path, model: str | None = None) -> tuple[Parity, str]:
    """The parity of an artifact, measured anew, and the dtype whose tolerance it is held to."""
    artifact = load(folder)
    opened = _source(artifact, model)
    return measure_parity(opened, artifact.path, artifact.plan, Silent()), opened.dtype


def bisect_artifact(folder: Path, model: str | None = None) -> Bisection:
    """The first pass, node or kernel of an artifact's build whose values depart."""
    artifact = load(folder)
    opened = _source(artifact, model)
    return bisect(opened, options_of(artifact.manifest), artifact)


def _source(artifact: Artifact, model: str | None) -> Opened:
    """The model that an artifact was compiled from."""
    given = model or artifact.manifest.get("source")
    if artifact.manifest.get("options") is None:
        raise CompileError(f"{artifact.path}: verify compares language models; this is a module")
    if given is None:
        raise CompileError(
            f"{artifact.path} was compiled from a model in memory: give its checkpoint with --model"
        )
    return open_model(given, artifact.manifest["options"]["dtype"])


def options_of(manifest: dict[str, Any]) -> Options:
    """The options that an artifact was built with."""
    return Options(**manifest["options"], parity=False, progress=False)
