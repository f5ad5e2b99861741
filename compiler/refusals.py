"""What a refusal of the tracer says about lengths, which it has as text alone."""

from __future__ import annotations

import re

A_NUMBER = "specialized it to be a constant"
STRIDES = 3  # what the tracer takes for granted of strides holds from so many tokens on, or fewer
_COUNTS_CHUNKS = re.compile(r"// \d+\)+ == [1-9]")
_LEAST = re.compile(r"S = Dim\('S', min=(\d+)")
_NOT_ONE = re.compile(r"// (\d+)\)+ != 1\.")
_MOST = re.compile(r"S = Dim\('S', .*max=(\d+)")
SIZES = {"B": "the number of sequences", "S": "the number of tokens"}
"""The sizes of token ids [B, S], in order."""


def is_settled(refusal: str) -> bool:
    """Whether no other way to ask helps: the model counts its tokens or its chunks, or takes
    another way where there are few windows of them. A plain least length is no such: `x[-16:]`
    has one by how it lies in memory.
    """
    counts = A_NUMBER in refusal or _COUNTS_CHUNKS.search(refusal) is not None
    return counts or ("//" in refusal and least_length(refusal) > STRIDES)


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


_VIOLATED = re.compile(r"UserError: Constraints violated \((.*?)\)![^\n]*((?:\n +- [^\n]*)*)")
_BY_DATA = re.compile(r"GuardOnDataDependentSymNode: [^\n]*")


def in_plain_words(refusal: str) -> str:
    """A refusal with the model's part in it in place of the tracer's own advice."""
    refusal = _VIOLATED.sub(_of_sizes, refusal)
    return _BY_DATA.sub(
        "what its code does there, or of what size, depends on the tokens' values, so that it is "
        "no one computation for all tokens",
        refusal,
    )


def _of_sizes(found: re.Match[str]) -> str:
    numbers = re.findall(r"You marked (\w+) as dynamic but your code " + A_NUMBER, found[2])
    if not numbers:
        first = found[2].strip().split("\n")[0].removeprefix("- ")
        return f"it is not for all sizes: {first or found[1]}"
    names = " and ".join(SIZES.get(n, str(n)) for n in dict.fromkeys(numbers))
    return f"the model is for any size, and its code makes a fixed number of {names}"
