"""`ferrule.compile`: a model, or any other module, becomes something that runs without PyTorch."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack, overload

from torch import nn

from ..passes.quantize import Recipe
from .build import Options, build_in_temporary, in_folder
from .module import CompiledModule, build_module
from .pooled import write_embedder
from .recipes import recipe_of

if TYPE_CHECKING:
    from ..runtime.artifact import Artifact


__all__ = ["Given", "Recipe", "compile"]


class Given(TypedDict, total=False):
    """The options of `compile`, with the defaults of `Options`."""

    target: str
    dtype: str
    quantize: Recipe | Path | str | None
    max_context: int | None
    max_batch: int
    chunk: int
    block: int
    deterministic: bool
    kv_dtype: str
    tokenizer: Any
    tuning: Path | str | None
    pooling: str | None
    dump: Path | str | None
    parity: bool
    progress: bool


@overload
def compile(
    model: nn.Module | str | Path,
    *,
    args: None = None,
    kwargs: None = None,
    **options: Unpack[Given],
) -> Artifact: ...
@overload
def compile(
    model: nn.Module,
    *,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    **options: Unpack[Given],
) -> CompiledModule: ...
def compile(
    model: nn.Module | str | Path,
    *,
    args: Sequence[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    **options: Unpack[Given],
) -> Artifact | CompiledModule:
    """An artifact of a causal language model: a module, or the directory or name of a checkpoint.

    With `args` or `kwargs`, a callable of any other module, with the module's own signature; its
    dims are those of the arguments but for the ones that `dynamic_shapes` (as in torch.export)
    leaves open.

    Options: `target` ("cpu" is this machine), `dtype` ("auto" is the checkpoint's; "float32",
    "bfloat16", "float16"), `quantize` (None, a weight format such as "int8", "int8-g64", "int4",
    "int4-g64-asym", or a Recipe that chooses by parameter, or its file), `max_context` (tokens of a
    sequence), `max_batch` (sequences in a step), `chunk` (tokens in a step), `block` (tokens in a
    block of the cache), `deterministic` (a sequence's tokens do not depend on what else is in the
    batch), `kv_dtype` (of the KV cache: "auto" is the model's; "bf16", "f16", or "int8" with a
    scale for each token and head), `tokenizer` (a folder, or a transformers tokenizer, for a model
    in memory), `pooling` ("last", "mean", "cls", or "auto" for what a checkpoint of sentence-
    transformers declares: an artifact that gives one vector a text, by `embed` and in
    /v1/embeddings; "classify": one that gives the scores of a sequence classifier's labels),
    `tuning` (a file of tuning records; those that `ferrule tune` keeps by default), `dump` (a
    folder for the graph after every pass), `parity` (compare with eager at the end), `progress`
    (bars on a terminal).

    Raises CompileError, with the model's source line, where a model cannot be compiled, and where
    the built model's logits depart from eager PyTorch's.
    """
    chosen = _options(options)
    if args is None and kwargs is None:
        if chosen.pooling is not None:
            return in_folder(None, lambda folder: write_embedder(model, folder, chosen))
        return build_in_temporary(model, chosen)
    if not isinstance(model, nn.Module):
        raise TypeError(f"args and kwargs are for a module, given {model!r}")
    return build_module(model, tuple(args or ()), dict(kwargs or {}), dynamic_shapes, chosen)


def _options(given: Given) -> Options:
    known = list(Given.__annotations__)
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ";"
            raise TypeError(f"no option {name!r}{hint} known: {', '.join(known)}")
    dump = given.get("dump")
    quantize = given.get("quantize")
    if isinstance(quantize, str | Path):
        quantize = recipe_of(quantize)
    dump = None if dump is None else Path(dump)
    return Options(**{**given, "dump": dump, "quantize": quantize})
