"""Packed weights as they were before packing, by the word of their layout."""

from __future__ import annotations

import re

import torch

from ...ir.errors import IRError

_WORD = re.compile(r"n(?P<columns>\d+)(?:k(?P<depth>\d+)(?:x(?P<pairs>\d+))?)?")


def unpacked(w: torch.Tensor, n: int, k: int, layout: str) -> torch.Tensor:
    """The weight [..., n, k] from [..., n / c, k / d, c(, d)] (n<c>, n<c>k<d>), or from
    [..., n / c, k / (d p), c, d, p] (n<c>k<d>x<p>), where p stretches of d lie interleaved.
    """
    word = _WORD.fullmatch(layout)
    if word is None:
        known = "n<columns>, n<columns>k<depth> or n<columns>k<depth>x<pairs>"
        raise IRError(f"no weight layout {layout!r}; a layout is {known}")
    w = w if word["depth"] else w[..., None]
    if word["pairs"]:
        w = w.transpose(-1, -2).flatten(-2)
    rows = w.transpose(-3, -2).flatten(-2, -1).flatten(-3, -2)
    return rows[..., :n, :k]
