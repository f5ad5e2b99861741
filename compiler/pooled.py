"""Embedders and classifiers: a language model or encoder that gives one vector a text, its hidden
states pooled, or a classifier's scores.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..ir.errors import IRError
from .build import DEFAULT_CONTEXT, Options, StoppedError, target_of, text_files
from .capture import own_limit
from .check_parity import can_run
from .errors import CompileError
from .models import DTYPES, Opened, check_dtype, checkpoint_folder, open_model
from .module import CompiledModule, build_files, check_module
from .parity import tolerance_of
from .pooled_rows import POOLINGS, PooledModel
from .pooled_steps import steps_of, write_steps

AUTO, CLASSIFY = "auto", "classify"
EXAMPLE = 13  # tokens of the text that an embedder without steps is held against eager with


def write_embedder(model: nn.Module | str | Path, folder: Path, options: Options) -> None:
    """Write every file of the artifact of a model that is pooled into a folder.

    Where a model has no form for steps it becomes one for a text at a time, as the report says.
    """
    assert options.pooling is not None, "a build of an embedder has a pooling"
    _check_options(options)
    opened, pooled = _pooled(model, options)
    text_files(opened, options.tokenizer, folder)  # before the manifest, which names all files
    try:
        steps = steps_of(opened, pooled, options)
    except (CompileError, IRError) as refusal:
        if pooled.labels is not None or isinstance(refusal, StoppedError):
            raise
        _write_alone(opened, pooled, options, folder, refusal)
        return
    if steps.whole and options.kv_dtype != "auto":
        raise CompileError(f"kv_dtype={options.kv_dtype!r}: an encoder has no KV cache")
    write_steps(opened, pooled, steps, options, folder)


def _write_alone(
    opened: Opened, pooled: PooledModel, options: Options, folder: Path, refusal: Exception
) -> None:
    """The artifact of a module that gives the vector of one text."""
    if options.kv_dtype != "auto":
        raise CompileError(f"kv_dtype={options.kv_dtype!r}: {refusal}") from refusal
    module = pooled.vector
    assert isinstance(module, nn.Module), f"{type(module)} computes the vector of a text"
    longest = options.max_context or min(
        own_limit(opened.model) or DEFAULT_CONTEXT, DEFAULT_CONTEXT
    )
    length = min(EXAMPLE, longest)
    vocabulary = int(opened.model.config.vocab_size)  # type: ignore[union-attr, arg-type]
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(3, vocabulary, (1, length), generator=draw)
    shapes = {"input_ids": {1: torch.export.Dim("S", min=1, max=longest)}}
    reported = {"unbatched": str(refusal)}
    build_files(
        module, (), {"input_ids": ids}, shapes, options, folder, name=opened.name, reported=reported
    )
    if options.parity and can_run(target_of(options)):
        relative = tolerance_of(opened.dtype, options.recipe).relative
        check_module(module, CompiledModule.load(folder), (), {"input_ids": ids}, {"f32": relative})


def _pooled(model: nn.Module | str | Path, options: Options) -> tuple[Opened, PooledModel]:
    """The model in memory, and what is pooled of it, how."""
    pooling, folder = options.pooling, None
    if not isinstance(model, nn.Module):
        check_dtype(options.dtype)
        folder = checkpoint_folder(model)
        if pooling == AUTO:
            pooling = CLASSIFY if _is_classifier(folder) else declared_pooling(folder)
    elif pooling == AUTO:
        pooling = declared_pooling(None)
    classifies = pooling == CLASSIFY
    if isinstance(model, nn.Module):
        base = model if classifies else _headless(model)
        opened = replace(open_model(base, options.dtype), name=type(model).__name__)
    else:
        assert folder is not None, f"{model} was opened"
        read = _read(folder, options.dtype, classifies=classifies)
        opened = replace(open_model(read), folder=folder, name=str(model))
    if classifies:
        return opened, PooledModel.classifying(opened.model)
    assert pooling is not None, "an embedder has a pooling"
    return opened, PooledModel.embedding(opened.model, pooling)


def _is_classifier(folder: Path) -> bool:
    """Whether a checkpoint says that it is a sequence classifier's."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    names = config.get("architectures") or ()
    return any(str(name).endswith("ForSequenceClassification") for name in names)


def _check_options(options: Options) -> None:
    if options.pooling not in (AUTO, *POOLINGS, CLASSIFY):
        known = ", ".join((AUTO, *POOLINGS, CLASSIFY))
        raise CompileError(f"pooling is one of {known}, not {options.pooling!r}")


def _read(folder: Path, dtype: str, *, classifies: bool) -> nn.Module:
    from transformers import AutoModel, AutoModelForSequenceClassification

    kind = AutoModelForSequenceClassification if classifies else AutoModel
    try:
        wanted = "auto" if dtype == "auto" else DTYPES[dtype]
        return kind.from_pretrained(folder, dtype=wanted).eval()
    except Exception as error:
        raise CompileError(f"{folder}: transformers cannot read this model: {error}") from error


def _headless(model: nn.Module) -> nn.Module:
    base = getattr(model, "base_model", None)
    if not isinstance(base, nn.Module) or not hasattr(model, "config"):
        raise CompileError(
            f"pooling: {type(model).__name__} is no model of transformers, whose hidden states "
            "have a name; compile a module of yours that returns the vector, with args="
        )
    return base


def declared_pooling(folder: Path | None) -> str:
    """The pooling that a folder of sentence-transformers declares; raises CompileError where it
    declares none, or what is not one of ours.
    """
    known = ", ".join(POOLINGS)
    modules = folder / "modules.json" if folder else None
    if modules is None or not modules.is_file():
        raise CompileError(f"pooling 'auto': no modules.json says which; give one of {known}")
    try:
        parts = json.loads(modules.read_text(encoding="utf-8"))
        kinds = {part["type"].rpartition(".")[2]: part["path"] for part in parts}
        path = modules.parent / kinds.get("Pooling", "1_Pooling") / "config.json"
        declared = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CompileError(f"{modules}: no modules of sentence-transformers: {error}") from error
    if other := sorted(set(kinds) - {"Transformer", "Pooling", "Normalize"}):
        raise CompileError(f"{modules}: a part {other[0]} behind the pooling is not compiled")
    return _named(declared, path)


def _named(declared: Mapping[str, Any], path: Path) -> str:
    """A pooling's name from sentence-transformers' fields: one mode, or one flag of several."""
    names = {"lasttoken": "last", "mean_tokens": "mean", "cls_token": "cls"}
    names |= {"mean": "mean", "cls": "cls"}
    mode = declared.get("pooling_mode")
    prefix = "pooling_mode_"
    flags = [
        n.removeprefix(prefix) for n, v in declared.items() if n.startswith(prefix) and v is True
    ]
    chosen = [mode] if isinstance(mode, str) else flags
    if len(chosen) != 1 or chosen[0] not in names:
        raise CompileError(f"{path}: pooling by {chosen or 'nothing'}; known: {', '.join(names)}")
    return names[chosen[0]]
