"""Where in a model's source something came from."""

from __future__ import annotations

import re
import traceback
from pathlib import Path
from typing import Any

import torch

_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
# Frames of the libraries that trace and of this package are no model source; transformers' modeling
# files are.
_TORCH = str(Path(torch.__file__).parent)
_OURS = str(Path(__file__).parent)


def model_line(error: BaseException) -> str:
    """The innermost line of model source on an exception's traceback, as `file.py:12`, or
    nothing.
    """
    frames = [(f.filename, f.lineno) for f in traceback.extract_tb(error.__traceback__)]
    return _innermost([(name, line) for name, line in frames if line is not None])


def calling_line() -> str:
    """The innermost line of model source that is running now."""
    frames = [(f.filename, f.lineno) for f in traceback.extract_stack()]
    return _innermost([(name, line) for name, line in frames if line is not None])


def origin(meta: dict[str, Any], prefix: str = "") -> str:
    """Module path and source line of an exported node: `model.layers.3.mlp
    (modeling_llama.py:71)`.
    """
    path, _ = next(reversed((meta.get("nn_module_stack") or {"": ("", "")}).values()))
    path = path.removeprefix(prefix) if path != prefix.rstrip(".") else ""
    frames = [(f, int(line)) for f, line in _FRAME.findall(meta.get("stack_trace") or "")]
    line = _innermost(frames)
    return f"{path or 'model'} ({line})" if line else path or "model"


def _innermost(frames: list[tuple[str, int]]) -> str:
    for name, line in reversed(frames):
        if is_model_source(name):
            return f"{Path(name).name}:{line}"
    return ""


def is_model_source(name: str) -> bool:
    """Whether a file's code is a model's own, not that of what traces it."""
    return not name.startswith((_TORCH, _OURS, "<")) and "/importlib/" not in name
