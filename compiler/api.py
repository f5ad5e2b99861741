"""`ferrule.compile`: a model, or any other module, becomes something that runs without PyTorch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from torch import nn

from .build import Options, build_in_temporary
from .module import CompiledModule

if TYPE_CHECKING:
    from ..runtime.artifact import Artifact


@overload
def compile(model: nn.Module | str | Path, **options: Any) -> Artifact: ...
@overload
def compile(
    model: nn.Module,
    *,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    **options: Any,
) -> CompiledModule: ...
def compile(
    model: nn.Module | str | Path,
    *,
    args: Sequence[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    target: str = "cpu",
    dtype: str = "auto",
    max_context: int | None = None,
    max_batch: int = 32,
    chunk: int = 512,
    block: int = 16,
    tokenizer: Any = None,
    dump: Path | str | None = None,
    parity: bool = True,
    progress: bool = True,
) -> Artifact | CompiledModule:
    """An artifact of a causal language model: a module, or the directory or name of a Hugging
    Face checkpoint.

    With `args` or `kwargs`, a callable of any other module, with the module's own signature; its
    dims are those of the arguments but for the ones that `dynamic_shapes` (as in torch.export)
    leaves open. `dtype` is "auto" (the checkpoint's), "float32", "bfloat16" or "float16"; `chunk`
    is the most tokens of a step; `dump` is a folder for the graph after every pass. Raises
    CompileError, with the model's source line, where a model cannot be compiled, and where the
    built model's logits depart from eager PyTorch's.
    """
    options = Options(
        target=target,
        dtype=dtype,
        max_context=max_context,
        max_batch=max_batch,
        chunk=chunk,
        block=block,
        tokenizer=tokenizer,
        dump=None if dump is None else Path(dump),
        parity=parity,
        progress=progress,
    )
    if args is None and kwargs is None:
        return build_in_temporary(model, options)
    if not isinstance(model, nn.Module):
        raise TypeError(f"args and kwargs are for a module, given {model!r}")
    from .module import build_module

    return build_module(model, tuple(args or ()), dict(kwargs or {}), dynamic_shapes, options)
