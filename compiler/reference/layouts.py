"""Packed weights as they were before packing, by the word of their layout."""

from __future__ import annotations

import re

import torch

from ...ir.errors import IRError

_WORD = re.compile(r"n(?P<columns>\d+)(?:k(?P<depth>\d+)(?:x(?P<pairs>\d+))?)?(?:s(?P<sides>\d+))?")


def columns_of(layout: str) -> str:
    """The layout of what a weight has one or more of for each column: scales, zeros."""
    word = _word(layout)
    return f"n{word['columns']}" + (f"s{word['sides']}" if word["sides"] else "")


def unpacked(w: torch.Tensor, n: int, k: int, layout: str) -> torch.Tensor:
    """The weight [..., n, k] from [..., n / c, k / d, c(, d)] (n<c>, n<c>k<d>), or from
    [..., n / c, k / (d p), c, d, p] (n<c>k<d>x<p>), where p stretches of d lie interleaved. With
    s<sides> behind it the blocks of that many parts of n take turns.
    """
    word = _word(layout)
    w = w if word["depth"] else w[..., None]
    if word["pairs"]:
        w = w.transpose(-1, -2).flatten(-2)
    if word["sides"]:
        w = w.unflatten(-4, (-1, int(word["sides"]))).transpose(-5, -4).flatten(-5, -4)
    rows = w.transpose(-3, -2).flatten(-2, -1).flatten(-3, -2)
    return rows[..., :n, :k]


def _word(layout: str) -> re.Match[str]:
    word = _WORD.fullmatch(layout)
    if word is None:
        known = "n<columns>, n<columns>k<depth> or n<columns>k<depth>x<pairs>, with s<sides> or not"
        raise IRError(f"no weight layout {layout!r}; a layout is {known}")
    return word
