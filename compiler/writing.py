"""Writes the parts of an artifact that come from the model: weights, streamed, and the
tokenizer's files.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..ir.graph import Graph
from ..ir.node import Node
from ..ir.plan import TensorSpec
from ..ir.types import BITS
from ..runtime.tensors import STORAGE
from ..runtime.text import TOKENIZER_FILES
from ..runtime.weights import WeightsWriter
from .checkpoint import Weights
from .console import Progress
from .errors import CompileError
from .prepared import PreparedWeights

Array = np.ndarray[Any, np.dtype[Any]]
# What a tokenizer that is not in the tokenizers format may be made of.
_SLOW_TOKENIZERS = ("tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


def write_weights(
    path: Path,
    step: Graph,
    preparation: Graph,
    weights: Weights,
    progress: Progress,
) -> None:
    """Write every parameter of the step graph, made by the preparation graph or read as it is.

    One at a time: what is in memory is one weight, and what it is made from.
    """
    prepared = PreparedWeights(preparation, weights)
    parameters = step.parameters()
    progress.stage("weights", len(parameters))
    with _full_disk_is_said(path), WeightsWriter(path, [_spec(p) for p in parameters]) as writer:
        for parameter in parameters:
            name = parameter["name"]
            writer.write(name, as_stored(prepared[name], parameter.dtype))
            progress.step(name)
    weights.release()


def _spec(parameter: Node) -> TensorSpec:
    shape = tuple(int(d) for d in parameter.shape)
    return TensorSpec(parameter["name"], parameter.dtype, shape)


def as_stored(value: torch.Tensor, dtype: str) -> Array:
    """A tensor's array as it lies in a file: bf16 and f8 as their bits, i4, u4, i2 packed."""
    whole = value.detach().contiguous()
    if whole.dtype in (torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2):
        whole = whole.view(torch.uint16 if whole.dtype is torch.bfloat16 else torch.uint8)
    array: Array = whole.numpy()
    if BITS[dtype] < 8 and array.dtype.itemsize == 1:
        return _packed(array, BITS[dtype])
    if array.dtype != STORAGE[dtype] and array.dtype != np.bool_:
        raise CompileError(f"a weight is {value.dtype}, {dtype} was wanted")
    return array


def _packed(values: Array, bits: int) -> Array:
    """Small integers, one a byte, as they lie packed: low bits first along the last axis."""
    per = 8 // bits
    short = -values.shape[-1] % per
    padded = np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, short)]) if short else values
    mask = np.uint8(2**bits - 1)
    result = padded[..., 0::per].view(np.uint8) & mask
    for place in range(1, per):
        result |= (padded[..., place::per].view(np.uint8) & mask) << np.uint8(bits * place)
    return np.ascontiguousarray(result)


@contextmanager
def _full_disk_is_said(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        free = shutil.disk_usage(path.parent).free
        raise CompileError(
            f"the disk under {path.parent} is full ({free} bytes free); nothing was left there"
        ) from error


def copy_text_files(source: Path, folder: Path) -> tuple[str, ...]:
    """Copy tokenizer, chat template and configuration to `folder`/tokenizer; gives their names."""
    home = folder / "tokenizer"
    found = [name for name in TOKENIZER_FILES if (source / name).is_file()]
    if found:
        home.mkdir(exist_ok=True)
    for name in found:
        shutil.copyfile(source / name, home / name)
    if "tokenizer.json" not in found and any((source / n).is_file() for n in _SLOW_TOKENIZERS):
        save_tokenizer(_converted(source), home)
        found.append("tokenizer.json")
    return tuple(found)


def _converted(source: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(source, use_fast=True)
    except Exception as error:
        raise CompileError(f"the tokenizer in {source} cannot be converted: {error}") from error


def save_tokenizer(tokenizer: Any, home: Path) -> None:
    """Save a transformers tokenizer as tokenizer.json with its settings and chat template."""
    home.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(home)
    if not (home / "tokenizer.json").is_file():
        raise CompileError(
            f"{type(tokenizer).__name__} has no form that the tokenizers library reads; "
            "a fast tokenizer is wanted"
        )


def write_config(model: torch.nn.Module, home: Path) -> None:
    """Write the configurations of a model in memory, if it has any: they name its end tokens."""
    for attribute, name in (
        ("config", "config.json"),
        ("generation_config", "generation_config.json"),
    ):
        config = getattr(model, attribute, None)
        if config is not None and hasattr(config, "to_json_string"):
            home.mkdir(parents=True, exist_ok=True)
            (home / name).write_text(config.to_json_string(), encoding="utf-8")
