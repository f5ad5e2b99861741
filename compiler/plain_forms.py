"""How a model is called, and the forms of its parts that are plain tensor algebra."""

from __future__ import annotations

import inspect
from contextlib import ExitStack
from functools import reduce, wraps
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules import transformer

from .associative import scanned_pairs
from .errors import CompileError
from .flexible_attention import plain_flexible_attention
from .helped import namespaces
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
    _plain_causality(model, undo)
    _plain_experts(model, undo)
    _plain_masks(undo)
    scanned_layers(undo)
    scanned_pairs(undo)
    _plain_distances(undo)
    _plain_windows(undo)
    _plain_bags(undo)
    plain_flexible_attention(undo)


def _plain_masks(undo: ExitStack) -> None:
    """torch's transformer layers ask whether a mask's numbers are the causal ones, for a faster
    path; the mask is applied all the same.
    """
    found: Any = transformer
    name = "_detect_is_causal_mask"
    if hasattr(found, name):
        undo.callback(setattr, found, name, getattr(found, name))
        setattr(found, name, lambda mask, is_causal=None, size=None: bool(is_causal))


def _plain_causality(model: nn.Module, undo: ExitStack) -> None:
    """torch's attention takes no symbol for is_causal, such as `length > 1` is: what it is for the
    lengths that are traced is asked for, where the model's own modules call it too.
    """
    own: Any = F.scaled_dot_product_attention

    @wraps(own)
    def attention(*args: Any, **more: Any) -> Any:
        asked = (bool(a) if isinstance(a, torch.SymBool) else a for a in args)
        if isinstance(more.get("is_causal"), torch.SymBool):
            more["is_causal"] = bool(more["is_causal"])
        return own(*asked, **more)

    places = [vars(F), *namespaces(model)]
    for place in {id(p): p for p in places}.values():
        for name in [n for n, value in place.items() if value is own]:
            undo.callback(place.__setitem__, name, own)
            place[name] = attention


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


def _plain_windows(undo: ExitStack) -> None:
    """torch.max_pool1d fixes the length; here it is the largest of shifted values."""
    own = torch.max_pool1d

    def max_pool1d(
        x: torch.Tensor, kernel: Any, stride: Any = None, *rest: Any, **more: Any
    ) -> torch.Tensor:
        given = dict(zip(("padding", "dilation", "ceil_mode"), rest, strict=False)) | more
        if given.get("ceil_mode"):
            return own(x, kernel, stride, *rest, **more)
        plain = (kernel, stride or kernel, given.get("padding", 0), given.get("dilation", 1))
        size, step, around, apart = (v if isinstance(v, int) else v[0] for v in plain)
        x = F.pad(x, (around, around), value=float("-inf")) if around else x
        last = (x.shape[-1] - apart * (size - 1) - 1) // step * step + 1
        parts = (x[..., apart * at : apart * at + last : step] for at in range(size))
        return reduce(torch.maximum, parts)

    undo.callback(setattr, torch, "max_pool1d", own)
    setattr(torch, "max_pool1d", max_pool1d)  # noqa: B010 as above


def _plain_bags(undo: ExitStack) -> None:
    """Bags of one size are rows of a table, joined."""
    found: Any = F
    own = found.embedding_bag
    names = tuple(inspect.signature(own).parameters)

    def embedding_bag(*args: Any, **more: Any) -> Any:
        given = dict(zip(names, args, strict=False)) | more
        places, table, mode = given["input"], given["weight"], given.get("mode", "mean")
        if places.dim() != 2 or any(given.get(n) is not None for n in ("max_norm", "padding_idx")):
            return own(*args, **more)
        rows, by = table[places], given.get("per_sample_weights")
        rows = rows if by is None else rows * by[..., None]
        joined = {"sum": rows.sum, "mean": rows.mean, "max": rows.amax}
        return joined[mode](dim=1)

    undo.callback(setattr, found, "embedding_bag", own)
    found.embedding_bag = embedding_bag


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
