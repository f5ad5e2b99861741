"""How a model is called, and the forms of its parts that are plain tensor algebra."""

from __future__ import annotations

import inspect
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn
from torch.nn.modules import transformer

from .associative import scanned_pairs
from .errors import CompileError
from .recurrent_layers import scanned_layers


def token_argument(model: nn.Module) -> str:
    """The name that a model's forward takes token ids by, "" where they are its first argument.

    A forward of named arguments alone takes them by the first, one of any names, or that has such a
    name behind others, as `input_ids`. Raises CompileError where it takes none.
    """
    named = inspect.signature(model.forward).parameters
    first = next(iter(named.values()), None)
    if "input_ids" in named and first is not named["input_ids"]:
        return "input_ids"
    if first is not None and first.kind is inspect.Parameter.KEYWORD_ONLY:
        return first.name
    if first is not None and first.kind is inspect.Parameter.VAR_KEYWORD:
        return "input_ids"
    if first is None:
        raise CompileError(
            f"the first argument of {type(model).__name__}.forward should be the token ids; "
            f"its signature is {inspect.signature(model.forward)}"
        )
    return ""


def plain_forms(model: nn.Module, undo: ExitStack) -> None:
    """Attention through SDPA where the model has it, expert layers as tensor algebra, masks as
    they are, recurrent layers and associative scans as scans: all exact.
    """
    _plain_attention(model, undo)
    _plain_experts(model, undo)
    _plain_masks(undo)
    scanned_layers(undo)
    scanned_pairs(undo)
    _plain_distances(undo)


def _plain_masks(undo: ExitStack) -> None:
    """torch's transformer layers ask whether a mask's numbers are the causal ones, for a faster
    path; the mask is applied all the same.
    """
    found: Any = transformer
    name = "_detect_is_causal_mask"
    if hasattr(found, name):
        undo.callback(setattr, found, name, getattr(found, name))
        setattr(found, name, lambda mask, is_causal=None, size=None: bool(is_causal))


def _plain_distances(undo: ExitStack) -> None:
    """torch.cdist asks how many rows there are, for a faster path; here the differences are taken
    one by one.
    """
    own = torch.cdist

    def cdist(x: torch.Tensor, y: torch.Tensor, p: float = 2.0, *rest: Any, **more: Any) -> Any:
        if p != 2.0:
            return own(x, y, p, *rest, **more)
        return (x[..., :, None, :] - y[..., None, :, :]).square().sum(-1).sqrt()

    undo.callback(setattr, torch, "cdist", own)
    setattr(torch, "cdist", cdist)  # noqa: B010 a module's attribute, to the type checker


def _plain_attention(model: Any, undo: ExitStack) -> None:
    current = getattr(getattr(model, "config", None), "_attn_implementation", None)
    if (
        current is None
        or current in ("sdpa", "eager")
        or not hasattr(model, "set_attn_implementation")
    ):
        return
    undo.callback(model.set_attn_implementation, current)
    model.set_attn_implementation("sdpa" if getattr(model, "_supports_sdpa", False) else "eager")


def _plain_experts(model: Any, undo: ExitStack) -> None:
    if hasattr(model, "set_experts_implementation") and hasattr(
        model, "get_experts_implementation"
    ):
        undo.callback(model.set_experts_implementation, model.get_experts_implementation())
        model.set_experts_implementation("batched_mm")
