"""What a refusal of the tracer says about lengths, which it has as text alone."""

from __future__ import annotations

import re

A_NUMBER = "specialized it to be a constant"
STRIDES = 3  # what the tracer takes for granted of strides holds from so many tokens on, or fewer
_COUNTS_CHUNKS = re.compile(r"// \d+\)+ == [1-9]")
_LEAST = re.compile(r"S = Dim\('S', min=(\d+)")
_NOT_ONE = re.compile(r"// (\d+)\)+ != 1\.")
_MOST = re.compile(r"S = Dim\('S', .*max=(\d+)")


def is_settled(refusal: str) -> bool:
    """Whether no other way to ask helps: the model counts its tokens or its chunks, or takes
    another way where there are few tokens.
    """
    counts = A_NUMBER in refusal or _COUNTS_CHUNKS.search(refusal) is not None
    return counts or least_length(refusal) > STRIDES


def least_length(refusal: str) -> int:
    """The length from which on the tracer would have a model, in place of all; 0 where it names
    none.
    """
    found = _LEAST.search(refusal)
    return int(found[1]) if found else 0


def most_length(refusal: str, limit: int) -> int:
    """The length up to which the tracer would have a model; the limit where it names none."""
    found = _MOST.search(refusal)
    return min(limit, int(found[1])) if found else limit


def second_window(refusal: str) -> int:
    """The length from which on there are two windows, where the tracer would not have one alone; 0
    where it would.
    """
    return max((2 * int(size) for size in _NOT_ONE.findall(refusal)), default=0)
