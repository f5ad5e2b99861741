"""Thoughts as tokens: how many a model may have before its answer, and that a grammar waits for
their end.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from .adjust import Constraint
from .errors import RequestError
from .tensors import Array
from .text import Text

THOUGHT_TAGS: Mapping[str, str] = {
    "<think>": "</think>",  # Qwen, DeepSeek, GLM and most others
    "[THINK]": "[/THINK]",  # Mistral
    "<seed:think>": "</seed:think>",
    "◁think▷": "◁/think▷",  # Kimi
    "<reasoning>": "</reasoning>",
}
"""Tags around thoughts, which a model writes or a template begins."""


class Thinking:
    """One sequence's way through its thoughts, and through a grammar behind them.

    `marks` are tokens that begin thoughts and those that end them; `inside` is the end of those
    that the prompt began. Behind `budget` tokens of thoughts their end is all that may come.
    """

    def __init__(
        self,
        marks: Mapping[int, int],
        vocabulary: int,
        inside: int | None,
        budget: int | None,
        grammar: Constraint | None,
    ) -> None:
        self._marks, self._vocabulary = marks, vocabulary
        self._end, self._left, self._grammar = inside, budget, grammar

    @property
    def complete(self) -> bool:
        """Whether nothing may follow the last token."""
        return self._end is None and self._grammar is not None and self._grammar.complete

    def allowed(self) -> Array | None:
        """Which tokens may come next, bool[V]; None for all."""
        if self._end is None:
            return None if self._grammar is None else self._grammar.allowed()
        if self._left is None or self._left > 0:
            return None
        only: Array = np.zeros(self._vocabulary, np.bool_)
        only[self._end] = True
        return only

    def accept(self, token: int) -> None:
        """Take the token that came."""
        if self._end is None:
            if self._grammar is not None:
                self._grammar.accept(token)
            else:
                self._end = self._marks.get(token)
        elif token == self._end:
            self._end = None
        elif self._left is not None:
            self._left -= 1


def thinking(
    text: Text | None,
    vocabulary: int,
    prompt: Sequence[int],
    budget: int | None,
    grammar: Constraint | None,
) -> Constraint | None:
    """The constraint on the reply to a prompt by a budget of thoughts and a grammar, which begins
    behind thoughts that the prompt began. Raises `RequestError` where there is a budget, and
    thoughts have no tokens to begin and to end with.
    """
    if budget is None and grammar is None:
        return None
    marks = thought_tokens(text)
    if budget is not None and not marks:
        raise RequestError(
            "thinking_token_budget: the model's tokenizer has no tokens that begin and end thoughts"
        )
    inside = _begun(text, marks, prompt) if text and marks else None
    if budget is None and inside is None:
        return grammar
    return Thinking(marks, vocabulary, inside, budget, grammar)


def thought_tokens(text: Text | None) -> dict[int, int]:
    """The tokens that begin thoughts, and for each the one that ends them."""
    added = text.added if text else {}
    pairs = THOUGHT_TAGS.items()
    return {added[begin]: added[end] for begin, end in pairs if begin in added and end in added}


def _begun(text: Text, marks: Mapping[int, int], prompt: Sequence[int]) -> int | None:
    """The end of the thoughts that a prompt's last token begins, blanks left out."""
    for token in reversed(prompt):
        if not text.piece(token).isspace():
            return marks.get(token)
    return None
