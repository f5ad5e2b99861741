"""Embedders: a language model or encoder without its logits head, its hidden states pooled to one
vector a text.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .build import DEFAULT_CONTEXT, Options, in_folder, target_of, text_files
from .capture import own_limit
from .errors import CompileError
from .models import DTYPES, Opened, check_dtype, checkpoint_folder, open_model
from .module import CompiledModule, build_files, check_module
from .parity import tolerance_of

Pool = Callable[[torch.Tensor], torch.Tensor]
POOLINGS: Mapping[str, Pool] = {  # of hidden states [1, S, H]
    "last": lambda hidden: hidden[:, -1],
    "mean": lambda hidden: hidden.mean(1),
    "cls": lambda hidden: hidden[:, 0],
}
AUTO = "auto"
EXAMPLE = 13  # tokens of the text that a built embedder is held against eager with


class Pooled(nn.Module):
    """Token ids [1, S] to one vector [1, H] in float32: the last layer's hidden states, with the
    model's final norm, pooled over the tokens.
    """

    def __init__(self, base: nn.Module, pooling: str) -> None:
        super().__init__()
        self.base, self.pool = base, POOLINGS[pooling]

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """The vector of one text."""
        given = {"use_cache": False} if hasattr(self.base.config, "use_cache") else {}
        hidden = self.base(input_ids=input_ids, return_dict=True, **given).last_hidden_state
        return self.pool(hidden).float()


def embedder(model: nn.Module | str | Path, options: Options) -> CompiledModule:
    """A model compiled to give one vector [1, H] for token ids [1, S]; S up to `max_context`."""
    return CompiledModule(in_folder(None, lambda folder: write_embedder(model, folder, options)))


def write_embedder(model: nn.Module | str | Path, folder: Path, options: Options) -> None:
    """Write every file of an embedder's artifact into a folder."""
    assert options.pooling is not None, "a build of an embedder has a pooling"
    _check_options(options)
    opened = _opened(model, options.dtype)
    pooling = options.pooling
    if pooling == AUTO:
        pooling = declared_pooling(opened.folder)
    module = Pooled(opened.model, pooling)
    longest = options.max_context or min(
        own_limit(opened.model) or DEFAULT_CONTEXT, DEFAULT_CONTEXT
    )
    length = min(EXAMPLE, longest)
    vocabulary = int(opened.model.config.vocab_size)  # type: ignore[union-attr, arg-type]
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(3, vocabulary, (1, length), generator=draw)
    shapes = {"input_ids": {1: torch.export.Dim("S", min=1, max=longest)}}
    text_files(opened, options.tokenizer, folder)  # before the manifest, which names all files
    build_files(module, (), {"input_ids": ids}, shapes, options, folder, name=opened.name)
    if options.parity:
        relative = tolerance_of(opened.dtype, options.recipe).relative
        check_module(module, CompiledModule.load(folder), (), {"input_ids": ids}, {"f32": relative})


def _check_options(options: Options) -> None:
    if options.pooling not in (AUTO, *POOLINGS):
        known = ", ".join((AUTO, *POOLINGS))
        raise CompileError(f"pooling is one of {known}, not {options.pooling!r}")
    if target_of(options).kind != "cpu":
        raise CompileError(f"target {options.target!r}: embedders are built for cpu alone")
    if options.kv_dtype != "auto":
        raise CompileError(f"kv_dtype={options.kv_dtype!r}: an embedder has no KV cache")


def _opened(model: nn.Module | str | Path, dtype: str) -> Opened:
    """The model without its head, its weights in memory."""
    if isinstance(model, nn.Module):
        return replace(open_model(_headless(model), dtype), name=type(model).__name__)
    check_dtype(dtype)
    folder = checkpoint_folder(model)
    return replace(open_model(_read(folder, dtype)), folder=folder, name=str(model))


def _read(folder: Path, dtype: str) -> nn.Module:
    from transformers import AutoModel

    try:
        wanted = "auto" if dtype == "auto" else DTYPES[dtype]
        return AutoModel.from_pretrained(folder, dtype=wanted).eval()
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
