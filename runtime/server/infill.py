"""The prompt of a text that goes between two others, by the marks that a vocabulary has for it."""

from collections.abc import Iterable
from itertools import takewhile
from typing import NamedTuple

from ..text import Text
from .errors import unsupported
from .generation import beside
from .models import ServedModel


class Infill(NamedTuple):
    """The marks of a family as ids. What stands first, the text before the gap or the one behind
    it, depends on how its models were trained; where `middle` is None, the gap needs no mark.
    `ends` are tokens that no middle has.
    """

    prefix: int
    suffix: int
    middle: int | None
    suffix_first: bool
    ends: frozenset[int]


# Bavarian et al., "Efficient Training of Language Models to Fill in the Middle", section 3: a
# family's marks are whichever its vocabulary has, whatever the model is called.
_PREFIX_FIRST = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),
    ("<PRE>", "<SUF>", "<MID>"),
    ("<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>"),
)
_SUFFIX_FIRST = (
    ("<[fim-prefix]>", "<[fim-suffix]>", "<[fim-middle]>"),
    ("[PREFIX]", "[SUFFIX]", None),
)
# What else ends a middle: the end of a text or a file, and marks of places where no gap is.
_ENDS = (
    *("<EOT>", "▁<EOT>", "<|endoftext|>", "<|fim_pad|>", "<fim_pad>", "<fim-pad>"),
    *("<|file_sep|>", "<file_sep>", "<|file_separator|>", "<|repo_name|>", "<repo_name>"),
    *("<reponame>", "<filename>", "<|cursor|>"),
)
_PROBE = "☺"  # a character that joins no other


def infill_of(model: ServedModel) -> Infill:
    """The marks of a model's tokenizer; an error where it has none."""
    for forms, suffix_first in ((_PREFIX_FIRST, False), (_SUFFIX_FIRST, True)):
        for prefix, suffix, middle in forms:
            named = [mark for mark in (prefix, suffix, middle) if mark is not None]
            ids = _ids(model, named)
            if len(ids) == len(named):
                ends = frozenset([*ids, *_ids(model, _ENDS)])
                last = ids[2] if middle is not None else None
                return Infill(ids[0], ids[1], last, suffix_first, ends)
    wanted = ", ".join(_PREFIX_FIRST[0])
    has = f"the tokenizer of {model.name!r} has no marks of a gap, such as {wanted}"
    raise unsupported("suffix", has)


async def infill_prompt(
    model: ServedModel,
    marks: Infill,
    prefix: str | list[int],
    suffix: str,
    *,
    add_special_tokens: bool,
) -> list[int]:
    """The ids of a prompt that asks for what stands between two texts."""
    text = model.tokenizer

    def work() -> list[int]:
        given = prefix
        if isinstance(given, str):
            given = text.encode(given, add_special_tokens=False)
        before, behind = [marks.prefix, *given], [marks.suffix, *_continued(text, suffix)]
        parts = [*behind, *before] if marks.suffix_first else [*before, *behind]
        begin = _begin(text) if add_special_tokens else []
        return [*begin, *parts, *([] if marks.middle is None else [marks.middle])]

    return await beside(work, len(prefix) + len(suffix))


def _ids(model: ServedModel, names: Iterable[str]) -> list[int]:
    """The ids of those names that the tokenizer and the model have."""
    found = [model.tokenizer.tokenizer.token_to_id(name) for name in names]
    return [token for token in found if token is not None and token < model.vocabulary]


def _begin(text: Text) -> list[int]:
    """The tokens that the tokenizer puts before a prompt."""
    found = text.tokenizer.encode(_PROBE)
    added = zip(found.ids, found.special_tokens_mask, strict=True)
    return [token for token, _ in takewhile(lambda pair: pair[1], added)]


def _continued(text: Text, suffix: str) -> list[int]:
    """The ids of a text that goes on in the middle of a line. Some tokenizers put a blank before
    every text: there it is read behind a character that is taken away again.
    """
    probe = text.encode(_PROBE, add_special_tokens=False)
    if not (probe and str(text.tokenizer.id_to_token(probe[0])).startswith("▁")):
        return text.encode(suffix, add_special_tokens=False)
    return text.encode(_PROBE + suffix, add_special_tokens=False)[len(probe) :]
