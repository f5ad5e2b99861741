"""torch's flex_attention as what it stands for: scores that a function changes, under a mask that a
function gives, a softmax, and values.

Both functions are written for one score, of a batch, a head, a query and a key; here they are given
the places of all of them, which broadcast.
"""

from __future__ import annotations

import importlib
from contextlib import ExitStack
from typing import Any

import torch
from torch.nn import functional as F

Tensor = torch.Tensor


def plain_flexible_attention(undo: ExitStack) -> None:
    """flex_attention written out, until `undo`; where torch has it in another form it stays."""
    # By its name: a function hides the module.
    found: Any = importlib.import_module("torch.nn.attention.flex_attention")
    names = ("flex_attention_hop", "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", "_identity")
    if not all(hasattr(found, name) for name in names):
        return
    plain = {"flex_attention_hop": _Plain(found), "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG": True}
    for name, own in plain.items():
        undo.callback(setattr, found, name, getattr(found, name))
        setattr(found, name, own)


class _Plain:
    """What torch calls with q[B, H, S, D], the functions, and how blocks of the mask lie."""

    def __init__(self, found: Any) -> None:
        self.unchanged = (found._identity, getattr(found, "noop_mask", None))

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, score_mod: Any, blocks: Any, scale: float, *_: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(y, the logarithms of the sums, the largest scores)."""
        groups = q.shape[1] // k.shape[1]
        if groups > 1:
            k, v = (x.repeat_interleave(groups, dim=1) for x in (k, v))
        places = tuple(
            torch.arange(size).view(size, *(1 for _ in range(3 - axis)))
            for axis, size in enumerate((*q.shape[:3], k.shape[2]))
        )
        mask = None if blocks[-1] in self.unchanged else self._mask(blocks[-1], places)
        scores = q @ k.transpose(-1, -2) * scale
        if score_mod not in self.unchanged:
            scores = score_mod(scores, *places).to(q.dtype)
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        if score_mod in self.unchanged:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
        else:
            y = scores.softmax(dim=-1) @ v
        return y, scores.logsumexp(dim=-1), scores.amax(dim=-1)

    def _mask(self, mask_mod: Any, places: tuple[Tensor, ...]) -> Tensor:
        """Whether a query sees a key, [S, L] or with heads and batches before."""
        seen = mask_mod(*places)
        wide = torch.ones_like(places[2] + places[3], dtype=torch.bool)
        return seen if seen.dim() > 1 else seen & wide
