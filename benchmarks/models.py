"""The model files of each stack, made once from one checkpoint and kept by what made them."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from .cases import Room
from .stacks import ROOT, Installed

CONVERSIONS = {"ferrule": "artifact", "llama_cpp": "gguf", "openvino": "openvino"}
COMPILER = ("ir", "passes", "codegen", "compiler", "runtime", "ferrule")


@dataclass(frozen=True)
class Model:
    """Where a stack's model is, and what making it took: seconds, and bytes at the peak where its
    maker says so. A stack that reads the checkpoint has nothing made.
    """

    path: Path
    seconds: float | None = None
    peak_bytes: int | None = None


def model_of(installed: Installed, form: str, checkpoint: Path, room: Room, work: Path) -> Model:
    """A checkpoint as a stack reads it, from the work folder where an equal one was made before."""
    conversion = CONVERSIONS.get(installed.stack.worker)
    if conversion is None:
        return Model(checkpoint)
    arguments = [form]
    if conversion == "artifact":
        arguments += [installed.stack.target, str(room.tokens), str(room.sequences)]
    digest = _digest(conversion, checkpoint, arguments)
    folder = work / "models" / f"{checkpoint.name}-{conversion}-{form}-{digest}"
    record = folder / "made.json"
    if not record.is_file():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        _make(installed.python, conversion, checkpoint, folder, arguments)
    return Model(folder / "model", **json.loads(record.read_text(encoding="utf-8")))


def _make(
    python: str, conversion: str, checkpoint: Path, folder: Path, arguments: list[str]
) -> None:
    """Run a conversion; the record is written last, so that a broken one is made again."""
    begin = time.perf_counter()
    form, *rest = arguments
    module = f"benchmarks.conversion.to_{conversion}"
    command = [python, "-m", module, str(checkpoint.resolve()), str((folder / "model").resolve())]
    done = subprocess.run(
        [*command, form, *rest], capture_output=True, text=True, check=False, cwd=ROOT
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    made: dict[str, float] = {"seconds": time.perf_counter() - begin}
    if conversion == "artifact":
        made["peak_bytes"] = int(done.stdout.split()[-1])
    (folder / "made.json").write_text(json.dumps(made), encoding="utf-8")


def _digest(conversion: str, checkpoint: Path, arguments: list[str]) -> str:
    """What tells models apart: the checkpoint, the conversion, for an artifact the compiler."""
    sources = [ROOT / "benchmarks/conversion" / f"to_{conversion}.py"]
    if conversion == "artifact":
        sources += [p for folder in COMPILER for p in sorted((ROOT / folder).rglob("*.py"))]
    found = hashlib.sha256((checkpoint / "config.json").read_bytes())
    # Weights are gigabytes: when and how large they were written stands for them.
    written = (checkpoint / "model.safetensors").stat()
    found.update(f"{written.st_size} {written.st_mtime_ns} {arguments}".encode())
    for path in sources:
        found.update(path.read_bytes())
    return found.hexdigest()[:12]
